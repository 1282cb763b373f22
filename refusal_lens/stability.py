"""How far a direction would turn with other prompts, or with more of them.

Knows halves, resamples and the closed form behind the learning curve. Does not know scores.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.collector import Activations
from refusal_lens.directions import CLIP_QUANTILE, clip, normalise
from refusal_lens.hook_points import site_of
from refusal_lens.methods import fit_grid
from refusal_lens.progress import track
from refusal_lens.refits import Place, blocks_of, clip_rows
from refusal_lens.scores import draw_counts, percentiles
from refusal_lens.validation import place_frame

CURVE_DRAWS = 200
"""Pairs of disjoint subsamples behind each measured point of a learning curve."""

LAYER_DRAWS = 20
"""Split halves behind the corrected cosines of layers: all layers' directions are held at once."""

LEAST_CEILING = 0.1
"""Below, a cosine corrected for noise is noise itself."""

EXTRAPOLATED = (20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240)
"""Prompts a side at which the learning curve goes on beyond what was measured."""


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

    def degrees(self, n_per_class: float, shift: float = 0.0) -> float:
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

    def prompts_for(self, degrees: float) -> float:
        """Return how many prompts a side bring the expected angle down to so many degrees."""
        if self.signal <= 0:
            return math.inf
        return self.noise / (self.signal * math.tan(math.radians(degrees)) ** 2)


@dataclass(frozen=True, eq=False)
class Stability:
    """How stable the direction of every place is, NaN where there is none.

    `split_half_cosine`: mean cosine between the directions of two halves of the prompts.
    `bootstrap_cosine` with the ends of its 95 % interval: between the direction and that of
    resampled prompts. A resample keeps what the sample has of chance, so that pure noise reaches
    about 0.71 here and 0 between halves. `raw_norm`: length of the unclipped difference.
    `curves` holds the learning curve of every place, `layers` the cosines between layers.
    """

    split_half_cosine: Float[Tensor, "n_hook_points n_positions"]
    bootstrap_cosine: Float[Tensor, "n_hook_points n_positions"]
    bootstrap_cosine_low: Float[Tensor, "n_hook_points n_positions"]
    bootstrap_cosine_high: Float[Tensor, "n_hook_points n_positions"]
    raw_norm: Float[Tensor, "n_hook_points n_positions"]
    turning: Mapping[tuple[str, str], Turning]
    curves: pd.DataFrame
    layers: pd.DataFrame
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return one row a place."""
        frame = place_frame(self.hook_points, self.positions)
        for name in (
            *("split_half_cosine", "bootstrap_cosine", "bootstrap_cosine_low"),
            *("bootstrap_cosine_high", "raw_norm"),
        ):
            frame[name] = getattr(self, name).flatten().numpy()
        return frame


def measure_stability(
    activations: Activations,
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
    n_resamples: int = 1000,
    seed: int = 0,
    show_progress: bool | None = None,
) -> Stability:
    """Fit each direction to halves, resamples and subsamples of the prompts, and compare.

    The learning curve is that of the unclipped difference. It is measured where two disjoint
    subsamples of n a side fit into the prompts: two directions that each lie at an angle to the
    true one, with nothing in common but it, have the product of their two cosines as their own, so
    that its root is the cosine of either to the true direction. Beyond, it follows the closed form
    of `Turning.degrees`.

    Args:
        activations: Activations of both classes.
        clip_quantile: As in `fit_directions`.
        n_resamples: Splits into halves, and bootstrap resamples.
        seed: Of all draws.
        show_progress: Draw a bar; None draws it on a terminal and in notebooks only.

    Returns:
        Cosines of every place, learning curves, and cosines between layers beside their ceiling.

    Raises:
        RefusalLensError: A class is empty.
    """
    _, is_kept = fit_grid(activations.values, activations.is_harmful)
    draws = _Draws.of(activations.is_harmful, n_resamples, seed)
    grids = torch.full((5, *is_kept.shape), torch.nan, dtype=torch.float64)
    turning, curves, layers = {}, [], []
    kept = _by_column(activations, is_kept)
    steps = track([step for group in kept for step in group], "Measuring stability", show_progress)
    for group in kept:
        group_halves = []
        for row, column in (next(steps) for _ in group):
            name = activations.hook_points[row], activations.positions[column]
            values = activations.values[:, row, column]
            numbers, halves, pairs = _measure(values, activations.is_harmful, draws, clip_quantile)
            grids[:, row, column] = torch.tensor(numbers)
            turning[name] = measure_turning(values, activations.is_harmful)
            curves.append(_curve(name, pairs, turning[name]))
            group_halves.append(halves)
        layers.append(_layer_cosines(activations, group, group_halves, clip_quantile))
    next(steps, None)
    return Stability(
        *grids,
        turning=turning,
        curves=_concat(curves, CURVE_COLUMNS),
        layers=_concat(layers, LAYER_COLUMNS),
        hook_points=activations.hook_points,
        positions=activations.positions,
    )


CURVE_COLUMNS = (
    *("hook_point", "position", "n_per_class", "degrees", "degrees_low", "degrees_high"),
    "is_extrapolated",
)
LAYER_COLUMNS = ("site", "position", "a", "b", "cosine", "ceiling", "cosine_corrected")


def _concat(tables: list[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(columns))


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


def spearman_brown(split_half: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
    """Return the reliability of all prompts from the cosine of two halves, in [0, 1].

    Source: Spearman 1910 and Brown 1910: 2 r / (1 + r). Cosines below zero count as zero.
    """
    return 2 * split_half.clamp(min=0) / (1 + split_half.clamp(min=0))


@dataclass(frozen=True, eq=False)
class _Draws:
    """Weights of the prompts in every refit, the same at all places.

    A row of weights times the activations is a difference of means. `halves` and `pairs` hold two
    tables each: the first and the second of two disjoint sets of prompts.
    """

    halves: tuple[Tensor, Tensor]
    resamples: Float[Tensor, "n_resamples n_prompts"]
    pairs: Mapping[int, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, is_harmful: Bool[Tensor, " n_prompts"], n_resamples: int, seed: int) -> "_Draws":
        """Draw halves, resamples, and pairs of 4, 8, 16, ... prompts a side."""
        generator = np.random.default_rng(seed)
        n_harmful, n_harmless = int(is_harmful.sum()), int((~is_harmful).sum())
        half = min(n_harmful, n_harmless) // 2
        sizes = sorted({*(2**power for power in range(2, 20) if 2**power < half), half} - {0})
        counts = draw_counts(is_harmful, n_resamples, seed)
        signs = torch.where(is_harmful, 1 / n_harmful, -1 / n_harmless)
        return cls(
            _disjoint(is_harmful, (n_harmful // 2, n_harmless // 2), n_resamples, generator),
            (counts * signs).float(),
            {n: _disjoint(is_harmful, (n, n), CURVE_DRAWS, generator) for n in sizes},
        )


def _disjoint(
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


def _by_column(
    activations: Activations, is_kept: Bool[Tensor, "n_hook_points n_positions"]
) -> list[list[tuple[int, int]]]:
    """Group the places that have a direction by site and position."""
    groups: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for row, column in is_kept.nonzero().tolist():
        site = site_of(activations.hook_points[row])
        groups.setdefault((site, column), []).append((row, column))
    return list(groups.values())


def _measure(
    values: Float[Tensor, "n_prompts d_model"],
    is_harmful: Bool[Tensor, " n_prompts"],
    draws: _Draws,
    clip_quantile: float | None,
) -> tuple[list[float], Tensor, dict[int, Tensor]]:
    """Return the five numbers of a place, some halves' directions, and cosines of the pairs."""
    place = Place.of(values)
    raw, _ = fit_grid(values, is_harmful)
    unit = normalise(clip(raw, clip_quantile)).float()
    between = _pair_cosines(place, draws.halves, clip_quantile)
    resampled = torch.cat(
        [
            _refit(place, draws.resamples[block], clip_quantile) @ unit
            for block in blocks_of(len(draws.resamples), len(unit))
        ]
    )
    low, high = percentiles(resampled, (0.025, 0.975))
    numbers = [between.mean(), resampled.mean(), low, high, raw.norm()]
    halves = torch.stack(
        [_refit(place, table[:LAYER_DRAWS], clip_quantile) for table in draws.halves]
    )
    gram = place.centred.double() @ place.centred.double().T
    pairs = {n: _raw_cosines(gram, *both) for n, both in draws.pairs.items()}
    return [float(number) for number in numbers], halves, pairs


def _refit(
    place: Place, weights: Float[Tensor, "n_draws n_prompts"], clip_quantile: float | None
) -> Float[Tensor, "n_draws d_model"]:
    """Return the unit direction of every row of weights."""
    return normalise(clip_rows(weights @ place.centred, clip_quantile))


def _pair_cosines(
    place: Place, weights: tuple[Tensor, Tensor], clip_quantile: float | None
) -> Float[Tensor, " n_draws"]:
    first, second = weights
    return torch.cat(
        [
            (
                _refit(place, first[block], clip_quantile)
                * _refit(place, second[block], clip_quantile)
            ).sum(dim=1)
            for block in blocks_of(len(first), place.centred.shape[1])
        ]
    )


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


def _curve(
    name: tuple[str, str], pairs: Mapping[int, Float[Tensor, " n_draws"]], turning: Turning
) -> pd.DataFrame:
    """Return the learning curve of one place: measured points, then the closed form."""
    rows = []
    for n, cosines in pairs.items():
        # A higher cosine is a smaller angle: the ends of the interval change places.
        low, high = percentiles(cosines, (0.975, 0.025))
        angles = [_half_angle(float(part)) for part in (cosines.mean(), low, high)]
        rows.append((*name, n, *angles, False))
    beyond = max(pairs, default=0)
    for n in (n for n in EXTRAPOLATED if n > beyond):
        angles = [turning.degrees(n, shift) for shift in (0.0, 1.96, -1.96)]
        rows.append((*name, n, *angles, True))
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def _half_angle(cosine: float) -> float:
    """Return the angle of either of two like directions to the true one, in degrees."""
    return math.degrees(math.acos(math.sqrt(min(1.0, max(0.0, cosine)))))


def _layer_cosines(
    activations: Activations,
    group: list[tuple[int, int]],
    halves: list[Float[Tensor, "2 n_draws d_model"]],
    clip_quantile: float | None,
) -> pd.DataFrame:
    """Compare the directions of all layers of one site and position.

    `ceiling` is the cosine that two noisy directions would have if the true ones were the same:
    the root of the product of their reliabilities. It holds for directions from different prompts;
    those of neighbouring layers come from the same ones and share their noise, so that `cosine`
    can lie above. `cosine_corrected` compares each layer on one half with the other on the other
    half, divided by the ceiling of halves; NaN where that is below 0.1.

    Source:
        Correction for attenuation: Spearman 1904, American Journal of Psychology 15.
    """
    rows, column = [row for row, _ in group], group[0][1]
    raw, _ = fit_grid(activations.values[:, rows, column], activations.is_harmful)
    unit = normalise(clip(raw, clip_quantile))
    first, second = torch.stack(halves, dim=2).double()
    across = torch.einsum("nad,nbd->ab", first, second) / first.shape[0]
    across = (across + across.T) / 2
    reliability = spearman_brown(across.diagonal())
    root = (across.diagonal()[:, None] * across.diagonal()).clamp(min=0).sqrt()
    names = [activations.hook_points[row] for row in rows]
    n = len(names)
    corrected = torch.where(root >= LEAST_CEILING, across / root, torch.nan).clamp(-1, 1)
    return pd.DataFrame(
        {
            "site": site_of(names[0]),
            "position": activations.positions[column],
            "a": [name for name in names for _ in range(n)],
            "b": names * n,
            "cosine": (unit @ unit.T).flatten().numpy(),
            "ceiling": (reliability[:, None] * reliability).sqrt().flatten().numpy(),
            "cosine_corrected": corrected.flatten().numpy(),
        }
    )
