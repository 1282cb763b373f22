"""Is there a direction?  The one decision of a run, and the sentence that says it everywhere.

Knows the scores of the best place and what exchanged labels and random directions reach, and warns
who takes that place without one. Does not know refusal, and gives no advice.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.models.hook_points import select_hook_points, selector_of
from refusal_lens.runs.folder import RunFolder, best_or_refuse
from refusal_lens.validation.best_place import Choice
from refusal_lens.validation.frames import rows_where
from refusal_lens.validation.thresholds import (
    GOOD_ACCURACY,
    MIN_AUROC,
    SIGNIFICANT,
    WORTH_FINDING,
)

Verdict = Literal["nowhere", "miss", "chance", "cannot tell", "weak", "found"]


@dataclass(frozen=True)
class Chance:
    """What there would be without a direction.

    `p_value` is of the best place's AUROC, corrected for every place looked at; None where labels
    were not exchanged. `detectable` is the AUROC that would be found four times in five, NaN where
    that is not known. `random_share` is the share of random directions, with the activations' own
    covariance, that do as well as the fitted one; None where none were tried. `frames_differ`: no
    exchange of labels tells harm from the wording, and the interval has to do. `least_p_value`
    is as low as so few `shuffled` (topics, pairs or prompts) let any p-value be; NaN where that is
    not known.
    """

    p_value: float | None = None
    detectable: float = math.nan
    random_share: float | None = None
    frames_differ: bool = False
    least_p_value: float = math.nan
    shuffled: str = "topics"

    @property
    def is_beaten(self) -> bool:
        """Whether nothing measured says that chance does as well."""
        return self.p_value is None or self.p_value <= SIGNIFICANT


@dataclass(frozen=True)
class Decision:
    """Whether there is a direction, and the sentence that says so."""

    verdict: Verdict
    sentence: str

    @property
    def is_found(self) -> bool:
        """Whether there is one that a reader may go on with."""
        return self.verdict in ("weak", "found")


def decide(best: Choice | None, chance: Chance) -> Decision:
    """Decide whether there is a direction, by the scores of the best place, if there is one.

    By AUROC and accuracy, which compare places and runs: separation depends on what all prompts
    share.
    """
    if best is None:
        text = "The means of harmful and harmless prompts differ nowhere, so there is no direction."
        return Decision("nowhere", text)
    if not chance.is_beaten:
        return _not_beaten(chance)
    same = " on new topics; of the same topics" if best.is_of_new_topics else ","
    scores = (
        f"AUROC {best.auroc:.2f}{same} accuracy {best.accuracy:.0%}, separation "
        f"{best.separation:.2f}"
    )
    if chance.frames_differ and not best.auroc_low > 0.5:
        what = "there is no interval" if math.isnan(best.auroc_low) else "the interval reaches 0.5"
        text = (
            "These prompts cannot tell whether there is a direction: the classes differ in their "
            f"frames, and with topics and frames held out {what} ({scores})."
        )
        return Decision("cannot tell", text)
    if not best.auroc >= MIN_AUROC:
        text = (
            "Nowhere does a direction tell harmful from harmless prompts that it has not seen: the "
            f"nearest miss has {scores}."
        )
        return Decision("miss", text)
    text = f"A direction tells harmful from harmless prompts that it has not seen ({scores})."
    return Decision("found" if best.accuracy >= GOOD_ACCURACY else "weak", text)


def _not_beaten(chance: Chance) -> Decision:
    assert chance.p_value is not None, "labels were exchanged"
    cannot = "These prompts cannot tell whether there is a direction"
    if chance.least_p_value > SIGNIFICANT:
        text = (
            f"{cannot}: so few {chance.shuffled} can be exchanged between the classes that p "
            f"cannot fall below {chance.least_p_value:.2g}, whatever the prompts say."
        )
        return Decision("cannot tell", text)
    reached = (
        f"with exchanged labels the best of all places does as well in {chance.p_value:.0%} of the "
        "draws"
    )
    if chance.detectable <= WORTH_FINDING:
        return Decision("chance", f"There is no direction here: {reached}.")
    known = (
        ""
        if math.isnan(chance.detectable)
        else (f" (one of {chance.detectable:.2f} would be found, four times in five)")
    )
    text = f"{cannot}: {reached}, and an AUROC of {WORTH_FINDING} would often go unnoticed{known}."
    return Decision("cannot tell", text)


# --- read from a run ------------------------------------------------------------------------------


def read_chance(run_folder: RunFolder, best: Choice | None) -> Chance:
    """Read what there would be at the best place without a direction."""
    nulls, power = run_folder.read_table("nulls"), run_folder.read_table("power")
    known: dict[str, Any] = {}
    if power is not None:
        row = power.iloc[0]
        known["detectable"] = float(row["detectable_auroc"])
        known["frames_differ"] = bool(row["frames_differ"])
        known["least_p_value"] = float(row.get("least_p_value", math.nan))  # newer than the others
        known["shuffled"] = str(row["shuffled"])
    if best is None or nulls is None or "p_value_corrected" not in nulls:
        return Chance(**known)
    # The AUROC's, as everywhere: its null has the same spread at every layer.
    rows = rows_where(nulls, hook_point=best.hook_point, position=best.position, score="auroc")
    return Chance(
        p_value=_first(rows_where(rows, kind="permutation"), "p_value_corrected"),
        random_share=_first(rows_where(rows, kind="covariance"), "p_value"),
        **known,
    )


def _first(rows: pd.DataFrame, column: str) -> float | None:
    kept = rows[column].dropna()
    return float(kept.iloc[0]) if len(kept) else None


# --- the place that stands where no other was asked for -------------------------------------------


def warn_of_miss(run_folder: RunFolder, best: Choice | None) -> None:
    """Warn where a run found no direction: its best place is then no place to go on with."""
    decision = decide(best, read_chance(run_folder, best))
    if best is not None and not decision.is_found:
        told = "cannot tell whether there is a" if decision.verdict == "cannot tell" else "found no"
        warnings.warn(
            f"{run_folder.path} {told} direction: its best place is only the nearest miss.",
            RefusalLensWarning,
            stacklevel=2,
        )


def best_by_default(run_folder: RunFolder) -> Choice:
    """Return the best place of a run, as `best_or_refuse`; warn where it is a miss."""
    best = best_or_refuse(run_folder)
    warn_of_miss(run_folder, best)
    return best


def find_place(
    run_folder: RunFolder, hook_point: str | None, position: str | None
) -> tuple[str, str]:
    """Return the place that was asked for, and the best one's where nothing was.

    Raises:
        RefusalLensError: Nothing was asked for, and no place is the best; or more than one was.
    """
    if hook_point is None or position is None:
        best = best_by_default(run_folder)
        hook_point, position = hook_point or best.hook_point, position or best.position
    stored = run_folder.read_directions().hook_points
    names = select_hook_points(stored, hook_point, str(run_folder.path))
    if len(names) != 1:
        raise RefusalLensError(
            f"{hook_point} is {len(names)} hook points of this run; one is needed, such as "
            f"{selector_of(names[0])}."
        )
    return names[0], position
