"""One more intervention is one more row of the table."""

import pandas as pd
import pytest
import torch
from rich.console import Console

from refusal_lens import RefusalLensError, plots
from refusal_lens.experiments.arms import (
    INTERVENTIONS,
    Intervention,
    Steered,
    intervention_of,
    removal_of,
)
from refusal_lens.experiments.candidates import FIT, TEST, fit_candidates
from refusal_lens.experiments.causal_scores import CausalPlan, causal_scores
from refusal_lens.experiments.dose_response import Plan, dose_response, plan_trials
from refusal_lens.experiments.interventions import add
from refusal_lens.experiments.refusal import Answer, RefusalReport
from refusal_lens.experiments.verdicts import compare_removals, summarise
from refusal_lens.stages.experiment import read_request
from refusal_lens.stages.terminal import show_causal


def subtract(hook_points, rows: Steered) -> list:
    return add(hook_points, (rows.vector * -rows.strength[:, None])[:, None])


@pytest.fixture
def toy(monkeypatch) -> str:
    """A third way to remove, which none of the modules under test names."""
    row = Intervention("toy", "subtraction", "removes", "place", "differences taken away", subtract)
    monkeypatch.setitem(INTERVENTIONS, "toy", row)
    return row.name


def test_a_new_row_is_scored_chosen_by_and_drawn(toy, model, prompts, activations):
    answers = [Answer("", "", h, "", "a", "answered", 0.0) for h in prompts.is_harmful]
    scores = causal_scores(
        model,
        activations,
        prompts,
        RefusalReport(tuple(answers), ("a",), (5,)),
        CausalPlan(intervention=toy, n_answer_tokens=2),
        show_progress=False,
    )
    table = scores.table
    assert list(dict.fromkeys(table["intervention"])) == ["toy", "ablate", "affine_ablate"]
    assert len(table) == 3 * scores.choice.n_candidates
    by_name = {
        name: own.set_index(["hook_point", "position"])["bypass"]
        for name, own in table.groupby("intervention")
    }
    assert (by_name["toy"] - by_name["affine_ablate"]).abs().max() > 1e-3
    chosen = table[table["is_chosen"]]
    assert set(chosen["intervention"]) <= {"toy"}
    assert " under subtraction" in compare_removals(table)
    console = Console(width=120, record=True)
    show_causal(console, scores)
    assert "toy" in console.export_text()
    figure = plots.causal_scores(table)
    assert "subtraction solid" in figure.layout.title.subtitle.text


def test_a_new_row_is_tried_at_several_strengths(toy, model, prompts, activations):
    parts = torch.tensor([FIT, FIT, TEST, TEST] * 2)
    plan = Plan((toy, "add"), (1.0, 2.0), (1.0,), n_controls=1, n_new_tokens=2)
    candidate = fit_candidates(activations, parts)[4]
    labelled = list(zip(prompts.prompts, prompts.is_harmful, strict=True))
    response = dose_response(
        model,
        labelled,
        plan_trials(candidate, activations, parts, plan),
        refusal_ids=[5],
        judge=lambda prompt, answer: "a" in answer,
        plan=plan,
    )
    tried = response.table.groupby("intervention")["strength"].unique()
    assert {name: sorted(each) for name, each in tried.items()} == {
        "toy": [0.0, 1.0, 2.0],
        "add": [0.0, 1.0],
    }
    assert set(pd.unique(summarise(response.table)["intervention"])) == {"toy", "add"}
    titles = [axis.title.text for axis in plots.dose_response(response.table).select_xaxes()]
    assert "differences taken away" in titles
    assert read_request(None, [toy], None).interventions == (toy,)


def test_names_that_do_not_fit_are_told():
    with pytest.raises(RefusalLensError, match="Use ablate, affine_ablate, add"):
        intervention_of("toy")
    with pytest.raises(RefusalLensError, match="Set causal.intervention to ablate or affine_abl"):
        removal_of("add")
