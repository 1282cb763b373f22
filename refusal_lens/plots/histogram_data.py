"""What the histogram's traces show at one place, in one scale.

Knows the numbers behind the marks, bars and lines. How they look is `histogram_traces`'s.

Tested in tests/plots/test_histogram.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.models.hook_points import layer_of, short_name, site_of
from refusal_lens.plots.parts import Parts
from refusal_lens.plots.style import CLASSES, ClassStyle
from refusal_lens.plots.text import place_name, written
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.densities import (
    Histogram,
    shared_densities,
    shared_histogram,
)
from refusal_lens.validation.frames import rows_that
from refusal_lens.validation.separation import Separation

RIGHT, MISREAD = 142, 134
"""Plotly's numbers of the symbols `line-ns-open` and `x-thin-open`: shorter than their names."""

BLANK = " "
"""A point without a label: plotly.js never labels a point again whose text was once empty."""

Data = dict[str, dict[str, Any]]
"""What each trace shows: attributes by name."""


@dataclass(frozen=True, eq=False)
class View:
    """One entry of the menu: a site and position, of one method, raw or cosines, split into parts.

    `norms` are the activations' mean lengths; `null` the widest differences of mean cosines that
    shuffled labels gave, by hook point.
    """

    projections: Projections
    separation: Separation
    norms: Float[Tensor, "n_hook_points n_positions"]
    null: dict[str, float]
    method: str
    site: str | None
    position: str
    is_cosine: bool
    parts: Parts

    @property
    def traces(self) -> tuple[str, ...]:
        """The traces, in the order they are drawn."""
        of_part = [
            f"{style.name} {kind}"
            for kind in ("bars", "density", "share", "marks")
            for style in self.parts.styles
        ]
        means = [f"{style.name} mean" for style in self.parts.classes]
        return ("null", *of_part, *means, "threshold", "marks threshold", "headline")

    def hook_point(self, step: int | str) -> str | None:
        """Return the hook point at a step of the slider, a layer or a name; None where none is."""
        for name in self.projections.hook_points:
            if name == step or (layer_of(name) == step and site_of(name) == self.site):
                return name
        return None


def steps_of(hook_points: tuple[str, ...]) -> list[int | str]:
    """List the steps of the slider: embeddings, layers, then what follows the last block."""
    outside = list(dict.fromkeys(name for name in hook_points if layer_of(name) is None))
    layers = sorted({layer for name in hook_points if (layer := layer_of(name)) is not None})
    before = [name for name in outside if not name.startswith("ln_final")]
    return [*before, *layers, *(name for name in outside if name not in before)]


def widest_null(nulls: pd.DataFrame | None, position: str) -> dict[str, float]:
    """Return how far apart shuffled labels put the mean cosines, by hook point."""
    if nulls is None:
        return {}
    part = rows_that(
        nulls,
        (nulls["kind"] == "permutation")
        & (nulls["score"] == "separation")
        & (nulls["position"] == position),
    )
    rows = zip(part["hook_point"], part["low"], part["high"], strict=True)
    return {hook_point: max(abs(low), abs(high)) for hook_point, low, high in rows}


def place_data(view: View, step: int | str) -> Data:
    """Return what the traces of a view show at one step of the slider."""
    hook_point = view.hook_point(step)
    if hook_point is None:
        return _empty_data(
            view, "nothing collected here", f"<b>{step}</b><br>nothing collected here"
        )
    row = view.projections.hook_points.index(hook_point)
    column = view.projections.positions.index(view.position)
    headline = _headline(view, row, column)
    values = view.projections.cosines if view.is_cosine else view.projections.values
    numbers = values[:, row, column]
    threshold = view.projections.thresholds[row, column].item()
    if bool(numbers.isnan().any()) or math.isnan(threshold):
        return _empty_data(view, "no direction here", headline)
    data = _part_data(view, numbers, row, column)
    top = highest_bar(view.parts, data)
    decimals = decimals_of(numbers)
    means = [
        numbers[view.projections.is_harmful == style.is_harmful].mean().item() for style in CLASSES
    ]
    data |= mean_data(view.parts.classes, means, 1.1 * top, decimals)
    data["null"] = _null_data(view, hook_point, sum(means) / 2, 1.25 * top, decimals)
    data["headline"] = _headline_data(headline)
    # Norms differ from prompt to prompt, so that one threshold is many cosines: none is drawn.
    nothing: dict[str, Any] = {"x": [], "y": []}
    data["threshold"] = data["marks threshold"] = nothing
    if not view.is_cosine:
        data["threshold"] = _line_data(threshold, 1.25 * top, decimals, "threshold")
        data["marks threshold"] = {"x": [round(threshold, decimals)] * 2, "y": [-0.6, 1.6]}
    return data


def _empty_data(view: View, note: str, headline: str) -> Data:
    """Return what is shown where there is nothing."""
    data: Data = {name: {"x": [], "y": []} for name in view.traces}
    data["threshold"] = {
        "x": [0, None, 0],
        "y": [0.5, None, 1],
        "text": [f"<b>{note}</b>", BLANK, BLANK],
        "textposition": "middle center",
    }
    return data | {"headline": _headline_data(headline)}


def highest_bar(parts: Parts, data: Data) -> int:
    """Return the height of the highest bar, with those that it stands on."""
    bars = [data[f"{style.name} bars"] for style in parts.styles]
    tops = [
        y + base
        for each in bars
        for y, base in zip(each["y"], each.get("base", [0] * len(each["y"])), strict=True)
    ]
    return max(tops, default=0)


def _part_data(view: View, numbers: Float[Tensor, " n_prompts"], row: int, column: int) -> Data:
    """Return bars, curves and marks of every part."""
    is_harmful, parts = view.projections.is_harmful, view.parts
    histogram = shared_histogram(numbers, is_harmful, parts.labels)
    densities = shared_densities(numbers, parts.labels)
    is_right = view.projections.is_called_harmful[:, row, column] == is_harmful
    decimals = decimals_of(numbers)
    data = bar_data(parts, histogram, decimals)
    width = float(histogram.edges[1] - histogram.edges[0])
    for label, style in enumerate(parts.styles):
        rows = parts.labels == label
        in_bin = densities.curves[label] * int(rows.sum()) * width
        data[f"{style.name} density"] = _density_data(densities.grid, in_bin)
        ordered = [round(x, decimals) for x in numbers[rows].sort().values.tolist()]
        data[f"{style.name} share"] = {"x": [ordered[0], *ordered]}
        data[f"{style.name} marks"] = _mark_data(numbers[rows], is_right[rows], decimals)
    return data


def bar_data(parts: Parts, histogram: Histogram, decimals: int) -> Data:
    """Return every part's bars; those of one class stand on each other."""
    edges, data, bases = histogram.edges, {}, {}
    for style, counts in zip(parts.styles, histogram.counts, strict=True):
        data[f"{style.name} bars"] = {
            "x": [round(x, decimals + 1) for x in ((edges[1:] + edges[:-1]) / 2).tolist()],
            "y": counts.tolist(),
            "width": round(float(edges[1] - edges[0]), decimals + 2),
        }
        if style.is_harmful in bases:
            data[f"{style.name} bars"]["base"] = bases[style.is_harmful].tolist()
        bases[style.is_harmful] = bases.get(style.is_harmful, 0) + counts
    return data


def _density_data(
    grid: Float[Tensor, " n_grid"], in_bin: Float[Tensor, " n_grid"]
) -> dict[str, Any]:
    """Return a density in the bars' unit: prompts in a bin of the histogram's width."""
    return {
        "x0": float(f"{grid[0].item():.6g}"),
        "dx": float(f"{(grid[1] - grid[0]).item():.6g}"),
        "y": [float(f"{y:.3g}") if y > 1e-3 else 0 for y in in_bin.tolist()],
    }


def _mark_data(
    numbers: Float[Tensor, " n_own"], is_right: Bool[Tensor, " n_own"], decimals: int
) -> dict[str, Any]:
    """Return one mark a prompt, in few characters: this is most of a figure's size."""
    return {
        "x": [round(x, decimals) for x in numbers.tolist()],
        "marker.symbol": [RIGHT if right else MISREAD for right in is_right.tolist()],
        "customdata": ["" if right else ", misread" for right in is_right.tolist()],
    }


def mean_data(
    classes: Sequence[ClassStyle], means: list[float], height: float, decimals: int
) -> Data:
    """Return the lines of the class means, each labelled on its outer side."""
    sides = ["middle left", "middle right"]
    if means[0] > means[1]:
        sides.reverse()
    return {
        f"{style.name} mean": _line_data(mean, height, decimals, "mean", side)
        for style, mean, side in zip(classes, means, sides, strict=True)
    }


def _null_data(
    view: View, hook_point: str, centre: float, height: float, decimals: int
) -> dict[str, Any]:
    """Return the range in which the class means lie when the labels mean nothing."""
    if hook_point not in view.null:
        return {"x": [], "y": []}
    half = view.null[hook_point] / 2
    if not view.is_cosine:
        row = view.projections.hook_points.index(hook_point)
        column = view.projections.positions.index(view.position)
        half *= view.norms[row, column].item()
    low, high = round(centre - half, decimals), round(centre + half, decimals)
    return {"x": [low, high, high, low], "y": [0, 0, height, height]}


def _line_data(
    x: float, height: float, decimals: int, label: str, side: str = "top center"
) -> dict[str, Any]:
    return {
        "x": [round(x, decimals)] * 2,
        "y": [0, height],
        "text": [BLANK, f"<b> {label} {written(x, max(0, decimals - 2))} </b>"],
        "textposition": side,
    }


def _headline_data(headline: str) -> dict[str, Any]:
    return {"x": [0], "y": [1], "text": [headline], "textposition": "bottom right"}


def decimals_of(numbers: Float[Tensor, " n_prompts"]) -> int:
    """Return how many decimals keep five significant digits of the spread.

    Not of the numbers: far from zero those would put neighbours on top of each other.
    """
    spread = float(numbers.max() - numbers.min()) or float(numbers.abs().max()) or 1.0
    return 4 - math.floor(math.log10(spread))


def _headline(view: View, row: int, column: int) -> str:
    place = place_name(view.projections.hook_points[row], view.position)
    place = f"{place} · {view.method}" if view.method else place
    scores = view.separation
    score, accuracy, how = (
        (scores.separation, scores.accuracy, f"{scores.n_folds}-fold cross-fitted")
        if view.projections.is_held_out
        else (scores.separation_in_sample, scores.accuracy_in_sample, "in sample")
    )
    numbers = torch.stack([score[row, column], accuracy[row, column]])
    if bool(numbers.isnan().any()):
        return f"<b>{place}</b><br>no direction here"
    text = f"separation {written(numbers[0].item(), 2)} · accuracy {numbers[1].item():.1%}"
    return f"<b>{place}</b><br>{text}<br>{how}"


def step_name(step: int | str) -> str:
    """Write a step of the slider: a layer's number, or the name of what has none."""
    return str(step) if isinstance(step, int) else short_name(step)
