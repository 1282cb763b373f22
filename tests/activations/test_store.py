"""Activations on disk come back bit for bit, or not at all, whatever happens on the way."""

import errno
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import save_activations
from safetensors import safe_open
from safetensors.torch import load_file

from refusal_lens.activations import shards
from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.store import (
    Store,
    load_activations,
    load_hook_point,
    open_store,
    shard_rows,
)
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.files import WriteError, write_whole
from refusal_lens.prompts.groups import Groups

HOOK_POINTS = [f"blocks.{layer}.hook_resid_post" for layer in range(12)]
KEY = {
    "model": {"name": "first-model", "weights_sha256": "1111"},
    "prompts": {"harmful": {"n": 5, "sha256": "aaaa"}, "harmless": {"n": 4, "sha256": "bbbb"}},
    "hook_points": HOOK_POINTS,
    "positions": ["last", "-2"],
    "dtype": "float32",
}
N_PROMPTS = 9
VALUES = torch.randn(N_PROMPTS, 12, 2, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N_PROMPTS) < 5


def begin(folder: Path, *, key=KEY, shard_prompts=2, resume=False) -> Store:
    return open_store(folder, key, n_prompts=N_PROMPTS, shard_prompts=shard_prompts, resume=resume)


def write(store: Store, index: int) -> None:
    rows = store.rows[index]
    part = slice(rows.start, rows.stop)
    store.write_shard(
        index, VALUES[part], LABELS[part], {"batches": [[0], list(range(1, len(rows)))]}
    )


def fill(store: Store) -> None:
    for index in store.missing():
        write(store, index)


def make(folder: Path, **options) -> Store:
    store = begin(folder, **options)
    fill(store)
    store.finish({"model": {"name": "first-model"}})
    return store


# --- layout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_prompts", [1, 2, 9, 100])
def test_activations_come_back_bit_for_bit(tmp_path, shard_prompts):
    make(tmp_path, shard_prompts=shard_prompts)
    loaded = load_activations(tmp_path)
    assert torch.equal(loaded.values, VALUES)
    assert torch.equal(loaded.is_harmful, LABELS)
    assert loaded.hook_points == tuple(HOOK_POINTS)
    assert loaded.positions == ("last", "-2")
    assert loaded.provenance == {"model": {"name": "first-model"}}


def test_activations_in_memory_can_be_saved(tmp_path, activations):
    save_activations(tmp_path, activations)
    loaded = load_activations(tmp_path)
    assert torch.equal(loaded.values, activations.values)
    assert loaded.provenance["prompts"] == activations.provenance["prompts"]
    with pytest.raises(RefusalLensError, match="holds activations already"):
        save_activations(tmp_path, replace(activations, values=activations.values * 2))


@pytest.mark.parametrize(("dtype", "digits"), [("bfloat16", 2**-8), ("float16", 2**-11)])
@pytest.mark.parametrize("shard_prompts", [2, 9])
def test_shorter_dtypes_halve_the_files_and_come_back_as_float32(
    tmp_path, dtype, digits, shard_prompts
):
    make(tmp_path / "whole", shard_prompts=shard_prompts)
    make(tmp_path / "half", key=KEY | {"dtype": dtype}, shard_prompts=shard_prompts)
    loaded = load_activations(tmp_path / "half").values
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, VALUES.to(getattr(torch, dtype)).float())
    assert ((loaded - VALUES).abs() <= digits * VALUES.abs() + 1e-7).all()
    name = HOOK_POINTS[10]
    assert load_hook_point(tmp_path / "half", name).dtype == torch.float32
    sizes = [
        safe_open(tmp_path / kind / "shard-00000.safetensors", "pt").get_tensor(name).nbytes
        for kind in ("whole", "half")
    ]
    assert sizes[0] == 2 * sizes[1]


def test_float16_that_would_overflow_is_refused(tmp_path):
    store = begin(tmp_path, key=KEY | {"dtype": "float16"}, shard_prompts=9)
    large = VALUES.clone()
    large[3, 11, 0, 7] = -70000.0
    with pytest.raises(RefusalLensError) as caught:
        store.write_shard(0, large, LABELS)
    assert str(caught.value) == (
        "float16 ends at 65504, but blocks.11.hook_resid_post has activations up to 70000. "
        "Store them with collect.dtype bfloat16 or float32."
    )
    assert store.missing() == [0]


def test_other_programs_can_read_a_shard(tmp_path):
    make(tmp_path)
    tensors = load_file(tmp_path / "shard-00001.safetensors")
    assert set(tensors) == {*HOOK_POINTS, "is_harmful"}
    assert torch.equal(tensors[HOOK_POINTS[10]], VALUES[2:4, 10])
    assert torch.equal(tensors["is_harmful"], LABELS[2:4])


@pytest.mark.parametrize("shard_prompts", [2, 9])
def test_one_hook_point_is_read_and_nothing_else(tmp_path, monkeypatch, shard_prompts):
    make(tmp_path, shard_prompts=shard_prompts)
    read = []

    class Spy:
        def __init__(self, *arguments, **options):
            self.file = safe_open(*arguments, **options)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(shards, "safe_open", Spy)
    # All else is overwritten, so that whoever needed it would see zeros.
    for path in tmp_path.glob("*.safetensors"):
        keep = load_file(path)[HOOK_POINTS[10]].numpy().tobytes()
        content = path.read_bytes()
        start = content.index(keep)
        header = 8 + int.from_bytes(content[:8], "little")
        zeros = [bytes(start - header), bytes(len(content) - start - len(keep))]
        path.write_bytes(content[:header] + zeros[0] + keep + zeros[1])
    assert torch.equal(load_hook_point(tmp_path, HOOK_POINTS[10]), VALUES[:, 10])
    assert set(read) == {HOOK_POINTS[10]}
    with pytest.raises(RefusalLensError, match="its checksum differs"):
        load_activations(tmp_path)


def test_hook_point_that_was_not_collected_is_named(tmp_path):
    make(tmp_path)
    with pytest.raises(RefusalLensError, match=r"has no activations at blocks.12.hook_resid_post"):
        load_hook_point(tmp_path, "blocks.12.hook_resid_post")


@pytest.mark.parametrize("shard_prompts", [2, 9])
def test_some_hook_points_can_be_selected(tmp_path, shard_prompts):
    make(tmp_path, shard_prompts=shard_prompts)
    loaded = load_activations(tmp_path, ["resid_post:10-11", "blocks.0.*"])
    assert loaded.hook_points == (HOOK_POINTS[10], HOOK_POINTS[11], HOOK_POINTS[0])
    assert torch.equal(loaded.values, VALUES[:, [10, 11, 0]])
    with pytest.raises(RefusalLensError, match="holds only what was collected. Hook point blocks"):
        load_activations(tmp_path, "attn_out:3")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of maps")
def test_one_float32_shard_is_mapped_and_changing_it_leaves_the_file(tmp_path):
    make(tmp_path, shard_prompts=9)
    loaded = load_activations(tmp_path)
    assert str(tmp_path / "shard-00000.safetensors") in Path("/proc/self/maps").read_text()
    loaded.values.zero_()
    assert torch.equal(load_activations(tmp_path).values, VALUES)


def test_shards_are_neighbours_in_order():
    assert shard_rows(9, 4) == [range(0, 4), range(4, 8), range(8, 9)]
    assert len(shard_rows(8193)) == 3


# --- damage -----------------------------------------------------------------------------------


def damage_file(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncate":
        path.write_bytes(content[:-10])
    elif how == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif how == "flip header":
        content[20] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()


FAULTS = {
    "truncate": r"has \d+ bytes instead of \d+",
    "flip": r"is not what was written \(its checksum differs\)",
    "flip header": r"is not what was written \(its checksum differs\)",
    "remove": "is missing",
}


@pytest.mark.parametrize("how", FAULTS)
def test_damaged_shard_is_named_and_only_it_is_collected_again(tmp_path, how):
    make(tmp_path)
    path = tmp_path / "shard-00002.safetensors"
    others = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir() if file != path}
    damage_file(path, how)
    with pytest.raises(RefusalLensError, match=f"{path} {FAULTS[how]}. Collect it again: refusal"):
        load_activations(tmp_path)
    store = begin(tmp_path, resume=True)
    if how == "remove":
        assert store.missing() == [2]
    else:
        with pytest.warns(RefusalLensWarning, match=f"{path} {FAULTS[how]}. It is collected again"):
            assert store.missing() == [2]
    assert not path.exists()
    assert store.batches(2) == [[0], [1]]
    assert {file: file.stat().st_mtime_ns for file in others} == others
    write(store, 2)
    assert torch.equal(load_activations(tmp_path).values, VALUES)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"n_bytes": 3}', '"text"'])
def test_shard_whose_record_is_damaged_does_not_count(tmp_path, content):
    store = make(tmp_path)
    (tmp_path / "shard-00001.json").write_text(content)
    with pytest.warns(RefusalLensWarning, match="has no readable record of its checksum"):
        assert store.missing() == [1]
    assert store.batches(1) is None


def test_truncated_shard_is_found_when_one_hook_point_is_read(tmp_path):
    make(tmp_path)
    damage_file(tmp_path / "shard-00002.safetensors", "truncate")
    with pytest.raises(RefusalLensError, match="bytes instead of"):
        load_hook_point(tmp_path, HOOK_POINTS[0])


def test_a_byte_changed_is_found_when_its_hook_point_is_read(tmp_path):
    make(tmp_path)
    path = tmp_path / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    # The last tensor but the labels is that of the last hook point.
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefusalLensError, match="is not what was written .its checksum differs"):
        load_hook_point(tmp_path, HOOK_POINTS[-1])
    load_hook_point(tmp_path, HOOK_POINTS[0])
    content[8] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefusalLensError, match="is not what was written .its checksum differs"):
        load_hook_point(tmp_path, HOOK_POINTS[0])


def test_unfinished_store_is_not_read(tmp_path):
    with pytest.raises(RefusalLensError, match=r"holds no activations \(no manifest.json\)"):
        load_activations(tmp_path)
    store = begin(tmp_path)
    write(store, 3)
    with pytest.raises(RefusalLensError) as caught:
        load_activations(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not finished: it has 1 of 5 shards. Go on with it: "
        "refusal-lens collect --resume --output RUN."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is not what was written \(JSON"),
        ('{"format": "x"}', r"is not what was w.*sha256_of"),
    ],
)
def test_manifest_that_cannot_be_read_is_named(tmp_path, content, message):
    make(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RefusalLensError, match=f"{tmp_path}/manifest.json {message}"):
        begin(tmp_path, resume=True)


# --- whose store it is ------------------------------------------------------------------------


def test_store_of_another_model_is_refused_with_both_names(tmp_path):
    begin(tmp_path)
    other = KEY | {"model": {"name": "second-model", "weights_sha256": "2222"}}
    with pytest.raises(RefusalLensError) as caught:
        begin(tmp_path, key=other, resume=True)
    assert str(caught.value) == (
        f"{tmp_path} belongs to another collection:\n"
        "  model.name: first-model there, second-model here\n"
        "  model.weights_sha256: 1111 there, 2222 here\n"
        "Give another folder, or the settings it was begun with."
    )


def test_model_of_the_same_name_with_other_weights_is_refused(tmp_path):
    begin(tmp_path)
    other = KEY | {"model": {"name": "first-model", "weights_sha256": "2222"}}
    with pytest.raises(RefusalLensError) as caught:
        begin(tmp_path, key=other, resume=True)
    assert "model.name: first-model there, first-model here" in str(caught.value)
    assert "model.weights_sha256: 1111 there, 2222 here" in str(caught.value)


def test_store_of_other_prompts_is_refused_with_both_hashes(tmp_path):
    begin(tmp_path)
    other = json.loads(json.dumps(KEY))
    other["prompts"]["harmless"]["sha256"] = "cccc"
    with pytest.raises(RefusalLensError) as caught:
        begin(tmp_path, key=other, resume=True)
    assert "  prompts.harmless.sha256: bbbb there, cccc here\n" in str(caught.value)
    assert "model" not in str(caught.value)


def test_store_is_not_overwritten_without_being_asked(tmp_path):
    begin(tmp_path)
    with pytest.raises(RefusalLensError) as caught:
        begin(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds activations already. Go on with them (resume=True, or --resume), or "
        "give another folder."
    )


def test_resumed_store_keeps_its_shards_and_token_budget(tmp_path):
    begin(tmp_path, shard_prompts=2).keep_budget(512)
    resumed = begin(tmp_path, shard_prompts=4, resume=True)
    assert (resumed.shard_prompts, resumed.token_budget) == (2, 512)


def test_finished_store_keeps_its_provenance(tmp_path):
    make(tmp_path).finish({"model": "another"})
    assert load_activations(tmp_path).provenance == {"model": {"name": "first-model"}}


# --- many writers, full disks -----------------------------------------------------------------

WRITERS = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from activations.test_store import begin, write
store = begin(Path({folder!r}))
children = []
for worker in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        for index in (0, 1, 2, 3, 4):
            # Everyone writes shard 0, the others are shared out.
            if index == 0 or index == worker + 1:
                for _ in range(20):
                    write(store, index)
        os._exit(0)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


def test_worker_processes_write_at_the_same_time(tmp_path):
    folder = tmp_path / "store"
    script = WRITERS.format(tests=str(Path(__file__).parents[1]), folder=str(folder))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    store = begin(folder, resume=True)
    assert store.missing() == []
    store.finish({})
    assert torch.equal(load_activations(folder).values, VALUES)


def test_threads_write_at_the_same_time(tmp_path):
    store = begin(tmp_path, shard_prompts=1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: write(store, index % N_PROMPTS), range(100)))
    store.finish({})
    assert torch.equal(load_activations(tmp_path).values, VALUES)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 200 KB; a limit on file sizes stands in where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_said_and_finished_shards_stay(small_disk):
    folder = small_disk / "store"
    store = begin(folder, shard_prompts=1)
    (small_disk / "ballast").write_bytes(bytes(160_000))
    with pytest.raises(RefusalLensError) as caught:
        fill(store)
    missing = store.missing()
    n_done = N_PROMPTS - len(missing)
    assert 1 <= n_done < N_PROMPTS
    assert str(caught.value) == (
        f"The disk is full: {n_done} of 9 shards are finished in {folder}. Free about 1 MiB and "
        "run again with --resume."
    )
    assert isinstance(caught.value.__cause__, WriteError)
    assert not list(folder.glob(".*"))
    (small_disk / "ballast").unlink()
    resumed = begin(folder, resume=True)
    assert resumed.missing() == missing
    fill(resumed)
    resumed.finish({})
    assert torch.equal(load_activations(folder).values, VALUES)


def test_file_size_limit_is_said_and_finished_shards_stay(tmp_path):
    store = begin(tmp_path)
    write(store, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so that a write beyond the limit fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(RefusalLensError) as caught:
            write(store, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == (
        f"{os.strerror(errno.EFBIG)}: 1 of 5 shards are finished in {tmp_path}. Raise the limit on "
        "files and run again with --resume."
    )
    assert begin(tmp_path, resume=True).missing() == [1, 2, 3, 4]
    assert not list(tmp_path.glob(".*"))


def test_other_faults_of_the_disk_are_not_called_full(tmp_path):
    store = begin(tmp_path / "store")
    (tmp_path / "store" / "shard-00000.safetensors").mkdir()
    with pytest.raises(WriteError, match="shard-00000.safetensors could not be written: Is a dir"):
        write(store, 0)


def fail_half_way(path: Path) -> None:
    with write_whole(path) as file:
        file.write_text("half")
        raise RuntimeError("planted")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    with write_whole(path) as file:
        file.write_text("first")
    with pytest.raises(RuntimeError, match="planted"):
        fail_half_way(path)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_groups_come_back_with_the_activations(tmp_path):
    alone = torch.arange(N_PROMPTS)
    pairs = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    groups = Groups(pairs, alone, alone, {"pair": "given", "topic": "none", "frame": "none"})
    places = tuple(HOOK_POINTS), ("last", "-2")
    save_activations(tmp_path, Activations(VALUES, LABELS, *places, groups=groups))
    read = load_activations(tmp_path)
    assert read.groups.describe() == groups.describe()
    assert torch.equal(read.take([0, 5]).groups.pair, torch.tensor([0, 0]))


def test_activations_of_which_nothing_is_said_are_independent():
    activations = Activations(VALUES, LABELS, tuple(HOOK_POINTS), ("last", "-2"))
    assert activations.groups.component.tolist() == list(range(N_PROMPTS))
