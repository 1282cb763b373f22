"""Answers cut off after ever more tokens: what moves, and from where on nothing does."""

import pytest

from refusal_lens.config import RefusalConfig
from refusal_lens.experiments.answer_lengths import judge_by_length, length_table, settled_at
from refusal_lens.experiments.refusal import measure_refusal
from refusal_lens.experiments.refusal_states import describe_lengths

LENGTHS = (8, 16, 32)


def test_rates_that_stop_moving_say_where():
    late = [("answered", "refused", "refused")] * 5 + [("answered",) * 3] * 5
    early = [("answered",) * 3] * 10
    sides = [True] * 10 + [False] * 10
    assert settled_at([*late, *early], sides, LENGTHS) == 16
    table = length_table([*late, *early], sides, LENGTHS, [""] * 20)
    assert table["refused"].tolist() == [0, 0.5, 0.5, 0, 0, 0]
    assert table["is_settled"].tolist() == [False, True, True] * 2


@pytest.mark.parametrize("outcome", ["refused", "evaded"])
def test_rates_that_still_move_at_the_end_are_told(outcome):
    rows = [("answered", "answered", outcome)] * 2 + [("answered",) * 3] * 8
    assert settled_at(rows, [True] * 10, LENGTHS) is None
    assert settled_at(rows, [False] * 10, LENGTHS) is None


def test_one_length_says_nothing():
    assert settled_at([("refused",)] * 4, [True, True, False, False], (8,)) is None


def test_what_is_the_same_text_is_judged_once():
    asked = []

    def judge(text: str):
        asked.append(text)
        return "refused" if "no" in text else "answered"

    ids = [1, 2, 3]
    outcomes = judge_by_length(judge, lambda part: " no"[: len(part)], ids, (2, 3, 8, 16))
    assert outcomes == ("answered", "refused", "refused", "refused")
    assert len(asked) == 2


def test_outcomes_by_length_are_those_of_shorter_answers(model, prompts):
    """One generation judged at 8 tokens gives what 8 generated tokens give."""

    def judge(prompt: str, answer: str):
        return "refused" if len(answer) % 2 else "answered"

    long, short = (
        measure_refusal(
            model, prompts, RefusalConfig(n_new_tokens=n), judge=judge, show_progress=False
        )
        for n in (20, 8)
    )
    assert long.lengths == (8, 16, 20)
    assert [a.by_length[0] for a in long.answers] == [a.outcome for a in short.answers]
    assert [a.by_length[-1] for a in long.answers] == [a.outcome for a in long.answers]
    assert describe_lengths(long).sentence
    assert describe_lengths(short).sentence == ""


def test_auto_stops_where_nothing_moves(model, prompts):
    def judge(prompt: str, answer: str):
        return "refused"

    report = measure_refusal(
        model, prompts, RefusalConfig(n_new_tokens="auto"), judge=judge, show_progress=False
    )
    assert report.lengths == (8,)

    def unsure(prompt: str, answer: str):
        return "refused" if len(answer) > 40 else "answered"

    # The context holds 128 tokens: a little over 64 are left behind the prompts.
    expected = measure_refusal(
        model, prompts, RefusalConfig(n_new_tokens=64), judge=unsure, show_progress=False
    )
    found = measure_refusal(
        model, prompts, RefusalConfig(n_new_tokens="auto"), judge=unsure, show_progress=False
    )
    assert found.lengths[-1] == (expected.settled_at or 64)
    assert found.rate(True) == pytest.approx(expected.rate(True), abs=0.02)
