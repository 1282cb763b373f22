"""How far a direction can be believed: separation and accuracy, out of sample.

Knows how to fit on some prompts and score on others. Does not draw, and does not choose.
"""

import html
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from refusal_lens.collector import Activations
from refusal_lens.directions import CLIP_QUANTILE, clip, normalise
from refusal_lens.errors import RefusalLensError
from refusal_lens.hook_points import layer_of, site_of
from refusal_lens.methods import mean_difference
from refusal_lens.moments import ClassMoments, class_moments

MIN_SEPARATION = 0.15
MIN_ACCURACY = 0.65
"""A place is valid from these on; below, the article calls it poor."""


@dataclass(frozen=True, eq=False)
class Projections:
    """Every prompt projected at every place, with the threshold that tells the classes apart.

    `values` are in the activations' own units, `cosines` in [-1, 1]; `thresholds` are of the first
    kind. `is_held_out` says whether each prompt was projected on a direction that it did not help
    to fit; the threshold is then the mean of the folds'. NaN where there is no direction.
    """

    values: Float[Tensor, "n_prompts n_hook_points n_positions"]
    cosines: Float[Tensor, "n_prompts n_hook_points n_positions"]
    is_called_harmful: Bool[Tensor, "n_prompts n_hook_points n_positions"]
    thresholds: Float[Tensor, "n_hook_points n_positions"]
    is_harmful: Bool[Tensor, " n_prompts"]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    is_held_out: bool

    def __repr__(self) -> str:
        """Say how many prompts were projected, where and how."""
        return (
            f"Projections({len(self.is_harmful)} prompts ({int(self.is_harmful.sum())} harmful), "
            f"{len(self.hook_points)} hook points, positions {', '.join(self.positions)}, "
            f"{'held out' if self.is_held_out else 'in sample'})"
        )


@dataclass(frozen=True, eq=False)
class Separation:
    """Scores of every place: out of sample as the headline, in sample beside it.

    `separation` is a difference of mean cosines, `accuracy` a share; `is_valid` wants both.
    """

    separation: Float[Tensor, "n_hook_points n_positions"]
    accuracy: Float[Tensor, "n_hook_points n_positions"]
    separation_in_sample: Float[Tensor, "n_hook_points n_positions"]
    accuracy_in_sample: Float[Tensor, "n_hook_points n_positions"]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    n_folds: int

    @property
    def is_valid(self) -> Bool[Tensor, "n_hook_points n_positions"]:
        """Separation and accuracy both reach the article's least values."""
        return (self.separation >= MIN_SEPARATION) & (self.accuracy >= MIN_ACCURACY)

    def at(self, site: str, position: str) -> "Separation":
        """Return the scores of one site and position: one row a layer."""
        rows = [i for i, name in enumerate(self.hook_points) if site_of(name) == site]
        columns = [self.positions.index(position)]
        return Separation(
            self.separation[rows][:, columns],
            self.accuracy[rows][:, columns],
            self.separation_in_sample[rows][:, columns],
            self.accuracy_in_sample[rows][:, columns],
            tuple(self.hook_points[row] for row in rows),
            (position,),
            self.n_folds,
        )

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Every site and position, in the order collected."""
        sites = dict.fromkeys(site_of(name) for name in self.hook_points)
        return tuple((site, position) for site in sites for position in self.positions)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a place, hook point by hook point."""
        rows = [
            {
                "hook_point": hook_point,
                "site": site_of(hook_point),
                "layer": layer_of(hook_point),
                "position": position,
                "separation": self.separation[row, column].item(),
                "accuracy": self.accuracy[row, column].item(),
                "is_valid": bool(self.is_valid[row, column]),
                "separation_in_sample": self.separation_in_sample[row, column].item(),
                "accuracy_in_sample": self.accuracy_in_sample[row, column].item(),
            }
            for row, hook_point in enumerate(self.hook_points)
            for column, position in enumerate(self.positions)
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        """Say how many places are valid and what the highest separation is."""
        scores = self.separation[~self.separation.isnan()]
        highest = f"{scores.max().item():.2f}" if len(scores) else "none"
        return (
            f"Separation({int(self.is_valid.sum())} of {self.is_valid.numel()} places valid, "
            f"highest separation {highest}, {self.n_folds}-fold cross-fitted)"
        )

    def _repr_html_(self) -> str:
        """Show the scores as a table in notebooks."""
        table = self.to_frame().to_html(index=False, float_format="{:.3f}".format, na_rep="")
        return f"<p>{html.escape(repr(self))}</p>{table}"

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, n_folds: int) -> "Separation":
        """Read the table back that `to_frame` gave."""
        hook_points = tuple(dict.fromkeys(frame["hook_point"]))
        positions = tuple(dict.fromkeys(frame["position"].astype(str)))

        def grid(name: str) -> Tensor:
            numbers = frame[name].to_numpy(dtype="float64", copy=True)
            return torch.from_numpy(numbers).reshape(len(hook_points), len(positions))

        return cls(
            separation=grid("separation"),
            accuracy=grid("accuracy"),
            separation_in_sample=grid("separation_in_sample"),
            accuracy_in_sample=grid("accuracy_in_sample"),
            hook_points=hook_points,
            positions=positions,
            n_folds=n_folds,
        )


def validate(
    activations: Activations,
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
    n_folds: int = 5,
    seed: int = 0,
) -> tuple[Separation, Projections]:
    """Score the direction at every place on prompts that it was not fitted to.

    With fewer prompts than dimensions a difference of means separates its own fitting data almost
    perfectly even when labels are random; only held-out prompts tell. Direction, clip and
    threshold all come from the fitting folds.

    Args:
        activations: Activations of both classes.
        clip_quantile: As in `fit_directions`.
        n_folds: Stratified folds; fewer when a class has fewer prompts.
        seed: Of the shuffle that deals prompts to folds.

    Returns:
        Scores of every place, and the held-out projections behind them.

    Raises:
        RefusalLensError: A class has fewer than two prompts.
    """
    folds = assign_folds(activations.is_harmful, n_folds, seed)
    held_out = held_out_projections(activations, folds, clip_quantile)
    in_sample = in_sample_projections(activations, clip_quantile)
    separation = Separation(
        separation=_separation(held_out),
        accuracy=_accuracy(held_out),
        separation_in_sample=_separation(in_sample),
        accuracy_in_sample=_accuracy(in_sample),
        hook_points=activations.hook_points,
        positions=activations.positions,
        n_folds=int(folds.max()) + 1,
    )
    return separation, held_out


def assign_folds(
    is_harmful: Bool[Tensor, " n_prompts"], n_folds: int, seed: int
) -> Int[Tensor, " n_prompts"]:
    """Deal prompts to folds so that each holds the same share of harmful ones.

    Args:
        is_harmful: Labels.
        n_folds: Folds wanted; a class with fewer prompts lowers it.
        seed: Of the shuffle.

    Raises:
        RefusalLensError: A class has fewer than two prompts, so that nothing can be held out.
    """
    n_harmful, n_harmless = int(is_harmful.sum()), int((~is_harmful).sum())
    fewest = min(n_harmful, n_harmless)
    if fewest < 2:
        raise RefusalLensError(
            f"Scores out of sample need at least 2 prompts of each class; there are {n_harmful} "
            f"harmful and {n_harmless} harmless ones. Add prompts (30 a side is a sound start)."
        )
    splitter = StratifiedKFold(min(n_folds, fewest), shuffle=True, random_state=seed)
    folds = np.empty(len(is_harmful), dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(folds)), is_harmful.numpy())):
        folds[held_out] = fold
    return torch.from_numpy(folds)


def held_out_projections(
    activations: Activations, folds: Int[Tensor, " n_prompts"], clip_quantile: float | None
) -> Projections:
    """Project each prompt on the direction fitted to the other folds."""
    parts = []
    for fold in range(int(folds.max()) + 1):
        is_held_out = folds == fold
        unit, threshold = _fit(activations, ~is_held_out, clip_quantile)
        parts.append((is_held_out, _project(activations.values[is_held_out], unit), threshold))
    values = torch.full(activations.values.shape[:-1], torch.nan, dtype=torch.float64)
    called = torch.zeros(values.shape, dtype=torch.bool)
    for is_held_out, projected, threshold in parts:
        values[is_held_out] = projected
        called[is_held_out] = projected > threshold
    thresholds = torch.stack([threshold for *_, threshold in parts]).mean(dim=0)
    return _projections(activations, values, called, thresholds, is_held_out=True)


def in_sample_projections(activations: Activations, clip_quantile: float | None) -> Projections:
    """Project each prompt on the direction fitted to all prompts, itself included."""
    everything = torch.ones(len(activations.is_harmful), dtype=torch.bool)
    unit, threshold = _fit(activations, everything, clip_quantile)
    values = _project(activations.values, unit)
    return _projections(activations, values, values > threshold, threshold, is_held_out=False)


def _fit(
    activations: Activations, is_fitting: Bool[Tensor, " n_prompts"], clip_quantile: float | None
) -> tuple[
    Float[Tensor, "n_hook_points n_positions d_model"], Float[Tensor, "n_hook_points n_positions"]
]:
    """Return unit directions and thresholds fitted to some of the prompts."""
    harmful = class_moments(activations.values[is_fitting & activations.is_harmful])
    harmless = class_moments(activations.values[is_fitting & ~activations.is_harmful])
    vectors, is_kept = mean_difference(harmful, harmless)
    unit = normalise(clip(vectors.nan_to_num(), clip_quantile))
    unit[~is_kept] = torch.nan
    return unit, _midpoint(harmful, harmless, unit)


def _midpoint(
    harmful: ClassMoments,
    harmless: ClassMoments,
    unit: Float[Tensor, "n_hook_points n_positions d_model"],
) -> Float[Tensor, "n_hook_points n_positions"]:
    """Return the projection midway between the class means."""
    return ((harmful.mean + harmless.mean) / 2 * unit).sum(dim=-1)


def _project(
    values: Float[Tensor, "n_prompts n_hook_points n_positions d_model"],
    unit: Float[Tensor, "n_hook_points n_positions d_model"],
) -> Float[Tensor, "n_prompts n_hook_points n_positions"]:
    return torch.einsum("nhpd,hpd->nhp", values.double(), unit)


def _projections(
    activations: Activations,
    values: Float[Tensor, "n_prompts n_hook_points n_positions"],
    is_called_harmful: Bool[Tensor, "n_prompts n_hook_points n_positions"],
    thresholds: Float[Tensor, "n_hook_points n_positions"],
    *,
    is_held_out: bool,
) -> Projections:
    return Projections(
        values=values,
        cosines=values / activations.values.double().norm(dim=-1),
        is_called_harmful=is_called_harmful,
        thresholds=thresholds,
        is_harmful=activations.is_harmful,
        hook_points=activations.hook_points,
        positions=activations.positions,
        is_held_out=is_held_out,
    )


def _separation(projections: Projections) -> Float[Tensor, "n_hook_points n_positions"]:
    harmful = projections.cosines[projections.is_harmful].mean(dim=0)
    return harmful - projections.cosines[~projections.is_harmful].mean(dim=0)


def _accuracy(projections: Projections) -> Float[Tensor, "n_hook_points n_positions"]:
    is_right = projections.is_called_harmful == projections.is_harmful[:, None, None]
    accuracy = is_right.double().mean(dim=0)
    return accuracy.masked_fill(projections.thresholds.isnan(), torch.nan)


# --- what a histogram shows -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of both classes in the same bins."""

    edges: Float[Tensor, " n_edges"]
    n_harmful: Int[Tensor, " n_bins"]
    n_harmless: Int[Tensor, " n_bins"]


def shared_histogram(
    projections: Float[Tensor, " n_prompts"], is_harmful: Bool[Tensor, " n_prompts"]
) -> Histogram:
    """Count both classes in bins chosen from all projections together.

    Bins of each class's own would make distributions look apart that are not. Their width is
    Freedman and Diaconis's, of the narrower class, between 10 and 60 bins.
    """
    numbers, labels = projections.double().numpy(), is_harmful.numpy()
    widths = [_bin_width(numbers[labels]), _bin_width(numbers[~labels])]
    low, high = float(numbers.min()), float(numbers.max())
    wanted = (high - low) / min(widths) if min(widths) > 0 else 1
    n_bins = int(np.clip(np.ceil(wanted), 10, 60))
    margin = (high - low or abs(high) or 1.0) * 1e-9
    edges = np.linspace(low - margin, high + margin, n_bins + 1)
    return Histogram(
        torch.from_numpy(edges),
        torch.from_numpy(np.histogram(numbers[labels], edges)[0]),
        torch.from_numpy(np.histogram(numbers[~labels], edges)[0]),
    )


def _bin_width(numbers: np.ndarray) -> float:
    """Return Freedman and Diaconis's bin width (1981): 2 IQR / n^(1/3)."""
    lower, upper = np.percentile(numbers, [25, 75])
    return float(2 * (upper - lower) / len(numbers) ** (1 / 3))
