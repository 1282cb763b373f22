"""The checklist, and the causes that apply and no others."""

import torch
from conftest import make_separation
from test_refusal import make_report

from refusal_lens.diagnosis import band, checklist, diagnose
from refusal_lens.prompts import ContrastSet
from refusal_lens.selection import choose_best
from refusal_lens.validation import Separation


def make_prompts(n: int) -> ContrastSet:
    return ContrastSet.from_texts([f"bad {i}" for i in range(n)], [f"good {i}" for i in range(n)])


def make(separation: float, accuracy: float, in_sample: float | None = None) -> Separation:
    scores = [torch.full((4, 1), s).double() for s in (separation, accuracy, in_sample or accuracy)]
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(4))
    return make_separation(scores[0], scores[1], scores[0], scores[2], names)


def test_checklist_passes_what_is_good():
    separation = make(0.5, 0.9)
    checks = checklist(make_prompts(30), separation, choose_best(separation, 4))
    assert [check.is_passed for check in checks] == [True] * 4
    assert diagnose(make_prompts(30), separation, make_report(10, 0)) == []


def test_checklist_fails_what_is_not():
    separation = make(0.1, 0.6)
    checks = checklist(make_prompts(29), separation, choose_best(separation, 4))
    assert [check.is_passed for check in checks] == [False] * 4
    assert [check.came for check in checks] == [
        "29 harmful, 29 harmless",
        "0 of 4",
        "0.10",
        "60%",
    ]


def test_model_that_refuses_nothing_is_said_plainly():
    (finding,) = diagnose(make_prompts(30), make(0.9, 1.0), make_report(0, 0))
    assert finding.cause == (
        "There is no refusal to find: the model refuses 0% of the harmful and 0% of the harmless "
        "prompts. A direction that separates them is what the model knows of harm, not what makes "
        "it refuse."
    )


def test_model_that_refuses_everything_is_told_apart():
    (finding,) = diagnose(make_prompts(30), make(0.9, 1.0), make_report(10, 10))
    assert "refuses harmless prompts too (100%)" in finding.cause


def test_low_separation_gives_the_causes_that_apply():
    causes = [f.cause for f in diagnose(make_prompts(10), make(0.1, 0.9), make_report(6, 0))]
    assert causes == [
        "Separation is below 0.15 everywhere: harmful and harmless prompts may be too alike.",
        "Only 60% of the harmful prompts are refused.",
        "There are few prompts (10 harmful, 10 harmless).",
    ]
    unmeasured = diagnose(make_prompts(30), make(0.1, 0.9), None)
    assert [f.remedy for f in unmeasured][1:] == [
        "Measure it first: refusal-lens refusal-rate RUN."
    ]


def test_low_accuracy_suggests_the_mean_position():
    remedies = [f.remedy for f in diagnose(make_prompts(30), make(0.5, 0.6), make_report(10, 0))]
    assert remedies[-1] == "Try --position mean as well."


def test_optimism_of_the_in_sample_score_is_named():
    findings = diagnose(make_prompts(30), make(0.5, 0.7, in_sample=0.95), make_report(10, 0))
    assert [f.remedy for f in findings] == ["Use more prompts; trust the held-out numbers."]


def test_bands():
    assert [band(value, 0.15, 0.30) for value in (0.3, 0.29, 0.15, 0.149)] == [
        *("good", "acceptable", "acceptable", "poor")
    ]


def test_scores_that_shuffled_labels_reach_are_no_direction():
    findings = diagnose(make_prompts(30), make(0.5, 0.9), make_report(10, 0), p_value=0.43)
    assert [f.cause for f in findings] == [
        "There is no direction here: with shuffled labels the best of all places (4) does as well "
        "as this one in 43% of the draws."
    ]
    assert diagnose(make_prompts(30), make(0.5, 0.9), make_report(10, 0), p_value=0.05) == []
