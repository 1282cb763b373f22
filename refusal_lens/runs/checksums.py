"""One record of SHA-256 for all that a run wrote, and what to do where a file differs from it.

Knows which stage writes which file. Does not know what is in them. The shards of activations have
records of their own: workers on many machines write them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refusal_lens.errors import RefusalLensError
from refusal_lens.files import file_sha256, read_sealed, write_sealed, write_whole

RECORD = "checksums.json"

_STAGES = {
    "config.yaml": "collect --resume --output",
    "prompts.json": "collect --resume --output",
    "provenance.json": "collect --resume --output",
    "tables/token_counts.csv": "collect --resume --output",
    "refusal.json": "refusal-rate",
    "tables/causal_scores.csv": "select",
    "tables/dose_response.csv": "ablate",
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

    The record is written before the file is put in its place, and keeps the checksum of the file
    that it replaces: killed between the two, the run is still one that nothing has damaged.

    Args:
        folder: The run folder.
        name: Of the file, as a path from the run folder with `/`.
    """
    with write_whole(folder / name) as file:
        yield file
        record(folder, name, file)


def record(folder: Path, name: str, written: Path | None = None) -> None:
    """Keep the checksum of a file of a run.

    Args:
        folder: The run folder.
        name: As in `write_recorded`.
        written: Where the file lies as yet; None where it is to be.
    """
    files = _read(folder)
    checksum = file_sha256(written or folder / name)
    known = [each for each in files.get(name, []) if each != checksum]
    write_sealed(folder / RECORD, {"files": {**files, name: [checksum, *known[:1]]}})


def check(folder: Path, name: str) -> None:
    """Make sure that a file is what the run wrote. What no record names is taken as it is.

    Raises:
        RefusalLensError: It was damaged or edited; the message says which command writes it again.
    """
    recorded = _read(folder).get(name)
    if recorded is not None and file_sha256(folder / name) not in recorded:
        raise RefusalLensError(
            f"{folder / name} is not what the run wrote (its SHA-256 is another): it was damaged "
            f"or edited. {way_back(folder, name)}"
        )


def way_back(folder: Path, name: str) -> str:
    """Say how a file of a run comes about again."""
    command = _STAGES.get(name, "fit")
    first = "Put it back, or write it again:"
    if command.startswith("collect"):
        # These say what the run is, and are compared with what goes on with it.
        first = "Put it back, or remove it and go on with the options that the run was begun with:"
    return f"{first} refusal-lens {command} {folder}."


def _read(folder: Path) -> dict[str, list[str]]:
    if not (folder / RECORD).is_file():
        return {}
    try:
        return read_sealed(folder / RECORD)["files"]
    except RefusalLensError as error:
        raise RefusalLensError(
            f"{error} Remove it to have the run's files taken as they are; its stages record anew "
            f"what they write."
        ) from error
