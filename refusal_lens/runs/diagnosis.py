"""What the numbers mean, in words: the article's checklist, causes and remedies.

Knows the bands for people and the advice that goes with them. Computes no scores.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from refusal_lens.experiments.refusal import RefusalReport
from refusal_lens.experiments.refusal_states import describe_lengths, describe_state
from refusal_lens.prompts.contrast import MIN_PROMPTS_PER_SIDE, ContrastSet, either
from refusal_lens.runs.decision import Chance, Decision, decide, read_chance
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation import thresholds
from refusal_lens.validation.best_place import Choice, layers_beside
from refusal_lens.validation.confounds import Likeness, chat_template_tokens
from refusal_lens.validation.frames import rows_where
from refusal_lens.validation.separation import Separation


@dataclass(frozen=True)
class Check:
    """One line of the checklist: what is asked for, what came, and whether it passes."""

    name: str
    wanted: str
    came: str
    is_passed: bool


@dataclass(frozen=True)
class Finding:
    """A cause for what was seen, and what to do about it."""

    cause: str
    remedy: str


def band(value: float, least: float, good: float) -> str:
    """Name a score's band: good, acceptable or poor.

    Example:
        >>> band(0.2, thresholds.MIN_SEPARATION, thresholds.GOOD_SEPARATION)
        'acceptable'
    """
    if value >= good:
        return "good"
    return "acceptable" if value >= least else "poor"


@dataclass(frozen=True)
class Diagnosis:
    """What a run's numbers mean: what terminal and report both show."""

    decision: Decision
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]


def diagnose_run(run_folder: RunFolder) -> Diagnosis:
    """Go through what a run has found so far: the one account of it.

    Raises:
        RefusalLensError: The run has no scores yet.
    """
    prompts, separation = run_folder.read_prompts(), run_folder.separation()
    best = run_folder.best(separation)
    chance = read_chance(run_folder, best)
    decision = decide(best, chance)
    is_by_harm = run_folder.relabelling() is None
    findings = [
        *diagnose_chat_template(run_folder.read_provenance()),
        *diagnose(
            prompts,
            separation,
            run_folder.read_refusal(),
            decision,
            best=best,
            is_by_harm=is_by_harm,
            corrected=run_folder.read_table("corrected_rates"),
        ),
        *diagnose_frames(chance),
        *diagnose_random(chance),
        *_diagnose_tables(run_folder, best),
    ]
    checks = checklist(prompts, layers_beside(separation, best), best, decision)
    told = Diagnosis(decision, tuple(checks), tuple(findings))
    return told if is_by_harm else _by_behaviour(told, prompts)


def decide_run(run_folder: RunFolder) -> Decision:
    """Say whether a run has a direction, as `diagnose_run` does, without going through causes."""
    best = run_folder.best()
    decision = decide(best, read_chance(run_folder, best))
    is_by_harm = run_folder.relabelling() is None
    return decision if is_by_harm else _decided_by_behaviour(decision, run_folder.read_prompts())


def _decided_by_behaviour(decision: Decision, prompts: ContrastSet) -> Decision:
    labels = (
        f"The labels are what the model did: {len(prompts.harmful)} refused and "
        f"{len(prompts.harmless)} answered prompts, harmful and harmless alike."
    )
    return replace(decision, sentence=f"{labels} {_of_behaviour(decision.sentence, prompts)}")


def _of_behaviour(text: str, prompts: ContrastSet) -> str:
    return prompts.reword(text).replace("of harm", "of refusal").replace("in harm", "in refusal")


def _by_behaviour(told: Diagnosis, prompts: ContrastSet) -> Diagnosis:
    """Say all of it of refused and answered prompts, and that the labels are these."""

    def reworded(text: str) -> str:
        return _of_behaviour(text, prompts)

    return Diagnosis(
        _decided_by_behaviour(told.decision, prompts),
        tuple(replace(check, came=reworded(check.came)) for check in told.checks),
        tuple(
            Finding(reworded(finding.cause), reworded(finding.remedy)) for finding in told.findings
        ),
    )


def checklist(
    prompts: ContrastSet, separation: Separation, best: Choice | None, decision: Decision
) -> list[Check]:
    """Go through the article's checklist.

    Scores that exchanged labels reach pass nothing: a tick beside them would contradict the
    decision.
    """
    n_harmful, n_harmless = len(prompts.harmful), len(prompts.harmless)
    n_valid, n_places = int(separation.is_valid.sum()), separation.is_valid.numel()
    best_separation = float("nan") if best is None else best.separation
    best_accuracy = float("nan") if best is None else best.accuracy
    is_chance = decision.verdict in ("chance", "cannot tell")
    beside = ", no better than exchanged labels" if is_chance else ""
    return [
        Check(
            "prompts",
            f"at least {MIN_PROMPTS_PER_SIDE} a side",
            f"{n_harmful} harmful, {n_harmless} harmless",
            min(n_harmful, n_harmless) >= MIN_PROMPTS_PER_SIDE,
        ),
        Check(
            "valid layers",
            f"at least {thresholds.VALID_SHARE:.0%}",
            f"{n_valid} of {n_places}{beside}",
            n_valid >= thresholds.VALID_SHARE * n_places and not is_chance,
        ),
        Check(
            "separation at the best place",
            f"at least {thresholds.GOOD_SEPARATION:.2f}",
            f"{best_separation:.2f}{beside}",
            best_separation >= thresholds.GOOD_SEPARATION and not is_chance,
        ),
        Check(
            "accuracy at the best place",
            f"at least {thresholds.BEST_ACCURACY:.0%}",
            f"{best_accuracy:.0%}{beside}",
            best_accuracy >= thresholds.BEST_ACCURACY and not is_chance,
        ),
    ]


def diagnose(
    prompts: ContrastSet,
    separation: Separation,
    refusal: RefusalReport | None,
    decision: Decision,
    *,
    best: Choice | None = None,
    is_by_harm: bool = True,
    corrected: pd.DataFrame | None = None,
) -> Iterator[Finding]:
    """Yield the causes that apply, with their remedies; none when all is well.

    Where the classes are what the model did, not what prompts are (`is_by_harm`), how much it
    refuses of each is no cause. `corrected` has rates by answers that people have read, as
    `tables/corrected_rates.csv`. `best` is the best place, or the nearest miss.
    """
    yield from _diagnose_chance(decision)
    yield from _diagnose_topics(separation, best)
    if refusal is not None and is_by_harm:
        yield from _diagnose_refusal(refusal, corrected)
    if _highest(separation.headline["auroc"].value) < thresholds.MIN_AUROC:
        yield from _diagnose_separation(prompts, refusal, is_by_harm)
    elif decision.is_found and _highest(separation.separation) < thresholds.MIN_SEPARATION:
        yield _diagnose_offset(separation)
    best_accuracy = _highest(separation.accuracy)
    if best_accuracy < thresholds.MIN_ACCURACY:
        yield from _diagnose_accuracy(separation)
    optimism = _highest(separation.accuracy_in_sample) - best_accuracy
    if optimism > thresholds.OPTIMISTIC:
        yield Finding(
            f"Accuracy is {optimism:.0%} higher on the prompts that the direction was fitted to "
            "than on held-out ones: it has learned these prompts, not their class.",
            "Use more prompts; trust the held-out numbers.",
        )


def diagnose_frames(chance: Chance) -> Iterator[Finding]:
    """Say where the classes are worded differently throughout."""
    if chance.frames_differ:
        yield Finding(
            "Harmful and harmless prompts hardly share a frame (the words they begin with), and "
            "frames run through the topics: no exchange of labels tells harm from the wording, so "
            "there is no p-value.",
            "Write prompts of both classes in the same frames; the scores of new topics hold for "
            "new frames too.",
        )


def diagnose_random(chance: Chance) -> Iterator[Finding]:
    """Say where random directions do as well as the fitted one."""
    if chance.random_share is not None and chance.random_share > thresholds.SIGNIFICANT:
        yield Finding(
            f"{chance.random_share:.0%} of random directions with the activations' covariance tell "
            "the classes apart as well: they differ along most directions here, and this one is "
            "not special by its scores.",
            "Go by what acting on it does (refusal-lens select, ablate).",
        )


def _diagnose_tables(run_folder: RunFolder, best: Choice | None) -> Iterator[Finding]:
    """Yield what confounds and texts say, as far as they were looked at."""
    names = ("confounds", "coordinates", "length_correlations", "near_duplicates", "likeness")
    found = ((name, run_folder.read_table(name)) for name in names)
    tables = {name: table for name, table in found if table is not None}
    if best is None or not {"confounds", "coordinates"} <= set(tables):
        return
    yield from diagnose_confounds(tables, best)
    if not {"near_duplicates", "likeness"} <= set(tables):
        return
    likeness = Likeness.of_tables(tables["near_duplicates"], tables["likeness"])
    counts = run_folder.read_table("token_counts")
    added = None
    if counts is not None:
        total, user = counts["n_tokens"].tolist(), counts["n_own_tokens"].tolist()
        added = chat_template_tokens(total, user, run_folder.stored_prompts().is_harmful)
    yield from diagnose_texts(likeness, added)


# --- what else tells the classes apart --------------------------------------------------------


FEATURES = {
    "token_count": ("The number of tokens", "prompts of the same length in both classes"),
    "final_punctuation": ("The final punctuation mark", "prompts that end alike in both classes"),
    "first_word": ("The first word", "prompts that begin alike in both classes"),
    "all_features": (
        "A model of length, punctuation, first word and words",
        "prompts that are worded alike in both classes",
    ),
    "bag_of_words": (
        "A bag of words",
        "prompts that say harmful and harmless things in the same words, or test on other subjects "
        "(tables/transfer.csv)",
    ),
}
"""Trivial features as sentences name them, and what prompts leave each nothing to tell."""


def diagnose_confounds(tables: Mapping[str, pd.DataFrame], best: Choice) -> Iterator[Finding]:
    """Say which trivial features do as well as the direction, and what else it is made of.

    The tables are `confounds` and `coordinates`, and `length_correlations` where there is one.
    """
    scores = tables["confounds"].set_index("feature")
    direction = scores.loc["direction"]
    for feature, (name, remedy) in FEATURES.items():
        if feature not in scores.index:
            continue
        row = scores.loc[feature]
        # As good as the direction, as far as its interval can tell, and better than chance; or so
        # good that the prompts can hardly tell one from the other.
        is_as_good = row["auroc"] >= direction["auroc_low"] and row["auroc_low"] > 0.5
        if is_as_good or row["auroc"] >= thresholds.TELLS_ALONE:
            how = " as well as the direction" if is_as_good else ""
            yield Finding(
                f"{name} alone tells the classes apart{how} (AUROC {row['auroc']:.3f} against "
                f"{direction['auroc']:.3f}): the direction may be that, and nothing of "
                f"harm.{_within(row)}",
                f"Use {remedy}.",
            )
    if "length_correlations" in tables:
        share = _at(tables["length_correlations"], best, "share")
        if share >= thresholds.FOLLOWS_LENGTH:
            yield Finding(
                f"Within a class, {share:.0%} of the variance of the projections goes with the "
                "number of tokens: the direction is partly length.",
                "Use prompts of the same length in both classes, or another position.",
            )
    share = _at(tables["coordinates"], best, "share_top_1_clipped")
    if share >= thresholds.ONE_COORDINATE:
        yield Finding(
            f"One coordinate holds {share:.0%} of the direction's squared length: it may be an "
            "outsize coordinate that carries nothing.",
            "Clip lower; tables/clip_sweep.csv shows what that does to the scores.",
        )


def _within(row: pd.Series) -> str:
    """Say what the direction does among prompts that a feature takes for alike."""
    if "direction_within" not in row:
        return ""
    within: Any = row["direction_within"]
    if np.isnan(within):
        return " Prompts of both classes are never alike in it, so it cannot be told from harm."
    return f" Among prompts alike in it, the direction's AUROC is {within:.3f}."


def _at(table: pd.DataFrame, best: Choice, column: str) -> float:
    rows = rows_where(table, hook_point=best.hook_point, position=best.position)
    return float(rows[column].to_numpy()[0])


def diagnose_texts(
    likeness: Likeness, added: Mapping[str, tuple[int, ...]] | None
) -> Iterator[Finding]:
    """Say where the classes' texts are too alike, or were not written out alike.

    Args:
        likeness: From `confounds.compare_texts`.
        added: From `confounds.chat_template_tokens`; None where tokens were not counted.
    """
    if likeness.n_near:
        pair = likeness.pairs.iloc[0]
        stand = "prompt stands" if likeness.n_near == 1 else "prompts stand"
        yield Finding(
            f"{likeness.n_near} harmful {stand} almost word for word among the harmless "
            f"ones too, such as {pair['harmful_id']} and {pair['harmless_id']}.",
            "Read tables/near_duplicates.csv; take out those that are in the wrong class.",
        )
    if added is not None and not set(added["harmful"]) & set(added["harmless"]):
        yield Finding(
            f"The chat template adds {either(map(str, added['harmful']))} tokens to harmful "
            f"prompts but {either(map(str, added['harmless']))} to harmless ones.",
            "Look at the table Positions read; give both classes the same template.",
        )


def diagnose_chat_template(provenance: Mapping[str, Any]) -> Iterator[Finding]:
    """Say where prompts ended elsewhere than where the answer begins."""
    chat_template = provenance.get("chat_template", {})
    ending = chat_template.get("ending")
    if chat_template.get("has_template") is False:
        yield Finding(
            "The tokenizer has no chat template: prompts went in as plain text, which a base "
            "model continues instead of answering it.",
            "Use a chat model; or, where its files only lack the template, put it into "
            "chat_template.jinja beside them.",
        )
    elif ending is not None:
        yield Finding(ending["cause"], ending["remedy"])


def _highest(scores: object) -> float:
    return scores.nan_to_num(nan=0.0).max().item()  # type: ignore[attr-defined]


def _diagnose_topics(separation: Separation, best: Choice | None) -> Iterator[Finding]:
    """Say where new topics fare much worse, and where prompts lie the wrong way round."""
    if best is not None:
        at_best = separation.only_at(best.hook_point, best.position)
        if at_best.gap.item() >= thresholds.LARGE_GAP:
            new, same = at_best.headline["auroc"].value.item(), at_best.auroc.item()
            yield Finding(
                f"On new topics the AUROC of {best.hook_point} at {best.position} is {new:.2f}, on "
                f"new prompts of the same topics {same:.2f}: the direction is partly one of its "
                "topics.",
                "Quote the number of new topics; use more topics, and twins that join them.",
            )
    n_below = int((separation.headline["auroc"].high < 0.5).sum())
    if n_below:
        yield Finding(
            f"At {n_below} places held-out prompts lie the wrong way round (an AUROC below 0.5, "
            "its interval included): they depend on each other in a way not told.",
            "Say which prompts belong together (fields pair and group).",
        )


def _diagnose_chance(decision: Decision) -> Iterator[Finding]:
    remedies = {
        "cannot tell": "Use more prompts, on more topics (with --limit, a larger one): six topics "
        "of twins are the fewest that can tell.",
        "chance": "Take nothing below for a finding. Check which file is which class, and that "
        "they differ in harm; use more prompts.",
    }
    if decision.verdict in remedies:
        yield Finding(decision.sentence, remedies[decision.verdict])


def _diagnose_refusal(refusal: RefusalReport, corrected: pd.DataFrame | None) -> Iterator[Finding]:
    for words in (describe_state(refusal, corrected), describe_lengths(refusal)):
        if words.remedy:
            yield Finding(words.sentence, words.remedy)


def _diagnose_offset(separation: Separation) -> Finding:
    highest, of = _highest(separation.headline["auroc"].value), ""
    if separation.new_topics:
        of = " on new topics"
    return Finding(
        f"Separation is below {thresholds.MIN_SEPARATION} everywhere although the AUROC reaches "
        f"{highest:.2f}{of}: as a difference of cosines it is small where prompts of both classes "
        "share most of their activations.",
        "Go by AUROC, accuracy and d'; the article's bands do not fit this model.",
    )


def _diagnose_separation(
    prompts: ContrastSet, refusal: RefusalReport | None, is_by_harm: bool
) -> Iterator[Finding]:
    low = f"The AUROC is below {thresholds.MIN_AUROC} everywhere:"
    yield Finding(
        f"{low} harmful and harmless prompts may be too alike.",
        "Use prompts that differ more clearly in harm, and in nothing else.",
    )
    if refusal is None:
        yield Finding(
            f"{low} the model may not refuse.", "Measure it first: refusal-lens refusal-rate RUN."
        )
    elif is_by_harm and refusal.state == "contrast" and refusal.rate(True) < thresholds.SATURATED:
        yield Finding(
            f"Only {refusal.rate(True):.0%} of the harmful prompts are refused.",
            "Keep the harmful prompts that are (refusal.json lists them).",
        )
    if min(len(prompts.harmful), len(prompts.harmless)) < MIN_PROMPTS_PER_SIDE:
        yield Finding(
            f"There are few prompts ({len(prompts.harmful)} harmful, {len(prompts.harmless)} "
            "harmless).",
            f"Use {MIN_PROMPTS_PER_SIDE} or more a side.",
        )


def _diagnose_accuracy(separation: Separation) -> Iterator[Finding]:
    low = f"Accuracy is below {thresholds.MIN_ACCURACY:.0%}"
    yield Finding(
        f"{low} everywhere: the prompts may be of mixed quality, or the model refuses in several "
        "ways.",
        "Read the answers by category (refusal.json), and keep what is plainly refused or plainly "
        "answered.",
    )
    if "mean" not in separation.positions:
        yield Finding(
            f"{low} at position {', '.join(separation.positions)}.",
            "Try --position mean as well.",
        )
