"""What is kept as it comes is there after a kill, and nothing damaged is taken for it."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from refusal_lens.errors import RefusalLensError
from refusal_lens.journal import Journal, fingerprint


def keep(path: Path, *keys: str) -> Journal:
    journal = Journal(path)
    for key in keys:
        journal.once(key, lambda key=key: {"of": key, "share": 0.1})
    return journal


def test_work_is_done_once(tmp_path):
    path = tmp_path / "unfinished" / "a.jsonl"
    keep(path, "a", "b")
    journal = Journal(path)
    assert len(journal) == 2
    assert journal.once("b", lambda: pytest.fail("done again")) == {"of": "b", "share": 0.1}
    journal.remove()
    assert not path.exists()
    assert len(Journal(path)) == 0


@pytest.mark.parametrize("n_cut", [1, 2, 40])
def test_a_line_that_was_cut_off_is_done_again_and_the_next_is_not_glued_to_it(tmp_path, n_cut):
    path = tmp_path / "a.jsonl"
    keep(path, "a", "b")
    path.write_bytes(path.read_bytes()[:-n_cut])
    assert len(keep(path, "c")) == 2
    assert len(Journal(path)) == 2
    keep(path, "b")
    assert len(Journal(path)) == 3


def test_no_flipped_byte_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    keep(path, "a", "b")
    whole = path.read_bytes()
    expected = {"of": "a", "share": 0.1}
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        journal = Journal(path)
        assert len(journal) in (0, 1)
        assert journal.once("a", lambda: expected) == expected


def test_a_value_that_was_kept_outlives_a_kill(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from refusal_lens.journal import Journal"
        "\njournal = Journal(Path(sys.argv[1])); journal.once('a', lambda: 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jsonl")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(Journal(tmp_path / "a.jsonl")) == 1


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RefusalLensError, match=r"a\.jsonl could not be written: No space.*is kept"):
        keep(tmp_path / "a.jsonl", "a")


def test_fingerprints_tell_borders_and_kinds_apart():
    told = [("ab", "c"), ("a", "bc"), (1,), ("1",), ([1],), ({"a": 1, "b": 2},), (None,), ()]
    assert len({fingerprint(*parts) for parts in told}) == len(told)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
