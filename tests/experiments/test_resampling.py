"""Intervals by resampling: of a mean in closed form, of units, and of what all went one way."""

import numpy as np
import pytest

from refusal_lens.experiments.resampling import (
    mean_interval,
    resample_means,
    with_both_ways,
)


def test_independent_prompts_give_the_standard_error():
    values = np.random.default_rng(0).normal(1.0, 2.0, (400, 1))
    draws = resample_means(values, range(400), seed=1, n_draws=4000)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.01)
    assert draws.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_units_are_drawn_whole():
    by_unit = np.random.default_rng(0).normal(size=20)
    values = np.repeat(by_unit, 10)[:, None]
    draws = resample_means(values, np.repeat(np.arange(20), 10).tolist(), seed=1, n_draws=4000)
    assert draws.std() == pytest.approx(by_unit.std() / 20**0.5, rel=0.05)
    # Before: taken one by one they look ten times as many.
    alone = resample_means(values, range(200), seed=1, n_draws=4000)
    assert alone.std() < draws.std() / 2.5


def test_columns_are_paired_and_missing_values_count_in_no_mean():
    values = np.array([[1.0, 2.0, np.nan], [5.0, 6.0, np.nan], [np.nan, np.nan, 7.0]] * 20)
    draws = resample_means(values, range(60), seed=0)
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 1.0)
    np.testing.assert_allclose(draws[:, 2], 7.0)


def test_what_all_went_one_way_is_not_certain():
    before, after = with_both_ways(np.ones(5), np.zeros(5))
    draws = resample_means(np.stack([before, after], axis=1), range(7), seed=0)
    moved = draws[:, 0] - draws[:, 1]
    # Bonett and Price: (5 + 1 - 1) / 7, and its standard error in closed form.
    p_one, p_other = 6 / 7, 1 / 7
    error = ((p_one + p_other - (p_one - p_other) ** 2) / 7) ** 0.5
    assert moved.mean() == pytest.approx(5 / 7, abs=0.02)
    assert moved.std() == pytest.approx(error, rel=0.05)


def test_an_interval_over_topics_is_that_of_their_means():
    generator = np.random.default_rng(0)
    topics = [topic for topic in range(40) for _ in range(10)]
    effect = np.repeat(generator.normal(2.0, 3.0, 40), 10)
    values = effect + generator.normal(0.0, 1.0, 400)
    low, high = mean_interval(values, topics, 0)
    spread = values.reshape(40, 10).mean(axis=1).std()
    assert high - low == pytest.approx(2 * 1.96 * spread / np.sqrt(40), rel=0.1)
    alone = mean_interval(values, range(400), 0)
    assert high - low > 2 * (alone[1] - alone[0])
