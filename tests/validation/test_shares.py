"""Shares of prompts that come in topics: closed forms, another library, planted topics."""

import numpy as np
import pytest
from scipy.stats import binomtest

from refusal_lens.validation.shares import (
    difference_interval,
    number_topics,
    share_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("k", "n"), [(0, 64), (9, 50), (50, 50), (1, 2)])
def test_independent_prompts_have_scipys_wilson_interval(k, n):
    wanted = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson_interval(k, n) == pytest.approx((wanted.low, wanted.high))
    is_true = [i < k for i in range(n)]
    assert share_interval(is_true, range(n)) == wilson_interval(k, n)


def test_of_no_prompts_everything_is_possible():
    assert share_interval([], []) == wilson_interval(0, 0) == (0.0, 1.0)


def test_difference_of_shares_has_newcombes_interval():
    # Newcombe 1998, table II, method 10: 56/70 against 48/80, and 10/10 against 0/10.
    ends = wilson_interval(56, 70), wilson_interval(48, 80)
    found = difference_interval(56 / 70, ends[0], 48 / 80, ends[1])
    assert found == pytest.approx((0.0524, 0.3339), abs=5e-5)
    found = difference_interval(1.0, wilson_interval(10, 10), 0.0, wilson_interval(0, 10))
    assert found == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_prompts_of_few_topics_or_none_stand_by_themselves():
    assert number_topics([f"topic {row % 4}" for row in range(12)]) == list(range(12))
    assert number_topics([""] * 12) == list(range(12))
    assert number_topics([f"frame {row % 6}" for row in range(12)]) == [0, 1, 2, 3, 4, 5] * 2


def draw_covered(n_topics: int, size: int, likeness: float, share: float) -> tuple[float, float]:
    """Return how often the interval by topic, and Wilson's, hold the share; of 1,000 draws."""
    generator = np.random.default_rng([n_topics, size])
    topics = np.repeat(np.arange(n_topics), size)
    a, b = (part * (1 / likeness - 1) for part in (share, 1 - share))
    covered = np.zeros(2)
    for _ in range(1000):
        is_true = (generator.random(len(topics)) < generator.beta(a, b, n_topics)[topics]).tolist()
        ends = share_interval(is_true, topics.tolist()), wilson_interval(sum(is_true), len(is_true))
        covered += [low <= share <= high for low, high in ends]
    return covered[0] / 1000, covered[1] / 1000


@pytest.mark.parametrize(
    ("n_topics", "size", "likeness", "share"),
    [(30, 6, 0.1, 0.2), (30, 6, 0.3, 0.5), (60, 4, 0.3, 0.9), (30, 6, 0.1, 0.05)],
)
def test_of_thirty_topics_the_interval_covers(n_topics, size, likeness, share):
    by_topic, independent = draw_covered(n_topics, size, likeness, share)
    # The Monte-Carlo error of 1,000 draws is 0.7 %.
    assert 0.93 - 0.007 <= by_topic <= 0.97 + 0.007
    assert independent < by_topic
