"""Stability: halves and resamples of planted directions, and the ceiling that noise sets."""

import pytest
import torch
from conftest import noise

from refusal_lens.activations.pooled import Activations
from refusal_lens.validation.stability import measure_stability, spearman_brown

# 60 prompts a side and 200 dimensions: noise of 2 * 199 / 60 against a signal of 16.
N, D_MODEL, SHIFT = 60, 200, 4.0


def test_halves_and_all_prompts_are_as_reliable_as_theory_says():
    activations = noise(N, 40, D_MODEL, SHIFT)
    stability = measure_stability(activations, clip_quantile=None, n_resamples=50)
    half = 16 / (16 + 2 * 199 / 30)
    assert stability.split_half_cosine.mean().item() == pytest.approx(half, abs=0.03)
    whole = 16 / (16 + 2 * 199 / 60)
    assert spearman_brown(stability.split_half_cosine).mean().item() == pytest.approx(
        whole, abs=0.03
    )
    norm = (16 + 2 * 200 / 60) ** 0.5
    assert stability.raw_norm.mean().item() == pytest.approx(norm, rel=0.03)


def test_noise_agrees_between_resamples_but_not_between_halves():
    stability = measure_stability(noise(N, 20, D_MODEL), clip_quantile=None, n_resamples=50)
    assert stability.split_half_cosine.mean().item() == pytest.approx(0.0, abs=0.05)
    assert stability.bootstrap_cosine.mean().item() == pytest.approx(0.5**0.5, abs=0.03)
    frame = stability.to_frame()
    assert (frame["bootstrap_cosine_low"] < frame["bootstrap_cosine"]).all()
    assert (frame["bootstrap_cosine"] < frame["bootstrap_cosine_high"]).all()


def test_layers_with_one_true_direction_reach_the_ceiling_and_others_do_not():
    activations = noise(N, 30, D_MODEL, SHIFT)
    values = activations.values.clone()
    harmful = activations.is_harmful
    values[harmful, 15:, :, 0] -= SHIFT  # the last 15 layers: another direction
    values[harmful, 15:, :, 1] += SHIFT
    layers = measure_stability(
        Activations(values, harmful, activations.hook_points, ("last",)),
        clip_quantile=None,
        n_resamples=50,
    ).layers
    index = layers["a"].str.extract(r"(\d+)")[0].astype(int)
    other = layers["b"].str.extract(r"(\d+)")[0].astype(int)
    same = layers[(index < other) & (other < 15)]
    # The layers' noise is independent here, so that the plain cosine is at the ceiling too.
    assert (same["cosine"] - same["ceiling"]).mean() == pytest.approx(0.0, abs=0.03)
    assert same["cosine_corrected"].mean() == pytest.approx(1.0, abs=0.06)
    apart = layers[(index < 15) & (other >= 15)]
    assert apart["cosine"].mean() == pytest.approx(0.0, abs=0.05)
    assert apart["ceiling"].mean() > 0.6
    diagonal = layers[layers["a"] == layers["b"]]
    assert diagonal["cosine"].to_numpy() == pytest.approx(1.0)


def test_stability_is_seeded_and_blind_to_scale():
    activations = noise(10, 2, 12, 2.0)
    first, again = (measure_stability(activations, n_resamples=30) for _ in range(2))
    assert first.to_frame().equals(again.to_frame())
    assert first.curves.equals(again.curves)
    assert first.layers.equals(again.layers)
    other = measure_stability(activations, n_resamples=30, seed=1)
    assert not torch.equal(first.split_half_cosine, other.split_half_cosine)
    scaled = Activations(
        activations.values * 64,
        activations.is_harmful,
        *(activations.hook_points, activations.positions),
    )
    far = measure_stability(scaled, n_resamples=30)
    torch.testing.assert_close(far.split_half_cosine, first.split_half_cosine)
    torch.testing.assert_close(far.raw_norm, 64 * first.raw_norm)


def test_place_without_a_direction_is_left_out():
    activations = noise(10, 3, 6, 2.0)
    activations.values[:, 1] = 1.0
    stability = measure_stability(activations, n_resamples=30)
    assert stability.split_half_cosine.isnan().flatten().tolist() == [False, True, False]
    names = set(stability.layers["a"])
    assert names == {"blocks.0.hook_resid_post", "blocks.2.hook_resid_post"}
