"""Files are whole or not there, and a pointer is not taken for the file it points to."""

import os
import pickle
from pathlib import Path, PureWindowsPath

import pytest

from refusal_lens.errors import RefusalLensError
from refusal_lens.files import (
    WriteError,
    file_sha256,
    portable_name,
    refuse_lfs_pointer,
    remove_partial,
    write_whole,
)

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 51234\n"


def test_a_pointer_of_git_lfs_is_refused_with_what_to_run(tmp_path):
    path = tmp_path / "mean_diffs.pt"
    path.write_text(POINTER)
    with pytest.raises(RefusalLensError, match="is a git-LFS pointer.* git lfs pull"):
        refuse_lfs_pointer(path)
    path.write_text(POINTER[1:])
    refuse_lfs_pointer(path)


def fill_the_disk(path: Path) -> None:
    with write_whole(path) as file:
        file.write_text("half")
        raise OSError(28, "No space left on device")


def test_a_write_that_the_system_refuses_names_the_file_and_what_is_kept(tmp_path):
    (tmp_path / "blocker").write_text("a file, and no folder")
    with pytest.raises(WriteError) as caught, write_whole(tmp_path / "blocker" / "a.txt"):
        pytest.fail("there is no folder to write to")
    assert str(tmp_path / "blocker" / "a.txt") in str(caught.value)
    path = tmp_path / "b.txt"
    path.write_text("first")
    with pytest.raises(WriteError, match=r"b.txt could not be written.*that was there is kept"):
        fill_the_disk(path)
    assert path.read_text() == "first"
    assert pickle.loads(pickle.dumps(WriteError("no space", 28))).errno == 28


def test_a_file_rewritten_in_place_has_another_checksum_though_its_clock_stands_still(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"0.50")
    checksum, before = file_sha256(path), path.stat()
    with path.open("rb+") as file:
        file.write(b"0.90")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        4,
        before.st_mtime_ns,
        before.st_ino,
    )
    assert file_sha256(path) != checksum


def test_what_a_killed_write_left_is_removed_in_all_folders(tmp_path):
    (tmp_path / "tables").mkdir()
    left = [tmp_path / ".a.csv.x1.partial", tmp_path / "tables" / ".b.csv.x2.partial"]
    for path in (*left, tmp_path / "tables" / "b.csv"):
        path.write_text("")
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["tables", "b.csv"]


NAMES = [
    "tiny-refuser",
    "Qwen2.5-7B",
    "qwen:7b",
    'a<b>|"?*',
    "con",
    "AUX.v2",
    "nul .x",
    "com1",
    "lpt²",
]
NAMES += ["v1.", "dots. .", "", "..", "a\\b", "tab\there", "console", "nullable", "怎么"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_are_ones_that_windows_takes(name):
    found = portable_name(name)
    there = PureWindowsPath("C:\\runs") / found
    assert (there.name, there.parent) == (found, PureWindowsPath("C:\\runs"))
    assert not there.is_reserved()
    assert not set(found) & set('<>:"/\\|?*\t')
    assert found == found.rstrip(". ")
    assert portable_name(found) == found
    # What it takes already is left as it is.
    is_plain = name in ("tiny-refuser", "Qwen2.5-7B", "console", "nullable", "怎么")
    assert (found == name) == is_plain
