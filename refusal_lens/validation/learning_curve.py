"""How the angle to the true direction shrinks with the number of prompts.

Knows differences of means, their signal and their noise at one place. Does not know clipping.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.validation.many_fits import Place
from refusal_lens.validation.scores import percentiles

CURVE_DRAWS = 200
"""Pairs of disjoint subsamples behind each measured point of a learning curve."""

EXTRAPOLATED = (20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240)
"""Prompts a side at which the learning curve goes on beyond what was measured."""

CURVE_COLUMNS = (
    *("hook_point", "position", "n_per_class", "degrees", "degrees_low", "degrees_high"),
    "is_extrapolated",
)

Pairs = Mapping[int, tuple[Tensor, Tensor]]
"""By number of prompts a side: weights of the first and of the second of two disjoint sets."""


@dataclass(frozen=True, eq=False)
class Turning:
    """What decides how far a difference of means lies from that of unlimited prompts.

    `signal` is the squared length of the true difference, without bias (it may be below zero
    where there is none), `signal_error` its standard error; `noise` the variance across the true
    difference that one prompt of each class adds. All in squared units of the activations.
    """

    signal: float
    signal_error: float
    noise: float

    def degrees(self, n_per_class: int | float, shift: float = 0.0) -> float:
        """Return the expected angle to the true difference, from 0 to 90 degrees.

        The fitted difference is v = mu + e, with e of mean 0 and covariance S1/n + S0/n. What lies
        along mu only lengthens it; what lies across turns it, by tan^2 = |e_across|^2 / |mu|^2. In
        many dimensions |e_across|^2 keeps close to its mean, noise / n, so that

            cos^2 = |mu|^2 / (|mu|^2 + noise / n),    noise = tr_across(S1) + tr_across(S0),

        which with one covariance S, spread over many dimensions, is
        |mu|^2 / (|mu|^2 + tr(S) (1/n1 + 1/n0)).

        Args:
            n_per_class: Prompts a side.
            shift: Standard errors to add to the signal, for the ends of an interval.
        """
        signal = self.signal + shift * self.signal_error
        if signal <= 0:
            return 90.0
        return math.degrees(math.atan(math.sqrt(self.noise / n_per_class / signal)))

    def prompts_for(self, degrees: int | float) -> float:
        """Return how many prompts a side bring the expected angle down to so many degrees."""
        if self.signal <= 0:
            return math.inf
        return self.noise / (self.signal * math.tan(math.radians(degrees)) ** 2)


def measure_turning(
    values: Float[Tensor, "n_prompts d_model"], is_harmful: Bool[Tensor, " n_prompts"]
) -> Turning:
    """Estimate signal and noise of a difference of means, each without bias.

    Args:
        values: Activations of one place.
        is_harmful: Labels.

    Returns:
        |mu|^2 as |v|^2 - tr(S1)/n1 - tr(S0)/n0 with sample covariances S, its standard error for
        normal activations, and the noise across the fitted difference.

    Source:
        Chen & Qin 2010, "A two-sample test for high-dimensional data", Annals of Statistics 38,
        sections 2 and 3; variance with the term 4 mu' S mu that their null lacks.
    """
    exact = values.double()
    sides = [exact[is_harmful], exact[~is_harmful]]
    difference = sides[0].mean(dim=0) - sides[1].mean(dim=0)
    deviations = [side - side.mean(dim=0) for side in sides]
    counts = [len(side) for side in sides]
    freedom = [max(1, count - 1) for count in counts]
    squared = difference.square().sum().item()
    traces = [one.square().sum().item() / n for one, n in zip(deviations, freedom, strict=True)]
    along = [
        (one @ difference).square().sum().item() / n / squared
        for one, n in zip(deviations, freedom, strict=True)
    ]
    signal = squared - sum(trace / n for trace, n in zip(traces, counts, strict=True))
    spread = _squared_covariance(deviations, traces)
    stretch = squared * sum(part / n for part, n in zip(along, counts, strict=True))
    variance = max(0.0, 4 * stretch - 2 * spread)
    return Turning(signal, math.sqrt(variance), sum(traces) - sum(along))


def _squared_covariance(deviations: list[Float[Tensor, "_ d_model"]], traces: list[float]) -> float:
    """Return tr(C^2) for the covariance C = S1/n1 + S0/n0 of the difference, without bias."""
    total = 2 * (deviations[0] @ deviations[1].T).square().sum().item()
    total /= math.prod(max(1, len(one) - 1) * len(one) for one in deviations)
    for one, trace in zip(deviations, traces, strict=True):
        n = len(one)
        if n > 2:
            raw = (one @ one.T).square().sum().item() / (n - 1) ** 2
            exact = (n - 1) ** 2 / ((n + 1) * (n - 2)) * (raw - trace**2 / (n - 1))
            total += max(0.0, exact) / n**2
    return total


def draw_pairs(is_harmful: Bool[Tensor, " n_prompts"], seed: int) -> Pairs:
    """Draw disjoint sets of 4, 8, 16, ... prompts a side, up to half of the smaller class."""
    generator = np.random.default_rng(seed)
    half = min(int(is_harmful.sum()), int((~is_harmful).sum())) // 2
    sizes = sorted({*(2**power for power in range(2, 20) if 2**power < half), half} - {0})
    return {n: draw_disjoint(is_harmful, (n, n), CURVE_DRAWS, generator) for n in sizes}


def draw_disjoint(
    is_harmful: Bool[Tensor, " n_prompts"],
    sizes: tuple[int, int],
    n_draws: int,
    generator: np.random.Generator,
) -> tuple[Float[Tensor, "n_draws n_prompts"], Float[Tensor, "n_draws n_prompts"]]:
    """Draw two disjoint sets of so many prompts of each class, and return their weights."""
    tables = torch.zeros(2, n_draws, len(is_harmful))
    members = (is_harmful.nonzero().flatten(), (~is_harmful).nonzero().flatten())
    for sign, side, size in zip((1, -1), members, sizes, strict=True):
        order = generator.permuted(np.tile(side.numpy(), (n_draws, 1)), axis=1)
        for table, chosen in zip(tables, (order[:, :size], order[:, size : 2 * size]), strict=True):
            table.scatter_(1, torch.from_numpy(chosen), sign / max(1, size))
    return tables[0], tables[1]


def learning_curve(
    place: Place, name: tuple[str, str], pairs: Pairs, turning: Turning
) -> pd.DataFrame:
    """Return the learning curve of one place: measured points, then the closed form.

    Two directions that each lie at an angle to the true one, with nothing in common but it, have
    the product of their two cosines as their own: its root is the cosine of either to the true
    direction. So points are measured up to half of the prompts, from disjoint sets. Their
    interval is that of single draws, that of the closed form comes from the signal's error.

    Args:
        place: Activations.
        name: Its hook point and position.
        pairs: From `draw_pairs`.
        turning: From `measure_turning`.
    """
    gram = place.centred.double() @ place.centred.double().T
    rows = []
    for n, both in pairs.items():
        cosines = _raw_cosines(gram, *both)
        # A higher cosine is a smaller angle: the ends of the interval change places.
        low, high = percentiles(cosines, (0.975, 0.025))
        rows.append((*name, n, *map(_half_angle, map(float, (cosines.mean(), low, high))), False))
    for n in (n for n in EXTRAPOLATED if n > max(pairs, default=0)):
        rows.append((*name, n, *(turning.degrees(n, shift) for shift in (0.0, 1.96, -1.96)), True))
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def _raw_cosines(
    gram: Float[Tensor, "n_prompts n_prompts"],
    first: Float[Tensor, "n_draws n_prompts"],
    second: Float[Tensor, "n_draws n_prompts"],
) -> Float[Tensor, " n_draws"]:
    """Return cosines of unclipped differences from the inner products of activations alone."""
    weights = first.double(), second.double()
    seen = [one @ gram for one in weights]
    product = (seen[0] * weights[1]).sum(dim=1)
    squares = [(part * one).sum(dim=1) for part, one in zip(seen, weights, strict=True)]
    return product / (squares[0] * squares[1]).sqrt()


def _half_angle(cosine: float) -> float:
    """Return the angle of either of two like directions to the true one, in degrees."""
    return math.degrees(math.acos(math.sqrt(min(1.0, max(0.0, cosine)))))
