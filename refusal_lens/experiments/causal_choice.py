"""Which direction to take by what it does to refusal.

Knows the rule of the paper. Does not compute causal scores.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from refusal_lens.config import CausalConfig
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import first_late_block, reading_block

N_NEAR_MISSES = 3
_COLUMNS = ("hook_point", "position", "bypass", "induce", "kl")
_PAPER = CausalConfig()


@dataclass(frozen=True)
class CausalRule:
    """What a direction must do to be chosen by its effect on refusal.

    `max_layer_share` is of the layers: the last ones can suppress tokens without touching what
    makes the model refuse. Layers are counted as the paper does, by the block that reads the stream
    (`reading_block`). `max_kl` is in nats, on harmless prompts; `min_induce` a refusal score.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, appendix C. There the layer is below 0.8 n and the
        induce score above 0; its code keeps layers below int(0.8 n) and scores of 0 and more, and
        so does this.
    """

    max_layer_share: float = _PAPER.max_layer_share
    max_kl: float = _PAPER.max_kl
    min_induce: float = _PAPER.min_induce

    @classmethod
    def of(cls, settings: CausalConfig) -> "CausalRule":
        """Take the thresholds of a run's settings."""
        return cls(settings.max_layer_share, settings.max_kl, settings.min_induce)

    def reasons(self, scores: "CausalEntry", n_layers: int) -> tuple[str, ...]:
        """Say why a candidate is dropped; nothing where it may be chosen."""
        if any(math.isnan(x) for x in (scores.bypass, scores.induce, scores.kl)):
            return ("a score is not a number",)
        faults = {
            f"block {first_late_block(self.max_layer_share, n_layers)} or a later one reads it": (
                self.is_late(scores.hook_point, n_layers)
            ),
            f"KL of the first token is above {self.max_kl:g}": scores.kl > self.max_kl,
            f"induce score is below {self.min_induce:g}": scores.induce < self.min_induce,
        }
        return tuple(reason for reason, is_fault in faults.items() if is_fault)

    def is_late(self, hook_point: str, n_layers: int) -> bool:
        """Say whether a place is dropped for its depth alone."""
        return reading_block(hook_point) >= first_late_block(self.max_layer_share, n_layers)


@dataclass(frozen=True)
class CausalEntry:
    """The causal scores of one place, in nats: those under one way of ablating.

    `bypass` is the mean refusal score on harmful prompts under ablation, `induce` that on harmless
    ones under addition, `kl` that of the first answer token on harmless prompts under ablation.
    """

    hook_point: str
    position: str
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
    scores: pd.DataFrame, n_layers: int, rule: CausalRule | None = None
) -> CausalChoice:
    """Choose the direction whose ablation leaves least refusal, among those that pass the rule.

    Args:
        scores: One row a place, with `hook_point`, `position`, `bypass`, `induce` and `kl` in nats:
            as another project's file holds them, or one intervention's rows of `CausalScores`.
        n_layers: Of the model.
        rule: The thresholds; None takes the paper's.

    Returns:
        The choice; where nothing passes it says why.

    Raises:
        RefusalLensError: A column is missing, or a place has several rows.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, appendix C.

    Example:
        >>> row = {"hook_point": "blocks.1.hook_resid_post", "position": "last"}
        >>> scores = pd.DataFrame([{**row, "bypass": -5.0, "induce": 1.5, "kl": 0.2}])
        >>> choose_causal(scores, 4).dropped
        {'KL of the first token is above 0.1': 1}
    """
    rule = rule or CausalRule()
    judged = [(entry, rule.reasons(entry, n_layers)) for entry in causal_entries(scores)]
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


def causal_entries(scores: pd.DataFrame) -> list[CausalEntry]:
    """Return what the rule reads of each place.

    Raises:
        RefusalLensError: A column is missing, or a place has several rows.
    """
    missing = [name for name in _COLUMNS if name not in scores]
    if missing:
        raise RefusalLensError(
            f"The rule reads the columns {', '.join(_COLUMNS)}; this table lacks "
            f"{', '.join(missing)}. Give the scores of one intervention, one row a place."
        )
    rows: Iterable[Any] = scores[list(_COLUMNS)].itertuples(index=False)
    entries = [CausalEntry(row[0], str(row[1]), *map(float, row[2:])) for row in rows]
    if len({(entry.hook_point, entry.position) for entry in entries}) < len(entries):
        raise RefusalLensError(
            "A place has several rows, so that one direction would be weighed against itself. Give "
            'one intervention\'s: scores[scores["intervention"] == "affine_ablate"].'
        )
    return entries
