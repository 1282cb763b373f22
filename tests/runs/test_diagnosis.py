"""The checklist, and the causes that apply and no others."""

from dataclasses import replace

import pandas as pd
import torch
from conftest import make_separation
from experiments.test_refusal import make_report

from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.runs.decision import Decision
from refusal_lens.runs.diagnosis import (
    band,
    checklist,
    diagnose,
    diagnose_chat_template,
    diagnose_confounds,
    diagnose_texts,
)
from refusal_lens.validation.best_place import Choice, choose_best
from refusal_lens.validation.confounds import Likeness
from refusal_lens.validation.separation import Separation


def make_prompts(n: int) -> ContrastSet:
    return ContrastSet.from_texts([f"bad {i}" for i in range(n)], [f"good {i}" for i in range(n)])


def make(separation: float, accuracy: float, in_sample: float | None = None) -> Separation:
    scores = [torch.full((4, 1), s).double() for s in (separation, accuracy, in_sample or accuracy)]
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(4))
    return make_separation(scores[0], scores[1], scores[0], scores[2], names)


FOUND = Decision("found", "A direction.")


def test_checklist_passes_what_is_good():
    separation = make(0.5, 0.9)
    checks = checklist(make_prompts(30), separation, choose_best(separation, 4), FOUND)
    assert [check.is_passed for check in checks] == [True] * 4
    assert not list(diagnose(make_prompts(30), separation, make_report(10, 0), FOUND))


def test_checklist_fails_what_is_not():
    separation = make(0.1, 0.6)
    checks = checklist(make_prompts(29), separation, choose_best(separation, 4), FOUND)
    assert [check.is_passed for check in checks] == [False] * 4
    assert [check.came for check in checks] == [
        "29 harmful, 29 harmless",
        "0 of 4",
        "0.10",
        "60%",
    ]


def test_model_that_refuses_nothing_is_said_plainly():
    (finding,) = diagnose(make_prompts(30), make(0.9, 1.0), make_report(0, 0, 40), FOUND)
    assert finding.cause == (
        "There is no refusal to find: the model refuses 0% (0%-9%) of the harmful and 0% (0%-9%) "
        "of the harmless prompts. A direction that separates them is what the model knows of harm, "
        "not what makes it refuse."
    )


def test_model_that_refuses_everything_is_told_apart():
    (finding,) = diagnose(make_prompts(30), make(0.9, 1.0), make_report(40, 40, 40), FOUND)
    assert "refuses everything: 100% (91%-100%) of the harmful" in finding.cause


def test_low_separation_gives_the_causes_that_apply():
    causes = [
        f.cause for f in diagnose(make_prompts(10), make(0.1, 0.5), make_report(32, 0, 40), FOUND)
    ]
    assert causes[:3] == [
        "The AUROC is below 0.6 everywhere: harmful and harmless prompts may be too alike.",
        "Only 80% of the harmful prompts are refused.",
        "There are few prompts (10 harmful, 10 harmless).",
    ]
    unmeasured = list(diagnose(make_prompts(30), make(0.1, 0.5), None, FOUND))
    assert unmeasured[1].remedy == "Measure it first: refusal-lens refusal-rate RUN."


def test_low_accuracy_suggests_the_mean_position():
    remedies = [
        f.remedy for f in diagnose(make_prompts(30), make(0.5, 0.6), make_report(10, 0), FOUND)
    ]
    assert remedies[-1] == "Try --position mean as well."


def test_optimism_of_the_in_sample_score_is_named():
    findings = diagnose(make_prompts(30), make(0.5, 0.7, in_sample=0.95), make_report(10, 0), FOUND)
    assert [f.remedy for f in findings] == ["Use more prompts; trust the held-out numbers."]


def test_bands():
    assert [band(value, 0.15, 0.30) for value in (0.3, 0.29, 0.15, 0.149)] == [
        *("good", "acceptable", "acceptable", "poor")
    ]


BEST = Choice("blocks.2.hook_resid_post", "last", 0.9, 0.95, True, "")
PLACE = {"hook_point": [BEST.hook_point], "position": ["last"]}


def make_tables(auroc: float = 0.5, share: float = 0.0, top: float = 0.1):
    rows = [
        ("token_count", auroc, auroc - 0.05),
        ("first_word", 0.5, 0.4),
        ("direction", 0.95, 0.9),
    ]
    return {
        "confounds": pd.DataFrame(rows, columns=["feature", "auroc", "auroc_low"]),
        "length_correlations": pd.DataFrame({**PLACE, "share": [share]}),
        "coordinates": pd.DataFrame({**PLACE, "share_top_1_clipped": [top]}),
    }


def test_trivial_feature_as_good_as_the_direction_is_named():
    assert not list(diagnose_confounds(make_tables(auroc=0.89), BEST))
    (finding,) = diagnose_confounds(make_tables(auroc=0.91), BEST)
    assert finding.cause == (
        "The number of tokens alone tells the classes apart as well as the direction (AUROC 0.910 "
        "against 0.950): the direction may be that, and nothing of harm."
    )
    assert finding.remedy == "Use prompts of the same length in both classes."


def test_chance_that_reaches_a_direction_of_chance_is_no_finding():
    tables = make_tables(auroc=0.52)
    tables["confounds"].loc[2, ["auroc", "auroc_low"]] = [0.5, 0.4]
    assert not list(diagnose_confounds(tables, BEST))


def test_direction_that_follows_length_or_one_coordinate_is_named():
    (length,) = diagnose_confounds(make_tables(share=0.4), BEST)
    assert "40% of the variance of the projections goes with the number of tokens" in length.cause
    (one,) = diagnose_confounds(make_tables(top=0.81), BEST)
    assert one.cause.startswith("One coordinate holds 81% of the direction's squared length")
    tables = make_tables(share=0.4)
    del tables["length_correlations"]
    assert not list(diagnose_confounds(tables, BEST))


def test_texts_too_alike_and_templates_that_differ_are_named():
    pairs = pd.DataFrame({"harmful_id": ["a-1"], "harmless_id": ["b-2"]})
    assert not list(diagnose_texts(Likeness(pairs, 0, 30, 0.5, 0.5), None))
    (near,) = diagnose_texts(Likeness(pairs, 2, 30, 0.5, 0.5), {"harmful": (8,), "harmless": (8,)})
    assert near.cause == (
        "2 harmful prompts stand almost word for word among the harmless ones too, such as a-1 and "
        "b-2."
    )
    (one,) = diagnose_texts(Likeness(pairs, 1, 30, 0.5, 0.5), None)
    assert one.cause.startswith("1 harmful prompt stands almost word for word")
    (other,) = diagnose_texts(
        Likeness(pairs, 0, 30, 0.5, 0.5), {"harmful": (8,), "harmless": (12, 13)}
    )
    assert other.cause == (
        "The chat template adds 8 tokens to harmful prompts but 12 or 13 to harmless ones."
    )


def test_prompts_that_end_elsewhere_than_the_answer_begins_are_a_finding():
    ending = {"cause": "The template ends early.", "remedy": "Set x.", "token": "a", "token_id": 1}
    (finding,) = diagnose_chat_template({"chat_template": {"ending": ending}})
    assert (finding.cause, finding.remedy) == ("The template ends early.", "Set x.")
    assert not list(diagnose_chat_template({"chat_template": {"ending": None}}))
    assert not list(diagnose_chat_template({}))


def test_a_base_model_is_told_by_its_missing_template():
    (finding,) = diagnose_chat_template({"chat_template": {"has_template": False, "ending": None}})
    assert "no chat template" in finding.cause


def test_a_gap_to_new_topics_is_told_of_the_best_place():
    # It was told of the place that does best on new topics, whose scores stand nowhere else.
    separation = make(0.5, 0.92)
    lower = {
        name: replace(one, value=torch.full_like(one.value, 0.65))
        for name, one in separation.scores.items()
    }
    separation = replace(separation, new_topics=lower)
    best = choose_best(separation, 4)
    (finding,) = diagnose(make_prompts(30), separation, None, FOUND, best=best)
    assert finding.cause.startswith(
        f"On new topics the AUROC of {best.hook_point} at {best.position} is 0.65, on new prompts "
        "of the same topics 0.92"
    )


def test_small_cosines_are_no_cause_where_no_direction_was_found():
    separation = make(0.03, 0.9)
    unknown = Decision("cannot tell", "These prompts cannot tell.")
    (finding,) = diagnose(make_prompts(30), separation, None, unknown)
    assert finding.cause == unknown.sentence
