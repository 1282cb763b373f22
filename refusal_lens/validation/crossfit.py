"""Directions fitted to some prompts and projections of the others.

Knows folds, fitting splits and held-out projections. Does not know what makes a projection good.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import clip, normalise
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS, difference, fit_grid
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import place_index
from refusal_lens.validation.units import HARMFUL_ONLY, HARMLESS_ONLY, MIXED, Units


@dataclass(frozen=True, eq=False)
class Projections:
    """Every prompt projected at every place, with the threshold that tells the classes apart.

    `values` are in the activations' own units, `cosines` in [-1, 1]; `thresholds` are of the first
    kind. `is_held_out` says whether each prompt was projected on a direction that it did not help
    to fit; the threshold is then the mean of the folds', and `values` (not `cosines`) are moved by
    what their fold's differs from it. NaN where there is no direction.
    """

    values: Float[Tensor, "n_prompts n_hook_points n_positions"]
    cosines: Float[Tensor, "n_prompts n_hook_points n_positions"]
    is_called_harmful: Bool[Tensor, "n_prompts n_hook_points n_positions"]
    thresholds: Float[Tensor, "n_hook_points n_positions"]
    is_harmful: Bool[Tensor, " n_prompts"]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    is_held_out: bool

    def __repr__(self) -> str:
        """Say how many prompts were projected, where and how."""
        return (
            f"Projections({len(self.is_harmful)} prompts ({int(self.is_harmful.sum())} harmful), "
            f"{len(self.hook_points)} hook points, positions {', '.join(self.positions)}, "
            f"{'held out' if self.is_held_out else 'in sample'})"
        )

    def place(self, hook_point: str, position: str) -> tuple[int, int]:
        """Return row and column of a place."""
        place = hook_point, position
        return place_index(self.hook_points, self.positions, place, "these projections")

    def only_at(self, hook_point: str, position: str) -> "Projections":
        """Return the projections at one place, as a grid of one."""
        row, column = self.place(hook_point, position)
        return replace(
            self,
            values=self.values[:, row, column][:, None, None],
            cosines=self.cosines[:, row, column][:, None, None],
            is_called_harmful=self.is_called_harmful[:, row, column][:, None, None],
            thresholds=self.thresholds[row, column][None, None],
            hook_points=(self.hook_points[row],),
            positions=(self.positions[column],),
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """All prompts projected on the directions of several splits, fitted to some prompts each.

    `values` are in the activations' own units, NaN where a split has no direction; `thresholds`
    lie midway between the class means of the prompts fitted to; `norms` are the lengths of the
    activations, and `lengths` those of the directions before they were made units.
    """

    values: Float[Tensor, " n_splits n_prompts *grid"]
    thresholds: Float[Tensor, " n_splits *grid"]
    norms: Float[Tensor, " n_prompts *grid"]
    lengths: Float[Tensor, " n_splits *grid"]

    def held_out(
        self, folds: Int[Tensor, " n_prompts"], first: int = 0
    ) -> tuple[Float[Tensor, " n_prompts *grid"], Float[Tensor, " n_prompts *grid"]]:
        """Return each prompt's projection and threshold by the split that held its fold out.

        Args:
            folds: Fold of each prompt; fold 0 was held out by split `first`, and so on.
            first: Index of the first of these splits.
        """
        prompts = torch.arange(len(folds))
        return self.values[first + folds, prompts], self.thresholds[first + folds]

    def likeness(self, splits: slice) -> Float[Tensor, "*grid"]:
        """Return how the last split orders the prompts as the least alike of some does.

        Args:
            splits: Those to compare with the last, which is fitted to all prompts.

        Returns:
            Spearman's correlation, in [-1, 1]: single prompts far off count as any other.
        """
        ranks = self.values.argsort(dim=1).argsort(dim=1).double()
        centred = ranks - ranks.mean(dim=1, keepdim=True)
        unit = centred / centred.norm(dim=1, keepdim=True)
        return (unit[splits] * unit[-1]).sum(dim=1).amin(dim=0)


def assign_folds(
    is_harmful: Bool[Tensor, " n_prompts"], n_folds: int, seed: int, units: Units | None = None
) -> Int[Tensor, " n_prompts"]:
    """Deal prompts to folds so that each holds the same share of harmful ones.

    Units stay whole. They are dealt by size and by what they hold (both classes, or which one);
    those that hold both are never looked at more closely, so that exchanging the classes within
    them deals the same folds.

    Args:
        is_harmful: Labels.
        n_folds: Folds wanted; a class with fewer units lowers it.
        seed: Of the shuffle.
        units: What stays together; None deals single prompts.

    Raises:
        RefusalLensError: A class has fewer than two units, so that nothing can be held out.
    """
    units = units or Units.of(is_harmful)
    check_can_hold_out(units)
    if n_folds < 2:
        raise RefusalLensError(f"Held-out scores need 2 folds or more, but {n_folds} came.")
    n_folds = min(n_folds, *units.n_per_class)
    if units.are_single and not units.has_strata:
        return _deal_single(is_harmful, n_folds, seed)
    return torch.from_numpy(_deal_units(units, n_folds, seed))[units.of_prompt]


def check_can_hold_out(units: Units) -> None:
    """Make sure that prompts of each class can be held out and others fitted to.

    Raises:
        RefusalLensError: A class has fewer than two units.
    """
    n_harmful, n_harmless = units.n_per_class
    if min(n_harmful, n_harmless) < 2:
        raise RefusalLensError(
            "Scores out of sample need at least 2 prompts of each class that do not depend on each "
            f"other; there are {n_harmful} harmful and {n_harmless} harmless ones. Add prompts (30 "
            "a side is a sound start)."
        )


def _deal_single(
    is_harmful: Bool[Tensor, " n_prompts"], n_folds: int, seed: int
) -> Int[Tensor, " n_prompts"]:
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    folds = np.empty(len(is_harmful), dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(folds)), is_harmful.numpy())):
        folds[held_out] = fold
    return torch.from_numpy(folds)


def _deal_units(units: Units, n_folds: int, seed: int) -> Int[np.ndarray, " n_units"]:
    """Deal units of each kind, the largest first, each to the fold that holds least of its like.

    That is least of its stratum, a topic say, then least of its kind: a topic that lay in one fold
    would be held out whole.
    """
    generator = np.random.default_rng(seed)
    sizes = units.of_prompt.bincount(minlength=units.n_units).numpy()
    folds = np.empty(units.n_units, dtype=np.int64)
    held, of_stratum = np.zeros(n_folds), np.zeros((units.n_strata, n_folds))
    stratum = units.stratum.numpy()
    for kind in (MIXED, HARMFUL_ONLY, HARMLESS_ONLY):
        members = generator.permutation(np.flatnonzero(units.kind.numpy() == kind))
        filled = np.zeros(n_folds)
        for unit in members[np.argsort(-sizes[members], kind="stable")]:
            # Equally filled folds are chosen among by what they hold in all, then by chance.
            alike = of_stratum[stratum[unit]]
            least = np.lexsort((generator.random(n_folds), held, filled, alike))[0]
            folds[unit] = least
            alike[least] += sizes[unit]
            filled[least] += sizes[unit]
            held[least] += sizes[unit]
    return folds


def repeat_folds(
    is_harmful: Bool[Tensor, " n_prompts"],
    n_folds: int,
    n_repeats: int,
    seed: int,
    units: Units | None = None,
) -> Int[Tensor, "n_repeats n_prompts"]:
    """Deal prompts to folds several times over.

    The first dealing is that of `assign_folds` with the same seed; the seeds of the others are
    derived from it, so that neighbouring seeds share none.
    """
    derived = np.random.SeedSequence(seed).generate_state(n_repeats)
    seeds = [seed, *(int(number) for number in derived[1:])]
    return torch.stack([assign_folds(is_harmful, n_folds, number, units) for number in seeds])


def sort_by_fold(folds: Int[Tensor, " n_prompts"]) -> tuple[Int[Tensor, " n_prompts"], list[slice]]:
    """Return an order in which each fold's prompts lie together, and where each fold then lies."""
    ends = folds.bincount().cumsum(dim=0).tolist()
    places = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return folds.argsort(stable=True), places


def fitting_splits(folds: Int[Tensor, "n_repeats n_prompts"]) -> Bool[Tensor, "n_splits n_prompts"]:
    """Return which prompts each split fits to: all but one fold, repeat by repeat."""
    numbers = torch.arange(int(folds.max()) + 1)
    return (folds[:, None, :] != numbers[None, :, None]).flatten(0, 1)


def fitting_weights(
    folds: Int[Tensor, "n_repeats n_prompts"], is_harmful: Bool[Tensor, " n_prompts"], units: Units
) -> Float[Tensor, "n_splits n_prompts"]:
    """Weight the prompts that each split fits to so that every stratum keeps its share of a class.

    Of a topic with few prompts, holding some out would take a good part away: directions would know
    less of the topics than the one that is delivered, and scores of new prompts of the same topics
    would lie too low. A stratum that is held out whole is lost all the same.

    Args:
        folds: Fold of each prompt, in each repeat.
        is_harmful: Labels.
        units: What was dealt, with its strata.

    Returns:
        1 for all where there are no strata, and on average within a class; 0 where held out.
    """
    splits = fitting_splits(folds).double()
    stratum = units.stratum[units.of_prompt] * 2 + is_harmful.long()
    weights = splits * _share_left(splits, is_harmful.long()) / _share_left(splits, stratum)
    return weights.nan_to_num()


def cross_folds(
    first: Int[Tensor, "n_repeats n_prompts"], second: Int[Tensor, "n_repeats n_prompts"]
) -> tuple[Int[Tensor, "n_repeats n_prompts"], Float[Tensor, "n_splits n_prompts"]]:
    """Hold out what lies in one fold of each of two factors that cross.

    Returns:
        The block of each prompt, and the weights that each block's split fits to: 1 for prompts
        that share neither fold with it, 0 for others.
    """
    n_second = int(second.max()) + 1
    rows, columns = (
        fitting_splits(folds).reshape(len(folds), -1, folds.shape[1]) for folds in (first, second)
    )
    apart = rows[:, :, None] & columns[:, None]
    return first * n_second + second, apart.flatten(0, 2).double()


def _share_left(
    splits: Float[Tensor, "n_splits n_prompts"], labels: Int[Tensor, " n_prompts"]
) -> Float[Tensor, "n_splits n_prompts"]:
    """Return which share of the prompts like it each prompt's split fits to."""
    _, place, sizes = labels.unique(return_inverse=True, return_counts=True)
    left = torch.zeros(len(splits), len(sizes), dtype=torch.float64).index_add_(1, place, splits)
    return (left / sizes)[:, place]


def project_splits(
    activations: Activations,
    fitting: Shaped[Tensor, "n_splits n_prompts"],
    clip_quantile: float | None,
    method: str = DIFFERENCE_OF_MEANS,
) -> Splits:
    """Fit a direction to each split of the prompts, at every place, and project all prompts on it.

    Direction, clip and threshold come from the prompts fitted to, and from no others.

    Args:
        activations: Activations of both classes.
        fitting: Which prompts each split fits to, some of each class; or their weights in the
            means (methods other than the difference of means take all that have any as alike).
        clip_quantile: As in `fit_directions`.
        method: A key of `methods.METHODS`.
    """
    fit = partial(_fit_splits, clip_quantile=clip_quantile, method=method)
    parts = [
        _project_splits(
            activations.values[:, row].double(), activations.is_harmful, fitting.double(), fit
        )
        for row in range(len(activations.hook_points))
    ]
    values, thresholds, norms, lengths = (
        torch.stack([part[number] for part in parts], dim=axis)
        for number, axis in ((0, 2), (1, 1), (2, 1), (3, 1))
    )
    return Splits(values, thresholds, norms, lengths)


def first_projections(
    activations: Activations, splits: Splits, folds: Int[Tensor, " n_prompts"]
) -> Projections:
    """Return the held-out projections of the first dealing among these splits.

    Each fold has a direction and a threshold of its own. What all prompts share, long beside their
    differences, lies otherwise along each: projections are moved by what their fold's threshold
    differs from the mean, so that prompts of different folds compare as in the scores.
    """
    values, thresholds = splits.held_out(folds)
    middle = splits.thresholds[: int(folds.max()) + 1].mean(dim=0)
    aligned = values - thresholds + middle
    return Projections(
        values=aligned,
        cosines=values / splits.norms,
        is_called_harmful=values > thresholds,
        thresholds=middle,
        is_harmful=activations.is_harmful,
        hook_points=activations.hook_points,
        positions=activations.positions,
        is_held_out=True,
    )


Means = Float[Tensor, "n_splits n_positions d_model"]


def _project_splits(
    values: Float[Tensor, "n_prompts n_positions d_model"],
    is_harmful: Bool[Tensor, " n_prompts"],
    fitting: Float[Tensor, "n_splits n_prompts"],
    fit: Callable[..., tuple[Means, Means, Float[Tensor, "n_splits n_positions"]]],
) -> tuple[
    Float[Tensor, "n_splits n_prompts n_positions"],
    Float[Tensor, "n_splits n_positions"],
    Float[Tensor, "n_prompts n_positions"],
    Float[Tensor, "n_splits n_positions"],
]:
    """Return projections, thresholds, and lengths of activations and directions."""
    unit, middle, lengths = fit(values, is_harmful, fitting)
    projected = torch.einsum("npd,spd->snp", values, unit)
    return projected, (middle * unit).sum(dim=-1), values.norm(dim=-1), lengths


def _fit_splits(
    values: Float[Tensor, "n_prompts n_positions d_model"],
    is_harmful: Bool[Tensor, " n_prompts"],
    fitting: Float[Tensor, "n_splits n_prompts"],
    clip_quantile: float | None,
    method: str,
) -> tuple[Means, Means, Float[Tensor, "n_splits n_positions"]]:
    """Return unit directions, NaN where there is none, middles of class means, and lengths."""
    harmful = _class_means(values, fitting * is_harmful)
    harmless = _class_means(values, fitting * ~is_harmful)
    if method == DIFFERENCE_OF_MEANS:
        vectors, is_kept = difference(harmful, harmless)
    else:
        fits = [fit_grid(values[rows], is_harmful[rows], method) for rows in fitting > 0]
        vectors, is_kept = (torch.stack(parts) for parts in zip(*fits, strict=True))
    clipped = clip(vectors.nan_to_num(), clip_quantile)
    unit = normalise(clipped)
    unit[~is_kept] = torch.nan
    return unit, (harmful + harmless) / 2, clipped.norm(dim=-1)


def _class_means(
    values: Float[Tensor, "n_prompts n_positions d_model"],
    weights: Float[Tensor, "n_splits n_prompts"],
) -> Float[Tensor, "n_splits n_positions d_model"]:
    """Return the weighted mean, for many sets of weights in one matrix product."""
    # A value that is not finite would spoil the sets it does not belong to: 0 * inf is NaN.
    is_finite = torch.isfinite(values)
    shares = weights / weights.sum(dim=1, keepdim=True)
    means = torch.einsum("sn,npd->spd", shares, values.where(is_finite, 0.0))
    if is_finite.all():
        return means
    n_bad = torch.einsum("sn,npd->spd", (weights > 0).double(), (~is_finite).double())
    return means.masked_fill(n_bad > 0, torch.nan)
