"""Nulls: many refits equal one at a time, p-values are uniform on noise, signals stand out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import held_out_projections, noise
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import clip
from refusal_lens.errors import RefusalLensError
from refusal_lens.validation.crossfit import assign_folds
from refusal_lens.validation.many_fits import (
    Place,
    auroc_rows,
    clip_rows,
    score_directions,
    score_refits,
)
from refusal_lens.validation.nulls import draw_nulls, p_value, p_value_corrected
from refusal_lens.validation.scores import SCORES, score
from refusal_lens.validation.separation import validate

KINDS = ("permutation", "random", "covariance", "harmless_split")
"""Those of independent prompts."""


@pytest.mark.parametrize("quantile", [0.995, 0.9, 0.5, 1.0, None])
@pytest.mark.parametrize("d_model", [1, 7, 200, 896])
def test_clipped_rows_equal_the_clip_of_directions(quantile, d_model):
    vectors = torch.randn(5, d_model, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(clip_rows(vectors, quantile), clip(vectors, quantile))


def test_auroc_of_rows_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    margins = torch.randn(6, 40, generator=generator)
    labels = (torch.rand(6, 40, generator=generator) < 0.3).float()
    expected = [roc_auc_score(label, row) for label, row in zip(labels, margins, strict=True)]
    assert auroc_rows(margins, labels).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("quantile", [None, 0.9])
@pytest.mark.parametrize("n_harmless", [25, 40])
def test_refits_equal_cross_fitting_one_labelling_at_a_time(quantile, n_harmless):
    activations = noise(25, 1, 30, 2.0, n_harmless=n_harmless)
    activations = Activations(
        activations.values + 20, activations.is_harmful, ("a",), ("last",)
    )  # a mean that is much longer than any difference
    folds = assign_folds(activations.is_harmful, 5, 0)
    order = folds.argsort(stable=True)
    ends = folds.bincount().cumsum(0).tolist()
    slices = [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    labels = activations.is_harmful[order].float().repeat(4, 1)
    generator = torch.Generator().manual_seed(0)
    for row in labels[1:]:
        for fold in slices:
            row[fold] = row[fold][torch.randperm(fold.stop - fold.start, generator=generator)]
    place = Place.of(activations.values[order, 0, 0])
    together = score_refits(place, labels, slices, quantile)
    for draw, row in enumerate(labels):
        relabelled = Activations(activations.values[order], row > 0, ("a",), ("last",))
        alone = held_out_projections(relabelled, folds[order], quantile)
        margins = torch.empty(len(order), dtype=torch.float64)
        for number, fold in enumerate(slices):
            fitted = folds[order] != number
            # The threshold of a fold: midway between the class means of the projections fitted to.
            unit = relabelled.values[fitted, 0, 0].double()
            vector = unit[row[fitted] > 0].mean(0) - unit[row[fitted] == 0].mean(0)
            vector = clip(vector, quantile)
            vector = vector / vector.norm()
            on = unit @ vector
            middle = (on[row[fitted] > 0].mean() + on[row[fitted] == 0].mean()) / 2
            margins[fold] = relabelled.values[fold, 0, 0].double() @ vector - middle
        told = (alone.values - alone.thresholds)[:, 0, 0]
        torch.testing.assert_close(told, margins, atol=1e-5, rtol=0, check_dtype=False)
        expected = score(alone.cosines[:, 0, 0], margins, row > 0)
        for name in SCORES:
            found = together[name][draw].item()
            assert found == pytest.approx(expected[name].item(), abs=2e-5), name


def test_observed_scores_are_those_of_validate():
    activations = noise(20, 3, 10, 1.0)
    nulls = draw_nulls(activations, n_permutations=19, seed=4)
    separation, _ = validate(activations, n_repeats=1, seed=4)
    for name, observed in nulls.observed.items():
        torch.testing.assert_close(
            observed.double(), separation.scores[name].value, atol=1e-5, rtol=0
        )


def test_p_values_by_hand():
    observed = torch.tensor([[0.5, 0.9, torch.nan]])
    draws = torch.tensor([[[0.4, 0.6, 0.1]], [[0.5, 0.7, 0.1]], [[0.6, 0.8, 0.1]]])
    # 0.5 and 0.6 reach 0.5: (1 + 2) / (1 + 3). Nothing reaches 0.9: 1 / 4.
    torch.testing.assert_close(
        p_value(observed, draws), torch.tensor([[0.75, 0.25, torch.nan]]).double(), equal_nan=True
    )
    # The highest of each draw, 0.6, 0.7 and 0.8, always reaches 0.5 and never 0.9.
    torch.testing.assert_close(
        p_value_corrected(observed, draws),
        torch.tensor([[1.0, 0.25, torch.nan]]).double(),
        equal_nan=True,
    )


@pytest.fixture(scope="module")
def on_noise():
    """Nulls of 500 experiments on pure noise: each place is one."""
    return draw_nulls(noise(20, 500, 12), n_folds=2, n_permutations=99)


@pytest.mark.parametrize("name", ["separation", "auroc"])
def test_p_values_on_noise_are_uniform(on_noise, name):
    p = p_value(on_noise.observed[name], on_noise.draws["permutation"][name]).flatten().numpy()
    assert kstest(p, "uniform").pvalue > 0.01
    assert abs((p <= 0.05).mean() - 0.05) < 0.03  # three standard errors


def test_corrected_p_values_of_the_best_place_are_uniform(on_noise):
    # 100 experiments of five places each, all of which are looked at.
    best = [
        p_value_corrected(
            on_noise.observed["auroc"][first : first + 5],
            on_noise.draws["permutation"]["auroc"][:, first : first + 5],
        ).min()
        for first in range(0, 500, 5)
    ]
    uncorrected = p_value(on_noise.observed["auroc"], on_noise.draws["permutation"]["auroc"])
    looked_at = uncorrected.reshape(100, 5).min(dim=1).values.numpy()
    assert kstest(np.array(best), "uniform").pvalue > 0.01
    assert kstest(looked_at, "uniform").pvalue < 1e-6  # what the correction is for


def test_random_directions_have_the_closed_form_of_the_rank_sum():
    # Of a direction that has nothing to do with the labels: variance (N + 1) / (12 n1 n0). Turned
    # so that it lies above 0.5, its mean distance from there is sqrt(2 / pi) deviations.
    nulls = draw_nulls(noise(40, 30, 200), n_permutations=400)
    expected = math.sqrt(2 / math.pi * 81 / (12 * 40 * 40))
    for kind in ("random", "covariance"):
        distance = (nulls.draws[kind]["auroc"] - 0.5).mean().item()
        assert distance == pytest.approx(expected, rel=0.08), kind


def test_covariance_null_knows_the_directions_that_vary_most():
    # The classes differ along the axis that varies most: chance directions of the activations'
    # own covariance often lie near it, those that are uniform on the sphere do not.
    activations = noise(40, 1, 100)
    values = activations.values.clone()
    values[..., 0] *= 4
    values[activations.is_harmful, ..., 0] += 5.4
    stretched = Activations(values, activations.is_harmful, ("a",), ("last",))
    nulls = draw_nulls(stretched, clip_quantile=None, n_permutations=200)
    medians = {kind: nulls.draws[kind]["auroc"].median().item() for kind in KINDS}
    assert medians["random"] < medians["covariance"] - 0.05
    assert medians["permutation"] < medians["random"]


def test_planted_direction_is_found_and_harmless_halves_have_none():
    activations = noise(30, 4, 40, 2.5)
    nulls = draw_nulls(activations, n_permutations=199)
    frame = nulls.to_frame()
    assert list(frame.columns) == [
        *("kind", "score", "hook_point", "site", "layer", "position", "low", "median", "high"),
        *("n_draws", "p_value", "p_value_corrected"),
    ]
    permuted = frame[frame["kind"] == "permutation"]
    assert permuted["p_value"].unique().tolist() == [1 / 200]
    assert permuted["p_value_corrected"].unique().tolist() == [1 / 200]
    assert frame.loc[frame["kind"] != "permutation", "p_value_corrected"].isna().all()
    halves = frame[(frame["kind"] == "harmless_split") & (frame["score"] == "auroc")]
    assert (halves["low"] < 0.5).all()
    assert (halves["high"] > 0.5).all()
    assert halves["median"].to_numpy() == pytest.approx(0.5, abs=0.05)


def test_place_without_a_direction_has_no_p_value():
    activations = noise(10, 2, 6, 2.0)
    activations.values[:, 1] = 1.0
    table = draw_nulls(activations, n_permutations=19).p_values()
    assert table["p_value"].notna().tolist() == [True, False]
    assert table["p_value_corrected"].notna().tolist() == [True, False]


def test_three_harmless_prompts_cannot_be_split():
    nulls = draw_nulls(noise(10, 1, 6, 2.0, n_harmless=3), n_permutations=19)
    assert set(nulls.draws) == set(KINDS) - {"harmless_split"}


def test_nulls_are_seeded_and_blind_to_scale_and_rotation(monkeypatch):
    activations = noise(15, 2, 20, 1.0)
    first = draw_nulls(activations, n_permutations=50, clip_quantile=None)
    again = draw_nulls(activations, n_permutations=50, clip_quantile=None)
    other = draw_nulls(activations, n_permutations=50, clip_quantile=None, seed=1)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1)))[0]
    moved = Activations(
        activations.values @ turn * 50,
        activations.is_harmful,
        *(activations.hook_points, activations.positions),
    )
    rotated = draw_nulls(moved, n_permutations=50, clip_quantile=None)
    for kind in KINDS:
        for name, draws in first.draws[kind].items():
            assert torch.equal(draws, again.draws[kind][name])
            assert not torch.equal(draws, other.draws[kind][name])
            if kind != "random":  # which draws anew in other coordinates
                torch.testing.assert_close(draws, rotated.draws[kind][name], atol=1e-4, rtol=0)
    monkeypatch.setattr("refusal_lens.validation.many_fits.BLOCK", 100)
    in_blocks = draw_nulls(activations, n_permutations=50, clip_quantile=None)
    for kind in KINDS:
        torch.testing.assert_close(
            in_blocks.draws[kind]["separation"], first.draws[kind]["separation"]
        )


def test_directions_score_alike_whatever_their_length():
    place = Place.of(noise(10, 1, 8).values[:, 0, 0])
    labels = (torch.arange(20) < 10).float()
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    one, other = (score_directions(place, scale * vectors, labels) for scale in (1.0, 1000.0))
    torch.testing.assert_close(one["separation"], other["separation"])
    assert torch.equal(one["auroc"], other["auroc"])
    assert bool((one["auroc"] >= 0.3).all())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_activations_that_are_all_the_same_end_in_a_sentence(value):
    same = replace(noise(12, 2, 8), values=torch.full((24, 2, 1, 8), value))
    with pytest.raises(RefusalLensError, match="no direction at any of the 2 places: both classes"):
        draw_nulls(same, n_permutations=20)
