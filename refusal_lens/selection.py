"""Which place to take the direction from.

Knows the article's best-layer rule, the weight kernel around its choice, and the rule that chooses
by causal scores. Does not compute scores.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from refusal_lens.hook_points import layer_of, site_of
from refusal_lens.validation import Separation

GOOD_SEPARATION = 0.30
BEST_ACCURACY = 0.70
"""The best layer should reach these."""

NEAR_TIE = 0.02
"""Separations this close count as the same: then the layer nearest the middle is taken."""


@dataclass(frozen=True)
class Choice:
    """The place chosen, or the nearest miss where none qualifies, and why.

    `is_eligible` is False where no place reached the accuracy that the rule asks for.
    """

    hook_point: str
    position: str
    separation: float
    accuracy: float
    is_eligible: bool
    reason: str

    @property
    def layer(self) -> int | None:
        """Block index of the hook point."""
        return layer_of(self.hook_point)


@dataclass(frozen=True)
class WeightKernel:
    """How strongly to act at each layer: a peak that falls off linearly to a floor.

    `position` and `distance` are in layers, `peak` and `floor` factors of the intervention.
    """

    peak: float
    position: int
    floor: float
    distance: int

    def weight(self, layer: int) -> float:
        """Return the factor at a layer: `peak` at `position`, `floor` from `distance` on.

        Example:
            >>> WeightKernel(peak=1.0, position=4, floor=0.0, distance=2).weight(5)
            0.5
        """
        away = abs(layer - self.position) / self.distance
        return self.floor + (self.peak - self.floor) * max(0.0, 1.0 - away)


def choose_best(separation: Separation, n_layers: int) -> Choice | None:
    """Choose the place of the best direction by the article's rule.

    Among places with accuracy of at least 0.70 the highest separation; among near-ties (within
    0.02) the layer closest to the middle. Where no place is that accurate, the highest separation
    is returned as the nearest miss, and says so.

    Returns:
        The choice; None when there is no direction anywhere.
    """
    scored = [
        (separation.separation[row, column].item(), separation.accuracy[row, column].item(),
         hook_point, position)
        for row, hook_point in enumerate(separation.hook_points)
        for column, position in enumerate(separation.positions)
        if not separation.separation[row, column].isnan()
    ]  # fmt: skip
    if not scored:
        return None
    accurate = [score for score in scored if score[1] >= BEST_ACCURACY]
    highest = max(score[0] for score in accurate or scored)
    # Below the accuracy asked for there is nothing to break ties between: the nearest miss will do.
    slack = NEAR_TIE if accurate else 0.0
    tied = [score for score in accurate or scored if score[0] >= highest - slack]
    middle = (n_layers - 1) / 2

    def away(hook_point: str) -> float:
        layer = layer_of(hook_point)
        return n_layers if layer is None else abs(layer - middle)

    best = min(tied, key=lambda score: (away(score[2]), -score[0]))
    return Choice(
        hook_point=best[2],
        position=best[3],
        separation=best[0],
        accuracy=best[1],
        is_eligible=bool(accurate),
        reason=_reason(len(accurate), len(tied)),
    )


def suggest_kernel(separation: Separation, best: Choice) -> WeightKernel | None:
    """Suggest how far around the best layer to act.

    The distance is that to the farthest layer, in an unbroken run around the best one at the same
    site and position, whose separation is at least half of the best, plus one: there the weight
    reaches the floor, which is zero.

    Returns:
        The kernel; None for a hook point outside the blocks.
    """
    if best.layer is None:
        return None
    column = separation.positions.index(best.position)
    by_layer = {
        layer_of(hook_point): separation.separation[row, column].item()
        for row, hook_point in enumerate(separation.hook_points)
        if site_of(hook_point) == site_of(best.hook_point)
    }
    reach = 0
    for step in (-1, 1):
        layer = best.layer + step
        while by_layer.get(layer, -1.0) >= best.separation / 2:
            reach = max(reach, abs(layer - best.layer))
            layer += step
    return WeightKernel(peak=1.0, position=best.layer, floor=0.0, distance=reach + 1)


def _reason(n_accurate: int, n_tied: int) -> str:
    if n_accurate == 0:
        return f"no place reaches accuracy {BEST_ACCURACY}: the highest separation, a near miss"
    if n_tied > 1:
        return f"{n_tied} places within {NEAR_TIE} of the highest separation: nearest the middle"
    return f"highest separation among {n_accurate} places with accuracy >= {BEST_ACCURACY}"


# --- by causal scores ---------------------------------------------------------------------------

N_NEAR_MISSES = 3


@dataclass(frozen=True)
class CausalRule:
    """What a direction must do to be chosen by its effect on refusal.

    `max_layer_share` is of the layers: the last ones can suppress tokens without touching what
    makes the model refuse. `max_kl` is in nats, on harmless prompts; `min_induce` a refusal score.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, appendix C.
    """

    max_layer_share: float = 0.8
    max_kl: float = 0.1
    min_induce: float = 0.0

    def reasons(self, scores: "CausalEntry", n_layers: int) -> tuple[str, ...]:
        """Say why a candidate is dropped; nothing where it may be chosen."""
        first_dropped = int(self.max_layer_share * n_layers)
        if any(math.isnan(x) for x in (scores.bypass, scores.induce, scores.kl)):
            return ("a score is not a number",)
        faults = {
            f"layer is {first_dropped} or later": (scores.layer or 0) >= first_dropped,
            f"KL is above {self.max_kl:g}": scores.kl > self.max_kl,
            f"induce score is below {self.min_induce:g}": scores.induce < self.min_induce,
        }
        return tuple(reason for reason, is_fault in faults.items() if is_fault)


@dataclass(frozen=True)
class CausalEntry:
    """The causal scores of one place: those under one way of ablating.

    Args:
        hook_point: Full name.
        position: Where the direction was read.
        layer: Block index; None outside the blocks.
        bypass: Mean refusal score on harmful prompts under ablation, in nats.
        induce: Mean refusal score on harmless prompts under addition, in nats.
        kl: Of the first answer token on harmless prompts under ablation, in nats.
    """

    hook_point: str
    position: str
    layer: int | None
    bypass: float
    induce: float
    kl: float


@dataclass(frozen=True)
class CausalChoice:
    """The place chosen, or why there is none.

    `dropped` counts the candidates that each reason dropped (one candidate may have several);
    `near_misses` are the dropped ones with the fewest reasons, the lowest bypass first.
    """

    chosen: CausalEntry | None
    n_candidates: int
    n_eligible: int
    dropped: dict[str, int]
    near_misses: tuple[tuple[CausalEntry, tuple[str, ...]], ...]


def choose_causal(
    entries: Sequence[CausalEntry], n_layers: int, rule: CausalRule | None = None
) -> CausalChoice:
    """Choose the direction whose ablation leaves least refusal, among those that pass the rule.

    Args:
        entries: One a place.
        n_layers: Of the model.
        rule: The thresholds; None takes the paper's.

    Returns:
        The choice; never fails, where nothing passes it says why.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, appendix C.

    Example:
        >>> entry = CausalEntry("blocks.1.hook_resid_post", "last", 1, -5.0, 1.5, 0.2)
        >>> choose_causal([entry], 4).dropped
        {'KL is above 0.1': 1}
    """
    rule = rule or CausalRule()
    judged = [(entry, rule.reasons(entry, n_layers)) for entry in entries]
    eligible = [entry for entry, reasons in judged if not reasons]
    dropped = [(entry, reasons) for entry, reasons in judged if reasons]
    counts = Counter(reason for _, reasons in dropped for reason in reasons)

    def nearness(miss: tuple[CausalEntry, tuple[str, ...]]) -> tuple[int, float]:
        bypass = miss[0].bypass
        return len(miss[1]) if not math.isnan(bypass) else len(judged), bypass

    return CausalChoice(
        chosen=min(eligible, key=lambda entry: entry.bypass, default=None),
        n_candidates=len(judged),
        n_eligible=len(eligible),
        dropped=dict(counts.most_common()),
        near_misses=tuple(sorted(dropped, key=nearness)[:N_NEAR_MISSES]),
    )
