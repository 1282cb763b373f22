"""How well projections tell two classes apart: five scores, and their bootstrap.

Knows the formulas, weighted so that one pass scores many resamples. Does not know how the
projections came about.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

SCORES = ("separation", "accuracy", "balanced_accuracy", "auroc", "cohens_d")
"""Every score, in the order of the tables."""

CONFIDENCE = 0.95
"""Share of resamples that an interval holds."""

PAIRS_AT_ONCE = 2**24
"""Most pairs of a harmful and a harmless prompt compared at once: 64 MiB."""

Scores = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Score:
    """One score at every place: out of sample, its interval, and in sample beside it.

    `low` and `high` are the ends of the 95 % bootstrap interval around `value`; NaN where they
    were not computed. `in_sample` comes from the prompts that the direction was fitted to.
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
    once = torch.ones(1, len(is_harmful), dtype=torch.float64)
    scores = resample(cosines, margins, is_harmful, once, names)
    return {name: values[0] for name, values in scores.items()}


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
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of an AUROC: prompts redrawn within their class."""
    counts = draw_counts(is_harmful, n_resamples, seed)
    exact = values.double()
    low, high = interval(resample(exact, exact, is_harmful, counts, ("auroc",))["auroc"])
    return low.item(), high.item()


def resample(
    cosines: Float[Tensor, " n_prompts *grid"],
    margins: Float[Tensor, " n_prompts *grid"],
    is_harmful: Bool[Tensor, " n_prompts"],
    counts: Float[Tensor, "n_resamples n_prompts"],
    names: tuple[str, ...] = SCORES,
) -> Scores:
    """Compute the scores of many resamples at once.

    Args:
        cosines: As in `score`.
        margins: As in `score`.
        is_harmful: Labels.
        counts: How often each prompt is in each resample; each class keeps its size.
        names: Scores wanted.

    Returns:
        Each score, `[n_resamples, *grid]`.
    """
    grid = margins.shape[1:]
    flat = margins.reshape(len(margins), -1)
    sides = _Sides(cosines.reshape(flat.shape), flat, counts, is_harmful)
    # A comparison with NaN is False: without this a place without a direction would have scores.
    is_missing = flat.isnan().any(dim=0)
    results = {name: FORMULAS[name](sides).masked_fill(is_missing, torch.nan) for name in names}
    return {name: values.reshape(len(counts), *grid) for name, values in results.items()}


class _Sides:
    """Cosines, margins and counts of the two classes, harmful first."""

    def __init__(
        self, cosines: Tensor, margins: Tensor, counts: Tensor, is_harmful: Tensor
    ) -> None:
        members = (is_harmful, ~is_harmful)
        self.sizes = tuple(int(is_member.sum()) for is_member in members)
        self.cosines = tuple(cosines[is_member] for is_member in members)
        self.margins = tuple(margins[is_member] for is_member in members)
        self.counts = tuple(counts[:, is_member] for is_member in members)

    def n_right(self) -> tuple[Tensor, Tensor]:
        """Count the prompts of each class on their side of the threshold."""
        caught = self.counts[0] @ (self.margins[0] > 0).double()
        return caught, self.counts[1] @ (self.margins[1] <= 0).double()


def draw_counts(
    is_harmful: Bool[Tensor, " n_prompts"], n_resamples: int, seed: int | list[int]
) -> Float[Tensor, "n_resamples n_prompts"]:
    """Draw each class as often as it has prompts, with replacement; return how often each came.

    Args:
        is_harmful: Labels.
        n_resamples: Resamples wanted.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    counts = np.empty((n_resamples, len(is_harmful)))
    for is_member in (is_harmful.numpy(), ~is_harmful.numpy()):
        n_members = int(is_member.sum())
        shares = np.full(n_members, 1 / n_members)
        counts[:, is_member] = generator.multinomial(n_members, shares, size=n_resamples)
    return torch.from_numpy(counts)


def percentiles(
    draws: Float[Tensor, " n_draws *grid"], shares: tuple[float, ...]
) -> tuple[Float[Tensor, "*grid"], ...]:
    """Return percentiles over the first axis, NaN where a draw is."""
    return tuple(torch.from_numpy(np.quantile(draws.double().numpy(), shares, axis=0)))


def interval(
    draws: Float[Tensor, " n_draws *grid"],
) -> tuple[Float[Tensor, "*grid"], Float[Tensor, "*grid"]]:
    """Return the ends of the 95 % percentile interval of many draws."""
    low, high = percentiles(draws, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return low, high


def mean_scores(many: list[Scores]) -> Scores:
    """Average each score over repeats."""
    return {name: torch.stack([scores[name] for scores in many]).mean(dim=0) for name in SCORES}


def _separation(sides: _Sides) -> Float[Tensor, "n_resamples n_places"]:
    harmful, harmless = (
        counts @ cosines / size
        for counts, cosines, size in zip(sides.counts, sides.cosines, sides.sizes, strict=True)
    )
    return harmful - harmless


def _accuracy(sides: _Sides) -> Float[Tensor, "n_resamples n_places"]:
    caught, passed = sides.n_right()
    return (caught + passed) / sum(sides.sizes)


def _balanced_accuracy(sides: _Sides) -> Float[Tensor, "n_resamples n_places"]:
    caught, passed = sides.n_right()
    return (caught / sides.sizes[0] + passed / sides.sizes[1]) / 2


def _auroc(sides: _Sides) -> Float[Tensor, "n_resamples n_places"]:
    """Return the weighted share of pairs in which the harmful prompt lies above."""
    (above, below), (harmful, harmless) = sides.margins, sides.counts
    n_wins = torch.zeros(len(harmful), above.shape[1], dtype=torch.float64)
    step = max(1, PAIRS_AT_ONCE // len(below))
    for place in range(above.shape[1]):
        for start in range(0, len(above), step):
            here = above[start : start + step, place, None] - below[:, place]
            wins = (here.sign() + 1).float()  # 2 for a win, 1 for a tie: whole numbers are exact
            weighted = (harmful[:, start : start + step].float() @ wins).double()
            n_wins[:, place] += (weighted * harmless).sum(dim=1) / 2
    return n_wins / (len(above) * len(below))


def _cohens_d(sides: _Sides) -> Float[Tensor, "n_resamples n_places"]:
    means, squares = [], []
    for values, counts, size in zip(sides.margins, sides.counts, sides.sizes, strict=True):
        # Around each class's own mean, so that the difference of two large squares keeps digits.
        centre = values.mean(dim=0)
        shift = counts @ (values - centre) / size
        means.append(centre + shift)
        squares.append(counts @ (values - centre) ** 2 - size * shift**2)
    variance = (squares[0] + squares[1]).clamp(min=0) / (sum(sides.sizes) - 2)
    return (means[0] - means[1]) / variance.sqrt()


FORMULAS: dict[str, Callable[[_Sides], Tensor]] = {
    "separation": _separation,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "auroc": _auroc,
    "cohens_d": _cohens_d,
}
