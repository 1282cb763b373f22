"""First tokens decide what the judge was of one mind about, and nothing else."""

import math

import numpy as np
import pytest

from refusal_lens.experiments.first_tokens import FirstTokens, decisive_scores
from refusal_lens.experiments.refusal import Answer, RefusalReport


def report(scores, refused) -> RefusalReport:
    answers = [
        Answer(str(i), "", True, "", "", "refused" if is_refused else "answered", float(score))
        for i, (score, is_refused) in enumerate(zip(scores, refused, strict=True))
    ]
    return RefusalReport(tuple(answers), ("a",))


def test_a_score_that_follows_the_judge_decides_everything():
    scores = np.linspace(-5, 5, 100)
    found = decisive_scores(report(scores, scores > 1))
    outcomes = found.outcomes(scores)
    assert outcomes == ["refused" if score > 1 else "answered" for score in scores]


def test_between_what_is_decided_answers_are_read():
    # Below -2 all answered, above 2 all refused, in between by turns.
    scores = np.linspace(-5, 5, 200)
    turns = np.arange(200) % 2 == 0
    found = decisive_scores(report(scores, np.where(abs(scores) < 2, turns, scores > 0)))
    assert found.outcomes([-4.5, 0.0, 4.5]) == ["answered", None, "refused"]
    for low, high, refused in ((found.refused, 5, 1.0), (-5, found.answered, 0.0)):
        inside = (scores >= low) & (scores <= high)
        share = np.where(abs(scores) < 2, turns, scores > 0)[inside].mean()
        assert share == pytest.approx(refused, abs=0.05)


@pytest.mark.parametrize("n", [10, 200])
def test_nothing_is_decided_by_few_answers_or_by_a_score_that_says_nothing(n):
    refused = np.arange(n) % 2 == 0
    nothing = FirstTokens(-math.inf, math.inf)
    assert decisive_scores(report(np.linspace(-5, 5, n), refused)) == nothing


def test_where_all_answers_are_alike_only_that_outcome_is_decided():
    found = decisive_scores(report(np.linspace(-5, 5, 40), np.zeros(40, bool)))
    assert found == FirstTokens(5.0, math.inf)


def test_equal_scores_stand_on_one_side():
    scores = np.repeat([0.0, 1.0], 30)
    refused = np.concatenate([np.zeros(30), np.ones(28), np.zeros(2)]).astype(bool)
    found = decisive_scores(report(scores, refused))
    # 28 of 30 are too few, though the first 20 of them agree.
    assert found.outcomes([0.0, 1.0]) == ["answered", None]
