"""What is said of effects: planted causes, planted correlations, few prompts, and none."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from refusal_lens.experiments.verdicts import (
    Evidence,
    decide_cause,
    doubt_score,
    is_met_but_for_controls,
    summarise,
)

PLACE = {"hook_point": "blocks.2.hook_resid_post", "layer": 2, "position": "last"}


def share(rate: float, n: int) -> np.ndarray:
    return (np.arange(n) < round(rate * n)).astype(float)


def make_evidence(
    harmful: float, left: float, harmless: float, induced: float, n: int = 100
) -> Evidence:
    """So large shares of n prompts a side refused; random directions do nothing."""
    return Evidence(
        share(harmful, n),
        share(left, n),
        share(harmless, n),
        share(induced, n),
        np.full(n, 0.02),
        np.full(n, 0.01),
        np.tile(share(harmful, n), (20, 1)),
        np.tile(share(harmless, n), (20, 1)),
        list(range(n)),
        list(range(n, 2 * n)),
        auroc=0.95,
        auroc_p=1e-9,
    )


CAUSE = make_evidence(0.95, 0.03, 0.02, 0.9)


def decide(evidence: Evidence) -> str:
    return decide_cause(evidence, max_kl=0.1).word


def test_a_cause_is_called_one():
    verdict = decide_cause(CAUSE, 0.1)
    assert verdict.word == str(verdict) == "separates and causes"
    assert {check.standing for check in verdict.checks} == {"met"}


@pytest.mark.parametrize(
    ("rates", "reason"),
    [
        # Refusal scores moved by half of their gap in all of these.
        ((0.98, 0.98, 0.0, 0.9), "refused after removal"),
        ((0.98, 0.02, 0.0, 0.08), "refused after addition"),
        ((0.10, 0.00, 0.0, 0.08), "gap between the classes"),
        ((0.95, 0.75, 0.0, 0.9), "share of the gap removed"),
        ((0.95, 0.02, 0.0, 0.1), "share of the gap induced"),
        ((0.0, 0.0, 0.0, 0.0), "gap between the classes"),
        ((0.5, 0.5, 0.5, 0.5), "gap between the classes"),
    ],
)
def test_what_is_left_or_not_induced_is_no_cause(rates, reason):
    verdict = decide_cause(make_evidence(*rates, n=400), 0.1)
    assert verdict.word == "separates only"
    assert reason in verdict.reasons


def test_a_model_that_breaks_does_not_comply():
    # Broken answers count as left: see how evidence is gathered.
    assert decide(replace(CAUSE, left=share(0.9, 100))) == "separates only"


def test_five_prompts_a_side_cannot_tell():
    verdict = decide_cause(make_evidence(1.0, 0.0, 0.0, 1.0, n=5), 0.1)
    assert verdict.word == "cannot tell"
    assert 5 < verdict.n_needed < 30
    assert f"about {verdict.n_needed:.0f} prompts a side would tell" in str(verdict)
    # So many do.
    assert decide(make_evidence(1.0, 0.0, 0.0, 1.0, n=30)) == "separates and causes"


def test_no_prompts_cannot_tell():
    assert decide(make_evidence(1.0, 0.0, 0.0, 1.0, n=0)) == "cannot tell"


def test_prompts_that_depend_on_each_other_tell_less():
    alike = replace(
        make_evidence(1.0, 0.3, 0.0, 0.7, n=60),
        harmful_units=[i % 6 for i in range(60)],
        harmless_units=[6 + i % 6 for i in range(60)],
    )
    # Planted: whole units are left, so that there are six observations and not sixty.
    alike = replace(
        alike,
        left=np.array([float(i % 6 < 2) for i in range(60)]),
        induced=np.array([float(i % 6 >= 2) for i in range(60)]),
    )
    apart = replace(alike, harmful_units=list(range(60)), harmless_units=list(range(60, 120)))
    assert decide(apart) == "separates and causes"
    assert decide(alike) == "cannot tell"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"auroc": 0.55}, "neither"),
        ({"auroc": math.nan}, "neither"),
        ({"auroc_p": 0.02}, "cannot tell"),
        ({"kl": np.full(100, 0.2)}, "separates only"),
        ({"kl": np.append(np.full(99, 0.02), 8.0)}, "cannot tell"),
        ({"loss_rise": np.empty(0)}, "separates and causes"),
        ({"random_left": np.tile(share(0.03, 100), (20, 1))}, "separates only"),
        ({"random_induced": np.tile(share(0.9, 100), (20, 1))}, "separates only"),
        # One of twenty random directions does as much: rank 2 of 21.
        ({"random_left": np.stack([share(0.95, 100)] * 19 + [share(0.0, 100)])}, "separates only"),
        ({"random_left": np.tile(share(0.95, 100), (5, 1))}, "cannot tell"),
        ({"random_left": np.empty((0, 100))}, "cannot tell"),
    ],
)
def test_conditions_one_by_one(change, word):
    assert decide(replace(CAUSE, **change)) == word


@pytest.mark.parametrize(("rise", "standing"), [(0.3, "failed"), (-0.3, "failed"), (0.05, "met")])
def test_a_change_of_the_texts_loss_is_told_as_a_side_effect(rise, standing):
    verdict = decide_cause(replace(CAUSE, loss_rise=np.full(100, rise)), 0.1)
    assert verdict.word == "separates and causes"
    (check,) = [each for each in verdict.checks if each.name == "rise of the text's loss"]
    assert check.standing == standing
    is_told = str(verdict) == "separates and causes, with a side effect: rise of the text's loss"
    assert is_told is (standing == "failed")


def test_random_directions_may_be_all_that_is_missing():
    bare = replace(CAUSE, random_left=np.empty((0, 100)), random_induced=np.empty((0, 100)))
    assert is_met_but_for_controls(decide_cause(bare, 0.1))
    assert not is_met_but_for_controls(decide_cause(CAUSE, 0.1))
    weak = decide_cause(replace(bare, left=share(0.9, 100)), 0.1)
    assert not is_met_but_for_controls(weak)


def test_a_score_that_does_not_follow_the_judge_proves_nothing():
    verdict = decide_cause(CAUSE, 0.1)
    assert doubt_score(verdict, 0.9) is verdict
    doubted = doubt_score(verdict, 0.2)
    assert str(doubted) == "cannot tell (the refusal score follows the judge)"


def test_a_verdict_is_a_table_of_its_conditions():
    table = decide_cause(CAUSE, 0.1).to_frame().set_index("name")
    left = table.loc["refused after removal"]
    assert (left["estimate"], left["limit"], left["standing"]) == (0.03, 0.5, "met")
    assert 0 <= left["low"] < 0.03 < left["high"] < 0.1
    removed = table.loc["share of the gap removed"]
    assert removed["estimate"] == pytest.approx(0.92 / 0.93)
    assert removed["low"] < removed["estimate"]
    assert set(table["verdict"]) == {"separates and causes"}


def make_dose(removed: float, induced: float, by_chance: float) -> pd.DataFrame:
    """Rates at strengths 0, 0.5 and 1: 100 harmful prompts all refused, 100 harmless never."""
    rows = []
    for intervention in ("affine_ablate", "add"):
        for direction, seeds in (("fitted", [0]), ("random", [0, 1]), ("permuted", [0])):
            for seed in seeds:
                for strength in (0.0, 0.5, 1.0):
                    if strength == 0 and direction != "fitted":
                        continue
                    for is_harmful in (True, False):
                        size = {"affine_ablate": removed, "add": induced}[intervention]
                        moved = strength * (size if direction == "fitted" else by_chance)
                        is_moved = is_harmful == (intervention == "affine_ablate")
                        rate = abs(is_harmful - moved * is_moved)
                        rows.append(
                            PLACE
                            | {
                                "site": "resid_post",
                                "intervention": intervention,
                                "direction": direction,
                                "seed": seed,
                                "strength": strength,
                                "is_harmful": is_harmful,
                                "n_prompts": 100,
                                "refusal_rate": rate,
                                "refusal_rate_low": 0.9 * rate,
                                "refusal_rate_high": 0.9 * rate + 0.1,
                                "refusal_score": rate,
                                "kl": 0.01,
                                "text_loss": 3.0,
                                "evaded_rate": 0.0,
                                "broken_rate": 0.0,
                                "n_by_first_token": 0,
                            }
                        )
    return pd.DataFrame(rows)


def test_summary_pools_controls_at_full_strength():
    summary = summarise(make_dose(0.9, 0.8, 0.02)).set_index(
        ["intervention", "direction", "is_harmful"]
    )
    fitted = summary.loc[("affine_ablate", "fitted", True)]
    assert (fitted["plain_rate"], fitted["refusal_rate"]) == (1.0, pytest.approx(0.1))
    assert fitted["n_prompts"] == 100
    random = summary.loc[("add", "random", False)]
    assert (random["n_prompts"], random["strength"]) == (200, 1.0)
    # Both seeds are of the same prompts: two of them say no more of others than one does.
    ends = random[["refusal_rate_low", "refusal_rate", "refusal_rate_high"]].tolist()
    assert ends == pytest.approx([0.018, 0.02, 0.118])
