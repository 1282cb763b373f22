"""What the scores of experiments say, in words.

Knows the rules and their thresholds. Computes no scores.
"""

from typing import Any

import pandas as pd

from refusal_lens.experiments.arms import intervention_of
from refusal_lens.experiments.judges import wilson_interval
from refusal_lens.validation.frames import rows_where
from refusal_lens.validation.thresholds import (
    CAUSAL_SHARE,
    CONTROL_SHARE,
    MAX_SEPARATION_P,
    MIN_AUROC,
)

SEPARATES_AND_CAUSES = "separates and causes"
SEPARATES_ONLY = "separates only"
NEITHER = "neither"


def verdict(row: Any, max_kl: float, has_refusal: bool) -> str:
    """Say in one of three ways what a candidate does.

    It separates when held-out harmful prompts project above harmless ones (`MIN_AUROC`,
    `MAX_SEPARATION_P`). It also causes refusal when the model refuses, ablation and addition each
    bridge at least half of the gap between the classes (`CAUSAL_SHARE`), a random direction as long
    moves the scores at most half as far (`CONTROL_SHARE`), and ablation leaves answers to harmless
    prompts as they are (KL at most `max_kl`). What does neither, or moves the score without
    separating, is "neither".
    """
    if not (row["auroc"] >= MIN_AUROC and row["auroc_p"] <= MAX_SEPARATION_P):
        return NEITHER
    gap = row["baseline_harmful"] - row["baseline_harmless"]
    removed = row["baseline_harmful"] - row["bypass"]
    induced = row["induce"] - row["baseline_harmless"]
    by_chance = (
        abs(row["baseline_harmful"] - row["bypass_random"]),
        abs(row["induce_random"] - row["baseline_harmless"]),
    )
    is_cause = (
        has_refusal
        and gap > 0
        and min(removed, induced) >= CAUSAL_SHARE * gap
        and by_chance[0] <= CONTROL_SHARE * removed
        and by_chance[1] <= CONTROL_SHARE * induced
        and row["kl"] <= max_kl
    )
    return SEPARATES_AND_CAUSES if is_cause else SEPARATES_ONLY


def compare_removals(table: pd.DataFrame) -> str:
    """Say in words which of the interventions that remove refusal works."""
    named = {
        name: rows_where(table, intervention=name) for name in dict.fromkeys(table["intervention"])
    }
    titles = {name: intervention_of(name).title for name in named}
    passing = ", ".join(
        f"{titles[name]} at {sum(rows['is_eligible'])}" for name, rows in named.items()
    )
    n_places = len(next(iter(named.values())))
    first = f"Of {n_places} places, those that pass the rule: {passing}."
    chosen = rows_where(table, is_chosen=True)
    if chosen.empty:
        return first
    row = chosen.iloc[0]
    at_place = rows_where(table, hook_point=row["hook_point"], position=row["position"])
    ends = " and ".join(
        f"to {each['bypass']:+.2f} by {titles[each['intervention']]} (KL on harmless "
        f"{each['kl']:.3f})"
        for each in at_place.to_dict("records")
    )
    return (
        f"{first} At the chosen place the refusal score of harmful prompts goes from "
        f"{row['baseline_harmful']:+.2f} {ends}. {_side_of_zero(row)}"
    )


def _side_of_zero(row: Any) -> str:
    harmful, harmless = row["harmful_projection"], row["harmless_projection"]
    where = f"Harmless prompts project to {harmless:+.2f} there, harmful ones to {harmful:+.2f}:"
    if harmful + harmless < 0:
        return f"{where} zero is on the harmful side, so that setting to zero does not remove it."
    return f"{where} zero is on the harmless side."


# --- by rates, on the test part -------------------------------------------------------------------


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Sum a dose-response table up: one row for each intervention, kind of direction and class.

    Args:
        table: As `dose_response` gives it.

    Returns:
        Rates, scores, KL and loss at full strength (1, or the strength tried that is nearest), with
        the plain rate beside them; controls are pooled over their seeds.
    """
    rows = []
    order = ["intervention", "direction", "is_harmful"]
    groups: Any = table.groupby(order, sort=False)
    for (intervention, _, is_harmful), group in groups:
        strengths = [s for s in group["strength"].unique() if s != 0]
        full = group[group["strength"] == min(strengths, key=lambda s: abs(s - 1))]
        is_plain = (table["strength"] == 0) & (table["is_harmful"] == is_harmful)
        plain = table[is_plain & (table["intervention"] == intervention)].iloc[0]
        rows.append(_summary_row(full, plain) | {"is_harmful": is_harmful})
    others = [name for name in rows[0] if name not in order]
    return pd.DataFrame(rows, columns=pd.Index([*order, *others]))


def _summary_row(full: Any, plain: Any) -> dict[str, Any]:
    n_prompts = int(full["n_prompts"].sum())
    n_refused = round(float((full["refusal_rate"] * full["n_prompts"]).sum()))
    low, high = wilson_interval(n_refused, n_prompts)
    first = full.iloc[0]
    place = ("intervention", "direction", "strength", "hook_point", "site", "layer", "position")
    return {
        **{name: first[name] for name in place},
        "n_prompts": n_prompts,
        "plain_rate": plain["refusal_rate"],
        "refusal_rate": n_refused / n_prompts,
        "refusal_rate_low": low,
        "refusal_rate_high": high,
        "plain_score": plain["refusal_score"],
        "refusal_score": full["refusal_score"].mean(),
        "kl": full["kl"].mean(),
        "plain_loss": plain["text_loss"],
        "text_loss": full["text_loss"].mean(),
    }


def verdict_of_rates(summary: pd.DataFrame, auroc: float, p_value: float) -> str:
    """Say the same of one candidate by refusal rates on the test part.

    It causes refusal when ablation lowers the rate of harmful prompts, and addition raises that of
    harmless ones, each by at least half of the gap between the classes' plain rates
    (`CAUSAL_SHARE`), and random directions as long do at most half as much (`CONTROL_SHARE`). Where
    ablation or addition was not tried, nothing is said of causes.
    """
    if not (auroc >= MIN_AUROC and p_value <= MAX_SEPARATION_P):
        return NEITHER
    moved: Any = summary.assign(moved=summary["refusal_rate"] - summary["plain_rate"])
    removed = -_moves(moved, "removes", is_harmful=True)
    induced = _moves(moved, "adds", is_harmful=False)
    plain = {row["is_harmful"]: row["plain_rate"] for row in summary.to_dict("records")}
    gap = plain.get(True, 0.0) - plain.get(False, 0.0)
    if removed.empty or induced.empty or not gap > 0:
        return SEPARATES_ONLY
    is_cause = all(
        moves["fitted"] >= CAUSAL_SHARE * gap
        and abs(moves["random"]) <= CONTROL_SHARE * moves["fitted"]
        for moves in (removed, induced)
    )
    return SEPARATES_AND_CAUSES if is_cause else SEPARATES_ONLY


def _moves(moved: Any, effect: str, *, is_harmful: bool) -> Any:
    """Return how far the first intervention of an effect moves the rate, by kind of direction."""
    tried = [name for name in pd.unique(moved["intervention"])
             if intervention_of(name).effect == effect]  # fmt: skip
    is_first = moved["intervention"] == (tried[0] if tried else None)
    rows = moved[is_first & (moved["is_harmful"] == is_harmful)]
    return rows.set_index("direction")["moved"]
