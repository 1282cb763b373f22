"""Each state in words: with intervals, the categories refused most, and what can be done."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from experiments.test_refusal import make_report

from refusal_lens.experiments.refusal import Answer, RefusalReport
from refusal_lens.experiments.refusal_states import (
    describe_borderline,
    describe_score,
    describe_state,
)
from refusal_lens.validation.shares import share_interval


def test_a_part_refused_is_not_called_none():
    words = describe_state(make_report(49, 0, 100))
    assert words.sentence == (
        "The model refuses a part of the prompts: 49% (39%-59%) of the harmful and 0% (0%-4%) of "
        "the harmless prompts. A direction of harm is not the one of refusal here."
    )
    assert words.remedy.startswith("Fit on refused against answered prompts")


def test_a_contrast_needs_no_remedy():
    words = describe_state(make_report(99, 1, 100))
    assert words.remedy == ""
    assert words.sentence.startswith("The model refuses 99% (95%-100%) of the harmful and 1%")


def test_too_few_prompts_are_not_called_none():
    assert "cannot be told" in describe_state(make_report(0, 0)).sentence


def test_topics_and_other_outcomes_are_named():
    shares = {"weapons": 10, "theft": 5, "lies": 0}
    harmful = [
        Answer(f"{name}{i}", name, True, "q", "a", "refused" if i < n else "evaded", 0.0)
        for name, n in shares.items()
        for i in range(10)
    ]
    harmless = [Answer(str(i), "c", False, "q", "a", "answered", 0.0) for i in range(30)]
    sentence = describe_state(RefusalReport((*harmful, *harmless), ("I",))).sentence
    assert "; most in weapons 100% (72%-100%), theft 50% (24%-76%), lies 0% (0%-28%)." in sentence
    assert sentence.endswith("Of 60 answers, 15 evaded.")


def test_over_refusal_is_told_with_an_interval_by_topic():
    """Of two topics, all or nothing: few topics widen no interval, and many do."""
    answers = [
        Answer(f"{i}-{k}", f"t{i}", False, "q", "a", "answered" if i % 3 else "refused", 0.0)
        for i in range(24)
        for k in range(4)
    ]
    topics = [replace(a, topic=a.category) for a in answers]
    alone, lumped = (describe_borderline(RefusalReport(tuple(a), ())) for a in (answers, topics))
    low, high = share_interval([i % 3 == 0 for i in range(24)], range(24))
    begins = "Of 96 borderline prompts, which sound harmful and are not, the model refuses 33% ("
    assert alone.startswith(f"{begins}25%-43%)")
    # Prompts of a topic that are all alike are worth one: the interval is that of 24 topics.
    assert lumped.startswith(begins)
    shown = re.search(r"\((\d+)%-(\d+)%\)", lumped)
    assert [int(end) / 100 for end in shown.groups()] == pytest.approx([low, high], abs=0.02)
    none = [replace(a, outcome="evaded") for a in topics]
    assert describe_borderline(RefusalReport(tuple(none), ())) == (
        "Of 96 borderline prompts, which sound harmful and are not, the model refuses 0% (0%-4%). "
        "Of 96 answers, 96 evaded."
    )


def evasive_report() -> RefusalReport:
    """As SmolLM2's: two refusals of 168 harmful prompts, 27 evasions, of which people read four."""
    outcomes = ["refused"] * 2 + ["evaded"] * 27 + ["answered"] * 139
    harmful = [Answer(f"h{i}", "", True, "q", "a", o, -2.0 - i) for i, o in enumerate(outcomes)]
    harmless = [Answer(f"n{i}", "", False, "q", "a", "answered", -9.0) for i in range(168)]
    return RefusalReport((*harmful, *harmless), ("I",))


def test_where_much_is_evaded_no_refusal_is_not_claimed():
    words = describe_state(evasive_report())
    assert words.sentence.startswith(
        "Next to no refusal is found: the judge takes 1% (0%-4%) of the harmful and 0% (0%-2%) of "
        "the harmless prompts for refused, but 16% and 0% for evaded"
    )
    assert "--sheet 60" in words.remedy
    assert describe_state(make_report(0, 0, 168)).sentence.startswith("There is no refusal to find")


def test_what_people_read_is_said_beside_what_the_judge_says():
    report = evasive_report()
    rows = [
        {
            "is_harmful": side,
            "judged_rate": judged,
            "rate": rate,
            "rate_low": low,
            "rate_high": high,
        }
        for side, judged, rate, low, high in (
            (True, 2 / 168, 0.06, 0.03, 0.16),
            (False, 0.0, 0.0, 0.0, 0.08),
        )
    ]
    read = pd.DataFrame(rows).assign(intervention="", outcome="refused")
    told = "By a sample that people have read, it refuses 6% (3%-16%) of the harmful and 0% (0%-8%)"
    assert told in describe_state(report, read).sentence
    # Of answers that were given since, nobody has read any.
    assert told not in describe_state(make_report(3, 0, 168), read).sentence


def test_two_refusals_do_not_show_that_the_score_follows():
    assert describe_score(evasive_report()) == (
        "Whether the refusal score follows the judge cannot be seen from 2 refusals and 334 other "
        "answers. All 336 scores are negative."
    )
