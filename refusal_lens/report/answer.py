"""The answer in three sentences: is there a direction, where, and can it be trusted.

Knows the words, and from which numbers on each is used. Computes no scores.

Tested in tests/report/test_page.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from refusal_lens.experiments.refusal_states import (
    describe_borderline,
    describe_rates,
    describe_state,
)
from refusal_lens.experiments.verdicts import CANNOT_TELL, LOSS, SEPARATES_AND_CAUSES
from refusal_lens.models.hook_points import short_name, site_of
from refusal_lens.prompts.contrast import MIN_PROMPTS_PER_SIDE
from refusal_lens.report.evidence import Evidence
from refusal_lens.runs.diagnosis import FEATURES, diagnose_frames, diagnose_random
from refusal_lens.validation import thresholds
from refusal_lens.validation.best_place import Choice
from refusal_lens.validation.frames import rows_that
from refusal_lens.validation.scores import no_interval

Grade = Literal["good", "fair", "poor"]
Kind = Literal["for", "against", "open"]


@dataclass(frozen=True)
class Reply:
    """A question, its answer in a word or two, how good that is, and the answer in a sentence.

    `more` is what a reader may want to know behind it.
    """

    question: str
    verdict: str
    grade: Grade
    sentence: str
    more: str = ""


@dataclass(frozen=True)
class Reason:
    """One thing that speaks for or against trust in the direction, or is still open."""

    kind: Kind
    text: str


def answer(evidence: Evidence) -> tuple[Reply, Reply, Reply]:
    """Answer the three questions that a reader comes with."""
    return _with_borderline(evidence, _is_there(evidence)), _where(evidence), _is_trusted(evidence)


# --- is there a direction? ----------------------------------------------------------------------


def _is_there(evidence: Evidence) -> Reply:
    question, decision = "Is there a direction?", evidence.diagnosis.decision
    if decision.is_found:
        told = decision.sentence.removesuffix(".")
        return _with_refusal(evidence, question, told, decision.verdict == "found")
    verdict = "Cannot tell" if decision.verdict == "cannot tell" else "No"
    return Reply(question, verdict, "poor", decision.sentence)


def _with_refusal(evidence: Evidence, question: str, told: str, is_strong: bool) -> Reply:
    """Say what the direction is of: refusal, or only what the model knows of harm."""
    refusal = evidence.refusal
    verdict, grade = ("Yes", "good") if is_strong else ("A weak one", "fair")
    if refusal is None:
        text = f"{told}; whether the model refuses was not measured."
        return Reply(question, verdict, grade, text)
    corrected = evidence.tables.get("corrected_rates")
    if evidence.is_by_behaviour:
        return Reply(question, verdict, grade, f"{told}. {describe_rates(refusal, corrected)}")
    words = describe_state(refusal, corrected)
    told = f"{told}. {words.sentence}"
    if refusal.state == "contrast":
        return Reply(question, verdict, grade, told)
    if refusal.is_told_apart:
        return Reply(question, "Of harm, in part of refusal", "fair", told)
    return Reply(question, "Of harm, not of refusal", "poor", told)


def _with_borderline(evidence: Evidence, reply: Reply) -> Reply:
    if evidence.borderline is None:
        return reply
    told = describe_borderline(evidence.borderline)
    return replace(reply, sentence=f"{reply.sentence} {told}")


# --- where? -------------------------------------------------------------------------------------


def _where(evidence: Evidence) -> Reply:
    question, best = "Where?", evidence.best
    if best is None:
        return Reply(question, "Nowhere", "poor", "There is no place to name.")
    short = short_name(best.hook_point)
    verdict = short if best.layer is None else f"Layer {best.layer}"
    place = f"{best.hook_point} at position {best.position}"
    if not evidence.diagnosis.decision.is_found:
        verdict = (
            "Cannot tell" if evidence.diagnosis.decision.verdict == "cannot tell" else "Nowhere"
        )
        text = f"The nearest miss is {place}; no place can be recommended."
        return Reply(question, verdict, "poor", text)
    shown = evidence.separation.at(site_of(best.hook_point), best.position)
    n_valid, n_places = int(shown.is_valid.sum()), shown.is_valid.numel()
    of = "Take" if best.layer is None else f"Of layers 0 to {evidence.n_layers - 1} take"
    more = (
        f"{best.other_rule} {n_valid} of the {n_places} hook points of this kind are valid"
        f"{_nested_sentence(evidence)}."
    )
    grade = "good" if 2 * n_valid >= n_places else "fair"
    return Reply(question, verdict, grade, f"{of} {place}: {best.reason}.", more.strip())


def _nested_sentence(evidence: Evidence) -> str:
    nested = evidence.tables.get("nested_choice")
    if nested is None or not len(nested):
        return ""
    rows = evidence.at_best("nested_choice")
    n_same = 0 if rows is None else len(rows)
    return f", and {n_same} of {len(nested)} choices made on part of the prompts fell on it"


# --- can it be trusted? -------------------------------------------------------------------------


def reasons(evidence: Evidence) -> list[Reason]:
    """List what speaks for and against trust in the direction, and what is still open."""
    if evidence.best is None:
        return []
    best = evidence.best
    return [
        *_held_out_reason(evidence, best),
        *_chance_reason(evidence),
        *_stability_reason(evidence),
        *_confound_reason(evidence),
        *_prompts_reason(evidence),
        *_causal_reason(evidence),
    ]


def _is_trusted(evidence: Evidence) -> Reply:
    question = "Can it be trusted?"
    found = reasons(evidence)
    against = [reason.text for reason in found if reason.kind == "against"]
    if not evidence.diagnosis.decision.is_found:
        text = "No direction was found that could be trusted: see the causes below."
        return Reply(question, "No", "poor", text)
    if against:
        also = f" (and {len(against) - 1} more, below)" if len(against) > 1 else ""
        text = f"It separates prompts that it was not fitted to, but {_clause(against[0])}{also}."
        return Reply(question, "With care", "fair", text)
    cause = _cause(evidence)
    if cause is not None and cause.word == SEPARATES_AND_CAUSES:
        beside = f", with a side effect ({LOSS})" if cause.has_side_effect else ""
        text = (
            "It holds on prompts that it was not fitted to, nothing measured here speaks against "
            f"it, and acting on it{cause.at_place} changes what the model refuses{beside}."
        )
        return Reply(question, "Yes", "good", text)
    acting = f"whether acting on it{cause.at_place if cause else ''} changes what the model refuses"
    n_others = sum(reason.kind == "open" for reason in found) - 1
    if cause is not None:
        more = f", and {n_others} more of what is below is open" if n_others else ""
        unknown = f"{acting} cannot be told yet{more}"
    elif n_others:
        unknown = f"{n_others + 1} things were not measured, among them {acting}"
    else:
        unknown = f"{acting} was not measured"
    text = f"It holds on prompts that it was not fitted to, but {unknown}."
    return Reply(question, "As a correlation", "fair", text)


def _held_out_reason(evidence: Evidence, best: Choice) -> Iterator[Reason]:
    row = evidence.at_best("separation")
    if row is None:
        return
    scores = row.iloc[0]
    in_sample = scores["accuracy_in_sample"]
    interval = f" ({no_interval(float(scores.get('n_units', math.nan)))})"
    if scores.get("accuracy_low") == scores.get("accuracy_low", float("nan")):
        low, high = scores["accuracy_low"], scores["accuracy_high"]
        interval = f" (95 % interval {low:.0%} to {high:.0%})"
        if low <= 0.5:
            yield Reason("against", f"Its accuracy may be that of guessing{interval}.")
    text = f"Accuracy is {best.accuracy:.0%} on held-out prompts{interval} and {in_sample:.0%} "
    if in_sample - best.accuracy > thresholds.OPTIMISTIC:
        yield Reason("against", f"{text}on those it was fitted to: it has learned them by heart.")
    else:
        yield Reason("for", f"{text}on those it was fitted to.")


def _chance_reason(evidence: Evidence) -> Iterator[Reason]:
    p_value = evidence.chance.p_value
    if evidence.chance.frames_differ:
        yield from (Reason("against", each.cause) for each in diagnose_frames(evidence.chance))
    elif p_value is None:
        yield Reason("open", "Shuffled labels were not tried: refusal-lens fit RUN.")
    elif p_value > thresholds.SIGNIFICANT:
        yield Reason("against", f"Shuffled labels do as well ({_p_words(p_value)}).")
    else:
        yield Reason("for", f"Shuffled labels hardly ever do as well ({_p_words(p_value)}).")
    for finding in diagnose_random(evidence.chance):
        yield Reason("against", finding.cause)


def _p_words(p_value: float) -> str:
    return f"p = {p_value:.2g}, corrected for every place looked at"


def _stability_reason(evidence: Evidence) -> Iterator[Reason]:
    row = evidence.at_best("stability")
    if row is None:
        yield Reason("open", "Its stability was not measured: refusal-lens fit RUN.")
        return
    cosine = float(row["split_half_cosine"].iloc[0])
    kind = "for" if cosine >= thresholds.STABLE else "against"
    yield Reason(kind, f"Two halves of the prompts give directions with cosine {cosine:.2f}.")


def _confound_reason(evidence: Evidence) -> Iterator[Reason]:
    table = evidence.tables.get("confounds")
    if table is None:
        yield Reason("open", "Trivial features (length, punctuation, words) were not tried.")
        return
    is_direction = table["feature"] == "direction"
    rows = rows_that(table, is_direction)
    others = rows_that(table, ~is_direction).dropna(subset=["auroc"])
    if not len(rows) or not len(others):
        return
    top = others.sort_values("auroc").iloc[-1]
    feature, _ = FEATURES[top["feature"]]
    direction = float(rows.iloc[0]["auroc"])
    scores = f"AUROC {top['auroc']:.2f}, the direction's {direction:.2f}"
    if top["auroc"] >= thresholds.TELLS_ALONE and top["auroc"] < direction - thresholds.AS_GOOD:
        yield Reason("against", f"{feature} alone nearly tells the classes apart ({scores}).")
    elif top["auroc"] >= direction - thresholds.AS_GOOD:
        yield Reason("against", f"{feature} alone tells the classes apart as well ({scores}).")
    else:
        yield Reason("for", f"{feature} is the best trivial feature, and does worse ({scores}).")


def _prompts_reason(evidence: Evidence) -> Iterator[Reason]:
    fewest = min(len(evidence.prompts.harmful), len(evidence.prompts.harmless))
    if fewest < MIN_PROMPTS_PER_SIDE:
        yield Reason(
            "against", f"There are only {fewest} prompts a side; {MIN_PROMPTS_PER_SIDE} are few."
        )


@dataclass(frozen=True)
class _Cause:
    """What is said of acting on the direction: the verdict, where, and what stands behind it.

    `because` names the conditions that failed, or that are open where it cannot be told.
    """

    word: str
    at_place: str
    because: str = ""
    n_needed: float = math.nan
    has_side_effect: bool = False


def _causal_reason(evidence: Evidence) -> Iterator[Reason]:
    cause = _cause(evidence)
    if cause is None:
        yield Reason(
            "open",
            "Whether acting on it changes what the model refuses was not tried: "
            "refusal-lens select RUN.",
        )
        return
    because = f": {cause.because}" if cause.because else ""
    if cause.word == CANNOT_TELL:
        more = "" if math.isnan(cause.n_needed) else f"; about {cause.n_needed:.0f} prompts a side"
        yield Reason(
            "open",
            f"Whether acting on it{cause.at_place} changes what the model refuses cannot be told "
            f"yet (open{because}{more and more + ' would tell'}).",
        )
    elif cause.word == SEPARATES_AND_CAUSES:
        beside = f", with a side effect: {LOSS}" if cause.has_side_effect else ""
        yield Reason("for", f"Acting on it{cause.at_place} changes what the model refuses{beside}.")
    else:
        yield Reason(
            "against",
            f"Acting on it{cause.at_place} does not pass for the cause of refusal ({cause.word}"
            f"{because}).",
        )


def _cause(evidence: Evidence) -> _Cause | None:
    """Return the verdict of the place that interventions chose, or of the best; None without any.

    That by rates of answers, where `ablate` has run, comes before that by scores.
    """
    checks = evidence.tables.get("verdict")
    if checks is not None and len(checks):
        return _cause_by_rates(evidence, checks)
    table = evidence.tables.get("causal_scores")
    if table is None or "verdict" not in table:
        return None
    has_choice = "is_chosen" in table and any(table["is_chosen"])
    rows = (
        rows_that(table, table["is_chosen"].astype(bool))
        if has_choice
        else evidence.at_best("causal_scores")
    )
    if rows is None or not rows.iloc[0]["verdict"]:
        return None
    row = rows.iloc[0]
    because = row.get("because", "")
    return _Cause(row["verdict"], _at_place(evidence, row), "" if pd.isna(because) else because)


def _cause_by_rates(evidence: Evidence, checks: pd.DataFrame) -> _Cause:
    first = checks.iloc[0]
    standing = "open" if first["verdict"] == CANNOT_TELL else "failed"
    is_reason = (checks["standing"] == standing) & (checks["name"] != LOSS)
    behind = rows_that(checks, is_reason)
    needed = behind["n_needed"].to_numpy(dtype=float)
    is_loss = (checks["name"] == LOSS) & (checks["standing"] != "met")
    return _Cause(
        first["verdict"],
        _at_place(evidence, first),
        ", ".join(map(str, behind["name"])),
        float(needed.max()) if len(needed) else math.nan,
        bool(is_loss.any()),
    )


def _at_place(evidence: Evidence, row: Any) -> str:
    best = evidence.best
    place = (row["hook_point"], row["position"])
    is_best = best is not None and place == (best.hook_point, best.position)
    if is_best or best is None:
        return ""
    return (
        f" at {short_name(place[0])}, position {place[1]} (the scores are of "
        f"{short_name(best.hook_point)}, {best.position}),"
    )


def _clause(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].removesuffix(".")
