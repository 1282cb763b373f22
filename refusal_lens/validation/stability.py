"""How far a direction would turn with other prompts, or with more of them.

Knows halves and resamples of the prompts. Does not know scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import CLIP_QUANTILE, clip, normalise
from refusal_lens.directions.methods import fit_grid
from refusal_lens.models.hook_points import site_of
from refusal_lens.progress import track
from refusal_lens.validation.frames import place_frame
from refusal_lens.validation.learning_curve import (
    CURVE_COLUMNS,
    Pairs,
    Turning,
    draw_disjoint,
    draw_pairs,
    learning_curve,
    measure_turning,
)
from refusal_lens.validation.many_fits import Place, blocks_of, clip_rows
from refusal_lens.validation.scores import percentiles
from refusal_lens.validation.thresholds import LEAST_CEILING
from refusal_lens.validation.units import Units, draw_weights, widest_units

LAYER_DRAWS = 20
"""Split halves behind the corrected cosines of layers: all layers' directions are held at once."""


@dataclass(frozen=True, eq=False)
class Stability:
    """How stable the direction of every place is, NaN where there is none.

    `split_half_cosine`: mean cosine between the directions of two halves of the prompts, which
    share no topic (no pair, where there are no topics to leave out).
    `bootstrap_cosine` with the ends of its 95 % interval: between the direction and that of
    resampled prompts. A resample keeps what the sample has of chance, so that pure noise reaches
    about 0.71 here and 0 between halves. `raw_norm`: length of the unclipped difference.
    `curves` holds the learning curve of every place, `layers` the cosines between layers.
    """

    split_half_cosine: Float[Tensor, "n_hook_points n_positions"]
    bootstrap_cosine: Float[Tensor, "n_hook_points n_positions"]
    bootstrap_cosine_low: Float[Tensor, "n_hook_points n_positions"]
    bootstrap_cosine_high: Float[Tensor, "n_hook_points n_positions"]
    raw_norm: Float[Tensor, "n_hook_points n_positions"]
    turning: Mapping[tuple[str, str], Turning]
    curves: pd.DataFrame
    layers: pd.DataFrame
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return one row a place."""
        frame = place_frame(self.hook_points, self.positions)
        for name in (
            *("split_half_cosine", "bootstrap_cosine", "bootstrap_cosine_low"),
            *("bootstrap_cosine_high", "raw_norm"),
        ):
            frame[name] = getattr(self, name).flatten().numpy()
        return frame


def measure_stability(
    activations: Activations,
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
    n_resamples: int = 1000,
    seed: int = 0,
    show_progress: bool | None = None,
) -> Stability:
    """Fit each direction to halves, resamples and subsamples of the prompts, and compare.

    All keep to `activations.groups`: whole components, where there are two or more of each class,
    else pairs. There are `n_resamples` splits into halves, and as many bootstrap resamples. The
    learning curve is that of the unclipped difference (see `validation.learning_curve`).

    Raises:
        RefusalLensError: A class is empty.
    """
    _, is_kept = fit_grid(activations.values, activations.is_harmful)
    units = widest_units(activations.is_harmful, activations.groups)
    draws = _Draws.of(activations.is_harmful, units, n_resamples, seed)
    grids = torch.full((5, *is_kept.shape), torch.nan, dtype=torch.float64)
    turning, curves, layers = {}, [], []
    places = _by_column(activations, is_kept)
    steps = track(places, "Measuring stability", show_progress)
    for _, group in groupby(steps, key=lambda step: _column_of(activations, step)):
        halves = {}
        for row, column in group:
            name = activations.hook_points[row], activations.positions[column]
            values = activations.values[:, row, column]
            place = Place.of(values)
            numbers, halves[row, column] = _measure(place, values, draws, clip_quantile)
            grids[:, row, column] = torch.tensor(numbers)
            turning[name] = measure_turning(values, activations.is_harmful, units)
            curves.append(learning_curve(place, name, draws.pairs, turning[name]))
        layers.append(_layer_cosines(activations, halves, clip_quantile))
    return Stability(
        *grids,
        turning=turning,
        curves=_concat(curves, CURVE_COLUMNS),
        layers=_concat(layers, LAYER_COLUMNS),
        hook_points=activations.hook_points,
        positions=activations.positions,
    )


LAYER_COLUMNS = ("site", "position", "a", "b", "cosine", "ceiling", "cosine_corrected")


def _concat(tables: list[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(columns))


def spearman_brown(split_half: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
    """Return the reliability of all prompts from the cosine of two halves, in [0, 1].

    Source: Spearman 1910 and Brown 1910: 2 r / (1 + r). Cosines below zero count as zero.
    """
    return 2 * split_half.clamp(min=0) / (1 + split_half.clamp(min=0))


@dataclass(frozen=True, eq=False)
class _Draws:
    """Weights of the prompts in every refit, the same at all places.

    A row of weights times the activations is a difference of means. `halves` are two tables, of
    disjoint sets of prompts, as are `pairs`.
    """

    is_harmful: Bool[Tensor, " n_prompts"]
    halves: tuple[Tensor, Tensor]
    pairs: Pairs
    resamples: Float[Tensor, "n_resamples n_prompts"]

    @classmethod
    def of(
        cls, is_harmful: Bool[Tensor, " n_prompts"], units: Units, n_resamples: int, seed: int
    ) -> "_Draws":
        """Draw halves and resamples."""
        generator = np.random.default_rng(seed)
        n_harmful, n_harmless = int(is_harmful.sum()), int((~is_harmful).sum())
        weights = draw_weights(is_harmful, units, n_resamples, generator)
        signs = torch.where(is_harmful, 1 / n_harmful, -1 / n_harmless)
        return cls(
            is_harmful,
            draw_disjoint(is_harmful, units, None, n_resamples, generator),
            draw_pairs(is_harmful, units, seed),
            (weights * signs).float(),
        )


def _column_of(activations: Activations, place: tuple[int, int]) -> tuple[str, int]:
    """Return site and position of a place: those of one column are compared with each other."""
    return site_of(activations.hook_points[place[0]]), place[1]


def _by_column(
    activations: Activations, is_kept: Bool[Tensor, "n_hook_points n_positions"]
) -> list[tuple[int, int]]:
    """List the places that have a direction, column by column."""
    places = [(row, column) for row, column in is_kept.nonzero().tolist()]
    return sorted(places, key=lambda place: _column_of(activations, place))


def _measure(
    place: Place,
    values: Float[Tensor, "n_prompts d_model"],
    draws: _Draws,
    clip_quantile: float | None,
) -> tuple[list[float], Tensor]:
    """Return the five numbers of a place, and some halves' directions."""
    raw, _ = fit_grid(values, draws.is_harmful)
    unit = normalise(clip(raw, clip_quantile)).float()
    between = _pair_cosines(place, draws.halves, clip_quantile)
    resampled = torch.cat(
        [
            _refit(place, draws.resamples[block], clip_quantile) @ unit
            for block in blocks_of(len(draws.resamples), len(unit))
        ]
    )
    low, high = percentiles(resampled, (0.025, 0.975))
    numbers = [between.mean(), resampled.mean(), low, high, raw.norm()]
    halves = torch.stack(
        [_refit(place, table[:LAYER_DRAWS], clip_quantile) for table in draws.halves]
    )
    return [float(number) for number in numbers], halves


def _refit(
    place: Place, weights: Float[Tensor, "n_draws n_prompts"], clip_quantile: float | None
) -> Float[Tensor, "n_draws d_model"]:
    """Return the unit direction of every row of weights."""
    return normalise(clip_rows(weights @ place.centred, clip_quantile))


def _pair_cosines(
    place: Place, weights: tuple[Tensor, Tensor], clip_quantile: float | None
) -> Float[Tensor, " n_draws"]:
    first, second = weights
    return torch.cat(
        [
            (
                _refit(place, first[block], clip_quantile)
                * _refit(place, second[block], clip_quantile)
            ).sum(dim=1)
            for block in blocks_of(len(first), place.centred.shape[1])
        ]
    )


def _layer_cosines(
    activations: Activations,
    halves: Mapping[tuple[int, int], Float[Tensor, "2 n_draws d_model"]],
    clip_quantile: float | None,
) -> pd.DataFrame:
    """Compare the directions of all layers of one site and position.

    `ceiling` is the cosine that two noisy directions would have if the true ones were the same:
    the root of the product of their reliabilities. It holds for directions from different prompts;
    those of neighbouring layers come from the same ones and share their noise, so that `cosine`
    can lie above. `cosine_corrected` compares each layer on one half with the other on the other
    half, divided by the ceiling of halves; NaN where that is below 0.1.

    Source:
        Correction for attenuation: Spearman 1904, American Journal of Psychology 15.
    """
    rows, (column, *_) = zip(*halves, strict=True)
    raw, _ = fit_grid(activations.values[:, list(rows), column], activations.is_harmful)
    unit = normalise(clip(raw, clip_quantile))
    first, second = torch.stack(list(halves.values()), dim=2).double()
    across = torch.einsum("nad,nbd->ab", first, second) / first.shape[0]
    across = (across + across.T) / 2
    reliability = spearman_brown(across.diagonal())
    root = (across.diagonal()[:, None] * across.diagonal()).clamp(min=0).sqrt()
    names = [activations.hook_points[row] for row in rows]
    n = len(names)
    corrected = torch.where(root >= LEAST_CEILING, across / root, torch.nan).clamp(-1, 1)
    return pd.DataFrame(
        {
            "site": site_of(names[0]),
            "position": activations.positions[column],
            "a": [name for name in names for _ in range(n)],
            "b": names * n,
            "cosine": (unit @ unit.T).flatten().numpy(),
            "ceiling": (reliability[:, None] * reliability).sqrt().flatten().numpy(),
            "cosine_corrected": corrected.flatten().numpy(),
        }
    )
