"""The command line on consoles that are not the one it was written on."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from explored_run import make_run
from typer.testing import CliRunner

from refusal_lens.cli import SPINS, app
from refusal_lens.cli.base import plain_errors
from refusal_lens.errors import RefusalLensWarning

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "ascii"])
def test_what_the_console_cannot_hold_is_escaped_and_the_command_goes_on(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("\u600e\u4e48 \u0e44\n\u600e\u4e48\n", encoding="utf-8")
    code = (
        "import typer, refusal_lens.cli as cli; from refusal_lens.prompts.files import *; "
        "from refusal_lens.cli.base import console, errors\n"
        "@cli.app.command()\n"
        "def show():\n"
        "    console.print(read_prompts('a.txt', 'x').texts[0]); errors.print('\u5ddd')\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "show"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONIOENCODING": encoding,
            "PYTHONUTF8": "0",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
    )
    assert done.returncode == 0
    for text, stream in (("\u600e\u4e48 \u0e44", done.stdout), ("\u5ddd", done.stderr)):
        assert text.encode(encoding, errors="backslashreplace") in stream
    assert rb"\u0e44" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is that of torch on Linux")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_threads_wait_for_each_other_asleep_unless_the_user_says_how(tmp_path, given, spins):
    code = (
        "import refusal_lens.cli as cli\n"
        "@cli.app.command()\n"
        "def load():\n"
        "    import torch\n"
        "cli.main()"
    )
    kept = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    told = {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, "load"],
        cwd=tmp_path,
        env=kept | told | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


def test_a_piped_prompt_in_another_encoding_is_named(tmp_path):
    code = (
        "import sys, refusal_lens.cli as cli; from refusal_lens.prompts.contrast import PromptSet\n"
        "from refusal_lens.cli.base import plain_errors\n"
        "@cli.app.command()\n"
        "def show():\n"
        "    with plain_errors(): PromptSet.from_texts('typed', [sys.stdin.readline()])\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "show"],
        input="Caf\u00e9\n".encode("cp1252"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == 2
    assert b"Error: typed[0]: character 4 of the text is" in done.stderr
    assert b"\\udce9" in done.stderr


def test_garbage_is_looked_for_only_in_what_came_after_the_imports():
    code = (
        "import gc, refusal_lens.cli as cli; from refusal_lens.cli.base import starting\n"
        "@cli.app.command()\n"
        "def show():\n"
        "    was_on = gc.isenabled()\n"
        "    with starting(): import fractions\n"
        "    print(was_on, gc.isenabled(), len(gc.get_objects()) < 1000 < gc.get_freeze_count())\n"
        "with starting(): print(gc.get_freeze_count())\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "show"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["0", "False", "True", "True"], done.stderr


def test_a_run_folder_is_inspected_as_its_file_of_directions(tmp_path):
    run_folder = make_run(tmp_path / "run")
    outputs = [
        CliRunner().invoke(app, ["inspect", str(path)])
        for path in (run_folder.path, run_folder.path / "directions.safetensors")
    ]
    assert [each.exit_code for each in outputs] == [0, 0], outputs
    tables = [each.output.partition("Directions")[2] for each in outputs]
    assert tables[0] == tables[1]
    assert "resid_post 3" in tables[0]
    run_folder.separation_path.unlink()  # as a fit leaves it that was killed behind its directions
    assert CliRunner().invoke(app, ["inspect", str(run_folder.path)]).exit_code == 0


def test_a_missing_file_of_a_run_names_the_command_that_writes_it(tmp_path):
    # It once named all stages, in an order of which the first two had been done.
    run_folder = make_run(tmp_path / "run")
    run_folder.separation_path.unlink()
    done = CliRunner().invoke(app, ["report", str(run_folder.path)])
    assert done.exit_code == 2
    assert f"separation.csv. Write it first: refusal-lens fit {run_folder.path}" in done.output


def test_a_warning_is_told_once(capsys):
    # That there are few prompts was told by each stage that reads them.
    with plain_errors():
        for text in ("few prompts", "few prompts", "another"):
            warnings.warn(text, RefusalLensWarning, stacklevel=1)
    assert capsys.readouterr().err.split("Warning: ")[1:] == ["few prompts\n", "another\n"]


@pytest.mark.parametrize("command", ["select", "ablate"])
def test_an_interrupted_experiment_says_how_to_go_on(tmp_path, monkeypatch, command):
    run_folder = make_run(tmp_path / "a run")
    typed = [command, str(run_folder.path), "--set", "causal.min_induce=0.5"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"refusal_lens.stages.experiment.{command}_stage", stop)
    monkeypatch.setattr("sys.argv", ["refusal-lens", *typed])
    done = CliRunner().invoke(app, typed)
    assert done.exit_code == 130
    assert "Interrupted." in done.output
    again = f"Go on: refusal-lens {command} '{run_folder.path}' --set causal.min_induce=0.5"
    n_files = sum(path.is_file() for path in run_folder.path.rglob("*"))
    assert f"{run_folder.path} keeps {n_files} files (0.1 MB). Answers and scores" in done.output
    assert done.output.endswith(f"so far are among them. {again}\n")
