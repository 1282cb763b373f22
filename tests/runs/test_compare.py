"""Runs beside each other: from folders to tables and one page that needs no network."""

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from typer.testing import CliRunner

from refusal_lens.cli import app
from refusal_lens.errors import RefusalLensError
from refusal_lens.runs.compare import compare_runs, open_runs
from refusal_lens.runs.compare_page import draw_comparison, render_page
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation.frames import read_frame
from refusal_lens.validation.separation import validate

runner = CliRunner(env={"COLUMNS": "160"})


def invoke(*arguments: object, exit_code: int = 0) -> str:
    outcome = runner.invoke(app, [str(argument) for argument in arguments])
    assert outcome.exit_code == exit_code, outcome.output
    return outcome.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One model on two sets of prompts, another model on the first; the first with all methods."""
    folder = tmp_path_factory.mktemp("runs")
    where = ("--hook-point", "resid_post:3-5", "--position", "last", "--position", "mean")
    topics = ("--harmful", "data/censored_topics.json", "--harmless", "data/neutral_topics.json")
    invoke("collect", "--output", folder / "refuser", *where)
    invoke("collect", "--output", folder / "topics", *where, *topics)
    invoke("collect", "--output", folder / "complier", *where, "--model", "data/tiny-complier")
    methods = "directions.compare_methods=[difference_of_means, lda]"
    for name in ("topics", "complier"):
        invoke("fit", folder / name, "--set", methods)
    invoke("fit", folder / "refuser", "--set", methods, "--set", "directions.compare_at=all")
    return [folder / name for name in ("refuser", "topics", "complier")]


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    output = tmp_path_factory.mktemp("comparison")
    printed = invoke("compare", *runs, "--output", output)
    return output, printed


def read(output, name: str) -> pd.DataFrame:
    return pd.read_csv(output / f"{name}.csv", keep_default_na=True).fillna({"run": ""})


def test_every_run_and_table_is_there(compared):
    output, printed = compared
    names = {path.name for path in output.iterdir()}
    assert names == {
        *("summary.csv", "scores.csv", "cosines.csv", "transfer.csv", "categories.csv"),
        *("misread.csv", "comparison.html"),
    }
    for name in ("refuser", "topics", "complier"):
        assert name in printed
    assert "models: complier and refuser at " in printed
    assert "prompt set: refuser fitted, tested on topics at " in printed


def test_scores_are_those_of_the_runs_at_every_place_and_method(compared, runs):
    scores = read(compared[0], "scores")
    mine = scores[scores["run"] == "refuser"]
    own = RunFolder(runs[0]).read_separation()
    main = mine[(mine["method"] == "difference_of_means") & mine["is_clipped"]]
    assert main["separation"].tolist() == pytest.approx(own["separation"].tolist())
    assert main["accuracy"].tolist() == pytest.approx(own["accuracy"].tolist())
    assert len(mine) == 3 * 2 * 2 * 2  # layers, positions, methods, clipped or not
    assert len(scores[scores["run"] == "topics"]) == 3 * 2 + 3  # others at the best place alone
    separation, _ = validate(RunFolder(runs[0]).read_activations(), method="lda", n_repeats=1)
    lda = mine[(mine["method"] == "lda") & mine["is_clipped"]]
    assert lda["separation"].tolist() == pytest.approx(separation.separation.flatten().tolist())


def test_cosines_between_models_are_those_of_their_directions(compared, runs):
    cosines = read(compared[0], "cosines")
    row = cosines[
        (cosines["kind"] == "models") & (cosines["a"] == "refuser") & (cosines["b"] == "complier")
    ].iloc[0]
    units = [
        RunFolder(path).read_directions()[row["hook_point"], row["position"]].unit
        for path in (runs[0], runs[2])
    ]
    assert row["cosine"] == pytest.approx((units[0] @ units[1]).item(), abs=1e-6)
    # The same prompts, the same noise: a ceiling of other prompts does not hold.
    assert pd.isna(row["ceiling"])
    assert set(cosines["kind"]) == {
        *("layers", "positions", "methods", "categories", "prompt_sets", "models"),
    }
    # Other prompts and another model at once would say nothing of either.
    assert "topics" not in set(cosines[cosines["kind"] == "models"]["a"])


def test_transfer_between_prompt_sets(compared, runs):
    transfer = read(compared[0], "transfer")
    pairs = transfer[transfer["kind"] == "prompt_set"]
    row = pairs[(pairs["fit_on"] == "topics") & (pairs["test_on"] == "refuser")].iloc[0]
    unit = RunFolder(runs[1]).read_directions()[row["hook_point"], row["position"]].unit
    tested = RunFolder(runs[0]).read_activations()
    projected = tested.at(row["hook_point"], row["position"]).double() @ unit.double()
    harmful, harmless = projected[tested.is_harmful], projected[~tested.is_harmful]
    wins = (harmful[:, None] > harmless).double().mean().item()
    assert row["auroc"] == pytest.approx(wins)
    assert row["n_tested"] == 384
    kept = pairs[pairs["fit_on"] == pairs["test_on"]]
    own = read(compared[0], "scores").set_index(
        ["run", "method", "is_clipped", "hook_point", "position"]
    )
    for held in kept.to_dict("records"):
        key = (held["fit_on"], "difference_of_means", True, held["hook_point"], held["position"])
        assert held["auroc"] == pytest.approx(own.loc[key, "auroc"])


def test_page_holds_every_figure_and_needs_no_network(compared, runs):
    opened = open_runs(runs)
    figures = draw_comparison(opened, compare_runs(opened))
    page = (compared[0] / "comparison.html").read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot(") >= len(figures) >= 12
    assert not re.search(r'<(script|link)[^>]*(src|href)=["\']http', page)
    for title in (
        "AUROC of every place, on new prompts of the same topics",
        "refuser: AUROC by way to fit",
    ):
        assert title in figures
        assert f"<h2>{title}</h2>" in page
    assert any(title.startswith("topics: transfer between categories") for title in figures)


def test_names_of_runs_and_figures_are_text_on_the_page(runs):
    (run,) = open_runs(runs[:1])
    hostile = replace(run, name="<script>alert(1)</script>")
    page = render_page([hostile], {"A <b>bold</b> one": go.Figure()})
    assert "<script>alert(1)" not in page
    assert "<h2>A &lt;b&gt;bold&lt;/b&gt; one</h2>" in page
    assert page.count("plotly.js v") == 1


def test_best_places_stand_side_by_side_held_out(runs):
    opened = open_runs(runs)
    figures = draw_comparison(opened, compare_runs(opened))
    (title,) = (title for title in figures if title.startswith("Held-out projections of "))
    marks = [trace for trace in figures[title].data if trace.mode == "markers"]
    assert len(marks) == 2 * sum(run.best is not None for run in opened)
    first = opened[0]
    row = first.projections.hook_points.index(first.best[0])
    column = first.projections.positions.index(first.best[1])
    numbers = first.projections.values[:, row, column]
    for trace, is_harmful in zip(marks[:2], (False, True), strict=True):
        own = numbers[first.projections.is_harmful == is_harmful]
        np.testing.assert_allclose(trace.x, own.numpy(), rtol=1e-4)


def test_layers_of_all_runs_stand_over_one_depth(runs):
    opened = open_runs(runs)
    drawn = draw_comparison(opened, compare_runs(opened))
    title = "AUROC over depth, each at the site and position of its best place"
    assert [trace.name for trace in drawn[title].data] == ["refuser", "topics", "complier"]
    for trace, run in zip(drawn[title].data, opened, strict=True):
        np.testing.assert_allclose(trace.x, [100 * layer / 7 for layer in (3, 4, 5)])
        rows = run.folder.read_separation()
        rows = rows[rows["position"] == run.best[1]]
        np.testing.assert_allclose(trace.y, rows["auroc"])


def test_one_run_is_compared_with_itself_alone(runs, tmp_path):
    printed = invoke("compare", runs[0], "--output", tmp_path / "one")
    assert "models:" not in printed
    assert (tmp_path / "one/comparison.html").stat().st_size > 1e6


def test_runs_that_share_their_last_name_are_told_apart(runs, tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        subprocess.run(["cp", "-r", runs[0], tmp_path / parent / "run"], check=True)
    names = [run.name for run in open_runs([tmp_path / "a/run", tmp_path / "b/run"])]
    assert names == ["a/run", "b/run"]
    with pytest.raises(RefusalLensError, match="A run was given twice"):
        open_runs([tmp_path / "a/run", tmp_path / "a/../a/run"])


def test_run_that_was_not_fitted_is_named(runs, tmp_path):
    folder = tmp_path / "raw"
    subprocess.run(["cp", "-r", runs[0], folder], check=True)
    (folder / "tables/cosines.csv").unlink()
    printed = invoke("compare", folder, "--output", tmp_path / "out", exit_code=2)
    assert "has no tables/cosines.csv yet. Fit it (again): refusal-lens fit" in printed
    assert not (tmp_path / "out").exists()


def test_directions_of_a_run_stay_readable(runs):
    directions = RunFolder(runs[0]).read_directions()
    assert directions.provenance["tokens_read"]["last"]["prompt_id"] == "harmful-001"
    assert torch.isfinite(directions.vectors).all()


def test_runs_at_numbered_positions_alone_can_be_compared(tmp_path):
    """A column of -2 alone was read back as numbers, and no row of the best place was found."""
    few = ("--set", "validation.n_permutations=19", "--set", "validation.n_resamples=20")
    one = ("--set", "directions.compare_methods=[]")
    invoke(
        "collect", "--output", tmp_path / "a", "--hook-point", "resid_post:4", "--position", "-2"
    )
    invoke("fit", tmp_path / "a", *few, *one)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    invoke("compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "both")
    summary = read_frame(tmp_path / "both" / "summary.csv")
    assert summary["position"].tolist() == ["-2", "-2"]
    assert summary["auroc"].notna().all()


def test_a_run_that_cannot_tell_is_said_beside_its_best_place(runs, tmp_path):
    run_folder = RunFolder(shutil.copytree(runs[0], tmp_path / "unsure"))
    nulls, power = (run_folder.read_table(name) for name in ("nulls", "power"))
    assert nulls is not None
    assert power is not None
    run_folder.write_table("nulls", nulls.assign(p_value_corrected=0.3))
    run_folder.write_table("power", power.assign(detectable_auroc=0.9))
    printed = invoke("compare", run_folder.path, runs[1], "--output", tmp_path / "out")
    told = "cannot tell whether there is a direction: its best place is only the nearest miss."
    assert f"Warning: {run_folder.path} {told}" in printed
