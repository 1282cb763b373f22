"""What is said of scores and rates: planted causes, planted correlations, and what controls do."""

import pandas as pd
import pytest

from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.experiments.causal_scores import judge_table
from refusal_lens.experiments.verdicts import (
    compare_removals,
    summarise,
    verdict,
    verdict_of_rates,
)

CAUSE = {
    "auroc": 0.95,
    "auroc_p": 1e-9,
    "baseline_harmful": 4.0,
    "baseline_harmless": -6.0,
    "bypass": -5.0,
    "bypass_random": 3.8,
    "induce": 3.0,
    "induce_random": -5.0,
    "kl": 0.03,
    "harmful_projection": 2.0,
    "harmless_projection": -8.0,
}
PLACE = {"hook_point": "blocks.2.hook_resid_post", "layer": 2, "position": "last"}


def test_a_cause_is_called_one():
    assert verdict(CAUSE, 0.1, has_refusal=True) == "separates and causes"


@pytest.mark.parametrize(
    "change",
    [
        {"bypass": 0.0},  # removes 4 of the gap of 10
        {"induce": -2.0},  # adds 4 of it
        {"bypass_random": -2.0},  # a random direction removes 6 against 9
        {"induce_random": -1.0},  # and adds 5 against 9
        {"kl": 0.2},
        {"baseline_harmful": -7.0, "bypass": -20.0},  # nothing to remove
    ],
)
def test_what_fails_one_condition_only_separates(change):
    assert verdict(CAUSE | change, 0.1, has_refusal=True) == "separates only"


def test_nothing_causes_refusal_in_a_model_that_does_not_refuse():
    assert verdict(CAUSE, 0.1, has_refusal=False) == "separates only"


@pytest.mark.parametrize("change", [{"auroc": 0.55}, {"auroc_p": 0.02}, {"auroc": float("nan")}])
def test_what_does_not_separate_is_neither(change):
    assert verdict(CAUSE | change, 0.1, has_refusal=True) == "neither"


def test_the_table_tells_interventions_apart():
    affine = CAUSE | PLACE | {"intervention": "affine_ablate"}
    plain = affine | {"intervention": "ablate", "bypass": 3.0, "kl": 0.9}
    table = pd.DataFrame([affine, plain])
    judged, choice = judge_table(table, 8, CausalRule(), "affine_ablate", has_refusal=True)
    assert judged["is_eligible"].tolist() == judged["is_chosen"].tolist() == [True, False]
    assert judged["reasons"].tolist() == ["", "KL is above 0.1"]
    assert choice.n_eligible == 1
    assert compare_removals(judged) == (
        "Of 1 places, those that pass the rule: affine ablation at 1, ablation at zero at 0. At "
        "the chosen place the refusal score of harmful prompts goes from +4.00 to -5.00 by affine "
        "ablation (KL on harmless 0.030) and to +3.00 by ablation at zero (KL on harmless 0.900). "
        "Harmless prompts project to -8.00 there, harmful ones to +2.00: zero is on the harmful "
        "side, so that setting to zero does not remove it."
    )
    unchosen, nothing = judge_table(table, 8, CausalRule(), "ablate", has_refusal=True)
    assert nothing.chosen is None
    assert compare_removals(unchosen).endswith("affine ablation at 1, ablation at zero at 0.")


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
                                "refusal_score": rate,
                                "kl": 0.01,
                                "text_loss": 3.0,
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
    assert random["refusal_rate_low"] < random["refusal_rate"] == 0.02 < random["refusal_rate_high"]


@pytest.mark.parametrize(
    ("moves", "said"),
    [
        ((0.9, 0.8, 0.02), "separates and causes"),
        ((0.4, 0.8, 0.02), "separates only"),
        ((0.9, 0.4, 0.02), "separates only"),
        ((0.9, 0.8, 0.6), "separates only"),
    ],
)
def test_verdict_of_rates(moves, said):
    summary = summarise(make_dose(*moves))
    assert verdict_of_rates(summary, 0.9, 1e-6) == said
    assert verdict_of_rates(summary, 0.5, 0.5) == "neither"
