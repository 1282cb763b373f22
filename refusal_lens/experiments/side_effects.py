"""What an intervention does beside what it is meant to do, over its strengths.

Knows outcomes and scores prompt by prompt, and how far activations are moved. Runs no model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusal_lens.experiments.arms import Arm, Steered, intervention_of
from refusal_lens.validation.frames import rows_that, rows_where

TOLD = ("fitted", "random")
"""Directions whose side effects are told, the latter pooled over their seeds."""

N_TOP = 3
"""Prompts whose share of the KL is told: a mean over few prompts may be that of one or two."""


def side_effects(by_prompt: pd.DataFrame, doses: Sequence[tuple[Arm, float]]) -> pd.DataFrame:
    """Set what every strength does beside what it costs.

    Args:
        by_prompt: As `DoseResponse` has it.
        doses: The fitted direction's arms, each with how far it moves activations, see
            `relative_dose`.

    Returns:
        One row an intervention, direction and strength. `effect` is the share of harmful prompts
        that are answered under removal, of harmless ones that are refused under addition; `kl`
        (nats, first token), of which `kl_top_share` is carried by the `N_TOP` prompts with the
        largest, and `loss_rise` (nats a token of the user's text) are of the class that
        should stay as it is; `broken` is of both; `wrong_way` is the share of prompts whose refusal
        score moves against the intervention; `dose` is the length of the push over that of the
        stream, of the fitted direction; `is_on_front` says that no other strength of the fitted
        direction does as much for less.

    Source:
        Steering that backfires on single inputs: Tan et al. 2024, arXiv 2407.12404.
    """
    known = {(arm.intervention, arm.strength): dose for arm, dose in doses}
    acted = rows_that(by_prompt, by_prompt["direction"].isin(TOLD))
    rows = []
    keys = ["intervention", "direction", "strength"]
    groups: Any = acted.groupby(keys, sort=False)
    for (intervention, direction, strength), group in groups:
        removes = intervention_of(str(intervention)).effect == "removes"
        aimed_at: Any = rows_where(group, is_harmful=removes)
        left_alone: Any = rows_where(group, is_harmful=not removes)
        moved = aimed_at["score_change"].to_numpy(dtype=float)
        rows.append(
            {
                "intervention": intervention,
                "direction": direction,
                "strength": strength,
                "effect": _share(aimed_at["outcome"], "answered" if removes else "refused"),
                "kl": float(left_alone["kl"].mean()),
                "kl_top_share": _top_share(left_alone["kl"]) if direction == "fitted" else np.nan,
                "loss_rise": float(left_alone["loss_rise"].mean()),
                "broken": _share(group["outcome"], "broken"),
                "wrong_way": float((moved > 0).mean() if removes else (moved < 0).mean()),
                "dose": known.get((intervention, strength), np.nan)
                if direction == "fitted"
                else np.nan,
            }
        )
    table = pd.DataFrame(rows)
    return table.assign(is_on_front=_front(table))


def _top_share(values: pd.Series) -> float:
    total = float(values.sum())
    return float(values.nlargest(N_TOP).sum()) / total if total else np.nan


def _share(outcomes: pd.Series, wanted: str) -> float:
    return float((outcomes == wanted).mean()) if len(outcomes) else np.nan


def _front(table: pd.DataFrame) -> list[bool]:
    """Say which rows of the fitted direction no other one beats: more effect for no more cost."""
    effects = [intervention_of(name).effect for name in table["intervention"]]
    fitted = (table["direction"] == "fitted").tolist()
    points = list(zip(effects, fitted, table["effect"], table["kl"], strict=True))
    return [
        is_fitted
        and not any(
            other_fitted
            and kind == other_kind
            and (more >= effect and less <= cost)
            and (more > effect or less < cost)
            for other_kind, other_fitted, more, less in points
        )
        for kind, is_fitted, effect, cost in points
    ]


def relative_dose(arm: Arm, activations: Float[Tensor, "n_prompts d_model"]) -> float:
    """Return how far an arm moves activations at its place, over their own length, on average."""

    def spread(vector: Tensor) -> Tensor:
        return vector.float().expand(len(activations), -1)

    steered = Steered(
        spread(arm.unit),
        spread(arm.vector),
        spread(arm.mean),
        torch.full((len(activations),), arm.strength),
    )
    ((_, act),) = intervention_of(arm.intervention).hooks([arm.hook_point], steered)
    before = activations.float()[:, None]
    moved = torch.linalg.vector_norm(act(before, None) - before, dim=-1)
    return float((moved / torch.linalg.vector_norm(before, dim=-1)).mean())
