"""Scores equal scikit-learn's, the ones of a validation, and their closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from test_validation import make

from refusal_lens.scoring import (
    auroc,
    auroc_interval,
    cohens_d,
    cross_fit,
    held_out_scores,
    only_at,
)
from refusal_lens.validation import assign_folds, validate


def test_auroc_equals_scikit_learn_with_ties_and_unequal_classes():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 5, (90, 2, 3), generator=generator).double()
    labels = torch.arange(90) < 20
    values[labels] += 1
    expected = [
        [roc_auc_score(labels, values[:, row, column]) for column in range(3)] for row in range(2)
    ]
    torch.testing.assert_close(auroc(values, labels), torch.tensor(expected).double())


def test_planted_shift_has_its_closed_forms():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40000, generator=generator).double()
    labels = torch.arange(40000) < 10000
    values[labels] += 1.5
    assert cohens_d(values, labels).item() == pytest.approx(1.5, abs=0.04)
    assert auroc(values, labels).item() == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.006)


def test_auroc_interval_covers_and_narrows():
    labels = torch.arange(100) < 50
    truth, covered, widths = norm.cdf(1 / np.sqrt(2)), 0, []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(100, generator=generator) + labels.float()
        low, high = auroc_interval(values, labels, n_resamples=200, seed=seed)
        covered += low <= truth <= high
        widths.append(high - low)
    # Nominal 95 %, standard error 1.5 %; percentile intervals are a little short.
    assert 0.89 <= covered / 200 <= 0.99
    # Hanley & McNeil 1982 give a standard error of 0.049 at these sizes.
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.049, rel=0.1)
    assert auroc_interval(values, labels, seed=1) == auroc_interval(values, labels, seed=1)


@pytest.mark.parametrize("method", ["difference_of_means", "lda"])
@pytest.mark.parametrize("clip_quantile", [None, 0.9])
def test_cross_fitted_scores_are_those_of_the_validation(method, clip_quantile):
    activations = make(30, 12, 1.5, offset=0.7)
    folds = assign_folds(activations.is_harmful, 5, 3)
    scores = held_out_scores(activations, cross_fit(activations, folds, method), clip_quantile)
    separation, projections = validate(
        activations, clip_quantile=clip_quantile, seed=3, method=method
    )
    torch.testing.assert_close(scores["separation"], separation.separation)
    torch.testing.assert_close(scores["accuracy"], separation.accuracy)
    labels = projections.is_harmful
    torch.testing.assert_close(scores["auroc"], auroc(projections.values, labels))
    torch.testing.assert_close(scores["cohens_d"], cohens_d(projections.values, labels))


def test_random_labels_are_chance_whatever_the_method():
    for method in ("lda", "logistic_regression", "pca_paired", "geometric_median"):
        areas = []
        for seed in range(20):
            activations = make(20, 100, 0.0, seed)
            folds = assign_folds(activations.is_harmful, 5, 0)
            scores = held_out_scores(activations, cross_fit(activations, folds, method), None)
            areas.append(scores["auroc"].item())
        # One AUROC of 20 a side has a standard error of 0.092, the mean of 20 of 0.02.
        assert np.mean(areas) == pytest.approx(0.5, abs=0.07), method


def test_place_without_a_direction_has_no_scores():
    activations = make(20, 4, 3.0)
    values = torch.cat([activations.values, torch.ones_like(activations.values)], dim=1)
    grid = type(activations)(values, activations.is_harmful, ("a", "b"), ("last",))
    folds = assign_folds(grid.is_harmful, 5, 0)
    scores = held_out_scores(grid, cross_fit(grid, folds, "lda"), 0.9)
    for name, score in scores.items():
        assert score.isnan().tolist() == [[False], [True]], name


def test_only_at_keeps_one_place():
    activations = make(20, 4, 3.0)
    values = torch.cat([activations.values, activations.values * 2], dim=1)
    grid = type(activations)(values, activations.is_harmful, ("a", "b"), ("last",))
    here = only_at(grid, "b", "-1")
    assert (here.hook_points, here.positions) == (("b",), ("last",))
    assert torch.equal(here.values, values[:, 1:])
