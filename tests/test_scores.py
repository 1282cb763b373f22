"""Every score is that of scikit-learn or scipy; resamples are those of the prompts themselves."""

import math

import numpy as np
import pytest
import torch
from conftest import noise
from scipy.stats import norm, ttest_ind
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from refusal_lens.crossfit import fitting_splits, project_splits, repeat_folds
from refusal_lens.scores import draw_counts, interval, resample, score
from refusal_lens.validation import validate

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
    monkeypatch.setattr("refusal_lens.scores.PAIRS_AT_ONCE", 64)
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
