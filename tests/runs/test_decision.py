"""Is there a direction: decided once, and said in the same words everywhere."""

import html
import io
import math
from dataclasses import replace
from typing import Any

import explored_run
import pytest
from planted_run import make_run, nulls, power
from rich.console import Console
from runs.test_diagnosis import make, make_prompts
from typer.testing import CliRunner

from refusal_lens.cli import app
from refusal_lens.errors import RefusalLensWarning
from refusal_lens.explorer import drawing
from refusal_lens.explorer.runs import ExploredRun
from refusal_lens.explorer.scene import Scene
from refusal_lens.explorer.view import View, nearest_view
from refusal_lens.report.answer import answer
from refusal_lens.report.evidence import gather
from refusal_lens.report.page import render
from refusal_lens.runs.compare import open_runs
from refusal_lens.runs.compare_page import render_page
from refusal_lens.runs.decision import Chance, decide, find_place, read_chance
from refusal_lens.runs.diagnosis import checklist, diagnose, diagnose_frames, diagnose_random
from refusal_lens.stages import terminal
from refusal_lens.stages.experiment import _place
from refusal_lens.stages.export import export_stage
from refusal_lens.validation.best_place import choose_best


def findings_of(chance: Chance) -> list[str]:
    separation = make(0.5, 0.9)
    decision = decide(choose_best(separation, 4), chance)
    causes = [f.cause for f in diagnose(make_prompts(30), separation, None, decision)]
    assert (causes == [decision.sentence]) != decision.is_found
    return causes


def test_prompts_without_the_power_to_tell_say_so():
    (cause,) = findings_of(Chance(0.43))
    assert cause.startswith("These prompts cannot tell whether there is a direction")
    (cause,) = findings_of(Chance(0.43, detectable=0.85))
    assert "(one of 0.85 would be found, four times in five)" in cause


def test_scores_that_exchanged_labels_reach_are_no_direction():
    assert findings_of(Chance(0.43, detectable=0.65)) == [
        "There is no direction here: with exchanged labels the best of all places does as well in "
        "43% of the draws."
    ]
    assert findings_of(Chance(0.05)) == []


def test_no_tick_stands_beside_scores_that_exchanged_labels_reach():
    separation = make(0.5, 0.9)
    best = choose_best(separation, 4)
    checks = checklist(make_prompts(30), separation, best, decide(best, Chance(0.43)))
    assert [check.is_passed for check in checks] == [True, False, False, False]
    assert checks[2].came == "0.50, no better than exchanged labels"


def test_a_place_is_judged_by_auroc_and_accuracy_and_not_by_cosines():
    separation = make(0.03, 0.9)
    decision = decide(choose_best(separation, 4), Chance(0.001))
    assert (decision.verdict, decision.is_found) == ("found", True)
    (finding,) = diagnose(make_prompts(30), separation, None, decision)
    assert finding.cause.startswith("Separation is below 0.15 everywhere although the AUROC reach")
    assert decide(choose_best(make(0.5, 0.7), 4), Chance()).verdict == "weak"
    assert decide(choose_best(make(0.5, 0.55), 4), Chance()).verdict == "miss"
    assert decide(None, Chance()).verdict == "nowhere"


def test_random_directions_that_do_as_well_are_named():
    (finding,) = diagnose_random(Chance(0.001, random_share=0.4))
    assert finding.cause.startswith("40% of random directions with the activations' covariance")
    assert not list(diagnose_random(Chance(0.001, random_share=0.001)))


def test_frames_that_differ_leave_the_decision_to_the_interval():
    chance = Chance(None, frames_differ=True)
    (finding,) = diagnose_frames(chance)
    assert "hardly share a frame" in finding.cause
    assert decide(choose_best(make(0.5, 0.9), 4), chance).verdict == "found"
    reached = decide(choose_best(make(0.5, 0.58), 4), chance)
    assert reached.verdict == "cannot tell"
    assert "with topics and frames held out the interval reaches 0.5" in reached.sentence
    assert not list(diagnose_frames(Chance(0.5)))
    best = choose_best(make(0.5, 0.97), 4)
    assert best is not None
    none = decide(replace(best, auroc_low=math.nan), chance)
    assert "with topics and frames held out there is no interval" in none.sentence


@pytest.mark.parametrize(("p_value", "is_found"), [(0.001, True), (0.3, False)])
def test_terminal_and_report_say_the_same_words(tmp_path, p_value, is_found):
    run_folder = make_run(tmp_path / "run")
    run_folder.write_table("nulls", nulls(p_value))
    evidence, output = gather(run_folder), io.StringIO()
    console = Console(file=output, width=10_000)
    terminal.show_replies(console, answer(evidence))
    told = evidence.diagnosis
    terminal.show_checklist(console, told.checks, told.findings, is_wide=True)
    page = html.unescape(render(run_folder))
    best = run_folder.best()
    decision = decide(best, read_chance(run_folder, best))
    assert decision == told.decision
    assert decision.is_found == is_found
    for words in (
        decision.sentence.removesuffix("."),
        *(reply.sentence for reply in answer(evidence)),
        *(part for each in told.findings for part in (each.cause, each.remedy)),
    ):
        assert words in output.getvalue()
        assert words in page


@pytest.mark.parametrize(
    ("p_value", "begins"),
    [
        (0.001, "A direction tells harmful from harmless prompts that it has not seen"),
        (0.3, "These prompts cannot tell whether there is a direction"),
    ],
)
def test_all_four_say_the_same_sentence(tmp_path, p_value, begins):
    run_folder = explored_run.make_run(tmp_path / "run")
    run_folder.write_table("nulls", nulls(p_value))
    (run,) = open_runs([run_folder.path])
    told = run.sentence
    assert told.startswith(begins)
    output, replies = io.StringIO(), answer(gather(run_folder))
    terminal.show_replies(Console(file=output, width=10_000), replies)
    if "cannot tell" in told:
        assert [reply.verdict for reply in replies[:2]] == ["Cannot tell"] * 2
    assert told.removesuffix(".") in output.getvalue()
    assert told.removesuffix(".") in html.unescape(render(run_folder))
    assert told in html.unescape(render_page([run], {}))
    explored = {run.name: ExploredRun(run)}
    view = nearest_view(View(), explored)
    assert drawing.decision(Scene(explored[run.name], view)) == told


@pytest.mark.parametrize(
    ("detectable", "told"),
    [(0.9, "cannot tell whether there is a direction"), (0.65, "found no direction")],
)
def test_wherever_the_best_place_is_taken_by_default_a_miss_is_told(tmp_path, detectable, told):
    # Behind "cannot tell" the best place was taken as if a direction had been found.
    run_folder = explored_run.make_run(tmp_path / "run")
    run_folder.write_table("nulls", nulls(0.3))
    run_folder.write_table("power", power(detectable))
    words = f"{run_folder.path} {told}: its best place is only the nearest miss."
    by_effect: Any = None  # ablate asks for no model where no place was named
    for take in (
        lambda: find_place(run_folder, None, None),
        lambda: _place(None, run_folder, by_effect, Console(quiet=True)),
        lambda: export_stage(run_folder.path, tmp_path / "out.npz", "numpy"),
    ):
        with pytest.warns(RefusalLensWarning) as warned:
            take()
        assert [str(each.message) for each in warned] == [words]
    inspected = CliRunner().invoke(app, ["inspect", str(run_folder.path)])
    assert inspected.output.count(f"Warning: {words}") == 1
    find_place(run_folder, "resid_post:1", "last")  # asked for, and so no matter of the choice


def test_topics_too_few_for_any_p_value_to_be_low_are_told():
    # Five topics of twins: p cannot fall below 2/32, and "one of 1.00 would be found" was untrue.
    (cause,) = findings_of(Chance(0.064, least_p_value=0.064, shuffled="topics"))
    assert cause == (
        "These prompts cannot tell whether there is a direction: so few topics can be exchanged "
        "between the classes that p cannot fall below 0.064, whatever the prompts say."
    )
    (cause,) = findings_of(Chance(0.43, least_p_value=0.03))
    assert "p cannot fall below" not in cause
