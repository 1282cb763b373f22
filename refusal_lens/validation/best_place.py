"""Which place to take the direction from.

Knows the article's best-layer rule, the weight kernel around its choice, and the rule that chooses
by causal scores. Does not compute scores.
"""

from dataclasses import dataclass

from refusal_lens.directions.kernel import WeightKernel
from refusal_lens.models.hook_points import layer_of, site_of
from refusal_lens.validation.separation import Separation
from refusal_lens.validation.thresholds import BEST_ACCURACY, NEAR_TIE


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


def choose_best(separation: Separation, n_layers: int) -> Choice | None:
    """Choose the place of the best direction by the article's rule.

    Among places with accuracy of at least 0.70 the highest separation; among near-ties (within
    0.02) the layer closest to the middle. Where no place is that accurate, the highest separation
    is returned as the nearest miss, and says so.

    Returns:
        The choice; None when there is no direction anywhere.
    """
    scored = [
        (
            separation.separation[row, column].item(),
            separation.accuracy[row, column].item(),
            hook_point,
            position,
        )
        for row, hook_point in enumerate(separation.hook_points)
        for column, position in enumerate(separation.positions)
        if not separation.separation[row, column].isnan()
    ]
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
        return float(n_layers) if layer is None else abs(layer - middle)

    best = min(tied, key=lambda score: (away(score[2]), -score[0]))
    return Choice(
        hook_point=best[2],
        position=best[3],
        separation=best[0],
        accuracy=best[1],
        is_eligible=bool(accurate),
        reason=_reason(len(accurate), len(tied)),
    )


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
