"""Which place to take the direction from.

Knows two rules that choose by held-out scores, the article's among them, and the weight kernel
around their choice. Does not compute scores.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from refusal_lens.directions.kernel import WeightKernel
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import (
    first_late_block,
    layer_of,
    reading_block,
    site_of,
)
from refusal_lens.validation.separation import Separation
from refusal_lens.validation.thresholds import BEST_ACCURACY, EARLY_SHARE, NEAR_TIE
from refusal_lens.validation.units import FEWEST_UNITS

BestBy = Literal["cohens_d", "article"]


@dataclass(frozen=True)
class Choice:
    """The place chosen, or the nearest miss where none qualifies, and why.

    `is_eligible` is False where no place reached the accuracy that the rules ask for. `auroc`, the
    low end of its interval and `cohens_d` are those of new topics where enough could be left out
    for an interval (`is_of_new_topics`); the other scores are of new prompts of the same topics.
    `other_rule` says which place the article's rule takes, where that is another one.
    """

    hook_point: str
    position: str
    separation: float
    accuracy: float
    is_eligible: bool
    reason: str
    other_rule: str = ""
    auroc: float = math.nan
    auroc_low: float = math.nan
    cohens_d: float = math.nan
    is_of_new_topics: bool = False

    @property
    def layer(self) -> int | None:
        """Block index of the hook point."""
        return layer_of(self.hook_point)


def choose_best(separation: Separation, n_layers: int, by: BestBy = "cohens_d") -> Choice | None:
    """Choose the place of the best direction, among those with accuracy of at least 0.70.

    - `cohens_d`: the highest d' on held-out prompts, of new topics where there are enough of them
      for an interval. It is in units of the spread along the direction, which makes places
      comparable; nearest the middle where places are exactly as good. What only the last fifth of
      the blocks reads counts only where no other is accurate enough: d' often grows to the very
      end, where the stream holds the words to come, and a direction acts on nothing that follows.
    - `article`: the highest separation; among near-ties (within 0.02) the layer closest to the
      middle. Separation is a difference of cosines, which shrinks as what all prompts share grows:
      between layers it compares that as well.

    Where no place is that accurate, the highest of all is the nearest miss, and says so.

    Returns:
        The choice; None when there is no direction anywhere.

    Raises:
        RefusalLensError: Something else than scores came.

    Source:
        The last fifth: Arditi et al. 2024, arXiv 2406.11717, appendix C. `CausalRule` drops the
        same places.
    """
    if not isinstance(separation, Separation):
        raise RefusalLensError(
            "choose_best needs the scores of places, the first that validate(activations) returns, "
            f"but {type(separation).__name__} came."
        )
    scored = _scored(separation)
    if not scored:
        return None
    article, ours = _article(scored, n_layers), _by_cohens_d(scored, n_layers)
    if by == "article":
        return article
    if (article.hook_point, article.position) == (ours.hook_point, ours.position):
        return ours
    why = "separation depends on what all prompts share, d' does not"
    if article.cohens_d > ours.cohens_d:
        why = "only the last fifth of the layers reads it"
    other = (
        f"The article's rule takes {article.hook_point} at {article.position} "
        f"(separation {article.separation:.2f}, d' {article.cohens_d:.2f}; here "
        f"{ours.separation:.2f} and {ours.cohens_d:.2f}): {why}."
    )
    return replace(ours, other_rule=other)


def _scored(separation: Separation) -> list[Choice]:
    """List the places that have a direction, with the scores that rules go by."""
    # Not by intervals: where folds disagree there is none, and new topics count all the same.
    n_topics = separation.n_units_new_topics or 0
    has_topics = bool(separation.new_topics) and n_topics >= FEWEST_UNITS
    told = separation.new_topics if has_topics else separation.scores
    return [
        Choice(
            hook_point,
            position,
            separation.separation[row, column].item(),
            separation.accuracy[row, column].item(),
            separation.accuracy[row, column].item() >= BEST_ACCURACY,
            reason="",
            auroc=told["auroc"].value[row, column].item(),
            auroc_low=told["auroc"].low[row, column].item(),
            cohens_d=told["cohens_d"].value[row, column].item(),
            is_of_new_topics=has_topics,
        )
        for row, hook_point in enumerate(separation.hook_points)
        for column, position in enumerate(separation.positions)
        if not separation.separation[row, column].isnan()
    ]


def _article(scored: list[Choice], n_layers: int) -> Choice:
    accurate = [place for place in scored if place.is_eligible]
    # Below the accuracy asked for there is nothing to break ties between: the nearest miss will do.
    best, n_tied = _nearest_highest(
        accurate or scored, n_layers, lambda place: place.separation, NEAR_TIE if accurate else 0.0
    )
    if n_tied > 1 and accurate:
        text = f"{n_tied} places within {NEAR_TIE} of the highest separation: nearest the middle"
        return replace(best, reason=text)
    return replace(best, reason=_reason("highest separation", len(accurate)))


def _by_cohens_d(scored: list[Choice], n_layers: int) -> Choice:
    accurate = [place for place in scored if place.is_eligible]
    first_late = first_late_block(EARLY_SHARE, n_layers)
    early = [place for place in accurate if reading_block(place.hook_point) < first_late]
    among = early or accurate
    best, _ = _nearest_highest(among or scored, n_layers, _cohens_d, 0.0)
    of = " on new topics" if best.is_of_new_topics else ""
    what = _reason(f"highest d'{of} ({best.cohens_d:.2f})", len(among))
    is_cut = 0 < len(early) < len(accurate)
    cut = f" that a block before {first_late} reads, where the last fifth begins"
    return replace(best, reason=what + cut if is_cut else what)


def _cohens_d(place: Choice) -> float:
    """Return d', lowest where projections do not vary and there is none."""
    return -math.inf if math.isnan(place.cohens_d) else place.cohens_d


def _nearest_highest(
    places: list[Choice], n_layers: int, score: Callable[[Choice], float], slack: float
) -> tuple[Choice, int]:
    """Return the place nearest the middle of those near the highest score, and their number."""
    highest = max(score(place) for place in places)
    tied = [place for place in places if score(place) >= highest - slack]
    middle = (n_layers - 1) / 2

    def away(place: Choice) -> float:
        return float(n_layers) if place.layer is None else abs(place.layer - middle)

    return min(tied, key=lambda place: (away(place), -score(place))), len(tied)


def layers_beside(separation: Separation, best: Choice | None) -> Separation:
    """Return the scores of the best place's site and position: one row a layer.

    Where there is no direction anywhere, those of the first site and position.
    """
    if best is None:
        return separation.at(*separation.columns[0])
    return separation.at(site_of(best.hook_point), best.position)


def suggest_kernel(separation: Separation, best: Choice) -> WeightKernel | None:
    """Suggest how far around the best layer to act.

    The distance is that to the farthest layer, in an unbroken run around the best one at the same
    site and position, whose d' is at least half of the best, plus one: there the weight reaches
    the floor, which is zero. By d', as separation shrinks with what all prompts share of a layer.

    Returns:
        The kernel; None for a hook point outside the blocks.
    """
    if best.layer is None:
        return None
    column = separation.positions.index(best.position)
    scores = separation.new_topics if best.is_of_new_topics else separation.scores
    by_layer = {
        layer_of(hook_point): scores["cohens_d"].value[row, column].item()
        for row, hook_point in enumerate(separation.hook_points)
        if site_of(hook_point) == site_of(best.hook_point)
    }
    reach = 0
    for step in (-1, 1):
        layer = best.layer + step
        while by_layer.get(layer, -math.inf) >= best.cohens_d / 2:
            reach = max(reach, abs(layer - best.layer))
            layer += step
    return WeightKernel(peak=1.0, position=best.layer, floor=0.0, distance=reach + 1)


def _reason(what: str, n_accurate: int) -> str:
    if n_accurate == 0:
        return f"no place reaches accuracy {BEST_ACCURACY}: the {what}, a near miss"
    return f"{what} among {n_accurate} places with accuracy >= {BEST_ACCURACY}"
