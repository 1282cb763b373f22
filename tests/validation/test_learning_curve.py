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


def test_signal_and_noise_have_no_bias():
    values, is_harmful = experiments()
    measured = [measure_turning(values[:, place], is_harmful) for place in range(300)]
    signals = torch.tensor([one.signal for one in measured]).double()
    spread = signals.std().item()
    assert signals.mean().item() == pytest.approx(36.0, abs=4 * spread / math.sqrt(300))
    # Before the correction: |v|^2 is larger by all of the noise.
    total = (2.25 / N + 1 / (2 * N)) * SCALES.square().sum().item()
    assert total > 20 * spread / math.sqrt(300)
    noise_now = torch.tensor([one.noise for one in measured]).mean().item()
    assert noise_now == pytest.approx(3.25 * SCALES.square().sum().item(), rel=0.02)


def test_angle_of_fitted_directions_is_the_closed_form():
    values, is_harmful = experiments()
    vectors = values[is_harmful].mean(0) - values[~is_harmful].mean(0)
    cosines = vectors[:, 0] / vectors.norm(dim=-1)
    across = SCALES[1:].square().sum().item()
    # n1 = N and n0 = 2 N prompts: the noise of the mean of each.
    expected = Turning(36.0, 2.25 * across + across / 2).degrees(N)
    assert math.degrees(math.acos(cosines.mean())) == pytest.approx(expected, abs=1.0)


def test_measured_points_meet_the_closed_form():
    values = noise(200, 1, D_MODEL, 4.0)
    place = Place.of(values.values[:, 0, 0])
    turning = measure_turning(values.values[:, 0, 0], values.is_harmful)
    pairs = draw_pairs(values.is_harmful, Units.of(values.is_harmful), 0)
    curve = learning_curve(place, ("a", "last"), pairs, turning)
    measured = curve[~curve["is_extrapolated"]]
    assert measured["n_per_class"].tolist() == [4, 8, 16, 32, 64, 100, 200]
    assert curve.loc[curve["is_extrapolated"], "n_per_class"].min() == 320
    for row in measured.to_dict("records"):
        # The planted truth: |mu|^2 = 16, and noise of 299 directions in each class.
        expected = math.degrees(math.atan(math.sqrt(2 * 299 / row["n_per_class"] / 16)))
        assert row["degrees"] == pytest.approx(expected, abs=3.0)
        assert turning.degrees(row["n_per_class"]) == pytest.approx(expected, abs=3.0)
    assert (curve["degrees_low"] <= curve["degrees"]).all()
    assert (curve["degrees"] <= curve["degrees_high"]).all()


def test_no_signal_is_a_right_angle():
    turning = Turning(signal=9.0, noise=700.0)
    assert turning.degrees(20) > turning.degrees(40)
    assert Turning(signal=-0.1, noise=700.0).degrees(1e9) == 90.0


@pytest.mark.parametrize("steepness", [0.0, 1.0, 2.0])
def test_intervals_of_the_delivered_angle_and_of_the_curve_cover(steepness):
    scales = torch.arange(1, D_MODEL + 1).double() ** -steepness
    scales *= math.sqrt(D_MODEL) / scales.norm()
    generator = torch.Generator().manual_seed(0)
    mean = torch.nn.functional.normalize(
        torch.randn(D_MODEL, generator=generator, dtype=torch.float64), dim=0
    )
    is_harmful = torch.arange(2 * N) < N
    across = (scales.square().sum() - (scales * mean).square().sum()).item()
    expected = math.degrees(math.atan(math.sqrt(2 * across / (4 * N) / 400)))
    covered = torch.zeros(150, 2)
    for draw in covered:
        values = torch.randn(2 * N, D_MODEL, generator=generator, dtype=torch.float64) * scales
        values[:N] += 20 * mean
        fitted = values[:N].mean(0) - values[N:].mean(0)
        angle = math.degrees(math.acos((fitted @ mean / fitted.norm()).item()))
        turning = measure_turning(values, is_harmful)
        _, *ends = turning.delivered()
        draw[0] = ends[0] <= angle <= ends[1]
        low, high = turning.interval(4 * N)
        draw[1] = low <= expected <= high
    # Three standard errors of 95 % are 5.3 %; the curve's own is wider than it has to be.
    assert covered.mean(dim=0).min() > 0.89
