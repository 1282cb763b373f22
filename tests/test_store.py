"""Activations on disk come back bit for bit, or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from refusal_lens import store
from refusal_lens.errors import RefusalLensError
from refusal_lens.store import load_activations, save_activations, write_whole


@pytest.mark.parametrize("shard_prompts", [1, 3, 100])
def test_activations_come_back_bit_for_bit(tmp_path, activations, monkeypatch, shard_prompts):
    monkeypatch.setattr(store, "SHARD_PROMPTS", shard_prompts)
    save_activations(tmp_path, activations)
    loaded = load_activations(tmp_path)
    assert torch.equal(loaded.values, activations.values)
    assert torch.equal(loaded.is_harmful, activations.is_harmful)
    assert (loaded.hook_points, loaded.positions) == (
        activations.hook_points,
        activations.positions,
    )
    assert loaded.provenance["prompts"] == activations.provenance["prompts"]


def test_one_hook_point_can_be_read_alone(tmp_path, activations):
    save_activations(tmp_path, activations)
    with safe_open(tmp_path / "shard-00000.safetensors", framework="pt") as shard:
        values = shard.get_tensor("blocks.2.hook_resid_post")
    assert torch.equal(values, activations.values[:, 2])


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_shard_is_named(tmp_path, activations, damage):
    save_activations(tmp_path, activations)
    shard = tmp_path / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    if damage == "remove":
        shard.unlink()
    elif damage == "truncate":
        shard.write_bytes(content[:-10])
    else:
        content[-1] ^= 1
        shard.write_bytes(content)
    with pytest.raises(RefusalLensError) as caught:
        load_activations(tmp_path)
    assert str(caught.value) == (
        f"{shard} is missing or is not the file that was written (its checksum differs). "
        "Collect again: refusal-lens collect."
    )


def test_unfinished_store_is_not_read(tmp_path):
    with pytest.raises(RefusalLensError, match=r"no finished activations \(no manifest.json\)"):
        load_activations(tmp_path)


def test_saving_again_leaves_nothing_of_the_first_in_the_result(tmp_path, activations):
    save_activations(tmp_path, activations)
    doubled = replace(activations, values=activations.values * 2)
    save_activations(tmp_path, doubled)
    assert torch.equal(load_activations(tmp_path).values, doubled.values)


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
