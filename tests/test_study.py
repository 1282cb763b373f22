"""The command line as its user meets it, on the small model that comes with the package."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from typer.testing import CliRunner

from refusal_lens.artifacts import RunFolder
from refusal_lens.cli import app

runner = CliRunner(env={"COLUMNS": "160"})


def invoke(*arguments: str, exit_code: int = 0) -> str:
    outcome = runner.invoke(app, [str(argument) for argument in arguments])
    assert outcome.exit_code == exit_code, outcome.output
    return outcome.output


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The run without arguments, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "default"
    return RunFolder(folder), invoke("run", "--output", folder)


def test_default_run_finds_the_refusal_direction(default_run):
    run_folder, printed = default_run
    valid, n_layers = re.search(r"Valid layers: (\d)/(\d)", printed).groups()
    assert int(valid) >= 6
    assert n_layers == "8"
    best = torch.load(run_folder.direction_path, weights_only=True)
    scores = best["validation"][best["best_layer"]]
    assert scores["separation"] >= 0.5
    assert scores["accuracy"] >= 0.95
    rates = json.loads(run_folder.refusal_path.read_text())["refusal_rate"]
    assert rates["harmful"] >= 0.95
    assert rates["harmless"] <= 0.02
    assert "Best layer: " in printed
    assert printed.count("pass") == 4


def test_default_run_prints_what_the_user_is_to_see_in_order(default_run):
    printed = default_run[1]
    places = [
        printed.index(text)
        for text in (
            *("Prompts", "Positions read", "Does the model refuse?", "Collected Activations"),
            *("Layers: resid_post", "Valid layers", "Best layer", "Checklist", "Wrote"),
        )
    ]
    assert places == sorted(places)


def test_run_folder_holds_everything(default_run):
    run_folder, printed = default_run
    names = {path.name for path in run_folder.path.iterdir()}
    assert names == {
        *("config.yaml", "provenance.json", "prompts.json", "refusal.json", "activations"),
        *("directions.safetensors", "refusal_direction.pt", "separation.csv"),
        *("projection_histogram.html", "layer_profile.html"),
    }
    frame = pd.read_csv(run_folder.separation_path)
    assert len(frame) == 16
    provenance = run_folder.read_provenance()
    assert provenance["model"]["weights_sha256"]
    assert provenance["versions"]["transformer-lens"].startswith("3.")


def test_figures_need_no_network(default_run):
    for name in ("projection_histogram", "layer_profile"):
        page = (default_run[0].path / f"{name}.html").read_text(encoding="utf-8")
        assert "Plotly.newPlot" in page
        assert not re.search(r'<(script|link)[^>]*(src|href)=["\']http', page)


def test_stages_one_at_a_time_give_what_the_run_gave(default_run, tmp_path):
    whole = default_run[0]
    staged = RunFolder(tmp_path / "staged")
    invoke("collect", "--output", staged.path)
    assert "Answers: " in invoke("refusal-rate", staged.path)
    printed = invoke("fit", staged.path)
    invoke("plot", staged.path)
    assert "Best layer: " in printed
    assert staged.separation_path.read_text() == whole.separation_path.read_text()
    assert {path.name for path in staged.path.iterdir()} == {
        path.name for path in whole.path.iterdir()
    }


def test_another_clip_needs_no_new_forward_pass(default_run, tmp_path):
    folder = tmp_path / "refit"
    subprocess.run(["cp", "-r", default_run[0].path, folder], check=True)
    invoke("fit", folder, "--set", "directions.clip_quantile=null")
    refit, first = RunFolder(folder), default_run[0]
    assert refit.read_config().directions.clip_quantile is None
    assert refit.read_directions().clip_quantile is None
    assert refit.separation_path.read_text() != first.separation_path.read_text()


def test_model_that_never_refuses_is_said_at_the_top_and_in_the_diagnosis(tmp_path):
    printed = invoke(
        *("run", "--model", REPOSITORY / "data/tiny-complier", "--output", tmp_path / "run")
    )
    first = printed.index("There is no refusal to find here")
    assert first < printed.index("Layers: resid_post")
    assert printed.index("There is no refusal to find: the model refuses 0%") > printed.index(
        "Checklist"
    )


def test_second_run_takes_the_next_free_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        invoke("collect", "--hook-point", "resid_post:1", "--position", "last")
    runs = sorted(path.name for path in (tmp_path / "outputs/tiny-refuser").iterdir())
    assert runs == ["default", "default-2"]


def test_options_reach_the_config(tmp_path):
    folder = tmp_path / "run"
    options = ("--hook-point", "attn_out:2", "--position", "-2", "--position", "mean")
    invoke("collect", "--output", folder, *options, "--set", "collect.token_budget=999")
    collected = RunFolder(folder).read_config().collect
    assert (collected.hook_points, collected.positions) == (["attn_out:2"], ["-2", "mean"])
    assert collected.token_budget == 999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./missing"], "The model folder ./missing does not exist"),
        (["--harmful", "missing.json"], "missing.json"),
        (["--hook-point", "resid_past"], "Hook point resid_past cannot be collected: this model"),
        (["--position", "first"], "There is no position 'first'."),
        (["--set", "directions.clip=1"], "the closest is directions.clip_quantile"),
        (["nonsense"], "one of the shipped"),
    ],
)
def test_mistakes_end_in_one_sentence_and_leave_nothing_behind(tmp_path, arguments, message):
    folder = tmp_path / "run"
    printed = invoke("run", *arguments, "--output", folder, exit_code=2)
    assert message in printed
    assert "Traceback" not in printed
    assert not folder.exists()


def test_prompt_file_with_a_mistake_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"How do I wash a car?\nCaf\xe9\n")
    printed = invoke("run", "--harmless", path, "--output", tmp_path / "run", exit_code=2)
    assert f"{path}:2" in printed


def test_stage_on_a_folder_that_is_no_run(tmp_path):
    assert "is not a run folder" in invoke("fit", tmp_path, exit_code=2)


def test_help_answers_quickly():
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "refusal_lens.cli", "--help"], check=True, timeout=60)
    # A second is what a user waits for; a loaded machine may take a few.
    assert time.perf_counter() - start < 5


def test_interrupt_says_what_is_left(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "refusal_lens.cli", "run", "--output", str(folder)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    while not (folder / "prompts.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted." in said
    assert "prompts.json" in said
    assert "Traceback" not in said
    assert not list(Path(folder).rglob("*.partial"))
