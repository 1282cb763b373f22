"""What the terminal prints: short enough for a screen, nothing twice."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import make_separation
from planted_run import make_run, nulls, power
from rich.console import Console

from refusal_lens.directions.direction import Directions
from refusal_lens.prompts.positions import PositionRead
from refusal_lens.report.answer import answer
from refusal_lens.report.evidence import gather
from refusal_lens.runs.diagnosis import Finding
from refusal_lens.stages import terminal
from refusal_lens.stages.fit import show_fit
from refusal_lens.stages.outlook import ModelSize, Outlook
from refusal_lens.validation.best_place import layers_beside

ROW = r"^ +(\d+) .*[✓✗]"


def printed(show, *arguments, width=80, **options) -> str:
    output = io.StringIO()
    show(Console(file=output, width=width), *arguments, **options)
    return output.getvalue()


def layers_of(run_folder, **options) -> str:
    separation, best = gather(run_folder).separation, run_folder.best()
    p_values = separation.to_frame()[["hook_point", "position"]].assign(p_value_corrected=0.01)
    shown = layers_beside(separation, best)
    return printed(terminal.show_layers, shown, best, p_values, **options)


@pytest.mark.parametrize(("n_layers", "at_most"), [(8, 8), (12, 12), (28, 8), (30, 8), (80, 9)])
def test_many_layers_are_shown_in_part_and_the_best_always(tmp_path, n_layers, at_most):
    # Thirty lines of a table left no room for what they mean.
    run_folder = make_run(tmp_path / "run", n_layers=n_layers)
    layers = [int(layer) for layer in re.findall(ROW, layers_of(run_folder), re.MULTILINE)]
    assert len(layers) <= at_most
    assert run_folder.best().layer in layers
    whole = layers_of(run_folder, is_wide=True, width=200)
    assert re.findall(ROW, whole, re.MULTILINE) == [str(layer) for layer in range(n_layers)]


@pytest.mark.parametrize(
    ("n_layers", "width", "n_refused"), [(8, 80, 40), (30, 80, 40), (30, 80, 1), (30, 60, 40)]
)
def test_a_run_fits_a_screen(tmp_path, n_layers, width, n_refused):
    # 181 lines for 30 layers, of which one saw the last.
    run_folder = make_run(
        tmp_path / "run",
        n_layers=n_layers,
        positions=("last", "instruction_mean", "instruction_last"),
        n_refused=n_refused,
    )
    separation = run_folder.separation()
    p_values = separation.to_frame()[["hook_point", "position"]].assign(p_value_corrected=0.01)
    run_folder.write_separation(separation, p_values)
    run_folder.write_table("nulls", nulls(0.001))
    run_folder.write_table("power", power(0.8))
    outlook = Outlook(
        work=("answers", "activations"),
        n_harmful=168,
        n_harmless=168,
        n_tokens=14_167,
        n_components=12,
        n_answer_tokens=64,
        hook_points=separation.hook_points,
        positions=separation.positions,
        stored_bytes=70_000_000,
        model=ModelSize(n_layers, 163_000_000, 652_000_000, "float32", "cpu"),
        seconds=180.0,
    )
    reads = [
        PositionRead(position, "harmful-000", "40", "198", "\n")
        for position in separation.positions
    ]
    output = io.StringIO()
    console = Console(file=output, width=width)
    terminal.show_outlook(console, outlook, "/home/someone/models/smollm2-135m.gguf", reads)
    terminal.show_rates(console, run_folder.read_refusal())
    show_fit(run_folder, console)
    terminal.show_report(console, run_folder.path / "report.html")
    lines = output.getvalue().splitlines()
    assert len(lines) <= 45
    assert not [line for line in lines if len(line) > width and "report.html" not in line]


def test_a_best_place_without_an_interval_says_why(tmp_path):
    run_folder = make_run(tmp_path / "run")
    separation, best = gather(run_folder).separation, run_folder.best()
    everywhere = torch.ones(separation.is_valid.shape, dtype=torch.bool)
    scores = {name: one.without_interval(everywhere) for name, one in separation.scores.items()}
    for n_units, reason in ((3, "too few groups for an interval"), (30, "too unsteady for an")):
        bare = replace(separation, scores=scores, n_units=n_units)
        assert f"({reason}" in printed(terminal.show_best, bare, best, math.nan, width=500)
        p_values = bare.to_frame()[["hook_point", "position"]].assign(p_value_corrected=0.01)
        shown = layers_beside(bare, best)
        rows = printed(terminal.show_layers, shown, best, p_values, is_wide=True, width=500)
        assert reason in rows


def test_of_many_heads_some_are_named():
    names = tuple(f"blocks.0.attn.hook_z.{head}" for head in range(32))
    grid = torch.full((32, 1), 0.5).double()
    separation = make_separation(grid, grid, grid, grid, names, ("last",), 5)
    text = " ".join(printed(terminal.show_best, separation, None, math.nan).split())
    assert text.endswith("attn.hook_z.3 at last, attn.hook_z.4 at last and 27 more.")


def test_a_cause_told_already_leaves_its_remedy(tmp_path):
    replies = answer(gather(make_run(tmp_path / "run")))
    told, other = replies[0].sentence[:60], "Another cause."
    text = printed(
        terminal.show_checklist,
        (),
        [Finding(told, "First remedy."), Finding(other, "Second remedy.")],
        replies,
        is_wide=True,
    )
    assert told not in text
    assert "First remedy." in text
    assert other in text


def test_causes_beyond_the_first_are_left_to_the_report():
    findings = [Finding(f"cause {i}", f"remedy {i}") for i in range(5)]
    text = printed(terminal.show_checklist, (), findings)
    assert "cause 0" in text
    assert "cause 1" not in text
    assert "4 more of this in the report" in text
    assert "cause 4" in printed(terminal.show_checklist, (), findings, is_wide=True)


def test_positions_that_leave_no_token_out_are_not_told_of():
    sinks = {"are": "left_out", "ratio": 10, "left_out_a_prompt": {"last": {"a": 0.0}}}
    assert printed(terminal.show_sinks, sinks) == ""
    sinks["left_out_a_prompt"]["mean"] = {"a": 1.0, "b": 2.0}
    assert "Position mean left out 1.5 tokens" in printed(terminal.show_sinks, sinks)


def test_runs_keep_their_names_in_80_columns():
    # The column of names was squeezed to nothing by the others.
    summary = pd.DataFrame(
        {
            "run": ["default", "llama-3-8b-of-march"],
            "model": "data/tiny-refuser",
            "hook_point": "blocks.15.hook_resid_post",
            "position": "instruction_mean",
            **dict.fromkeys(("auroc", "separation", "cohens_d"), 0.9876),
        }
    )
    nothing = pd.DataFrame({"run": [], "a": [], "b": [], "fit_on": [], "test_on": []})
    tables = {"summary": summary, "cosines": nothing, "transfer": nothing}
    text = printed(terminal.show_comparison, tables)
    assert "default" in text
    assert "llama-3-8b" in text
    assert text.count("0.988") == 4


@pytest.mark.parametrize("width", [60, 80, 100])
def test_each_place_of_many_has_a_line_of_its_own_with_whole_numbers(width):
    # From layer 10 on all were "resid_post …", with an AUROC of "0.87…".
    positions = ("last", "instruction_mean", "instruction_last")
    hook_points = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(30))
    scores = {"separation": 0.0859, "accuracy": 0.8988, "auroc": 0.9649, "cohens_d": -12.5706}
    places = dict.fromkeys(hook_points, dict.fromkeys(positions, {"metrics": scores}))
    best = {"hook_point": hook_points[14], "position": "instruction_mean"}
    directions = Directions(
        torch.full((30, 3, 2), 1234.5),
        torch.ones(30, 3, dtype=torch.bool),
        hook_points,
        positions,
        provenance={"places": places, "best": best},
    )
    text = printed(terminal.show_directions, directions, Path("run"), width=width)
    table = text.partition("Directions, scored")[2]
    assert "…" not in table
    rows = re.findall(r"^resid_post (\d+) +(\S+) +(\*?) +.*0\.9649 +-12\.5706$", table, re.M)
    assert [(int(layer), position) for layer, position, _ in rows] == [
        (layer, position) for layer in range(30) for position in positions
    ]
    assert [row for row in rows if row[2]] == [("14", "instruction_mean", "*")]
    assert ("Too narrow for" in table) == (width < 100)


def test_names_of_runs_are_not_broken_where_columns_can_be_left_out():
    names = ["house-of-tiny-refusers-2", "newcomer-run"]
    summary = pd.DataFrame(
        {
            "run": names,
            "model": "data/tiny-refuser",
            "hook_point": "blocks.15.hook_resid_post",
            "position": "instruction_mean",
            **dict.fromkeys(("auroc", "separation", "cohens_d"), 0.9876),
        }
    )
    nothing = pd.DataFrame({"run": [], "a": [], "b": [], "fit_on": [], "test_on": []})
    tables = {"summary": summary, "cosines": nothing, "transfer": nothing}
    for width in (60, 80):
        text = printed(terminal.show_comparison, tables, width=width)
        assert all(f"\n{name} " in text for name in names)
        assert text.count("instruction_mean") == 2
