"""Every score is that of scikit-learn or scipy; resamples are those of the prompts themselves."""

import math

import numpy as np
import pytest
import torch
from conftest import noise
from scipy.stats import norm, ttest_ind
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from validation.test_separation import make

from refusal_lens.validation.crossfit import (
    assign_folds,
    fitting_splits,
    project_splits,
    repeat_folds,
)
from refusal_lens.validation.scores import (
    auroc,
    auroc_interval,
    draw_counts,
    interval,
    resample,
    score,
)
from refusal_lens.validation.separation import held_out_scores, validate

IS_HARMFUL = torch.arange(50) < 18


def projections(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    margins = torch.randn(50, 3, 2, generator=generator).double() + 0.4 * IS_HARMFUL[:, None, None]
    margins = (margins * 4).round() / 4  # ties, and margins of zero
    return margins / 7, margins


def test_scores_equal_scikit_learn_and_scipy():
    cosines, margins = projections()
    scores = score(cosines, margins, IS_HARMFUL)
    labels = IS_HARMFUL.numpy()
    for row in range(3):
        for column in range(2):
            here = margins[:, row, column].numpy()
            t = ttest_ind(here[labels], here[~labels]).statistic
            expected = {
                "separation": (here[labels].mean() - here[~labels].mean()) / 7,
                "accuracy": accuracy_score(labels, here > 0),
                "balanced_accuracy": balanced_accuracy_score(labels, here > 0),
                "auroc": roc_auc_score(labels, here),
                "cohens_d": t * math.sqrt(1 / 18 + 1 / 32),
            }
            found = {name: values[row, column].item() for name, values in scores.items()}
            assert found == pytest.approx(expected, abs=1e-12)


def test_a_resample_scores_as_the_repeated_prompts_do():
    cosines, margins = projections()
    counts = draw_counts(IS_HARMFUL, 5, seed=1)
    together = resample(cosines, margins, IS_HARMFUL, counts)
    for draw, count in enumerate(counts.long()):
        chosen = torch.arange(50).repeat_interleave(count)
        alone = score(cosines[chosen], margins[chosen], IS_HARMFUL[chosen])
        for name, values in alone.items():
            torch.testing.assert_close(together[name][draw], values)


def test_resamples_keep_class_sizes_and_are_seeded():
    counts = draw_counts(IS_HARMFUL, 200, seed=0)
    assert counts[:, IS_HARMFUL].sum(dim=1).unique().tolist() == [18.0]
    assert counts[:, ~IS_HARMFUL].sum(dim=1).unique().tolist() == [32.0]
    # Each prompt comes once on average, within four standard errors of 200 draws.
    assert (counts.mean(dim=0) - 1).abs().max() < 4 / math.sqrt(200)
    assert torch.equal(counts, draw_counts(IS_HARMFUL, 200, seed=0))
    assert not torch.equal(counts, draw_counts(IS_HARMFUL, 200, seed=1))


def test_many_pairs_are_counted_in_blocks(monkeypatch):
    cosines, margins = projections()
    whole = score(cosines, margins, IS_HARMFUL)["auroc"]
    monkeypatch.setattr("refusal_lens.validation.scores.PAIRS_AT_ONCE", 64)
    assert torch.equal(score(cosines, margins, IS_HARMFUL)["auroc"], whole)


def test_interval_holds_the_middle_of_the_draws():
    low, high = interval(torch.arange(1001.0)[:, None])
    assert (low.item(), high.item()) == pytest.approx((25, 975))


@pytest.mark.parametrize(("n", "d_model"), [(60, 3), (60, 300)])
def test_intervals_cover_the_true_scores_of_these_directions_at_their_rate(n, d_model):
    # 200 places are 200 experiments. The truth is that of the directions as they were fitted: a
    # new harmful prompt has the margin (mu.u - t) with standard deviation 1, a harmless one (-t).
    shift = 1.5
    activations = noise(n, 200, d_model, shift)
    separation, _ = validate(activations, clip_quantile=None, n_repeats=1, n_resamples=200)
    folds = repeat_folds(activations.is_harmful, 5, 1, 0)
    splits = project_splits(activations, fitting_splits(folds), None)
    above, threshold = splits_at(activations, folds, shift), splits.thresholds[..., 0].numpy()
    accuracy = (norm.cdf(above - threshold) + norm.cdf(threshold)) / 2
    truths = {"accuracy": accuracy.mean(0), "auroc": norm.cdf(above / math.sqrt(2)).mean(0)}
    for name, truth in truths.items():
        one = separation.scores[name]
        is_covered = (one.low[:, 0].numpy() <= truth) & (truth <= one.high[:, 0].numpy())
        # Standard error of a coverage of 95 % over 200 experiments: 1.5 %. Directions held fixed,
        # 300 dimensions would give 89 %.
        assert 0.905 <= is_covered.mean() <= 0.99, name


def splits_at(activations, folds, shift: float) -> np.ndarray:
    """How far the planted difference lies along each fold's direction."""
    values, labels = activations.values[:, :, 0].double(), activations.is_harmful
    parts = []
    for fold in range(5):
        fit = folds[0] != fold
        unit = values[fit & labels].mean(0) - values[fit & ~labels].mean(0)
        parts.append(shift * unit[:, 0] / unit.norm(dim=-1))
    return torch.stack(parts).numpy()


def test_auroc_alone_equals_scikit_learn_with_ties_and_unequal_classes():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 5, (90, 2, 3), generator=generator).double()
    labels = torch.arange(90) < 20
    values[labels] += 1
    expected = [
        [roc_auc_score(labels, values[:, row, column]) for column in range(3)] for row in range(2)
    ]
    torch.testing.assert_close(auroc(values, labels), torch.tensor(expected).double())


def test_planted_shift_has_its_closed_form_auroc():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40000, generator=generator).double()
    labels = torch.arange(40000) < 10000
    values[labels] += 1.5
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
    scores = held_out_scores(activations, folds, clip_quantile, method)
    separation, _ = validate(
        activations, clip_quantile=clip_quantile, seed=3, method=method, n_repeats=1
    )
    for name, one in separation.scores.items():
        torch.testing.assert_close(scores[name], one.value)


def test_random_labels_are_chance_whatever_the_method():
    for method in ("lda", "logistic_regression", "pca_paired", "geometric_median"):
        areas = []
        for seed in range(20):
            activations = make(20, 100, 0.0, seed)
            folds = assign_folds(activations.is_harmful, 5, 0)
            scores = held_out_scores(activations, folds, None, method)
            areas.append(scores["auroc"].item())
        # One AUROC of 20 a side has a standard error of 0.092, the mean of 20 of 0.02.
        assert np.mean(areas) == pytest.approx(0.5, abs=0.07), method


def test_place_without_a_direction_has_no_held_out_scores():
    activations = make(20, 4, 3.0)
    values = torch.cat([activations.values, torch.ones_like(activations.values)], dim=1)
    grid = type(activations)(values, activations.is_harmful, ("a", "b"), ("last",))
    folds = assign_folds(grid.is_harmful, 5, 0)
    scores = held_out_scores(grid, folds, 0.9, "lda")
    for name, values in scores.items():
        assert values.isnan().tolist() == [[False], [True]], name


def test_only_at_keeps_one_place():
    activations = make(20, 4, 3.0)
    values = torch.cat([activations.values, activations.values * 2], dim=1)
    grid = type(activations)(values, activations.is_harmful, ("a", "b"), ("last",))
    here = grid.only_at("b", "-1")
    assert (here.hook_points, here.positions) == (("b",), ("last",))
    assert torch.equal(here.values, values[:, 1:])
