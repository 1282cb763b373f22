"""One record of SHA-256 for all that a run wrote, and what to do where a file differs from it.

Knows which stage writes which file, and which stages are finished. Does not know what is in them.
The shards of activations have records of their own: workers on many machines write them.
"""

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refusal_lens.errors import RefusalLensError
from refusal_lens.files import file_sha256, read_sealed, write_sealed, write_whole
from refusal_lens.journal import fingerprint

RECORD = "checksums.json"

_STAGES = {
    "config.yaml": "collect --resume --output",
    "prompts.json": "collect --resume --output",
    "provenance.json": "collect --resume --output",
    "tables/token_counts.csv": "collect --resume --output",
    "activations": "collect --resume --output",
    "refusal.json": "refusal-rate",
    "borderline.json": "refusal-rate",
    "tables/refusal_by_length.csv": "refusal-rate",
    "tables/judge_agreement.csv": "judge",
    "tables/judge_confusion.csv": "judge",
    "tables/corrected_rates.csv": "judge",
    "tables/causal_scores.csv": "select",
    "tables/dose_response.csv": "ablate",
    "tables/side_effects.csv": "ablate",
    "tables/verdict.csv": "ablate",
    "interventions.csv": "ablate",
    "completions.jsonl": "ablate",
    "tables/attribution.csv": "attribute",
    "tables/unembedding.csv": "attribute",
    "tables/prompt_tokens.csv": "attribute",
    "report.html": "report",
}
"""The command that writes a file; every other one is written by `fit`."""


@contextmanager
def write_recorded(folder: Path, name: str) -> Iterator[Path]:
    """Write a file of a run whole or not at all, and record its checksum.

    `name` is its path from the run folder, with `/`.

    The record is written before the file is put in its place, and keeps the checksum of the file
    that it replaces: killed between the two, the run is still one that nothing has damaged.
    """
    with write_whole(folder / name) as file:
        yield file
        record(folder, name, file)


def record(folder: Path, name: str, written: Path | None = None) -> None:
    """Keep the checksum of a file of a run, which lies at `written` if not in its place yet."""
    content = _read(folder)
    checksum = file_sha256(written or folder / name)
    known = [each for each in content["files"].get(name, []) if each != checksum]
    files = {**content["files"], name: [checksum, *known[:1]]}
    write_sealed(folder / RECORD, {**content, "files": files})


def check(folder: Path, name: str) -> None:
    """Make sure that a file is what the run wrote. What no record names is taken as it is.

    Raises:
        RefusalLensError: It was damaged or edited; the message says which command writes it again.
    """
    recorded = _read(folder)["files"].get(name)
    if recorded is not None and file_sha256(folder / name) not in recorded:
        raise RefusalLensError(
            f"{folder / name} is not what the run wrote (its SHA-256 is another): it was damaged "
            f"or edited. {way_back(folder, name)}"
        )


def writer_of(name: str) -> str:
    """Return the command that writes a file, up to the run folder that it is given."""
    return _STAGES.get(name, "fit")


def way_back(folder: Path, name: str) -> str:
    """Say how a file of a run comes about again."""
    command = writer_of(name)
    first = "Put it back, or write it again:"
    if command.startswith("collect"):
        # These say what the run is, and are compared with what goes on with it.
        first = "Put it back, or remove it and go on with the options that the run was begun with:"
    return f"{first} refusal-lens {command} {shlex.quote(str(folder))}."


# --- stages that need not be done again ---------------------------------------------------------


def begin(folder: Path, stage: str) -> None:
    """Take a stage for unfinished from now on: its files are about to change."""
    content = _read(folder)
    if stage in content["finished"]:
        finished = {name: each for name, each in content["finished"].items() if name != stage}
        write_sealed(folder / RECORD, {**content, "finished": finished})


def finish(folder: Path, stage: str, settings: object, names: Iterable[str] = ()) -> None:
    """Note that a stage has ended well, by what it read and which files it left.

    `names` are those of the figures that it drew; tables and vectors are known by their endings.
    """
    content = _read(folder)
    written = [name for name in content["files"] if _is_result(name) and name not in _STAGES]
    mark = {
        "inputs": _inputs(content["files"], stage, settings),
        "files": sorted(names) or written,
    }
    finished = {**content["finished"], stage: mark}
    write_sealed(folder / RECORD, {**content, "finished": finished})


def is_finished(folder: Path, stage: str, settings: object) -> bool:
    """Whether a stage need not be done again: from the same inputs, its files are what it wrote."""
    content = _read(folder)
    mark = content["finished"].get(stage)
    if mark is None or mark["inputs"] != _inputs(content["files"], stage, settings):
        return False
    return all(
        (folder / name).is_file() and file_sha256(folder / name) in content["files"].get(name, [])
        for name in mark["files"]
    )


def _inputs(files: dict[str, list[str]], stage: str, settings: object) -> str:
    """Return what a stage reads, in one text: a fit what was collected, others all results."""
    fitted_from = (
        *("prompts.json", "provenance.json", "tables/token_counts.csv"),
        *("refusal.json", "borderline.json"),
    )
    inputs = {
        name: checksums[0]
        for name, checksums in files.items()
        if (name in fitted_from if stage == "fit" else _is_result(name))
    }
    return fingerprint(inputs, settings)


def _is_result(name: str) -> bool:
    """Whether a file holds results, and is no picture of them."""
    is_table = Path(name).suffix in (".csv", ".safetensors", ".pt")
    return name != "report.html" and (is_table or name in _STAGES)


def _read(folder: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {"files": {}, "finished": {}}
    if not (folder / RECORD).is_file():
        return empty
    try:
        return empty | read_sealed(folder / RECORD)
    except RefusalLensError as error:
        raise RefusalLensError(
            f"{error} Remove it to have the run's files taken as they are; its stages record anew "
            f"what they write."
        ) from error
