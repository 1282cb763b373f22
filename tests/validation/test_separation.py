"""Scores: planted truth is found, random labels are not, and every number has its closed form."""

import math

import numpy as np
import pytest
import torch
from conftest import held_out_projections, noise
from scipy.stats import norm
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedKFold

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import fit_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.validation.crossfit import assign_folds, repeat_folds
from refusal_lens.validation.densities import shared_histogram
from refusal_lens.validation.separation import validate


def make(n: int, d_model: int, shift: float, seed: int = 0, offset: float = 0.0) -> Activations:
    """Isotropic noise, `n` prompts a side, the harmful ones shifted along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2 * n, 1, 1, d_model, generator=generator) + offset
    is_harmful = torch.arange(2 * n) < n
    values[is_harmful, ..., 0] += shift
    return Activations(values, is_harmful, ("blocks.3.hook_resid_post",), ("last",))


def test_planted_separation_has_its_closed_form_accuracy():
    # With d far below n the fitted direction is the planted one: accuracy Phi(shift / 2).
    separation, _ = validate(make(4000, 8, 2.0), clip_quantile=None, n_resamples=20)
    assert separation.accuracy.item() == pytest.approx(norm.cdf(1.0), abs=0.015)
    assert separation.is_valid.item()


def test_random_labels_are_chance_out_of_sample_and_near_perfect_in_sample():
    # n 32 a side, d 2048: in sample Phi(sqrt(2 d / n) / 2) = 1.000, held out chance.
    scores = [
        validate(make(32, 2048, 0.0, seed), n_repeats=1, n_resamples=20)[0] for seed in range(20)
    ]
    held_out = torch.stack([score.accuracy for score in scores]).mean().item()
    in_sample = torch.stack([score.accuracy_in_sample for score in scores]).mean().item()
    assert norm.cdf(math.sqrt(2 * 2048 / 32) / 2) > 0.999
    assert in_sample > 0.999
    # Standard error of a share over 20 x 64 prompts: 0.014.
    assert held_out == pytest.approx(0.5, abs=0.05)
    assert not any(score.is_valid.item() for score in scores)


def test_separation_is_the_difference_of_mean_cosines():
    activations = make(50, 6, 3.0, offset=1.0)
    separation, projections = validate(activations, n_repeats=1)
    cosines = projections.cosines[:, 0, 0]
    expected = cosines[:50].mean() - cosines[50:].mean()
    torch.testing.assert_close(separation.separation[0, 0], expected)


def test_held_out_numbers_equal_a_loop_in_the_articles_words():
    activations = make(30, 12, 1.5, offset=0.7)
    values, labels = activations.values[:, 0, 0].double(), activations.is_harmful
    called = np.empty(60, dtype=bool)
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    for fit, held_out in folds.split(values, labels):
        direction = values[fit][labels[fit]].mean(0) - values[fit][~labels[fit]].mean(0)
        threshold = torch.quantile(direction.abs(), 0.9)
        direction = direction.clamp(-threshold, threshold)
        direction = direction / direction.norm()
        on_fit = values[fit] @ direction
        middle = (on_fit[labels[fit]].mean() + on_fit[~labels[fit]].mean()) / 2
        called[held_out] = (values[held_out] @ direction > middle).numpy()
    separation, projections = validate(activations, clip_quantile=0.9, n_repeats=1, seed=3)
    assert projections.is_called_harmful[:, 0, 0].tolist() == called.tolist()
    assert separation.accuracy.item() == accuracy_score(labels, called)


def test_few_prompts_lower_the_number_of_folds():
    separation, _ = validate(make(3, 4, 5.0))
    assert separation.n_folds == 3


def test_one_prompt_a_side_cannot_be_held_out():
    with pytest.raises(RefusalLensError) as caught:
        validate(make(1, 4, 5.0))
    assert str(caught.value) == (
        "Scores out of sample need at least 2 prompts of each class that do not depend on "
        "each other; there are 1 harmful and 1 harmless ones. Add prompts (30 a side is a sound "
        "start)."
    )


def test_scale_and_rotation_change_no_score():
    activations = make(40, 16, 1.0, offset=2.0)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(5)))[0]
    first = validate(activations, clip_quantile=None)[0]
    for values in (activations.values * 1000, activations.values @ turn):
        moved = Activations(values, activations.is_harmful, ("a",), ("last",))
        again = validate(moved, clip_quantile=None)[0]
        for name, one in first.scores.items():
            for part in ("value", "low", "high", "in_sample"):
                torch.testing.assert_close(
                    getattr(again.scores[name], part), getattr(one, part), atol=1e-3, rtol=0
                )


def test_order_of_prompts_changes_nothing():
    activations = make(20, 10, 1.0)
    folds = assign_folds(activations.is_harmful, 5, 0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = Activations(
        activations.values[order], activations.is_harmful[order], ("a",), ("last",)
    )
    before = held_out_projections(activations, folds, 0.9)
    after = held_out_projections(shuffled, folds[order], 0.9)
    torch.testing.assert_close(after.values, before.values[order])
    assert torch.equal(after.is_called_harmful, before.is_called_harmful[order])
    one, other = (validate(each)[0] for each in (activations, shuffled))
    torch.testing.assert_close(one.separation_in_sample, other.separation_in_sample)
    # Folds are dealt by place in the file: another order is another dealing, no other truth.
    assert (one.separation - other.separation).abs().item() < 0.1


def test_scores_are_seeded_to_the_last_bit():
    activations = make(20, 10, 1.0)
    first, again, other = (validate(activations, seed=seed)[0] for seed in (3, 3, 4))
    assert first.to_frame().equals(again.to_frame())
    assert not torch.equal(first.separation, other.separation)
    assert not torch.equal(first.scores["auroc"].low, other.scores["auroc"].low)


def test_repeats_average_over_dealings_and_share_none_with_the_next_seed():
    activations = make(20, 10, 1.0)
    is_harmful = activations.is_harmful
    folds = repeat_folds(is_harmful, 5, 3, 0)
    assert torch.equal(folds[0], assign_folds(is_harmful, 5, 0))
    alone = [held_out_projections(activations, dealt, 0.995) for dealt in folds]
    expected = [
        (one.cosines[is_harmful].mean(0) - one.cosines[~is_harmful].mean(0)).item() for one in alone
    ]
    assert len(set(expected)) == 3
    separation, projections = validate(activations, n_repeats=3)
    assert separation.separation.item() == pytest.approx(sum(expected) / 3)
    torch.testing.assert_close(projections.values, alone[0].values)
    following = repeat_folds(is_harmful, 5, 3, 1)
    assert not any(torch.equal(a, b) for a in folds for b in following)


def test_planted_directions_score_as_their_closed_forms_say():
    # The direction fitted to 4/5 of 50 a side has cosine c with the planted one, of length 3:
    # c^2 = 9 / (9 + 2 * 199 / 40). Along it the classes lie 3 c apart, with deviation 1.
    n, d_model, shift = 50, 200, 3.0
    activations = noise(n, 100, d_model, shift)
    activations.values[..., 0] -= shift / 2  # both classes equally long
    separation, _ = validate(activations, clip_quantile=None, n_repeats=1, n_resamples=20)
    cosine = math.sqrt(9 / (9 + 2 * (d_model - 1) / 40))
    apart = shift * cosine
    expected = {
        "accuracy": norm.cdf(apart / 2),
        "balanced_accuracy": norm.cdf(apart / 2),
        "auroc": norm.cdf(apart / math.sqrt(2)),
        "cohens_d": apart,
        "separation": apart / math.sqrt(d_model + shift**2 / 4),
    }
    for name, value in expected.items():
        assert separation.scores[name].value.mean().item() == pytest.approx(value, rel=0.02), name
        assert separation.scores[name].in_sample.mean().item() > 1.05 * value, name
    unit = fit_directions(activations, clip_quantile=None).vectors[:, 0]
    whole = math.sqrt(9 / (9 + 2 * (d_model - 1) / 50))
    assert (unit[:, 0] / unit.norm(dim=-1)).mean().item() == pytest.approx(whole, rel=0.02)


def test_unequal_classes_take_the_middle_and_count_alike_in_balanced_accuracy():
    activations = noise(20, 40, 5, 2.0, n_harmless=180)
    separation, _ = validate(activations, clip_quantile=None, n_repeats=1, n_resamples=20)
    # Midway between the means whatever the sizes: each class is right with Phi(1).
    assert separation.balanced_accuracy.mean().item() == pytest.approx(norm.cdf(1.0), abs=0.02)
    chance, _ = validate(noise(20, 40, 200, n_harmless=180), n_repeats=1, n_resamples=20)
    assert chance.balanced_accuracy.mean().item() == pytest.approx(0.5, abs=0.03)


def test_place_without_a_direction_has_no_scores():
    activations = make(20, 4, 3.0)
    values = torch.cat([activations.values, torch.ones_like(activations.values)], dim=1)
    grid = Activations(values, activations.is_harmful, ("a", "b"), ("last",))
    separation, _ = validate(grid)
    assert separation.is_valid[:, 0].tolist() == [True, False]
    assert separation.accuracy[1].isnan().item()
    assert separation.separation[1].isnan().item()


def test_frame_has_one_row_a_place():
    frame = validate(make(20, 4, 3.0))[0].to_frame()
    assert list(frame.columns) == [
        *("hook_point", "site", "layer", "position"),
        *(
            score + ending
            for score in ("separation", "accuracy", "balanced_accuracy", "auroc", "cohens_d")
            for ending in ("", "_low", "_high", "_in_sample")
        ),
        *("is_valid", "n_units"),
    ]
    assert frame.loc[0, ["site", "layer", "position"]].tolist() == ["resid_post", 3, "last"]


def test_at_takes_one_site_and_position():
    activations = make(20, 4, 3.0)
    names = ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre")
    values = (
        activations.values.expand(-1, 3, 2, -1) * torch.tensor([1.0, -1.0])[None, None, :, None]
    )
    grid = Activations(values.clone(), activations.is_harmful, names, ("last", "mean"))
    separation, _ = validate(grid)
    assert separation.columns == (
        *(("resid_pre", "last"), ("resid_pre", "mean")),
        *(("resid_post", "last"), ("resid_post", "mean")),
    )
    column = separation.at("resid_pre", "mean")
    assert column.hook_points == (names[0], names[2])
    torch.testing.assert_close(column.separation[:, 0], separation.separation[[0, 2], 1])


def test_inputs_are_not_changed():
    activations = make(20, 4, 3.0)
    before = activations.values.clone()
    validate(activations)
    assert torch.equal(activations.values, before)


def test_histogram_counts_every_prompt_in_bins_shared_by_both_classes():
    projections = torch.randn(300, generator=torch.Generator().manual_seed(0)).double()
    is_harmful = torch.arange(300) < 100
    histogram = shared_histogram(projections, is_harmful)
    assert histogram.counts.sum(dim=1).tolist() == [200, 100]
    expected = np.histogram(projections[is_harmful], histogram.edges)[0]
    assert histogram.counts[1].tolist() == expected.tolist()
    widths = histogram.edges.diff()
    torch.testing.assert_close(widths, widths[:1].expand_as(widths))


@pytest.mark.parametrize(
    "numbers", [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 5.0]]
)
def test_histogram_of_repeated_values(numbers):
    histogram = shared_histogram(torch.tensor(numbers), torch.tensor([True, True, False, False]))
    assert histogram.counts.sum(dim=1).tolist() == [2, 2]
    assert bool((histogram.edges.diff() > 0).all())
