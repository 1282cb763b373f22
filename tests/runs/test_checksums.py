"""What a run wrote is found to be what it wrote, or the file and the way back are named."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from planted_run import make_run

from refusal_lens.directions.direction import fit_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.files import file_sha256
from refusal_lens.runs.checksums import RECORD, check, write_recorded
from refusal_lens.runs.folder import RunFolder


def write(folder: Path, name: str, text: str) -> None:
    with write_recorded(folder, name) as file:
        file.write_text(text)


def test_one_record_holds_the_checksum_of_each_file_by_its_name(tmp_path):
    write(tmp_path, "a.json", "one")
    write(tmp_path, "tables/b.csv", "two")
    files = json.loads((tmp_path / RECORD).read_text())["files"]
    assert files == {name: [file_sha256(tmp_path / name)] for name in ("a.json", "tables/b.csv")}


def test_an_edited_file_is_named_with_the_command_that_writes_it_again(tmp_path):
    for name, command in (
        ("prompts.json", "or remove it and go on .* refusal-lens collect --resume --output"),
        ("refusal.json", "or write it again: refusal-lens refusal-rate"),
        ("separation.csv", "or write it again: refusal-lens fit"),
        ("tables/causal_scores.csv", "or write it again: refusal-lens select"),
    ):
        write(tmp_path, name, "one")
        check(tmp_path, name)
        (tmp_path / name).write_text("two")
        with pytest.raises(RefusalLensError, match=f"{name} is not what the run w.*{command}"):
            check(tmp_path, name)
        write(tmp_path, name, "three")
        check(tmp_path, name)


def test_a_kill_between_record_and_file_leaves_a_sound_run(tmp_path, monkeypatch):
    write(tmp_path, "a.json", "one")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "chmod", die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "a.json", "two")
    monkeypatch.undo()
    assert (tmp_path / "a.json").read_text() == "one"
    check(tmp_path, "a.json")


def test_a_damaged_record_is_told_and_can_be_removed(tmp_path):
    write(tmp_path, "a.json", "one")
    path = tmp_path / RECORD
    path.write_text(path.read_text().replace("a.json", "b.json"))
    with pytest.raises(RefusalLensError, match=f"{RECORD} is not what was written.* Remove it to"):
        check(tmp_path, "a.json")
    path.unlink()
    check(tmp_path, "a.json")


READERS = {
    "config.yaml": RunFolder.read_config,
    "prompts.json": RunFolder.read_prompts,
    "provenance.json": RunFolder.read_provenance,
    "refusal.json": RunFolder.read_refusal,
    "directions.safetensors": RunFolder.read_directions,
    "projections.safetensors": RunFolder.read_projections,
    "separation.csv": RunFolder.read_separation,
    "tables/cosines.csv": lambda run: run.read_table("cosines"),
}


@pytest.fixture
def run_folder(tmp_path, activations):
    run_folder = make_run(tmp_path)
    run_folder.write_directions(fit_directions(activations))
    run_folder.write_table("cosines", pd.DataFrame({"cosine": [0.5]}))
    return run_folder


@pytest.mark.parametrize("name", READERS)
def test_every_reader_finds_damage(run_folder, name):
    path = run_folder.path / name
    whole = path.read_bytes()
    READERS[name](run_folder)
    for damaged in (b"", whole[:-40], whole[:-3] + b"x" + whole[-2:], b"{}", b"a: b"):
        path.write_bytes(damaged)
        with pytest.raises(RefusalLensError, match=f"{name} is not what the run wrote"):
            READERS[name](run_folder)


@pytest.mark.parametrize("name", sorted(set(READERS) - {"tables/cosines.csv"}))
def test_nonsense_is_one_error_also_without_a_record(run_folder, name):
    (run_folder.path / RECORD).unlink()
    for nonsense in (b"\xff\xfe" * 50, b"[" * 90_000, b"[1, 2]"):
        (run_folder.path / name).write_bytes(nonsense)
        with pytest.raises(RefusalLensError, match=name):
            READERS[name](run_folder)


def test_what_a_full_disk_stops_names_the_file(run_folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RefusalLensError, match=r"projections.safetensors could not be written: No"):
        run_folder.write_projections(run_folder.read_projections())
    assert torch.isfinite(run_folder.read_projections().thresholds).all()
