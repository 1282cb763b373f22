"""Files and requests from anywhere: only RefusalLensError comes out, nothing runs or takes much.

`pytest -m fuzz -n 0 -s tests/test_fuzz.py` tries many and prints how many; the default run a few.
"""

import errno
import io
import json
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import explored_run
import flask
import numpy as np
import pandas as pd
import planted_run
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save

from refusal_lens import load_directions
from refusal_lens.activations.store import load_hook_point
from refusal_lens.config import Config
from refusal_lens.config_files import load_config
from refusal_lens.directions.formats import read_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.dose_response import Completion
from refusal_lens.experiments.hand_labels import draw_sheet
from refusal_lens.experiments.judges import judge_of
from refusal_lens.explorer import build_app
from refusal_lens.explorer.runs import explore_runs
from refusal_lens.files import portable_name
from refusal_lens.journal import Journal
from refusal_lens.models.gguf_files import read_gguf
from refusal_lens.prompts.files import read_prompts
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages.judging import labels_stage

RUNS_CODE = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect")
ran: list[str] = []
is_watched = False
sys.addaudithook(lambda name, _: ran.append(name) if is_watched and name in RUNS_CODE else None)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["text", "id", "category", "input", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(["model", "prompts", "output", "validation", "seed", "dose", "x"])
SETTINGS = {
    section: getattr(info.annotation, "model_fields", {}).keys()
    for section, info in Config.model_fields.items()
}
WORDS = st.sampled_from(
    [
        *("auto", "off", "phrases", "data", "data/tiny-refuser", "python:os.execlp", "python:.x"),
        *("endpoint:m", "resid_post:1-", "-1", "2026-11-29", ".nan", "C:\\x", "\u202e", "refused"),
    ]
)
TENSORS = {
    "refuse_0": torch.ones(4),
    "layers": 2,
    "num_layers": 2,
    "directions": {0: torch.tensor([1.0, 0.0])},
}


@contextmanager
def watched() -> Iterator[None]:
    global is_watched
    is_watched = True
    try:
        yield
    finally:
        is_watched = False


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def test_a_file_that_takes_a_gigabyte_is_found():
    with pytest.raises(AssertionError, match="peak"):
        survives(lambda: b"x" * (peak_bytes() + 1_000_000_000))


def survives(read: Callable[[], object]) -> tuple[object, str]:
    """Read once: a result or the package's own error; nothing is run, in 5 s and 1 GB.

    Returns:
        The result, and what the error says; "" without one.
    """
    ran.clear()
    # Of the processor: what else runs on the machine is no fault.
    begun, peak = time.process_time(), peak_bytes()
    value, told = None, ""
    with watched(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = read()
        except RefusalLensError as error:
            told = str(error)
    assert len(told) < 20_000
    assert not ran
    assert time.process_time() - begun < 5
    assert peak_bytes() - peak < 1e9
    return value, told


def flipped(draw: st.DrawFn, content: bytes) -> bytes:
    """Change some bytes of a file, and perhaps cut it."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.integers(0, len(changed)))] if draw(st.booleans()) else changed)


@st.composite
def prompt_files(draw: st.DrawFn) -> tuple[str, bytes]:
    suffix = draw(st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet"]))
    rows = draw(st.lists(VALUES, max_size=5))
    content = "\n".join(json.dumps(row) for row in rows) if suffix == ".jsonl" else json.dumps(rows)
    if suffix in (".csv", ".tsv"):
        content = draw(st.text(alphabet='text,id"\n\tab', max_size=80))
    return f"a{suffix}", flipped(draw, content.encode() or b"\n")


@st.composite
def known_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Keys that a config has, with values that they may have and others."""
    content: dict[str, Any] = {}
    for section in draw(st.lists(st.sampled_from(sorted(SETTINGS)), max_size=4)):
        names = sorted(SETTINGS[section])
        values = WORDS | st.lists(WORDS, max_size=3) | st.dictionaries(WORDS, WORDS) | VALUES
        keys = st.dictionaries(st.sampled_from(names), values, max_size=3) if names else WORDS
        content[section] = draw(keys)
    return content


@st.composite
def config_files(draw: st.DrawFn) -> tuple[str, bytes]:
    content = draw(
        st.dictionaries(KEYS, VALUES, max_size=5).map(json.dumps)
        | known_settings().map(json.dumps)
        | st.text(max_size=100)
    )
    return "a.yaml", flipped(draw, content.encode(errors="replace") or b"\n")


def direction_samples(folder: Path) -> dict[str, bytes]:
    torch.save(TENSORS, folder / "a.pt")
    torch.save(torch.ones(1, 2, 4), folder / "b.pt")
    np.savez(folder / "a.npz", **{"blocks.1.hook_resid_post": np.ones((1, 4))})
    (folder / "a.svec").write_text(json.dumps({"directions": {"1": [1.0, 2.0]}}))
    (folder / "a.safetensors").write_bytes(save({"vectors": torch.ones(1, 1, 4)}))
    write_gguf(folder / "a.gguf", "controlvector", {"direction.1": np.ones(4, np.float32)})
    samples = {path.name: path.read_bytes() for path in folder.iterdir()}
    return samples | {"b.gguf": b"GGUF" + bytes([3, 0, 0, 0]) + bytes(60)}


def write_gguf(path: Path, architecture: str, tensors: dict[str, np.ndarray]) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_string("controlvector.model_hint", "qwen2")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fuzz(name: str, attacks: st.SearchStrategy, attempt: Callable[[Any], object], n: int) -> None:
    """Try n attacks, of which none may fail, and print a row of the README's table."""
    tried = 0

    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(attacks)
    def attack(drawn: Any) -> None:
        nonlocal tried
        attempt(drawn)
        tried += 1

    begun = time.process_time()
    attack()
    seconds = time.process_time() - begun
    sys.stdout.write(f"\n| {name} | {tried:,} | {tried:,} | {seconds:.0f} |\n")


def fuzz_files(
    name: str, written: st.SearchStrategy, read: Callable[[Path], object], n: int, folder: Path
) -> None:
    def attempt(file: tuple[str, bytes]) -> None:
        path = folder / file[0]
        path.write_bytes(file[1])
        survives(lambda: read(path))

    fuzz(name, written, attempt, n)


@pytest.fixture(autouse=True)
def many_only_when_asked(request):
    is_long = request.node.get_closest_marker("fuzz") is not None
    if is_long and "fuzz" not in request.config.option.markexpr:
        pytest.skip("tries thousands of files: -m fuzz")


SIZES = [pytest.param(False, id="few"), pytest.param(True, marks=pytest.mark.fuzz, id="many")]


@pytest.mark.parametrize("is_long", SIZES)
def test_prompt_files(tmp_path, is_long):
    n = 10_000 if is_long else 100
    fuzz_files("prompt files", prompt_files(), lambda path: read_prompts(path, "x"), n, tmp_path)


@pytest.mark.parametrize("is_long", SIZES)
def test_configs(tmp_path, is_long):
    def read(path: Path) -> object:
        return judge_of(load_config(path).refusal)

    fuzz_files("configs", config_files(), read, 10_000 if is_long else 100, tmp_path)


@pytest.mark.parametrize("is_long", SIZES)
def test_direction_files(tmp_path, is_long):
    samples = direction_samples(tmp_path)

    @st.composite
    def written(draw: st.DrawFn) -> tuple[str, bytes]:
        name = draw(st.sampled_from(sorted(samples)))
        return name, flipped(draw, samples[name])

    fuzz_files("direction files", written(), read_directions, 2_000 if is_long else 60, tmp_path)


@pytest.mark.parametrize("is_long", SIZES)
def test_gguf_files(tmp_path, is_long):
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", {"token_embd.weight": np.ones((2, 32), np.float32)})
    content = path.read_bytes()

    @st.composite
    def written(draw: st.DrawFn) -> tuple[str, bytes]:
        return path.name, flipped(draw, content)

    fuzz_files("GGUF files", written(), read_gguf, 1_000 if is_long else 40, tmp_path)


@pytest.mark.parametrize("is_long", SIZES)
def test_sheets_of_labels(tmp_path, is_long):
    run = write_run(tmp_path / "run")
    console = Console(file=io.StringIO())
    sheet = draw_sheet(run.read_refusal(), 8)
    labels = ("refused", " Answered", "", "maybe", "broken")

    @st.composite
    def written(draw: st.DrawFn) -> tuple[str, bytes]:
        filled = sheet.assign(label=draw(st.lists(st.sampled_from(labels), min_size=8, max_size=8)))
        kept = draw(st.lists(st.sampled_from([*sheet.columns, "label"]), max_size=6))
        content = draw(st.sampled_from([filled, filled[kept]])).to_csv(index=False)
        return "sheet.csv", flipped(
            draw, draw(st.just(content) | st.text(max_size=60)).encode() or b"\n"
        )

    def read(path: Path) -> object:
        return labels_stage(run.read_config(), run, path, console)

    fuzz_files("sheets of labels", written(), read, 1_000 if is_long else 40, tmp_path)


@pytest.mark.parametrize("is_long", SIZES)
def test_journals_give_what_was_kept_or_nothing(tmp_path, is_long):
    path = tmp_path / "answers.jsonl"
    kept = {f"key {i}": [i, f"answer \u202e {i}", None] for i in range(5)}
    for key, value in kept.items():
        Journal(path).once(key, lambda value=value: value)
    content = path.read_bytes()

    @st.composite
    def written(draw: st.DrawFn) -> bytes:
        return flipped(draw, content)

    def attempt(changed: bytes) -> None:
        path.write_bytes(changed)
        for key, value in kept.items():
            found, told = survives(lambda key=key: Journal(path).once(key, lambda: "anew"))
            assert not told
            assert found in (value, "anew")

    fuzz("journals", written(), attempt, 1_000 if is_long else 40)


# --- a run folder -------------------------------------------------------------------------------


TABLES = (
    *("attribution", "dose_response", "judge_agreement", "judge_confusion"),
    *("layer_cosines", "learning_curve", "prompt_tokens"),
    *("refusal_by_length", "unembedding", "verdict"),
)
"""Written with any columns: what counts is whether a change of them is found."""


def write_run(folder: Path, tables: Sequence[str] = ()) -> RunFolder:
    """Write a small run with every kind of file that the stages write, and more tables."""
    run = explored_run.make_run(folder, n=10, n_layers=2, d_model=4)
    prompts = run.read_prompts()
    counts = {"prompt_id": [prompt.id for prompt in prompts.prompts], "n_tokens": 9}
    run.write_table("token_counts", pd.DataFrame({**counts, "n_own_tokens": 5}))
    run.write_refusal(planted_run.make_refusal(prompts, None))
    run.write_refusal_direction(run.read_directions(), run.separation())
    run.write_table("nulls", planted_run.nulls(0.01))
    run.write_table("nested_choice", planted_run.nested_choice())
    run.write_table("power", planted_run.power(0.65))
    run.write_table("corrected_rates", planted_run.corrected_rates())
    run.write_table("stability", planted_run.stability(0.9))
    run.write_table("causal_scores", planted_run.causal_scores("valid"))
    run.write_table("interventions", planted_run.learning_curve())
    for name in tables:
        run.write_table(name, planted_run.causal_scores("valid"))
    answers = ("No.", "Yes.", "refused", "answered")
    run.write_completions([Completion("a", "c", True, "How?", "ablate", "fitted", 1.0, *answers)])
    run.write_report("<html></html>")
    return run


def explored(path: Path) -> object:
    (run,) = explore_runs([path]).values()
    return run.prompts, run.is_harmful, run.projected(run.run_method), run.best, run.methods


READERS: dict[str, Callable[[Path], object]] = {
    "config": lambda path: RunFolder.open(path).read_config().model_dump(),
    "prompts": lambda path: RunFolder(path).read_prompts(),
    "provenance": lambda path: RunFolder(path).read_provenance(),
    "token counts": lambda path: RunFolder(path).read_table("token_counts"),
    "activations": lambda path: RunFolder(path).read_activations(),
    "hook point": lambda path: load_hook_point(path / "activations", "blocks.1.hook_resid_post"),
    "refusal": lambda path: RunFolder(path).read_refusal(),
    "directions": lambda path: RunFolder(path).read_directions(),
    "directions alone": lambda path: load_directions(path / "directions.safetensors"),
    "article's directions": lambda path: load_directions(path / "refusal_direction.pt"),
    "separation": lambda path: RunFolder(path).separation(),
    "best": lambda path: RunFolder(path).best(),
    "projections": lambda path: RunFolder(path).read_projections(),
    "interventions": lambda path: RunFolder(path).read_table("interventions"),
    **{
        name: lambda path, name=name: RunFolder(path).read_table(name)
        for name in ("nulls", "stability", "causal_scores", *TABLES)
    },
    "explorer": explored,
}


def plain(value: Any) -> Any:
    """Take a value apart into what `repr` writes whole."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, pd.DataFrame):
        return value.to_csv()
    if is_dataclass(value):
        return [(field.name, plain(getattr(value, field.name))) for field in fields(value)]
    if isinstance(value, dict):
        # safetensors gives a header's keys in any order.
        return sorted(((key, plain(each)) for key, each in value.items()), key=repr)
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


@st.composite
def flips(draw: st.DrawFn, samples: dict[str, bytes]) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(samples)))
    return name, flipped(draw, samples[name])


def test_files_of_a_run_have_names_that_windows_takes(tmp_path):
    run = write_run(tmp_path / "run")
    names = [part for path in run.path.rglob("*") for part in path.relative_to(run.path).parts]
    assert len(names) > 17
    assert [portable_name(name) for name in names] == names


def test_a_disk_that_is_full_is_told_with_the_file_whichever_it_is(tmp_path, monkeypatch):
    fsync, told = os.fsync, []
    for refused in range(200):
        left = iter(range(refused))

        def full(handle: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        monkeypatch.setattr(os, "fsync", full)
        folder = tmp_path / str(refused)
        try:
            write_run(folder)
        except RefusalLensError as error:
            told.append(str(error))
            assert not list(folder.rglob("*.partial"))
        else:
            break
    ways = r"could not be written: No space left.* Free space|The disk is full: .*Free about"
    assert [each for each in told if not re.search(ways, each)] == []
    # Of shards, the folder is named.
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.name for path in paths if not path.name.startswith("shard-")}
    named = {name for name in files for each in told if f"/{name} could not" in each}
    assert named == files


@pytest.mark.parametrize("is_long", SIZES)
def test_flipped_files_of_a_run_are_named_or_read_as_they_were(tmp_path, is_long):
    run = write_run(tmp_path / "run", TABLES)
    paths = [path for path in run.path.rglob("*") if path.is_file()]
    samples = {str(path.relative_to(run.path)): path.read_bytes() for path in paths}
    assert len(samples) >= 30
    expected = {name: repr(plain(read(run.path))) for name, read in READERS.items()}

    def attempt(file: tuple[str, bytes]) -> None:
        path = run.path / file[0]
        # A shard's record is told of under its shard's name.
        names = {path.name, path.with_suffix(".safetensors").name}
        path.write_bytes(file[1])
        for name, read in READERS.items():
            value, told = survives(partial(read, run.path))
            is_told = any(each in told for each in names)
            assert is_told or (not told and repr(plain(value)) == expected[name]), (name, told)
        path.write_bytes(samples[file[0]])

    fuzz("flips of a run's files", flips(samples), attempt, 500 if is_long else 20)


# --- the explorer's server ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> flask.Flask:
    run = explored_run.make_run(tmp_path_factory.mktemp("runs") / "run", n=10, n_layers=2)
    return build_app([run.path]).server


def callback_bodies(asked: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """Bodies as the page sends them, for its own callbacks, with values that it never sends."""

    @st.composite
    def bodies(draw: st.DrawFn) -> bytes:
        callback = draw(st.sampled_from(asked))
        given = {
            kind: [{**each, "value": draw(STORED | VALUES)} for each in callback[kind]]
            for kind in ("inputs", "state")
        }
        changed = [f"{each['id']}.{each['property']}" for each in given["inputs"]]
        outputs = [
            dict(zip(("id", "property"), each.rsplit(".", 1), strict=True))
            for each in callback["output"].strip(".").split("...")
        ]
        body = {
            "output": callback["output"],
            "outputs": outputs if len(outputs) > 1 else outputs[0],
            "changedPropIds": draw(st.lists(st.sampled_from(changed), max_size=2)),
            **given,
        }
        return flipped(draw, json.dumps(body).encode())

    return bodies()


STORED = st.sampled_from(["light", "dark", "?layer=1", "?selected=0-9999999", "resid_post"])
METHODS = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "ODD"])
PATHS = st.sampled_from(
    [
        "",
        "_dash-layout",
        "_dash-dependencies",
        "_dash-update-component",
        "_reload-hash",
        "_favicon.ico",
        "assets/../server.py",
        "_dash-component-suites/dash/../../x.py",
    ]
) | st.text(max_size=20).map(lambda text: quote(text, errors="replace"))
KINDS = st.sampled_from(["application/json", "text/plain", "multipart/form-data", ""])


@pytest.mark.parametrize("is_long", SIZES)
def test_requests_to_the_explorer_are_answered_without_a_traceback(server, is_long, capfd):
    client = server.test_client()
    asked = [
        each for each in client.get("/_dash-dependencies").json if not each["clientside_function"]
    ]
    free = st.tuples(METHODS, PATHS, st.text(max_size=30), KINDS, st.binary(max_size=60))
    posted = st.tuples(
        st.just("POST"),
        st.just("_dash-update-component"),
        st.just(""),
        st.just("application/json"),
        callback_bodies(asked),
    )
    statuses: set[int] = set()

    def attempt(request: tuple[str, str, str, str, bytes]) -> None:
        method, path, query, kind, body = request
        answer, told = survives(
            lambda: client.open(
                f"/{path}", method=method, query_string=query, content_type=kind, data=body
            )
        )
        assert isinstance(answer, flask.Response), told
        statuses.add(answer.status_code)
        assert answer.status_code < 500, answer.text
        answer.close()

    fuzz("web requests", free | posted, attempt, 2_000 if is_long else 30)
    assert 200 in statuses
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    sys.stdout.write(out)
