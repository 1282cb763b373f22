"""Prompts that depend on each other: what is dealt, shuffled and weighted as one, and the truth."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from scipy.stats import t as student

from refusal_lens.activations.pooled import Activations
from refusal_lens.prompts.groups import Groups
from refusal_lens.validation.crossfit import assign_folds
from refusal_lens.validation.nulls import detectable_auroc, draw_nulls
from refusal_lens.validation.separation import validate
from refusal_lens.validation.units import (
    HARMFUL_ONLY,
    MIXED,
    Units,
    draw_weights,
    intraclass_correlation,
    pair_units,
    shuffle_labels,
    topic_units,
    unit_variance,
)

D_MODEL = 48


def planted(
    n_topics: int,
    n_each: int,
    n_places: int,
    *,
    effect: float = 0.0,
    topic: float = 0.0,
    pair: float = 0.0,
    has_twins: bool = True,
    seed: int = 0,
) -> Activations:
    """Twins in topics: place after place another draw of the same groups."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, n_places, D_MODEL, generator=generator)

    values = topic * normal(2, n_topics, 1) + normal(2, n_topics, n_each)
    values = values + pair * (normal(1, n_topics, n_each) if has_twins else 0.0)
    values[0, ..., 0] += effect
    n = n_topics * n_each
    twins = torch.arange(n).repeat(2) if has_twins else torch.arange(2 * n)
    topics = torch.arange(2 * n_topics).repeat_interleave(n_each)
    groups = Groups(twins, topics if n_each > 1 else twins, torch.arange(2 * n))
    return Activations(
        values.reshape(2 * n, n_places, 1, D_MODEL),
        torch.arange(2 * n) < n,
        tuple(f"blocks.{i}.hook_resid_post" for i in range(n_places)),
        ("last",),
        {},
        groups,
    )


def alone(activations: Activations) -> Activations:
    """The same, taken for independent prompts: what the tool did before."""
    return Activations(
        activations.values, activations.is_harmful, activations.hook_points, activations.positions
    )


# --- dealing, shuffling, weighting --------------------------------------------------------------


@pytest.mark.parametrize("has_twins", [True, False])
def test_no_unit_lies_in_two_folds_and_classes_are_dealt_evenly(has_twins):
    activations = planted(8, 6, 1, has_twins=has_twins)
    for units in (
        pair_units(activations.is_harmful, activations.groups),
        topic_units(activations.is_harmful, activations.groups),
    ):
        folds = assign_folds(activations.is_harmful, 4, 0, units)
        for unit in range(units.n_units):
            assert len(folds[units.of_prompt == unit].unique()) == 1
        for side in (activations.is_harmful, ~activations.is_harmful):
            assert folds[side].bincount().tolist() == [12] * 4


def test_exchanging_classes_within_units_deals_the_same_folds():
    activations = planted(6, 3, 1)
    flipped = activations.is_harmful ^ (activations.groups.pair % 2 == 0)
    first, again = (
        assign_folds(labels, 3, 5, pair_units(labels, activations.groups))
        for labels in (activations.is_harmful, flipped)
    )
    assert torch.equal(first, again)


def test_twins_exchange_their_classes_and_topics_without_twins_go_whole():
    generator = np.random.default_rng(0)
    for has_twins in (True, False):
        activations = planted(5, 4, 1, has_twins=has_twins)
        labels, groups = activations.is_harmful, activations.groups
        units = topic_units(labels, groups)
        folds = assign_folds(labels, 5, 0, units)
        drawn = torch.from_numpy(shuffle_labels(labels, units, folds, 300, generator))
        assert (drawn.sum(dim=1) == labels.sum()).all()
        for topic in range(10):
            rows = groups.topic == topic
            assert (drawn[:, rows] == drawn[:, rows][:, :1]).all()
        # Two topics of each fold, one of each class: each of the two ways round half of the time.
        assert drawn.float().mean(dim=0).tolist() == pytest.approx([0.5] * 40, abs=0.12)
        assert len(drawn.unique(dim=0)) == 2**5


@pytest.mark.parametrize("has_twins", [True, False])
@pytest.mark.parametrize("n_topics", [5, 6])
def test_no_p_value_falls_below_what_so_few_topics_allow(n_topics, has_twins):
    # All topics exchanged score what none exchanged do: of five topics two labellings in 32.
    activations = planted(n_topics, 8, 1, effect=4.0, has_twins=has_twins)
    nulls = draw_nulls(activations, n_permutations=2000)
    least = nulls.least_p_value
    assert least == pytest.approx(2 / 2**n_topics, abs=0.012)
    assert nulls.p_values()["p_value_corrected"].tolist() == pytest.approx([least])
    separation, _ = validate(activations)
    # Five topics find nothing, whatever it is: there is no AUROC that they would find.
    assert math.isnan(detectable_auroc(nulls, separation)) == (n_topics == 5)


def test_weights_are_alike_within_units_and_keep_the_classes():
    activations = planted(6, 5, 1)
    labels = activations.is_harmful
    units = topic_units(labels, activations.groups)
    weights = draw_weights(labels, units, 2000, np.random.default_rng(0))
    assert torch.equal(weights[:, 0], weights[:, 4])
    assert weights[:, labels].sum(dim=1).tolist() == pytest.approx([30.0] * 2000)
    assert weights.mean(dim=0).tolist() == pytest.approx([1.0] * 60, abs=0.1)
    # So that a weighted mean over units varies by their variance over their number: 1 is the
    # variance of weights that add up to n and vary by s^2 / n (one exponential each: 5 / 7).
    assert weights[:, 0].var().item() == pytest.approx(1.0, rel=0.1)


def test_units_say_what_they_hold():
    labels = torch.tensor([True, True, False, False, True])
    units = Units.of(labels, torch.tensor([7, 7, 3, 9, 9]))
    assert units.n_per_class == (2, 2)
    assert sorted(units.kind.tolist()) == [MIXED, HARMFUL_ONLY, 2]


def test_one_topic_a_class_cannot_be_left_out():
    activations = planted(1, 10, 1)
    assert topic_units(activations.is_harmful, activations.groups) is None
    assert not validate(activations)[0].new_topics


def test_variance_of_a_mean_over_units_is_that_of_unit_means():
    generator = torch.Generator().manual_seed(0)
    unit_means = torch.randn(30, generator=generator).double()
    values = unit_means.repeat_interleave(4)
    labels = torch.ones(120, dtype=torch.bool)
    units = Units.of(labels, torch.arange(30).repeat_interleave(4))
    variance, freedom = unit_variance((values - values.mean()) / 120, units)
    assert variance.item() == pytest.approx(unit_means.var().item() / 30)
    assert freedom.item() == pytest.approx(29)


def test_intraclass_correlation_and_effective_number_are_the_planted_ones():
    generator = torch.Generator().manual_seed(0)
    values = (
        0.5 * torch.randn(400, generator=generator).repeat_interleave(5)
        + torch.randn(2000, generator=generator)
    ).double()
    labels, topics = torch.arange(2000) < 1000, torch.arange(400).repeat_interleave(5)
    correlation, n_effective = intraclass_correlation(values, labels, topics)
    assert correlation.item() == pytest.approx(0.2, abs=0.04)
    assert n_effective.item() == pytest.approx(2000 / (1 + 4 * 0.2), rel=0.08)


# --- the truth comes out ------------------------------------------------------------------------


def test_twins_without_any_effect_are_at_chance():
    activations = planted(30, 1, 60, pair=2.0)
    before = validate(alone(activations), n_repeats=1, n_resamples=20)[0].auroc.mean().item()
    found = validate(activations, n_repeats=1, n_resamples=20)[0].auroc.mean().item()
    assert before < 0.35
    assert found == pytest.approx(0.5, abs=0.03)


def test_twins_with_an_effect_have_the_auroc_of_fresh_pairs():
    effect, pair = 1.5, 2.0
    activations = planted(30, 1, 60, effect=effect, pair=pair)
    values, labels = activations.values[:, :, 0], activations.is_harmful
    difference = values[labels].mean(0) - values[~labels].mean(0)
    along = effect * difference[:, 0] / difference.norm(dim=-1)
    truth = norm.cdf(along / math.sqrt(2 * (1 + pair**2))).mean()
    separation, _ = validate(activations, clip_quantile=None, n_resamples=50)
    assert separation.auroc.mean().item() == pytest.approx(truth, abs=0.02)
    low, high = (getattr(separation.scores["auroc"], end)[:, 0].numpy() for end in ("low", "high"))
    covered = (low <= norm.cdf(along / math.sqrt(2 * (1 + pair**2)))) & (
        norm.cdf(along / math.sqrt(2 * (1 + pair**2))) <= high
    )
    # 60 experiments: two standard errors of 95 % are 5.6 %.
    assert covered.mean() >= 0.89


@pytest.mark.parametrize("has_twins", [True, False])
def test_topics_without_an_effect_separate_themselves_and_no_new_ones(has_twins):
    activations = planted(8, 8, 60, topic=0.6, has_twins=has_twins)
    separation, _ = validate(activations, n_repeats=1, n_resamples=20)
    assert separation.auroc.mean().item() > 0.7
    assert separation.new_topics["auroc"].value.mean().item() == pytest.approx(0.5, abs=0.06)
    assert separation.gap.mean().item() > 0.15
    assert separation.intraclass_correlation.mean().item() > 0.1
    assert separation.n_effective.mean().item() < 0.6 * 128


@pytest.mark.parametrize("has_twins", [True, False])
def test_p_of_topics_is_uniform_where_the_classes_differ_in_nothing(has_twins):
    # Each place is an experiment of its own: their p-values before correction.
    activations = planted(8, 4, 120, topic=0.6, has_twins=has_twins)
    nulls = draw_nulls(activations, n_permutations=99)
    frame = nulls.p_values()
    assert nulls.shuffled == "topics"
    # Standard error of 5 % over 120 experiments: 2 %. The very topics do differ.
    assert (frame["p_value"] <= 0.05).mean() <= 0.11
    assert frame["p_value"].mean() == pytest.approx(0.5, abs=0.11)
    assert (frame["p_value_same_topics"] <= 0.05).mean() > 0.5


def test_p_of_twins_is_uniform_and_finds_what_is_there():
    still = draw_nulls(planted(16, 1, 100, pair=2.0), n_permutations=99).p_values()["p_value"]
    assert (still <= 0.05).mean() <= 0.12
    assert still.mean() == pytest.approx(0.5, abs=0.12)
    found = draw_nulls(planted(30, 1, 40, effect=2.5, pair=2.0), n_permutations=99)
    assert (found.p_values()["p_value"] <= 0.05).mean() > 0.9


def test_intervals_of_new_topics_cover():
    effect = 2.0
    activations = planted(12, 4, 80, effect=effect, topic=0.5, pair=0.5)
    values, labels = activations.values[:, :, 0], activations.is_harmful
    difference = values[labels].mean(0) - values[~labels].mean(0)
    along = effect * difference[:, 0] / difference.norm(dim=-1)
    truth = norm.cdf(along / math.sqrt(2 * (1 + 0.5**2 + 0.5**2)))
    separation, _ = validate(activations, clip_quantile=None, n_resamples=50)
    one = separation.new_topics["auroc"]
    covered = (one.low[:, 0].numpy() <= truth) & (truth <= one.high[:, 0].numpy())
    assert covered.mean() >= 0.9
    assert one.value.mean().item() == pytest.approx(truth.mean(), abs=0.03)


def test_errors_are_as_large_as_the_intervals_of_few_topics_say():
    # Every two components add to the score twice, as what is held out and as what is fitted to:
    # both parts of the variance are alike where noise decides. Directions fitted to uneven weights
    # are longer; before their scores were stretched the intervals said 0.8 of the error.
    effect = 1.5
    activations = planted(8, 12, 300, effect=effect, topic=0.6, pair=0.8)
    values, labels = activations.values[:, :, 0].double(), activations.is_harmful
    difference = values[labels].mean(0) - values[~labels].mean(0)
    along = effect * difference[:, 0] / difference.norm(dim=-1)
    truth = along * (1 / values.norm(dim=-1)).mean(dim=0)
    one = validate(activations, clip_quantile=None, n_repeats=1)[0].new_topics["separation"]
    centre, half = (one.low + one.high)[:, 0] / 2, (one.high - one.low)[:, 0] / 2
    claimed, error = half / float(student.ppf(0.975, 7)), centre - truth
    ratio = (claimed.square().mean() / error.square().mean()).sqrt()
    assert ratio.item() == pytest.approx(1.0, abs=0.07)
