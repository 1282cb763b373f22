"""Learning curves: estimates without bias, and angles that are measured and foretold alike."""

import math

import pytest
import torch
from conftest import noise

from refusal_lens.validation.learning_curve import (
    Turning,
    draw_pairs,
    learning_curve,
    measure_turning,
)
from refusal_lens.validation.many_fits import Place
from refusal_lens.validation.units import Units

D_MODEL, N = 300, 30
SCALES = torch.linspace(0.2, 2.0, D_MODEL)


def experiments(n_places: int = 300, shift: float = 6.0):
    """Anisotropic noise, different in the two classes, shifted along the first axis."""
    activations = noise(N, n_places, D_MODEL, 0.0, n_harmless=2 * N)
    values = activations.values * SCALES
    values[activations.is_harmful] *= 1.5
    values[activations.is_harmful, ..., 0] += shift
    return values[:, :, 0], activations.is_harmful


def test_signal_and_noise_have_no_bias_and_the_error_is_that_of_the_signal():
    values, is_harmful = experiments()
    measured = [measure_turning(values[:, place], is_harmful) for place in range(300)]
    signals = torch.tensor([one.signal for one in measured]).double()
    spread = signals.std().item()
    assert signals.mean().item() == pytest.approx(36.0, abs=4 * spread / math.sqrt(300))
    # Before the correction: |v|^2 is larger by all of the noise.
    total = (2.25 / N + 1 / (2 * N)) * SCALES.square().sum().item()
    assert total > 20 * spread / math.sqrt(300)
    error = torch.tensor([one.signal_error for one in measured]).mean().item()
    assert error == pytest.approx(spread, rel=0.15)
    noise_now = torch.tensor([one.noise for one in measured]).mean().item()
    assert noise_now == pytest.approx(3.25 * SCALES.square().sum().item(), rel=0.02)


def test_no_signal_is_no_more_than_its_error():
    values, is_harmful = experiments(shift=0.0)
    measured = [measure_turning(values[:, place], is_harmful) for place in range(300)]
    inside = [abs(one.signal) < 1.96 * one.signal_error for one in measured]
    assert sum(inside) / 300 == pytest.approx(0.95, abs=0.04)


def test_angle_of_fitted_directions_is_the_closed_form():
    values, is_harmful = experiments()
    vectors = values[is_harmful].mean(0) - values[~is_harmful].mean(0)
    cosines = vectors[:, 0] / vectors.norm(dim=-1)
    across = SCALES[1:].square().sum().item()
    # n1 = N and n0 = 2 N prompts: the noise of the mean of each.
    expected = Turning(36.0, 0.0, 2.25 * across + across / 2).degrees(N)
    assert math.degrees(math.acos(cosines.mean())) == pytest.approx(expected, abs=1.0)


def test_measured_points_meet_the_closed_form():
    values = noise(200, 1, D_MODEL, 4.0)
    place = Place.of(values.values[:, 0, 0])
    turning = measure_turning(values.values[:, 0, 0], values.is_harmful)
    pairs = draw_pairs(values.is_harmful, Units.of(values.is_harmful), 0)
    curve = learning_curve(place, ("a", "last"), pairs, turning)
    measured = curve[~curve["is_extrapolated"]]
    assert measured["n_per_class"].tolist() == [4, 8, 16, 32, 64, 100]
    assert curve.loc[curve["is_extrapolated"], "n_per_class"].min() == 160
    for row in measured.to_dict("records"):
        # The planted truth: |mu|^2 = 16, and noise of 299 directions in each class.
        expected = math.degrees(math.atan(math.sqrt(2 * 299 / row["n_per_class"] / 16)))
        assert row["degrees"] == pytest.approx(expected, abs=3.0)
        assert turning.degrees(row["n_per_class"]) == pytest.approx(expected, abs=3.0)
    assert (curve["degrees_low"] <= curve["degrees"]).all()
    assert (curve["degrees"] <= curve["degrees_high"]).all()


def test_prompts_for_an_angle_bring_it():
    turning = Turning(signal=9.0, signal_error=1.0, noise=700.0)
    assert turning.degrees(turning.prompts_for(10.0)) == pytest.approx(10.0)
    assert turning.degrees(20) > turning.degrees(40)
    nothing = Turning(signal=-0.1, signal_error=1.0, noise=700.0)
    assert (nothing.degrees(1e9), nothing.prompts_for(10.0)) == (90.0, math.inf)
