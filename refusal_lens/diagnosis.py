"""What the numbers mean, in words: the article's checklist, causes and remedies.

Knows the bands for people and the advice that goes with them. Computes no scores.
"""

from dataclasses import dataclass

from refusal_lens.prompts import ContrastSet
from refusal_lens.refusal import RefusalReport
from refusal_lens.selection import BEST_ACCURACY, GOOD_SEPARATION, Choice
from refusal_lens.validation import MIN_ACCURACY, MIN_SEPARATION, Separation

ENOUGH_PROMPTS = 30
"""Prompts a side from which on the article trusts a mean."""

VALID_SHARE = 0.50
"""Least share of valid layers."""

GOOD_ACCURACY = 0.80

SATURATED = 0.9
"""From this refusal rate on, harmless prompts are refused too: nothing tells the classes apart."""


SIGNIFICANT = 0.05
"""Above this corrected p-value of the best place there is nothing to find."""


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
        >>> band(0.2, MIN_SEPARATION, GOOD_SEPARATION)
        'acceptable'
    """
    if value >= good:
        return "good"
    return "acceptable" if value >= least else "poor"


def checklist(prompts: ContrastSet, separation: Separation, best: Choice | None) -> list[Check]:
    """Go through the article's checklist."""
    n_harmful, n_harmless = len(prompts.harmful), len(prompts.harmless)
    n_valid, n_places = int(separation.is_valid.sum()), separation.is_valid.numel()
    best_separation = float("nan") if best is None else best.separation
    best_accuracy = float("nan") if best is None else best.accuracy
    return [
        Check(
            "prompts",
            f"at least {ENOUGH_PROMPTS} a side",
            f"{n_harmful} harmful, {n_harmless} harmless",
            min(n_harmful, n_harmless) >= ENOUGH_PROMPTS,
        ),
        Check(
            "valid layers",
            f"at least {VALID_SHARE:.0%}",
            f"{n_valid} of {n_places}",
            n_valid >= VALID_SHARE * n_places,
        ),
        Check(
            "best separation",
            f"at least {GOOD_SEPARATION:.2f}",
            f"{best_separation:.2f}",
            best_separation >= GOOD_SEPARATION,
        ),
        Check(
            "best accuracy",
            f"at least {BEST_ACCURACY:.0%}",
            f"{best_accuracy:.0%}",
            best_accuracy >= BEST_ACCURACY,
        ),
    ]


def diagnose(
    prompts: ContrastSet,
    separation: Separation,
    refusal: RefusalReport | None,
    p_value: float | None = None,
) -> list[Finding]:
    """Return the causes that apply, with their remedies; none when all is well.

    Args:
        prompts: The prompts of both classes.
        separation: Scores of every place.
        refusal: Whether the model refuses; None where that was not measured.
        p_value: The smallest p-value of all places, corrected for having looked at all of them;
            None where there is none.
    """
    findings = [] if p_value is None else _diagnose_chance(p_value, separation)
    findings += [] if refusal is None else _diagnose_refusal(refusal)
    best_separation = _highest(separation.separation)
    best_accuracy = _highest(separation.accuracy)
    if best_separation < MIN_SEPARATION:
        findings += _diagnose_separation(prompts, refusal)
    if best_accuracy < MIN_ACCURACY:
        findings += _diagnose_accuracy(separation)
    optimism = _highest(separation.accuracy_in_sample) - best_accuracy
    if optimism > 0.1:
        findings.append(
            Finding(
                f"Accuracy is {optimism:.0%} higher on the prompts that the direction was fitted "
                "to than on held-out ones: it has learned these prompts, not their class.",
                "Use more prompts; trust the held-out numbers.",
            )
        )
    return findings


def _highest(scores: object) -> float:
    return scores.nan_to_num(nan=0.0).max().item()  # type: ignore[attr-defined]


def _diagnose_chance(p_value: float, separation: Separation) -> list[Finding]:
    if p_value <= SIGNIFICANT:
        return []
    n_places = separation.separation.numel()
    return [
        Finding(
            "There is no direction here: with shuffled labels the best of all places "
            f"({n_places}) does as well as this one in {p_value:.0%} of the draws.",
            "Take nothing below for a finding. Check which file is which class, and that they "
            "differ in harm; use more prompts.",
        )
    ]


def _diagnose_refusal(refusal: RefusalReport) -> list[Finding]:
    if refusal.has_refusal:
        return []
    harmful, harmless = refusal.rate(True), refusal.rate(False)
    if harmless >= SATURATED:
        return [
            Finding(
                f"The model refuses harmless prompts too ({harmless:.0%}): refusing does not tell "
                "the classes apart.",
                "Read its answers (refusal.json); give a system prompt, or other harmless prompts.",
            )
        ]
    return [
        Finding(
            f"There is no refusal to find: the model refuses {harmful:.0%} of the harmful and "
            f"{harmless:.0%} of the harmless prompts. A direction that separates them is what the "
            "model knows of harm, not what makes it refuse.",
            "Use a model that refuses these prompts, or prompts that this model refuses.",
        )
    ]


def _diagnose_separation(prompts: ContrastSet, refusal: RefusalReport | None) -> list[Finding]:
    findings = [
        Finding(
            f"Separation is below {MIN_SEPARATION} everywhere: harmful and harmless prompts may be "
            "too alike.",
            "Use prompts that differ more clearly in harm, and in nothing else.",
        )
    ]
    if refusal is None:
        findings.append(
            Finding(
                f"Separation is below {MIN_SEPARATION} everywhere: the model may not refuse.",
                "Measure it first: refusal-lens refusal-rate RUN.",
            )
        )
    elif refusal.has_refusal and refusal.rate(True) < SATURATED:
        findings.append(
            Finding(
                f"Only {refusal.rate(True):.0%} of the harmful prompts are refused.",
                "Keep the harmful prompts that are (refusal.json lists them).",
            )
        )
    if min(len(prompts.harmful), len(prompts.harmless)) < ENOUGH_PROMPTS:
        findings.append(
            Finding(
                f"There are few prompts ({len(prompts.harmful)} harmful, "
                f"{len(prompts.harmless)} harmless).",
                f"Use {ENOUGH_PROMPTS} or more a side.",
            )
        )
    return findings


def _diagnose_accuracy(separation: Separation) -> list[Finding]:
    findings = [
        Finding(
            f"Accuracy is below {MIN_ACCURACY:.0%} everywhere: the prompts may be of mixed "
            "quality, or the model refuses in several ways.",
            "Read the answers by category (refusal.json), and keep what is plainly refused or "
            "plainly answered.",
        )
    ]
    if "mean" not in separation.positions:
        findings.append(
            Finding(
                f"Accuracy is below {MIN_ACCURACY:.0%} at position "
                f"{', '.join(separation.positions)}.",
                "Try --position mean as well.",
            )
        )
    return findings
