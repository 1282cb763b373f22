"""The table of causal scores tells interventions apart."""

import pandas as pd

from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.experiments.causal_scores import judge_table
from refusal_lens.experiments.verdicts import (
    compare_removals,
)

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
    assert judged["reasons"].tolist() == ["", "KL is above 0.1"]
    assert choice.n_eligible == 1
    assert compare_removals(judged) == (
        "Of 1 places, those that pass the rule: affine ablation at 1, ablation at zero at 0. At "
        "the chosen place the refusal score of harmful prompts goes from +4.00 to -5.00 by affine "
        "ablation (KL on harmless 0.030) and to +3.00 by ablation at zero (KL on harmless 0.900). "
        "Harmless prompts project to -8.00 there, harmful ones to +2.00: zero is on the harmful "
        "side, so that setting to zero does not remove it."
    )
    unchosen, nothing = judge_table(table, 8, CausalRule(), "ablate")
    assert nothing.chosen is None
    assert compare_removals(unchosen).endswith("affine ablation at 1, ablation at zero at 0.")
