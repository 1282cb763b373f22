"""How the angle to the true direction shrinks with the number of prompts.

Knows differences of means, their signal and their noise at one place. Does not know clipping.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.stats import f as f_distribution
from torch import Tensor

from refusal_lens.validation.many_fits import Place
from refusal_lens.validation.scores import CONFIDENCE
from refusal_lens.validation.units import HARMFUL_ONLY, HARMLESS_ONLY, MIXED, Units

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
    where there is none); `noise` the variance across the true difference that one prompt of each
    class adds. Both in squared units of the activations.

    `turned` is the squared length of what lies across, estimated for these very prompts, over the
    squared length of their difference; `spread` is how many equal dimensions that noise is worth,
    `freedom` how many units it was estimated from, less one a stratum, and `n_per_class` how many
    prompts a side (of unequal classes their harmonic mean).
    """

    signal: float
    noise: float
    turned: float = math.nan
    spread: float = math.inf
    freedom: int = 10**9
    n_per_class: float = math.nan

    def degrees(self, n_per_class: int | float) -> float:
        """Return the expected angle to the true difference, from 0 to 90 degrees.

        The fitted difference is v = mu + e, with e of mean 0 and covariance S1/n + S0/n. What lies
        along mu only lengthens it; what lies across turns it, by tan^2 = |e_across|^2 / |mu|^2. In
        many dimensions |e_across|^2 keeps close to its mean, noise / n, so that

            cos^2 = |mu|^2 / (|mu|^2 + noise / n),    noise = tr_across(S1) + tr_across(S0),

        which with one covariance S, spread over many dimensions, is
        |mu|^2 / (|mu|^2 + tr(S) (1/n1 + 1/n0)). More prompts a side are taken to come in
        as many more pairs or topics.
        """
        if self.signal <= 0:
            return 90.0
        return math.degrees(math.atan(math.sqrt(self.noise / n_per_class / self.signal)))

    def interval(self, n_per_class: int | float) -> tuple[float, float]:
        """Return the ends of the 95 % interval of `degrees`: those of `delivered`, carried on.

        The squared tangent falls as one over the number of prompts. With a steep spectrum the error
        of the signal alone would cover in a half of samples or fewer.
        """
        _, *ends = self.delivered()
        share = self.n_per_class / n_per_class
        low, high = (
            math.degrees(math.atan(math.sqrt(share) * math.tan(math.radians(end)))) for end in ends
        )
        return low, high

    def delivered(self) -> tuple[float, float, float]:
        """Return the angle of the fitted difference itself to the true one, and its interval.

        Its squared sine is |e_across|^2 / |v|^2, of which only the numerator is not known. It is a
        sum of squares, spread over so many dimensions, as is the estimate of its mean: their ratio
        follows an F distribution.

        Source:
            Box 1954, "Some theorems on quadratic forms", Annals of Mathematical Statistics 25.
        """
        ends = f_distribution.ppf(
            [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2],
            max(1.0, self.spread),
            max(1.0, self.spread * self.freedom),
        )
        angles = [
            math.degrees(math.asin(math.sqrt(min(1.0, max(0.0, self.turned * factor)))))
            for factor in (1.0, *ends)
        ]
        return angles[0], angles[1], angles[2]


def measure_turning(
    values: Float[Tensor, "n_prompts d_model"],
    is_harmful: Bool[Tensor, " n_prompts"],
    units: Units | None = None,
) -> Turning:
    """Estimate signal and noise of a difference of means, each without bias.

    Args:
        values: Activations of one place.
        is_harmful: Labels.
        units: What was drawn as one: the noise of a difference is that of its units; None takes
            each prompt for one.

    Returns:
        |mu|^2 as |v|^2 - tr(C) with the sample covariance C of the difference (S1/n1 + S0/n0 for
        independent prompts), and the noise across the fitted difference.

    Source:
        Chen & Qin 2010, "A two-sample test for high-dimensional data", Annals of Statistics 38,
        sections 2 and 3.
    """
    units = units or Units.of(is_harmful)
    difference, strata = difference_parts(values, is_harmful, units)
    squared = difference.square().sum().item()
    counts = [len(part) for part in strata]
    freedom = [max(1, count - 1) for count in counts]
    traces = [part.square().sum().item() / n for part, n in zip(strata, freedom, strict=True)]
    along = [
        (part @ difference).square().sum().item() / n / squared
        for part, n in zip(strata, freedom, strict=True)
    ]
    across = [(trace - one) / n for trace, one, n in zip(traces, along, counts, strict=True)]
    noise_now = sum(trace / n for trace, n in zip(traces, counts, strict=True))
    squares = max(1e-300, _squared_covariance(strata, traces))
    return Turning(
        squared - noise_now,
        _per_prompt(across, is_harmful, units),
        sum(across) / squared,
        noise_now**2 / squares,
        sum(count - 1 for count in counts),
        _harmonic_size(is_harmful),
    )


def _harmonic_size(is_harmful: Bool[Tensor, " n_prompts"]) -> float:
    """Return the prompts a side that would have the noise of these classes."""
    return 2 / (1 / int(is_harmful.sum()) + 1 / int((~is_harmful).sum()))


def difference_parts(
    values: Float[Tensor, "n_prompts d_model"], is_harmful: Bool[Tensor, " n_prompts"], units: Units
) -> tuple[Float[Tensor, " d_model"], list[Float[Tensor, "_ d_model"]]]:
    """Return the difference of means, and what each unit adds to it, kind by kind.

    What a unit adds is centred and multiplied by the number of units of its kind: the mean over a
    kind then has the covariance of these divided by that number. For single prompts it is their
    deviation from the class mean.
    """
    exact = values.double()
    n_harmful, n_harmless = int(is_harmful.sum()), int((~is_harmful).sum())
    means = [exact[side].mean(dim=0) for side in (is_harmful, ~is_harmful)]
    deviations = exact - torch.where(is_harmful[:, None], means[0], means[1])
    signs = torch.where(is_harmful, 1 / n_harmful, -1 / n_harmless).double()
    added = units.sum(deviations * signs[:, None])
    parts = [added[units.kind == kind] for kind in (MIXED, HARMFUL_ONLY, HARMLESS_ONLY)]
    centred = [(part - part.mean(dim=0)) * len(part) for part in parts if len(part)]
    return means[0] - means[1], centred


def _per_prompt(across: list[float], is_harmful: Bool[Tensor, " n_prompts"], units: Units) -> float:
    """Return the noise of one prompt of each class, from that of the kinds of units."""
    n_harmful, n_harmless = int(is_harmful.sum()), int((~is_harmful).sum())
    sizes = {
        MIXED: _harmonic_size(is_harmful),
        HARMFUL_ONLY: n_harmful,
        HARMLESS_ONLY: n_harmless,
    }
    kinds = [kind for kind in sizes if int((units.kind == kind).sum())]
    return sum(part * sizes[kind] for part, kind in zip(across, kinds, strict=True))


def _squared_covariance(strata: list[Float[Tensor, "_ d_model"]], traces: list[float]) -> float:
    """Return tr(C^2) for the covariance C of the difference, the sum of S/n, without bias."""
    total = 0.0
    for first, second in itertools.combinations(strata, 2):
        cross = 2 * (first @ second.T).square().sum().item()
        total += cross / math.prod(max(1, len(one) - 1) * len(one) for one in (first, second))
    for one, trace in zip(strata, traces, strict=True):
        n = len(one)
        if n > 2:
            raw = (one @ one.T).square().sum().item() / (n - 1) ** 2
            exact = (n - 1) ** 2 / ((n + 1) * (n - 2)) * (raw - trace**2 / (n - 1))
            total += max(0.0, exact) / n**2
    return total


def draw_pairs(is_harmful: Bool[Tensor, " n_prompts"], units: Units, seed: int) -> Pairs:
    """Draw disjoint sets of 4, 8, 16, ... units a side, up to half of the smaller class."""
    generator = np.random.default_rng(seed)
    fewest = min(units.n_per_class)
    half = fewest // 2
    sizes = sorted({*(2**power for power in range(2, 20) if 2**power < half), half} - {0})
    n_prompts = min(int(is_harmful.sum()), int((~is_harmful).sum()))
    return {
        max(1, round(n * n_prompts / fewest)): draw_disjoint(
            is_harmful, units, n, CURVE_DRAWS, generator
        )
        for n in sizes
    }


def draw_disjoint(
    is_harmful: Bool[Tensor, " n_prompts"],
    units: Units,
    n_units: int | None,
    n_draws: int,
    generator: np.random.Generator,
) -> tuple[Float[Tensor, "n_draws n_prompts"], Float[Tensor, "n_draws n_prompts"]]:
    """Draw two disjoint sets of units, and return the weights of their prompts.

    Either set has `n_units` of each class; None halves all of them.
    """
    drawn = np.zeros((2, n_draws, units.n_units), dtype=bool)
    n_mixed = int((units.kind == MIXED).sum())
    for kind, n_class in (
        (MIXED, min(units.n_per_class)),
        *zip((HARMFUL_ONLY, HARMLESS_ONLY), units.n_per_class, strict=True),
    ):
        members = np.flatnonzero(units.kind.numpy() == kind)
        if not len(members):
            continue
        share = n_mixed if kind == MIXED else len(members)
        size = len(members) // 2 if n_units is None else max(1, round(n_units * share / n_class))
        size = min(size, len(members) // 2)
        order = generator.permuted(np.tile(members, (n_draws, 1)), axis=1)
        for number, start in enumerate((0, size)):
            np.put_along_axis(drawn[number], order[:, start : start + size], True, axis=1)
    weights = torch.from_numpy(drawn)[:, :, units.of_prompt].float()
    for side, sign in ((is_harmful, 1.0), (~is_harmful, -1.0)):
        part = weights[:, :, side]
        weights[:, :, side] = sign * part / part.sum(dim=-1, keepdim=True).clamp(min=1)
    return weights[0], weights[1]


def learning_curve(
    place: Place, name: tuple[str, str], pairs: Pairs, turning: Turning
) -> pd.DataFrame:
    """Return the learning curve of one place: measured points, all prompts, the closed form.

    Two directions that each lie at an angle to the true one, with nothing in common but it, have
    the product of their two cosines as their own: its root is the cosine of either to the true
    direction. So points are measured up to half of the units, from disjoint sets. The row of all
    prompts is the direction that is delivered. All intervals come from its own.
    """
    gram = place.centred.double() @ place.centred.double().T
    rows = []
    for n, both in pairs.items():
        middle = _half_angle(float(_raw_cosines(gram, *both).mean()))
        low, high = turning.interval(n)
        rows.append((*name, n, middle, min(low, middle), max(high, middle), False))
    n_delivered = round(turning.n_per_class)
    rows.append((*name, n_delivered, *turning.delivered(), False))
    for n in (n for n in EXTRAPOLATED if n > n_delivered):
        rows.append((*name, n, turning.degrees(n), *turning.interval(n), True))
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
