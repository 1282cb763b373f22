"""Which coordinates a direction consists of, and what clipping them changes.

Knows shares of squared length and the sweep over clip quantiles. Does not choose a quantile.
"""

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import Directions, clip, normalise
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS, fit_grid
from refusal_lens.validation.frames import PLACE, place_frame
from refusal_lens.validation.separation import held_out_scores

CLIP_QUANTILES = (None, 0.9999, 0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.75, 0.5)
"""Quantiles of the sweep; None does not clip, 0.5 leaves little more than signs."""


def coordinate_table(directions: Directions) -> pd.DataFrame:
    """Say for every place how much of the direction its largest coordinates hold.

    Returns:
        One row a place: `share_top_1`, `share_top_10`, `share_top_1_percent` of the squared
        length, raw and `*_clipped`, and `cosine_raw_clipped`.
    """
    clipped = clip(directions.vectors.nan_to_num(), directions.clip_quantile)
    columns = {
        **coordinate_shares(directions.vectors),
        **{f"{name}_clipped": value for name, value in coordinate_shares(clipped).items()},
        "cosine_raw_clipped": (normalise(directions.vectors) * normalise(clipped)).sum(dim=-1),
    }
    kept = {name: value.where(directions.is_kept, torch.nan) for name, value in columns.items()}
    table = place_frame(directions.hook_points, directions.positions)
    return table.assign(**{name: value.flatten().numpy() for name, value in kept.items()})


def coordinate_shares(
    vectors: Float[Tensor, "*grid d_model"],
) -> dict[str, Float[Tensor, "*grid"]]:
    """Return the share of squared length in the largest 1, 10 and 1 % of the coordinates.

    Example:
        >>> coordinate_shares(torch.tensor([3.0, 0.0, 4.0, 0.0]))["share_top_1"]
        tensor(0.6400)
    """
    squares = vectors.square().sort(dim=-1, descending=True).values
    shares = squares.cumsum(dim=-1) / squares.sum(dim=-1, keepdim=True)
    d_model = vectors.shape[-1]
    counts = {
        "share_top_1": 1,
        "share_top_10": min(10, d_model),
        "share_top_1_percent": max(1, round(d_model / 100)),
    }
    return {name: shares[..., count - 1] for name, count in counts.items()}


def clip_sweep(
    activations: Activations,
    folds: Int[Tensor, " n_prompts"],
    *,
    method: str = DIFFERENCE_OF_MEANS,
) -> pd.DataFrame:
    """Score every place at each of `CLIP_QUANTILES`, out of sample.

    Args:
        activations: Activations; give few places, since each is scored ten times.
        folds: Which fold holds each prompt, from `assign_folds`.
        method: A key of `methods.METHODS`.

    Returns:
        One row a place and quantile (NaN: not clipped), with `separation`, `accuracy`, `auroc` and
        `cosine_to_unclipped`, of the directions fitted to all prompts.
    """
    vectors, is_kept = fit_grid(activations.values, activations.is_harmful, method)
    places = place_frame(activations.hook_points, activations.positions)[list(PLACE)]
    tables = []
    for quantile in CLIP_QUANTILES:
        scores = held_out_scores(activations, folds, quantile, method)
        columns = {name: scores[name] for name in ("separation", "accuracy", "auroc")}
        clipped = normalise(clip(vectors, quantile))
        columns["cosine_to_unclipped"] = (normalise(vectors) * clipped).sum(dim=-1)
        table = places.assign(clip_quantile=torch.nan if quantile is None else quantile)
        table = table.assign(**{name: one.flatten().numpy() for name, one in columns.items()})
        tables.append(table[is_kept.flatten().numpy()])
    return pd.concat(tables, ignore_index=True)
