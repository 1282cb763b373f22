"""What interventions do beside what they are meant to do, on planted prompts."""

from math import nan

import pandas as pd
import pytest
import torch

from refusal_lens.experiments.arms import Arm
from refusal_lens.experiments.side_effects import relative_dose, side_effects

HOOK_POINT = "blocks.0.hook_resid_post"


def arm(intervention: str, strength: float) -> Arm:
    unit = torch.tensor([1.0, 0.0])
    return Arm(intervention, HOOK_POINT, unit, 2 * unit, torch.tensor([0.5, 0.0]), strength)


def rows(strength, harmful, kl, changes, direction="fitted") -> pd.DataFrame:
    """Two harmful prompts with these outcomes and two harmless ones that are answered."""
    return pd.DataFrame(
        {
            "intervention": "affine_ablate",
            "direction": direction,
            "seed": 0,
            "strength": strength,
            "outcome": [*harmful, "answered", "answered"],
            "is_harmful": [True, True, False, False],
            "kl": [9.0, 9.0, kl, kl],
            "loss_rise": [9.0, 9.0, 0.1, 0.3],
            "score_change": [*changes, 0.0, 0.0],
        }
    )


BY_PROMPT = pd.concat(
    [
        rows(0.5, ["refused", "answered"], 0.01, [-1.0, 1.0]),
        rows(1.0, ["answered", "answered"], 0.02, [-1.0, -1.0]),
        rows(1.5, ["answered", "broken"], 0.5, [-1.0, -1.0]),
        rows(1.0, ["refused", "refused"], 0.0, [1.0, 1.0], "random"),
    ],
    ignore_index=True,
)


def test_effect_and_cost_are_of_their_own_class():
    table = side_effects(BY_PROMPT, [(arm("affine_ablate", 1.0), 0.25)])
    assert table["effect"].tolist() == [0.5, 1.0, 0.5, 0.0]
    assert table["kl"].tolist() == [0.01, 0.02, 0.5, 0.0]
    assert table["loss_rise"].tolist() == pytest.approx([0.2] * 4)
    assert table["broken"].tolist() == [0, 0, 0.25, 0]
    assert table["wrong_way"].tolist() == [0.5, 0, 0, 1.0]
    doses = table["dose"].tolist()
    assert doses[1] == 0.25
    assert pd.isna(pd.Series([doses[0], *doses[2:]])).all()
    # More for less: the strongest does less than the middle one at a higher cost.
    assert table["is_on_front"].tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("intervention", "strength", "expected"),
    [
        ("add", 1.5, 3.0 / 5.0),  # 1.5 times a vector of length 2
        ("ablate", 1.0, 3.0 / 5.0),  # the projection is taken out
        ("affine_ablate", 1.0, 2.5 / 5.0),  # all but the harmless mean's
    ],
)
def test_the_dose_is_the_push_over_the_streams_length(intervention, strength, expected):
    activations = torch.tensor([[3.0, 4.0], [3.0, -4.0]])
    assert relative_dose(arm(intervention, strength), activations) == pytest.approx(expected)


def test_how_much_of_the_kl_a_few_prompts_carry_is_told():
    # Of two parts of the prompts one had a KL of .045 and the other .241, by three prompts.
    part = pd.concat([rows(1.0, ["answered", "answered"], 0.01, [-1.0, -1.0])] * 4)
    part = pd.concat([part, rows(1.0, ["answered", "answered"], 0.46, [-1.0, -1.0])])
    both = pd.concat([part, part.assign(direction="random")], ignore_index=True)
    shares = side_effects(both, [])["kl_top_share"].tolist()
    assert shares == [
        pytest.approx((2 * 0.46 + 0.01) / (2 * 0.46 + 8 * 0.01)),
        pytest.approx(nan, nan_ok=True),
    ]
