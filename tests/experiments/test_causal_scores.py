"""The table of causal scores tells interventions apart, and a grid is scored as all are."""

import math
from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.experiments.causal_scores import (
    EVERY_LAYER,
    CausalPlan,
    causal_scores,
    judge_table,
    passes_to_score,
)
from refusal_lens.experiments.refusal import Answer, RefusalReport
from refusal_lens.experiments.verdicts import compare_removals
from refusal_lens.journal import Journal
from refusal_lens.stages.terminal import show_causal, show_causal_outlook

SCORES = {
    "baseline_harmful": 4.0,
    "baseline_harmless": -6.0,
    "bypass": -5.0,
    "induce": 3.0,
    "kl": 0.03,
    "harmful_projection": 2.0,
    "harmless_projection": -8.0,
}


PLACE = {"hook_point": "blocks.2.hook_resid_post", "layer": 2, "position": "last"}


def test_the_table_tells_interventions_apart():
    affine = SCORES | PLACE | {"intervention": "affine_ablate"}
    plain = affine | {"intervention": "ablate", "bypass": 3.0, "kl": 0.9}
    table = pd.DataFrame([affine, plain])
    judged, choice = judge_table(table, 8, CausalRule(), "affine_ablate")
    assert judged["is_eligible"].tolist() == judged["is_chosen"].tolist() == [True, False]
    assert judged["reasons"].tolist() == ["", "KL of the first token is above 0.1"]
    assert choice.n_eligible == 1
    assert compare_removals(judged) == (
        "Places that pass the rule, of 1: 1 under affine ablation, none under ablation at zero. At "
        "the chosen place the refusal score of harmful prompts goes from +4.00 to -5.00 by affine "
        "ablation (KL of the first token on harmless 0.030) and to +3.00 by ablation at zero (KL "
        "of the first token on harmless 0.900). Harmless prompts project to -8.00 there, harmful "
        "ones to +2.00: zero is on the harmful side, so that setting to zero does not remove it."
    )
    unchosen, nothing = judge_table(table, 8, CausalRule(), "ablate")
    assert nothing.chosen is None
    assert compare_removals(unchosen).endswith(
        " 1 under affine ablation, none under ablation at zero."
    )


@pytest.fixture(scope="module")
def scored(model, prompts, activations):
    answers = [Answer("", "", h, "", "a", "answered", 0.0) for h in prompts.is_harmful]
    report = RefusalReport(tuple(answers), ("a",), (5,))

    def score(layers_every: int = 1, journal: Journal | None = None):
        plan = CausalPlan(n_answer_tokens=2, layers_every=layers_every)
        return causal_scores(
            model, activations, prompts, report, plan, journal=journal, show_progress=False
        )

    return score


def test_a_grid_of_layers_is_scored_first_then_all_around_its_best(scored, activations, model):
    whole, part = scored(), scored(3)
    layers = [int(name.split(".")[1]) for name in activations.hook_points]
    assert layers == [0, 1, 2, 3], "two layers between those of the grid"
    first = part.table[part.table["scored_on"] == "grid of 3 layers"]
    assert set(first["layer"]) == {0, 3}
    # The best of the grid, whether the rule lets it pass or not, lies beside what came after.
    around = part.table[part.table["scored_on"] == "around the best of the grid"]
    assert set(around["layer"]) == {1, 2}
    assert set(whole.table["scored_on"]) == {EVERY_LAYER}
    order = ["intervention", "hook_point", "position"]
    pd.testing.assert_frame_equal(
        part.table.drop(columns="scored_on").sort_values(order, ignore_index=True),
        whole.table.drop(columns="scored_on").sort_values(order, ignore_index=True),
        rtol=1e-4,
        atol=1e-4,
    )
    assert part.table[order].equals(whole.table[order]), "rows come in the order of all"


def test_what_is_left_out_is_told(scored, activations, model):
    part, plan = scored(2), CausalPlan(layers_every=2)
    assert set(part.table["layer"]) < {0, 1, 2, 3}
    assert part.choice.n_candidates < part.n_places
    console = Console(width=100, record=True, file=StringIO())
    show_causal_outlook(console, activations, 24, CausalPlan())
    show_causal(console, part)
    text = " ".join(console.export_text().split())
    assert "with causal.layers_every=3 about" in text
    assert f"{part.choice.n_candidates} of {part.n_places} places" in text
    assert "A better one elsewhere would be missed." in text
    for n_ranked, said in ((0, None), (1, "The best that meets"), (3, "The best 3 that meet")):
        bypass_random = [1.0] * n_ranked + [math.nan] * (len(part.table) - n_ranked)
        ranked = replace(part, table=part.table.assign(bypass_random=bypass_random))
        show_causal(console, ranked)
        text = console.export_text()
        assert ("random directions" in text) == (said is not None)
        assert said is None or f"{said} all else" in text
    names = activations.hook_points
    whole, grid = (
        passes_to_score(names, len(activations.positions), 10, 4, each)
        for each in (CausalPlan(), plan)
    )
    assert grid < whole


def test_an_interrupted_choice_goes_on_with_the_same_numbers(scored, tmp_path):
    path = tmp_path / "select.jsonl"
    whole = scored(journal=Journal(path))
    kept = path.read_bytes().splitlines(keepends=True)
    assert len(kept) > 4
    path.write_bytes(b"".join(kept[: len(kept) // 2]))
    again = scored(journal=Journal(path))
    assert path.read_bytes().splitlines(keepends=True) == kept
    pd.testing.assert_frame_equal(again.table, whole.table, check_exact=True)
