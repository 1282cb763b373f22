"""Which direction to take by what it does to refusal.

Knows the rule of the paper. Does not compute causal scores.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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
