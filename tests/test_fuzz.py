"""Files from anywhere: only RefusalLensError comes out, nothing runs, nothing takes long.

`pytest -m fuzz -n 0 -s tests/test_fuzz.py` tries many and prints how many; the default run a few.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from refusal_lens.config_files import load_config
from refusal_lens.directions.formats import read_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.files import read_prompts

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


def survives(read: Callable[[], object]) -> None:
    """Read once: a result or the package's own error, without running anything, within 5 s."""
    ran.clear()
    begun = time.monotonic()
    told = ""
    with watched(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except RefusalLensError as error:
            told = str(error)
    assert len(told) < 20_000
    assert not ran
    assert time.monotonic() - begun < 5


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
def config_files(draw: st.DrawFn) -> tuple[str, bytes]:
    content = draw(
        st.dictionaries(KEYS, VALUES, max_size=5).map(json.dumps) | st.text(max_size=100)
    )
    return "a.yaml", flipped(draw, content.encode(errors="replace") or b"\n")


def direction_samples(folder: Path) -> dict[str, bytes]:
    torch.save(TENSORS, folder / "a.pt")
    torch.save(torch.ones(1, 2, 4), folder / "b.pt")
    np.savez(folder / "a.npz", **{"blocks.1.hook_resid_post": np.ones((1, 4))})
    (folder / "a.svec").write_text(json.dumps({"directions": {"1": [1.0, 2.0]}}))
    (folder / "a.safetensors").write_bytes(save({"vectors": torch.ones(1, 1, 4)}))
    samples = {path.name: path.read_bytes() for path in folder.iterdir()}
    return samples | {"a.gguf": b"GGUF" + bytes([3, 0, 0, 0]) + bytes(60)}


def fuzz(
    name: str, files: st.SearchStrategy, read: Callable[[Path], object], n: int, folder: Path
) -> None:
    tried = 0

    @settings(
        max_examples=n, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(files)
    def attack(file: tuple[str, bytes]) -> None:
        nonlocal tried
        path = folder / file[0]
        path.write_bytes(file[1])
        survives(lambda: read(path))
        tried += 1

    attack()
    sys.stdout.write(f"\n| {name} | {tried:,} | {tried:,} |\n")


@pytest.fixture(autouse=True)
def many_only_when_asked(request):
    is_long = request.node.get_closest_marker("fuzz") is not None
    if is_long and "fuzz" not in request.config.option.markexpr:
        pytest.skip("tries thousands of files: -m fuzz")


SIZES = [pytest.param(False, id="few"), pytest.param(True, marks=pytest.mark.fuzz, id="many")]


@pytest.mark.parametrize("is_long", SIZES)
def test_prompt_files(tmp_path, is_long):
    n = 10_000 if is_long else 100
    fuzz("prompt files", prompt_files(), lambda path: read_prompts(path, "x"), n, tmp_path)


@pytest.mark.parametrize("is_long", SIZES)
def test_configs(tmp_path, is_long):
    fuzz("configs", config_files(), load_config, 10_000 if is_long else 100, tmp_path)


@pytest.mark.parametrize("is_long", SIZES)
def test_direction_files(tmp_path, is_long):
    samples = direction_samples(tmp_path)

    @st.composite
    def files(draw: st.DrawFn) -> tuple[str, bytes]:
        name = draw(st.sampled_from(sorted(samples)))
        return name, flipped(draw, samples[name])

    fuzz("direction files", files(), read_directions, 2_000 if is_long else 60, tmp_path)
