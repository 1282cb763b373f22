"""What the effects of an intervention say, in words.

Knows the conditions and their limits. Runs no model.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from refusal_lens.experiments.arms import intervention_of
from refusal_lens.experiments.resampling import resample_means, with_both_ways
from refusal_lens.validation.frames import rows_where
from refusal_lens.validation.thresholds import (
    CAUSAL_SHARE,
    CONTROL_SHARE,
    FEW_REFUSED,
    FOLLOWED,
    MAX_LEFT,
    MAX_LOSS_RISE,
    MAX_RANK_P,
    MAX_SEPARATION_P,
    MIN_AUROC,
    MIN_CONTROLS,
    MIN_INDUCED,
)

SEPARATES_AND_CAUSES = "separates and causes"
SEPARATES_ONLY = "separates only"
NEITHER = "neither"
CANNOT_TELL = "cannot tell"

SEPARATION = "separates held-out prompts"
REMOVED = "share of the gap removed"
INDUCED = "share of the gap induced"
LEFT = "refused after removal"
AFTER = "refused after addition"
CONTROLS = ("removal ranks before random directions", "addition ranks before random directions")
KL = "KL of the first token on harmless prompts"
LOSS = "rise of the text's loss"
FOLLOWS = "the refusal score follows the judge"

Standing = Literal["met", "failed", "open"]

_LOW, _HIGH = 0.025, 0.975
_MANY_TIMES = 1000
"""Where so many times the prompts would be needed, no number is named."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was seen of one direction, prompt by prompt.

    1 is refused, 0 is not. Harmful prompts were answered plainly (`harmful`) and under what removes
    refusal (`left`), where what is broken counts as 1, for a model that breaks does not comply;
    harmless ones plainly (`harmless`) and under addition (`induced`). `random_left` and
    `random_induced` are the same with each of the random directions in place of the fitted one.

    `kl`, in nats, and `loss_rise`, of the prompts' own text in nats a token (empty where it was not
    measured), are of harmless prompts under removal. Prompts with the same number in `*_units`
    depend on each other, across classes too. `auroc` is held out, of harmful above harmless
    projections, with its p-value.
    """

    harmful: Float[np.ndarray, " n_harmful"]
    left: Float[np.ndarray, " n_harmful"]
    harmless: Float[np.ndarray, " n_harmless"]
    induced: Float[np.ndarray, " n_harmless"]
    kl: Float[np.ndarray, " n_harmless"]
    loss_rise: Float[np.ndarray, " n_rises"]
    random_left: Float[np.ndarray, "n_removed n_harmful"]
    random_induced: Float[np.ndarray, "n_added n_harmless"]
    harmful_units: Sequence[int]
    harmless_units: Sequence[int]
    auroc: float
    auroc_p: float


@dataclass(frozen=True)
class Check:
    """One condition: what was measured, its interval, the limit, and how it stands.

    `n_needed` is about how many prompts a side would settle it, where it is open; NaN where no
    number would, or where prompts are not what is missing.
    """

    name: str
    estimate: float
    low: float
    high: float
    limit: float
    standing: Standing
    n_needed: float = math.nan


@dataclass(frozen=True)
class Verdict:
    """One of four words, and the conditions behind it."""

    word: str
    checks: tuple[Check, ...]

    @property
    def n_needed(self) -> float:
        """Prompts a side that would settle what is open; NaN where none is known to."""
        needed = [check.n_needed for check in self.checks if check.name in self.reasons]
        return max(needed, default=math.nan) if not any(map(math.isnan, needed)) else math.nan

    @property
    def reasons(self) -> tuple[str, ...]:
        """Name what stands between the direction and being called a cause."""
        kind = "open" if self.word == CANNOT_TELL else "failed"
        return tuple(
            check.name for check in self.checks if check.standing == kind and check.name != LOSS
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row a condition, the verdict beside it."""
        return pd.DataFrame([vars(check) for check in self.checks]).assign(verdict=self.word)

    def __str__(self) -> str:
        """Say the verdict with its reasons."""
        if self.word == SEPARATES_AND_CAUSES:
            beside = [check.name for check in self.checks if check.standing != "met"]
            return f"{self.word}, with a side effect: {beside[0]}" if beside else self.word
        if not self.reasons:
            return self.word
        needed = self.n_needed
        is_known = self.word == CANNOT_TELL and not math.isnan(needed)
        more = f"; about {needed:.0f} prompts a side would tell" if is_known else ""
        return f"{self.word} ({', '.join(self.reasons)}{more})"


def decide_cause(evidence: Evidence, max_kl: float, seed: int = 0) -> Verdict:
    """Say in one of four ways what a direction does, as sure as the prompts allow.

    Every condition holds, fails, or is open, by the 95 % interval of a paired bootstrap over units
    of prompts. A direction that separates and fails none *separates and causes* refusal; with one
    that fails it *separates only*; with one open, and none failed, one *cannot tell*. What does not
    separate is *neither*.

    Conditions: harmful prompts are refused more often (`FEW_REFUSED`); removal and addition each
    bridge half of the gap between the classes (`CAUSAL_SHARE`); at most half of the harmful prompts
    are left refused or broken under removal (`MAX_LEFT`), at least a quarter of the harmless ones
    are refused under addition (`MIN_INDUCED`); random directions as long do less; and harmless
    answers stay as they are, which is an equivalence test: the interval of the KL lies below its
    limit (`max_kl`). The rise of the loss of the user's own text is tested alike (`MAX_LOSS_RISE`)
    and told as a side effect: hooks act on the tokens of the prompt too, whatever the answer does.

    Args:
        evidence: What was seen.
        max_kl: Most KL of the first answer token on harmless prompts under removal, in nats.
        seed: Of the bootstrap.

    Source:
        Two one-sided tests by an interval: Schuirmann 1987, Journal of Pharmacokinetics and
        Biopharmaceutics 15, 657-680; 95 % rather than 90 % intervals are a little stricter.
    """
    if not len(evidence.harmful) or not len(evidence.harmless):
        return Verdict(CANNOT_TELL, (_separation(evidence),))
    checks = (_separation(evidence), *_effects(evidence, max_kl, seed), *_controls(evidence))
    separation = checks[0].standing
    if separation == "failed":
        return Verdict(NEITHER, checks)
    if separation == "open":
        return Verdict(CANNOT_TELL, checks)
    standings = {check.standing for check in checks if check.name != LOSS}
    if "failed" in standings:
        return Verdict(SEPARATES_ONLY, checks)
    return Verdict(CANNOT_TELL if "open" in standings else SEPARATES_AND_CAUSES, checks)


def is_met_but_for_controls(verdict: Verdict) -> bool:
    """Say whether random directions are all that is missing."""
    missing = {check.name for check in verdict.checks if check.standing != "met"}
    return bool(missing) and missing <= set(CONTROLS)


def doubt_score(verdict: Verdict, youden: float) -> Verdict:
    """Take back what a verdict by refusal scores says where these do not follow the judge."""
    if youden >= FOLLOWED or verdict.word == NEITHER:
        return verdict
    check = Check(FOLLOWS, youden, math.nan, math.nan, FOLLOWED, "open")
    return Verdict(CANNOT_TELL, (*verdict.checks, check))


def _separation(evidence: Evidence) -> Check:
    auroc, p_value = evidence.auroc, evidence.auroc_p
    standing: Standing = "met"
    if not auroc >= MIN_AUROC:
        standing = "failed"
    elif not p_value <= MAX_SEPARATION_P:
        standing = "open"
    return Check(SEPARATION, auroc, math.nan, math.nan, MIN_AUROC, standing)


def _effects(evidence: Evidence, max_kl: float, seed: int) -> list[Check]:
    """Hold what was done to the prompts against its limits, with intervals."""
    draws = _draw_means(evidence, seed)
    gap = draws["harmful"] - draws["harmless"]
    removed = draws["harmful"] - draws["left"]
    induced = draws["induced"] - draws["harmless"]
    n_prompts = min(len(evidence.harmful), len(evidence.harmless))
    shown = [
        _check("gap between the classes", gap, gap - FEW_REFUSED, FEW_REFUSED, n_prompts),
        _check(
            REMOVED, _share(removed, gap), removed - CAUSAL_SHARE * gap, CAUSAL_SHARE, n_prompts
        ),
        _check(
            INDUCED, _share(induced, gap), induced - CAUSAL_SHARE * gap, CAUSAL_SHARE, n_prompts
        ),
        _check(LEFT, draws["left"], MAX_LEFT - draws["left"], MAX_LEFT, n_prompts),
        _check(AFTER, draws["induced"], draws["induced"] - MIN_INDUCED, MIN_INDUCED, n_prompts),
        _check(KL, draws["kl"], max_kl - draws["kl"], max_kl, n_prompts),
    ]
    if len(evidence.loss_rise):
        rise = draws["loss_rise"]
        margin = MAX_LOSS_RISE - np.abs(rise)
        shown.append(_check(LOSS, rise, margin, MAX_LOSS_RISE, n_prompts))
    return shown


def _share(moved: Float[np.ndarray, " n"], gap: Float[np.ndarray, " n"]) -> Any:
    """Return what was bridged of the gap; where there is none, nothing can be said of it."""
    return np.where(gap > 0, moved / np.where(gap > 0, gap, 1.0), np.nan)


def _check(
    name: str,
    values: Float[np.ndarray, " n"],
    margin: Float[np.ndarray, " n"],
    limit: float,
    n_prompts: int,
) -> Check:
    """Judge a condition by its margin: what was measured first, then the draws."""
    drawn = margin[1:]
    low, high = np.nanquantile(drawn, [_LOW, _HIGH]) if len(drawn) else (math.nan, math.nan)
    standing: Standing = "met" if low >= 0 else "failed" if high < 0 else "open"
    first, last = math.nan, math.nan
    if not np.isnan(values[1:]).any():
        first, last = np.quantile(values[1:], [_LOW, _HIGH]).tolist()
    needed = _n_needed(drawn, n_prompts) if standing == "open" else math.nan
    return Check(name, float(values[0]), first, last, limit, standing, needed)


def _n_needed(drawn: Float[np.ndarray, " n"], n_prompts: int) -> float:
    """Say with about how many prompts the interval would leave the limit: it shrinks as root n."""
    mean, half = abs(np.nanmean(drawn)), 1.96 * np.nanstd(drawn)
    if not mean > 0 or half / mean > math.sqrt(_MANY_TIMES):
        return math.nan
    return float(max(n_prompts + 1, math.ceil(n_prompts * (half / mean) ** 2)))


def _draw_means(evidence: Evidence, seed: int) -> dict[str, Float[np.ndarray, " n"]]:
    """Return means by what they are of: of the prompts themselves first, then of each draw."""
    seen = {
        name: getattr(evidence, name)
        for name in ("harmful", "left", "harmless", "induced", "kl", "loss_rise")
    }
    if not len(seen["loss_rise"]):
        seen["loss_rise"] = np.full(len(evidence.kl), np.nan)
    harmful, left = with_both_ways(evidence.harmful, evidence.left)
    harmless, induced = with_both_ways(evidence.harmless, evidence.induced)
    n, n_kl = len(harmful), len(evidence.kl)
    values = np.full((n + len(harmless), len(seen)), np.nan)
    values[:n, :2] = np.stack([harmful, left], axis=1)
    values[n:, 2:4] = np.stack([harmless, induced], axis=1)
    values[n : n + n_kl, 4:] = np.stack([evidence.kl, seen["loss_rise"]], axis=1)
    # What was added belongs to nothing; twins of the two classes are drawn together.
    first, second = list(evidence.harmful_units), list(evidence.harmless_units)
    more = max([*first, *second], default=-1) + 1
    units = [*first, more, more + 1, *second, more + 2, more + 3]
    draws = resample_means(values, units, seed)
    means = np.vstack([[_mean(each) for each in seen.values()], draws])
    return dict(zip(seen, means.T, strict=True))


def _mean(values: Float[np.ndarray, " n"]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _controls(evidence: Evidence) -> list[Check]:
    """Rank what the direction does among what random directions of its length do."""
    removed, induced = (
        _mean(evidence.harmful) - _mean(evidence.left),
        _mean(evidence.induced) - _mean(evidence.harmless),
    )
    removed_by_chance = _mean(evidence.harmful) - evidence.random_left.mean(axis=1)
    induced_by_chance = evidence.random_induced.mean(axis=1) - _mean(evidence.harmless)
    return [
        _control(CONTROLS[0], removed, removed_by_chance),
        _control(CONTROLS[1], induced, induced_by_chance),
    ]


def _control(name: str, moved: float, by_chance: Float[np.ndarray, " n_random"]) -> Check:
    n_random = len(by_chance)
    rank = 1 + int((by_chance >= moved).sum())
    p_value = rank / (n_random + 1)
    is_small = n_random == 0 or by_chance.mean() <= CONTROL_SHARE * moved
    standing: Standing = "failed"
    if is_small and p_value <= MAX_RANK_P:
        standing = "met"
    elif is_small and rank == 1 and n_random < MIN_CONTROLS:
        standing = "open"
    return Check(name, p_value, math.nan, math.nan, MAX_RANK_P, standing)


def compare_removals(table: pd.DataFrame) -> str:
    """Say in words which of the interventions that remove refusal works."""
    named = {
        name: rows_where(table, intervention=name) for name in dict.fromkeys(table["intervention"])
    }
    titles = {name: intervention_of(name).title for name in named}
    passing = ", ".join(
        f"{sum(rows['is_eligible']) or 'none'} under {titles[name]}" for name, rows in named.items()
    )
    n_places = len(next(iter(named.values())))
    first = f"Places that pass the rule, of {n_places}: {passing}."
    chosen = rows_where(table, is_chosen=True)
    if chosen.empty:
        return first
    row = chosen.iloc[0]
    at_place = rows_where(table, hook_point=row["hook_point"], position=row["position"])
    ends = " and ".join(
        f"to {each['bypass']:+.2f} by {titles[each['intervention']]} (KL of the first "
        f"token on harmless {each['kl']:.3f})"
        for each in at_place.to_dict("records")
    )
    return (
        f"{first} At the chosen place the refusal score of harmful prompts goes from "
        f"{row['baseline_harmful']:+.2f} {ends}. {_side_of_zero(row)}"
    )


def _side_of_zero(row: Any) -> str:
    harmful, harmless = row["harmful_projection"], row["harmless_projection"]
    means = f"Harmless prompts project to {harmless:+.2f} there, harmful ones to {harmful:+.2f}:"
    if harmful + harmless < 0:
        return f"{means} zero is on the harmful side, so that setting to zero does not remove it."
    return f"{means} zero is on the harmless side."


# --- by rates, on the test part -------------------------------------------------------------------


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Sum a `dose_response` table up: one row for each intervention, kind of direction and class.

    Rates, scores, KL and loss at full strength (1, or the strength tried that is nearest), with the
    plain rate beside them; controls are pooled over their seeds.
    """
    rows = []
    order = ["intervention", "direction", "is_harmful"]
    groups: Any = table.groupby(order, sort=False)
    for (intervention, _, is_harmful), group in groups:
        full = group[group["strength"] == full_strength(group["strength"])]
        is_plain = (table["strength"] == 0) & (table["is_harmful"] == is_harmful)
        plain = table[is_plain & (table["intervention"] == intervention)].iloc[0]
        rows.append(_summary_row(full, plain) | {"is_harmful": is_harmful})
    others = [name for name in rows[0] if name not in order]
    return pd.DataFrame(rows, columns=pd.Index([*order, *others]))


def full_strength(strengths: Iterable[float]) -> float:
    """Return the strength that is nearest to 1, of those that do something."""
    return min((s for s in strengths if s != 0), key=lambda s: abs(s - 1), default=0.0)


def _summary_row(full: Any, plain: Any) -> dict[str, Any]:
    n_prompts = int(full["n_prompts"].sum())
    n_refused = round(float((full["refusal_rate"] * full["n_prompts"]).sum()))
    first = full.iloc[0]
    # What only whole answers show is a share of those that were read.
    n_judged = full["n_prompts"] - full["n_by_first_token"]
    place = ("intervention", "direction", "strength", "hook_point", "site", "layer", "position")
    return {
        **{name: first[name] for name in place},
        "n_prompts": n_prompts,
        "plain_rate": plain["refusal_rate"],
        "refusal_rate": n_refused / n_prompts,
        # Seeds share their prompts, so that more of them say no more of other prompts.
        "refusal_rate_low": full["refusal_rate_low"].mean(),
        "refusal_rate_high": full["refusal_rate_high"].mean(),
        **{
            name: float((full[name].fillna(0) * n_judged).sum() / n_judged.sum())
            if n_judged.any()
            else math.nan
            for name in ("evaded_rate", "broken_rate")
        },
        "n_by_first_token": int(full["n_by_first_token"].sum()),
        "plain_score": plain["refusal_score"],
        "refusal_score": full["refusal_score"].mean(),
        "kl": full["kl"].mean(),
        "plain_loss": plain["text_loss"],
        "text_loss": full["text_loss"].mean(),
    }
