"""How well projections tell two classes apart: five scores, what moves them, their intervals.

Knows the formulas. Does not know how the projections came about.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from scipy.stats import t as student
from torch import Tensor

from refusal_lens.validation.units import FEWEST_UNITS, Units, unit_variance

SCORES = ("separation", "accuracy", "balanced_accuracy", "auroc", "cohens_d")
"""Every score, in the order of the tables."""

SHARES = ("accuracy", "balanced_accuracy", "auroc")
"""Scores between 0 and 1, whose intervals are taken on the logit scale."""

CONFIDENCE = 0.95
"""Share of samples whose interval holds the true value."""

Scores = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Score:
    """One score at every place: out of sample, its interval, and in sample beside it.

    `low` and `high` are the ends of the 95 % interval around `value`; NaN where there is none, see
    `no_interval`, or none was computed. `in_sample` comes from the prompts that the direction was
    fitted to.
    """

    value: Float[Tensor, "n_hook_points n_positions"]
    low: Float[Tensor, "n_hook_points n_positions"]
    high: Float[Tensor, "n_hook_points n_positions"]
    in_sample: Float[Tensor, "n_hook_points n_positions"]

    @classmethod
    def of(cls, value: Float[Tensor, "n_hook_points n_positions"]) -> "Score":
        """Make a score of its value alone."""
        missing = torch.full_like(value, torch.nan)
        return cls(value, missing, missing, missing)

    def without_interval(self, places: Bool[Tensor, "n_hook_points n_positions"]) -> "Score":
        """Return the score with no interval at these places."""
        low, high = (end.masked_fill(places, torch.nan) for end in (self.low, self.high))
        return replace(self, low=low, high=high)

    def take(self, rows: list[int], columns: list[int]) -> "Score":
        """Return the score at some hook points and positions."""
        parts = (self.value, self.low, self.high, self.in_sample)
        return Score(*(part[rows][:, columns] for part in parts))


def score(
    cosines: Float[Tensor, " n_prompts *grid"],
    margins: Float[Tensor, " n_prompts *grid"],
    is_harmful: Bool[Tensor, " n_prompts"],
    names: tuple[str, ...] = SCORES,
) -> Scores:
    """Score projections at every place.

    Args:
        cosines: Cosine projections, in [-1, 1].
        margins: Projections minus the threshold of the split that each prompt was projected by:
            splits whose directions differ a little become comparable so.
        is_harmful: Labels.
        names: Scores wanted.

    Returns:
        `separation`: mean cosine of harmful minus that of harmless prompts, in [-2, 2].
        `accuracy`: share of prompts on their side of the threshold.
        `balanced_accuracy`: mean of that share over the two classes; 0.5 is chance whatever the
        class sizes.
        `auroc`: chance that a harmful prompt lies above a harmless one, ties counting half.
        `cohens_d`: difference of mean margins over their pooled standard deviation.
        NaN where there is no direction.

    Source:
        AUROC as the Mann-Whitney statistic: Hanley & McNeil 1982, Radiology 143. Cohen's d:
        Cohen 1988, "Statistical Power Analysis", eq. 2.5.1, with n1 + n0 - 2 degrees of freedom.
    """
    sides = _Sides.of(cosines, margins, is_harmful)
    return {name: FORMULAS[name](sides)[0] for name in names}


def score_with_influence(
    cosines: Float[Tensor, " n_prompts *grid"],
    margins: Float[Tensor, " n_prompts *grid"],
    is_harmful: Bool[Tensor, " n_prompts"],
) -> tuple[Scores, Scores]:
    """Score projections, and say how far each prompt moves each score: `[n_prompts, *grid]`.

    The influence of a class's prompts adds up to nothing; squared and summed it is the variance of
    the score over samples of prompts (for the AUROC DeLong's).
    """
    sides = _Sides.of(cosines, margins, is_harmful)
    results = {name: FORMULAS[name](sides) for name in SCORES}
    values = {name: result[0] for name, result in results.items()}
    return values, {name: result[1]() for name, result in results.items()}


def auroc(
    values: Float[Tensor, " n_prompts *grid"], is_harmful: Bool[Tensor, " n_prompts"]
) -> Float[Tensor, "*grid"]:
    """Return the chance that a harmful prompt lies above a harmless one; ties count half.

    Example:
        >>> auroc(torch.tensor([2.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, False, False]))
        tensor(0.8750, dtype=torch.float64)
    """
    return score(values.double(), values.double(), is_harmful, ("auroc",))["auroc"]


def auroc_interval(
    values: Float[Tensor, " n_prompts"],
    is_harmful: Bool[Tensor, " n_prompts"],
    units: Units | None = None,
) -> tuple[float, float]:
    """Return the 95 % interval of an AUROC of numbers that are not fitted to the prompts."""
    units = units or Units.of(is_harmful)
    exact = values.double()
    scores, influence = score_with_influence(exact, exact, is_harmful)
    variance, freedom = unit_variance(influence["auroc"], units)
    low, high = interval("auroc", scores["auroc"], variance, freedom, min(units.n_per_class))
    return low.item(), high.item()


def interval(
    name: str,
    value: Float[Tensor, "*grid"],
    variance: Float[Tensor, "*grid"],
    freedom: Float[Tensor, "*grid"],
    n_units: int,
    stretch: Float[Tensor, "*grid"] | None = None,
) -> tuple[Float[Tensor, "*grid"], Float[Tensor, "*grid"]]:
    """Return the ends of the 95 % interval of a score.

    Shares (accuracies, AUROC) are taken on the logit scale, as they are and after adding one unit
    whose share is one half, and the wider ends count: with nothing wrong in n units the lower end
    then is that of Clopper and Pearson to within 0.004 (n from 20 on; it is lower below), where an
    interval from the spread alone would have no width. d' gets such a unit likewise.

    The interval is that of the direction fitted to all prompts. Along a difference of means the
    classes are as far apart, in expectation, however many prompts it was fitted to, while its
    length, and with it the spread along it, shrinks with their number. So scores in units of that
    spread grow by the ratio of the lengths, and shares by it on the probit scale.

    Args:
        name: Of the score.
        value: The score, cross-fitted.
        variance: Of the score.
        freedom: Degrees of freedom of the variance.
        n_units: Units of the smaller class; below `FEWEST_UNITS` there is no interval.
        stretch: Length of the directions behind the score over that of the direction fitted to all
            prompts; None for 1.

    Returns:
        Both ends, NaN where there is no interval; the value as it is lies between them.

    Source:
        Logit scale: Pepe 2003, "The Statistical Evaluation of Medical Tests", sec. 5.2.6.
    """
    if n_units < FEWEST_UNITS:
        missing = torch.full_like(value, torch.nan)
        return missing, missing
    found, spread = value.double().numpy(), variance.double().numpy()
    ratio = 1.0 if stretch is None else stretch.double().numpy()
    quantile = student.ppf((1 + CONFIDENCE) / 2, np.maximum(freedom.double().numpy(), 1))
    centre = stretched(name, found, ratio)
    if name == "cohens_d":
        low, high = _cohens_d_ends(centre, spread * ratio**2, quantile, n_units)
    elif name not in SHARES:
        half = quantile * np.sqrt(spread) * ratio
        low, high = centre - half, centre + half
    else:
        low, high = _logit_ends(centre, spread, quantile)
        extra = ((0.5 - centre) / (n_units + 1)) ** 2
        shrunk = (n_units * centre + 0.5) / (n_units + 1)
        ends = _logit_ends(shrunk, spread + extra, quantile)
        low, high = np.minimum(low, ends[0]), np.maximum(high, ends[1])
    return torch.as_tensor(np.minimum(low, found)), torch.as_tensor(np.maximum(high, found))


def stretched(name: str, value: Any, ratio: Any) -> Any:
    """Return the score that directions shorter by this ratio would have, see `interval`."""
    return norm.cdf(norm.ppf(value) * ratio) if name in SHARES else value * ratio


def no_interval(n_units: int | float | None) -> str:
    """Say in place of an interval why there is none.

    Args:
        n_units: Units of the smaller class; None or NaN where that is not known.

    Example:
        >>> no_interval(3)
        'too few groups for an interval: 3 of at least 5'
        >>> no_interval(30)
        'too unsteady for an interval: without some prompts it is another direction'
    """
    if n_units is None or math.isnan(n_units):
        return "too few groups for an interval"
    if n_units < FEWEST_UNITS:
        return f"too few groups for an interval: {n_units:.0f} of at least {FEWEST_UNITS}"
    return "too unsteady for an interval: without some prompts it is another direction"


def _cohens_d_ends(centre: Any, variance: Any, quantile: Any, n_units: int) -> tuple[Any, Any]:
    """Return the ends of an interval of d', as it is and with one unit of each class midway.

    Where all prompts lie close together none is seen far off, and the spread is that of the sample
    alone. A few in a hundred that are would make it wider many times over.
    """
    share = n_units / (n_units + 1)
    shrunk = centre * share / np.sqrt(share + share / (n_units + 1) * (centre / 2) ** 2)
    ends = []
    for middle, extra in ((centre, 0.0), (shrunk, (centre - shrunk) ** 2)):
        half = quantile * np.sqrt(variance + extra)
        ends.append((middle - half, middle + half))
    return np.minimum(ends[0][0], ends[1][0]), np.maximum(ends[0][1], ends[1][1])


def _logit_ends(centre: Any, variance: Any, quantile: Any) -> tuple[Any, Any]:
    """Return the ends of an interval on the logit scale; a centre of 0 or 1 is its own ends."""
    room = centre * (1 - centre)
    half = quantile * np.sqrt(variance) / np.maximum(room, 1e-12) * (room > 0)
    return expit(logit(centre) - half), expit(logit(centre) + half)


def percentiles(
    draws: Float[Tensor, " n_draws *grid"], shares: tuple[float, ...]
) -> tuple[Float[Tensor, "*grid"], ...]:
    """Return percentiles over the first axis, NaN where a draw is."""
    return tuple(torch.from_numpy(np.quantile(draws.double().numpy(), shares, axis=0)))


def mean_scores(many: list[Scores]) -> Scores:
    """Average each score over repeats."""
    return {name: torch.stack([scores[name] for scores in many]).mean(dim=0) for name in many[0]}


# --- the formulas: each gives a score, and a function that gives its influence ----------------


@dataclass(frozen=True, eq=False)
class _Sides:
    """Cosines and margins, `[n_prompts, *grid]`, and the labels shaped to go with them."""

    cosines: Tensor
    margins: Tensor
    is_harmful: Tensor
    sign: Tensor
    size: Tensor

    @classmethod
    def of(cls, cosines: Tensor, margins: Tensor, is_harmful: Tensor) -> "_Sides":
        shape = (-1, *[1] * (margins.ndim - 1))
        n_harmful = int(is_harmful.sum())
        sizes = torch.where(is_harmful, n_harmful, len(is_harmful) - n_harmful).double()
        sign = torch.where(is_harmful, 1.0, -1.0).double().reshape(shape)
        return cls(cosines, margins, is_harmful, sign, sizes.reshape(shape))

    def means(self, values: Tensor) -> Tensor:
        """Return the mean of each prompt's class, prompt by prompt."""
        harmful, harmless = (
            values[side].mean(dim=0) for side in (self.is_harmful, ~self.is_harmful)
        )
        return torch.where(self.sign > 0, harmful, harmless)

    def is_right(self) -> Tensor:
        """Return 1 for prompts on their side of the threshold, 0 for others, NaN for none."""
        right = ((self.margins > 0) == (self.sign > 0)).double()
        return right.masked_fill(self.margins.isnan(), torch.nan)


_Result = tuple[Tensor, Callable[[], Tensor]]


def _separation(sides: _Sides) -> _Result:
    means = sides.means(sides.cosines)
    value = (sides.sign / sides.size * sides.cosines).sum(dim=0)
    return value, lambda: sides.sign * (sides.cosines - means) / sides.size


def _accuracy(sides: _Sides) -> _Result:
    right = sides.is_right()
    means = sides.means(right)
    return right.mean(dim=0), lambda: (right - means) / len(right)


def _balanced_accuracy(sides: _Sides) -> _Result:
    right = sides.is_right()
    means = sides.means(right)
    return (right / sides.size).sum(dim=0) / 2, lambda: (right - means) / sides.size / 2


def _auroc(sides: _Sides) -> _Result:
    """Return the mean placement: how many of the other class a prompt lies on the right side of."""
    flat = sides.margins.reshape(len(sides.margins), -1).numpy()
    labels = sides.is_harmful.numpy()
    n_harmful, n_harmless = int(labels.sum()), int((~labels).sum())
    among_all = rankdata(flat, axis=0)
    # A rank among all less that within the class counts those of the other class below.
    below_harmful = (among_all[labels] - rankdata(flat[labels], axis=0)) / n_harmless
    below_harmless = (among_all[~labels] - rankdata(flat[~labels], axis=0)) / n_harmful
    placements = np.empty(flat.shape)
    placements[labels], placements[~labels] = below_harmful, 1 - below_harmless
    placed = torch.from_numpy(placements).reshape(sides.margins.shape)
    value = placed[sides.is_harmful].mean(dim=0)
    return value, lambda: (placed - value) / sides.size


def _cohens_d(sides: _Sides) -> _Result:
    means = sides.means(sides.margins)
    deviations = sides.margins - means
    freedom = len(sides.margins) - 2
    variance = deviations.square().sum(dim=0) / freedom
    apart = (sides.sign / sides.size * sides.margins).sum(dim=0)
    value = apart / variance.sqrt()

    def influence() -> Tensor:
        squares = deviations.square()
        stretched = (squares - sides.means(squares)) / (2 * variance * freedom)
        return sides.sign * deviations / sides.size / variance.sqrt() - value * stretched

    return value, influence


FORMULAS: dict[str, Callable[[_Sides], _Result]] = {
    "separation": _separation,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "auroc": _auroc,
    "cohens_d": _cohens_d,
}
