"""Scores of any way to fit, cross-fitted once and clipped in several ways.

Knows separation, accuracy, AUROC and Cohen's d of projections. Does not know intervals or nulls.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from refusal_lens.activations import Activations
from refusal_lens.directions import clip, normalise
from refusal_lens.methods import fit_grid
from refusal_lens.positions import normalise_position

SCORES = ("separation", "accuracy", "auroc", "cohens_d")


def only_at(activations: Activations, hook_point: str, position: str) -> Activations:
    """Return the activations at one place, as a grid of one."""
    here = activations.at(hook_point, position)[:, None, None]
    positions = (normalise_position(position),)
    return replace(activations, values=here, hook_points=(hook_point,), positions=positions)


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Raw directions fitted without each fold, and the midpoints of the class means there.

    `folds` says which fold holds a prompt; NaN where there is no direction.
    """

    vectors: Float[Tensor, "n_folds n_hook_points n_positions d_model"]
    midpoints: Float[Tensor, "n_folds n_hook_points n_positions d_model"]
    folds: Int[Tensor, " n_prompts"]


def cross_fit(activations: Activations, folds: Int[Tensor, " n_prompts"], method: str) -> CrossFit:
    """Fit a direction at every place without each fold in turn.

    Args:
        activations: Activations of both classes.
        folds: Which fold holds each prompt, from `assign_folds`.
        method: A key of `methods.METHODS`.
    """
    vectors, midpoints = [], []
    for fold in range(int(folds.max()) + 1):
        is_fitting = folds != fold
        values, labels = activations.values[is_fitting], activations.is_harmful[is_fitting]
        fitted, is_kept = fit_grid(values, labels, method)
        vectors.append(fitted.masked_fill(~is_kept[..., None], torch.nan))
        means = [values[side].double().mean(dim=0) for side in (labels, ~labels)]
        midpoints.append((means[0] + means[1]) / 2)
    return CrossFit(torch.stack(vectors), torch.stack(midpoints), folds)


def held_out_scores(
    activations: Activations, fits: CrossFit, clip_quantile: float | None
) -> dict[str, Float[Tensor, "n_hook_points n_positions"]]:
    """Score every place on the prompts that its directions were not fitted to.

    Args:
        activations: The activations that `fits` came from.
        fits: From `cross_fit`.
        clip_quantile: As in `fit_directions`.

    Returns:
        A value at every place for each of `SCORES`.
    """
    unit = _unit(fits.vectors, clip_quantile)
    values = torch.empty(activations.values.shape[:-1], dtype=torch.float64)
    called = torch.empty(values.shape, dtype=torch.bool)
    for fold, (direction, middle) in enumerate(zip(unit, fits.midpoints, strict=True)):
        held_out = fits.folds == fold
        here = activations.values[held_out].double()
        values[held_out] = (here * direction).sum(dim=-1)
        called[held_out] = values[held_out] > (middle * direction).sum(dim=-1)
    cosines = values / activations.values.double().norm(dim=-1)
    return score_projections(values, cosines, called, activations.is_harmful)


def _unit(
    vectors: Float[Tensor, "*grid d_model"], clip_quantile: float | None
) -> Float[Tensor, "*grid d_model"]:
    unit = normalise(clip(vectors.nan_to_num(), clip_quantile))
    return unit.masked_fill(vectors.isnan().any(dim=-1, keepdim=True), torch.nan)


def score_projections(
    values: Float[Tensor, " n_prompts *grid"],
    cosines: Float[Tensor, " n_prompts *grid"],
    is_called_harmful: Bool[Tensor, " n_prompts *grid"],
    is_harmful: Bool[Tensor, " n_prompts"],
) -> dict[str, Float[Tensor, "*grid"]]:
    """Compute each of `SCORES` from projections; NaN where there is no direction."""
    labels = is_harmful.reshape(-1, *[1] * (values.ndim - 1))
    accuracy = (is_called_harmful == labels).double().mean(dim=0)
    return {
        "separation": cosines[is_harmful].mean(dim=0) - cosines[~is_harmful].mean(dim=0),
        "accuracy": accuracy.masked_fill(values.isnan().any(dim=0), torch.nan),
        "auroc": auroc(values, is_harmful),
        "cohens_d": cohens_d(values, is_harmful),
    }


def auroc(
    values: Float[Tensor, " n_prompts *grid"], is_harmful: Bool[Tensor, " n_prompts"]
) -> Float[Tensor, "*grid"]:
    """Return the chance that a harmful prompt lies above a harmless one; ties count half.

    Source:
        Mann & Whitney 1947: U / (n_harmful x n_harmless), from the ranks.

    Example:
        >>> auroc(torch.tensor([2.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, False, False]))
        tensor(0.8750, dtype=torch.float64)
    """
    ranks = torch.as_tensor(rankdata(values.double().numpy(), axis=0))
    n_harmful, n_harmless = int(is_harmful.sum()), int((~is_harmful).sum())
    above = ranks[is_harmful].sum(dim=0) - n_harmful * (n_harmful + 1) / 2
    return above / (n_harmful * n_harmless)


def cohens_d(
    values: Float[Tensor, " n_prompts *grid"], is_harmful: Bool[Tensor, " n_prompts"]
) -> Float[Tensor, "*grid"]:
    """Return the difference of the class means in pooled standard deviations (d').

    Source:
        Cohen 1988, "Statistical power analysis for the behavioral sciences", eq. 2.5.2.
    """
    sides = (values[is_harmful].double(), values[~is_harmful].double())
    squares = sum(((side - side.mean(dim=0)) ** 2).sum(dim=0) for side in sides)
    pooled = (squares / (len(values) - 2)) ** 0.5
    return (sides[0].mean(dim=0) - sides[1].mean(dim=0)) / pooled


def auroc_interval(
    values: Float[Tensor, " n_prompts"],
    is_harmful: Bool[Tensor, " n_prompts"],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of an AUROC: prompts redrawn within their class.

    Source:
        Efron & Tibshirani 1993, percentile interval, section 13.3.
    """
    harmful, harmless = values[is_harmful].double(), values[~is_harmful].double()
    wins = (harmful[:, None] > harmless).double() + 0.5 * (harmful[:, None] == harmless)
    generator = torch.Generator().manual_seed(seed)

    def redrawn(n: int) -> Tensor:
        drawn = torch.randint(n, (n_resamples, n), generator=generator)
        counts = torch.zeros(n_resamples, n, dtype=torch.float64)
        return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64)) / n

    areas = ((redrawn(len(harmful)) @ wins) * redrawn(len(harmless))).sum(dim=1).clamp(0, 1)
    low, high = torch.quantile(areas, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
