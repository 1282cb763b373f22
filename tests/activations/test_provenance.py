"""Which commit made a run, told from real checkouts."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from refusal_lens.activations.provenance import describe_code


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("a = 1\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "-qm", "one")
    return folder


def test_a_checkout_says_its_commit_and_whether_files_differ_from_it(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    told = {"repository": str(checkout), "commit": commit, "is_changed": False}
    assert describe_code(checkout) == told
    (checkout / "code.py").write_text("a = 2\n")
    assert describe_code(checkout) == {**told, "is_changed": True}


def test_an_address_is_told_without_its_password(checkout):
    git(checkout, "remote", "add", "origin", "https://me:secret@a.b/c.git")
    assert describe_code(checkout)["repository"] == "https://a.b/c.git"


def test_an_installation_from_a_repository_is_told_without_its_password(checkout, monkeypatch):
    origin = {"url": "https://me:secret@a.b/c.git", "vcs_info": {"commit_id": "abc"}}
    installed = SimpleNamespace(read_text=lambda name: json.dumps(origin))
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: installed)
    told = {"repository": "https://a.b/c.git", "commit": "abc", "is_changed": False}
    assert describe_code(checkout) == told


def test_an_environment_in_a_repository_of_something_else_is_not_taken_for_it(checkout):
    packages = checkout / ".venv"
    packages.mkdir()
    assert describe_code(packages) is None
