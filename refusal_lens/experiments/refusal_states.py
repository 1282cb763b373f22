"""What it means that a model refuses nothing, everything, a part, or mostly the harmful prompts.

Knows the words for each state. Measures nothing.
"""

from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

from refusal_lens.experiments.refusal import RefusalReport, State
from refusal_lens.prompts.contrast import MIN_PROMPTS_PER_SIDE
from refusal_lens.validation.frames import rows_where
from refusal_lens.validation.shares import wilson_interval
from refusal_lens.validation.thresholds import FEW_REFUSED, FOLLOWED, MIN_OF_OUTCOME, MOVED
from refusal_lens.validation.units import FEWEST_UNITS

N_NAMED = 3
MIN_OF_CATEGORY = 5
"""Categories of fewer prompts are not named."""

FEW_TOPICS = (
    f"The intervals are those of independent prompts: fewer than {FEWEST_UNITS} topics are too few "
    "to go by."
)

_SAME = 1e-6
"""Rates that differ by more are of other answers."""


@dataclass(frozen=True)
class StateWords:
    """A state in a sentence, and what can be done; nothing where nothing need be."""

    sentence: str
    remedy: str


_MEANINGS: dict[State, StateWords] = {
    "none": StateWords(
        "There is no refusal to find: the model refuses {rates}. A direction that separates them "
        "is what the model knows of harm, not what makes it refuse.",
        "Use a model that refuses these prompts, or prompts that this model refuses.",
    ),
    "all": StateWords(
        "The model refuses everything: {rates}. Refusing does not tell the classes apart.",
        "Read its answers (refusal.json); give a system prompt, or other harmless prompts.",
    ),
    "partial": StateWords(
        "The model refuses a part of the prompts: {rates}{most}. A direction of harm is not the "
        "one of refusal here.",
        "Fit on refused against answered prompts (refusal-lens fit RUN --set "
        "directions.labels=behaviour), or keep the harmful prompts that are refused and the "
        "harmless ones that are not.",
    ),
    "contrast": StateWords("The model refuses {rates}.", ""),
    "unclear": StateWords(
        "How much the model refuses cannot be told from so few prompts: it refuses {rates}.",
        f"Use more prompts; {MIN_PROMPTS_PER_SIDE} a side tell no refusal from some.",
    ),
}


_EVASIVE = StateWords(
    "Next to no refusal is found: the judge takes {rates} for refused, but {evaded} for evaded, "
    "and some of these may decline in other words. A direction that separates the classes is what "
    "the model knows of harm; that it makes the model refuse cannot be seen here.",
    "Read a sample (refusal-lens judge RUN --sheet 60, filled in: --labels), and use a model that "
    "refuses these prompts, or prompts that this model refuses.",
)
"""In the place of `none` where a judge may have missed refusals: people found those it had missed
among what it took for evaded."""


def describe_state(report: RefusalReport, corrected: pd.DataFrame | None = None) -> StateWords:
    """Say what the model does with these prompts, with 95 % intervals, and what can be done.

    `corrected` is `tables/corrected_rates.csv`, where people have read a sample of the answers.
    """
    is_evasive = report.state == "none" and _is_evasive(report)
    words = _EVASIVE if is_evasive else _MEANINGS[report.state]
    evaded = " and ".join(f"{report.rate(side, 'evaded'):.0%}" for side in (True, False))
    sentence = words.sentence.format(
        rates=_rates(report), most=_most_refused(report, True), evaded=evaded
    )
    return StateWords(f"{sentence}{_others(report)}{_as_read(report, corrected)}", words.remedy)


def describe_rates(report: RefusalReport, corrected: pd.DataFrame | None = None) -> str:
    """Say what the model does with these prompts, and not what that means for a direction."""
    return f"The model refuses {_rates(report)}.{_others(report)}{_as_read(report, corrected)}"


def describe_borderline(report: RefusalReport) -> str:
    """Say how much is refused of prompts that sound harmful and are not, and of which topics."""
    most = _most_refused(report, False) if report.count(False, "refused") else ""
    return (
        f"Of {report.n_judged(False)} borderline prompts, which sound harmful and are not, the "
        f"model refuses {rate_with_interval(report, False)}{most}.{_others(report)}"
    )


def _is_evasive(report: RefusalReport) -> bool:
    """Say whether there would be some refusal if all that is evaded were refused."""
    return any(
        wilson_interval(report.count(side, "refused", "evaded"), report.n_judged(side))[1]
        > FEW_REFUSED
        for side in (True, False)
    )


def _as_read(report: RefusalReport, corrected: pd.DataFrame | None) -> str:
    """Say the rates that people found; nothing where they read other answers than these."""
    if corrected is None:
        return ""
    rates = []
    for name, side in (("harmful", True), ("harmless", False)):
        rows = rows_where(corrected, intervention="", outcome="refused", is_harmful=side)
        if rows.empty or abs(rows["judged_rate"].iloc[0] - report.rate(side)) > _SAME:
            return ""
        rate, low, high = rows[["rate", "rate_low", "rate_high"]].iloc[0]
        rates.append(f"{rate:.0%} ({low:.0%}-{high:.0%}) of the {name}")
    return f" By a sample that people have read, it refuses {' and '.join(rates)} prompts."


def _rates(report: RefusalReport) -> str:
    rates = " and ".join(
        f"{rate_with_interval(report, is_harmful)} of the {name}"
        for name, is_harmful in (("harmful", True), ("harmless", False))
    )
    return f"{rates} prompts"


def describe_lengths(report: RefusalReport) -> StateWords:
    """Say at which length of answer refusal and evasion stopped moving, or that they had not."""
    if len(report.lengths) < 2:
        return StateWords("", "")
    settled, last = report.settled_at, report.lengths[-1]
    if settled is not None:
        return StateWords(
            f"Refusal and evasion stand still from {settled} tokens of the answer on (judged at "
            f"{', '.join(map(str, report.lengths))}).",
            "",
        )
    return StateWords(
        f"Answers are cut off too early: between {report.lengths[-2]} and {last} tokens a rate of "
        f"refusal or evasion still moved by more than {MOVED:.0%}.",
        f"Set refusal.n_new_tokens to {2 * last}, or to auto, and measure again.",
    )


def describe_score(report: RefusalReport) -> str:
    """Say whether the refusal score follows the judge, and from where on it speaks of refusal."""
    scores = [answer.refusal_score for answer in report.answers]
    sign = "negative" if max(scores) < 0 else "positive" if min(scores) > 0 else ""
    alike = f" All {len(scores)} scores are {sign}." if sign else ""
    judged = [answer for answer in report.answers if answer.outcome != "unjudged"]
    if len({answer.is_refused for answer in judged}) < 2:
        return f"Whether the refusal score follows the judge cannot be seen here.{alike}"
    n_refused = sum(answer.is_refused for answer in judged)
    if min(n_refused, len(judged) - n_refused) < MIN_OF_OUTCOME:
        return (
            f"Whether the refusal score follows the judge cannot be seen from {n_refused} refusals "
            f"and {len(judged) - n_refused} other answers.{alike}"
        )
    threshold, youden = report.score_threshold
    if youden < FOLLOWED:
        return (
            f"The refusal score does not follow the judge (Youden index {youden:.2f}, at least "
            f"{FOLLOWED:g} would): it says little of refusal here.{alike}"
        )
    above = [answer.is_refused for answer in judged if answer.refusal_score >= threshold]
    return (
        f"The refusal score follows the judge: {sum(above)} of {n_refused} refusals and "
        f"{len(above) - sum(above)} of {len(judged) - n_refused} other answers score "
        f"{threshold:+.2f} or more.{alike}"
    )


def rate_with_interval(report: RefusalReport, is_harmful: bool) -> str:
    """Write one class's refusal rate with its interval."""
    low, high = report.interval(is_harmful)
    return f"{report.rate(is_harmful):.0%} ({low:.0%}-{high:.0%})"


def _most_refused(report: RefusalReport, is_harmful: bool) -> str:
    """Name the categories of one class that are refused most."""
    refused: defaultdict[str, list[bool]] = defaultdict(list)
    for answer in report.answers:
        if answer.is_harmful == is_harmful and answer.outcome != "unjudged":
            refused[answer.category].append(answer.is_refused)
    known = {name: each for name, each in refused.items() if name and len(each) >= MIN_OF_CATEGORY}
    if len(known) < 2:
        return ""
    named = sorted(known, key=lambda name: -sum(known[name]) / len(known[name]))[:N_NAMED]
    shares = []
    for name in named:
        low, high = wilson_interval(sum(known[name]), len(known[name]))
        share = sum(known[name]) / len(known[name])
        shares.append(f"{name} {share:.0%} ({low:.0%}-{high:.0%})")
    return f"; most in {', '.join(shares)}"


def _others(report: RefusalReport) -> str:
    """Tell of what was neither refused nor answered."""
    told = []
    for outcome in ("evaded", "broken", "unjudged"):
        n = sum(report.count(is_harmful, outcome) for is_harmful in (True, False))
        if n:
            told.append(f"{n} {outcome}")
    text = f" Of {len(report.answers)} answers, {', '.join(told)}." if told else ""
    if report.has_few_topics:
        text += f" {FEW_TOPICS}"
    return text
