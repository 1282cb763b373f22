"""Figures of the explorer: one place with a threshold to drag, and two places against each other.

Knows what they show and what changes from place to place, so that only that need travel to the
page. Does not know where the numbers come from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.explorer.overview_figures import SEE_THROUGH
from refusal_lens.plots.histogram_data import bar_data, decimals_of, highest_bar, mean_data
from refusal_lens.plots.histogram_traces import class_bars, level_line, prompt_marks
from refusal_lens.plots.parts import Parts, mark_rows
from refusal_lens.plots.style import CLASSES, NEUTRAL_COLOUR, ClassStyle
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.validation.densities import shared_histogram

_GOLDEN = (math.sqrt(5) - 1) / 2
_OPAQUE, _DIMMED = 0.8, 0.12
_DRAWN_BY_THE_PAGE = {"maxdisplayed": 1}
"""Of marks that `assets/explorer.js` draws, since plotly takes long for many."""


@dataclass(frozen=True, eq=False)
class Marks:
    """What the marks of a figure say besides where they are.

    `is_harmful` are the labels, `parts` what is told apart, `is_listed` which prompts pass the
    filter (the others are dimmed), `selected` the rows of those picked out; with none picked out
    all look alike.
    """

    is_harmful: Bool[Tensor, " n_prompts"]
    parts: Parts
    is_listed: Bool[Tensor, " n_prompts"]
    selected: tuple[int, ...] = ()


# --- one place ---------------------------------------------------------------------------------


def place_histogram(
    numbers: Float[Tensor, " n_prompts"],
    threshold: float,
    marks: Marks,
    prompts: Sequence[Prompt],
) -> go.Figure:
    """Draw both classes along the direction at one place, with a threshold that can be dragged.

    `numbers` are projections or cosines, all NaN where there is no direction; prompts above
    `threshold` are called harmful.

    Returns:
        Bars, a mark a prompt below them (`customdata` is its row), a cross over each that is on
        the wrong side, means, and the threshold as `layout.shapes[0]`.
    """
    styles = marks.parts.styles
    traces = [class_bars(style, showlegend=not marks.parts.is_by_outcome) for style in styles]
    for label, style in enumerate(styles):
        rows = marks.parts.rows(label)
        heights = _jitter(marks.parts, label)
        traces += [_marks(style, rows, prompts).update(yaxis="y2", y=heights, showlegend=False)]
    traces += [_crosses()]
    traces += [
        level_line(f"{style.name} mean", style.colour, "dash") for style in marks.parts.classes
    ]
    figure = go.Figure(traces, _histogram_layout(marks.parts))
    _apply(figure, histogram_changes(numbers, threshold, marks))
    return figure


def histogram_changes(
    numbers: Float[Tensor, " n_prompts"], threshold: float, marks: Marks
) -> dict[str, Any]:
    """Return what another place, threshold, filter or selection changes in `place_histogram`.

    Returns:
        `data`, a mapping of property to value for each trace, and `layout`, likewise.
    """
    if bool(numbers.isnan().any()) or math.isnan(threshold):
        nothing: dict[str, Any] = {"x": []}
        return {
            "data": [nothing] * (2 * len(marks.parts.styles) + 3),
            "layout": {"shapes": [], "annotations": [_note_of_none()]},
        }
    digits = _decimals(numbers)
    bars = bar_data(
        marks.parts, shared_histogram(numbers, marks.is_harmful, marks.parts.labels), digits
    )
    top = highest_bar(marks.parts, bars)
    means = [numbers[marks.is_harmful == style.is_harmful].mean().item() for style in CLASSES]
    data = [
        *bars.values(),
        *(_mark_data(label, marks, digits, numbers) for label in range(len(marks.parts.styles))),
        _cross_data(numbers, threshold, marks, digits),
        *mean_data(marks.parts.classes, means, 1.08 * top, digits).values(),
    ]
    shapes = [_threshold_shape(threshold, digits)]
    return {"data": data, "layout": {"shapes": shapes, "annotations": []}}


def _mark_data(label: int, marks: Marks, digits: int, x: Tensor) -> dict[str, Any]:
    """Return the marks of one part."""
    rows = marks.parts.rows(label)
    is_on = marks.is_listed[rows].tolist()
    return {
        "x": [round(number, digits) for number in x[rows].tolist()],
        # One number for all draws much faster than one for each.
        "marker.opacity": _OPAQUE if all(is_on) else [_OPAQUE if on else _DIMMED for on in is_on],
        "selectedpoints": _selected_points(rows, marks.selected),
    }


def _cross_data(numbers: Tensor, threshold: float, marks: Marks, digits: int) -> dict[str, Any]:
    """Return the crosses over the marks on the wrong side of the threshold."""
    is_wrong = (numbers > threshold) != marks.is_harmful
    along, across = [], []
    for label in range(len(marks.parts.styles)):
        rows, heights = marks.parts.rows(label), _jitter(marks.parts, label)
        wrong = [point for point, row in enumerate(rows) if is_wrong[row]]
        along += [round(numbers[rows[point]].item(), digits) for point in wrong]
        across += [heights[point] for point in wrong]
    return {"x": along, "y": across}


def _selected_points(rows: list[int], selected: tuple[int, ...]) -> list[int] | None:
    """Return the points of a trace that are picked out; None where nothing is in any trace."""
    if not selected:
        return None
    wanted = set(selected)
    return [point for point, row in enumerate(rows) if row in wanted]


def _threshold_shape(threshold: float, digits: int) -> dict[str, Any]:
    """Return the line to drag (with `edits.shapePosition`); its label follows while it moves."""
    return {
        "type": "line",
        "name": "threshold",
        "xref": "x",
        "yref": "paper",
        "x0": threshold,
        "x1": threshold,
        "y0": 0,
        "y1": 1,
        "line": {"color": NEUTRAL_COLOUR, "width": 3},
        "label": {
            "texttemplate": f"threshold %{{x0:.{max(0, digits - 2)}f}}",
            "textposition": "end",
            "textangle": 0,
            "yanchor": "bottom",
            "xanchor": "center",
            "font": {"size": 12, "color": NEUTRAL_COLOUR},
        },
    }


def _note_of_none() -> dict[str, Any]:
    return {
        "text": "<b>no direction here</b>",
        "showarrow": False,
        **{"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.6},
    }


def _marks(style: ClassStyle, rows: list[int], prompts: Sequence[Prompt]) -> go.Scatter:
    """Return one mark a prompt that can be picked out; `customdata` is its row."""
    return prompt_marks(style, [prompts[row] for row in rows]).update(
        customdata=rows,
        marker={"size": 7, "symbol": style.symbol} | _DRAWN_BY_THE_PAGE,
        selected={"marker": {"opacity": 1, "size": 11}},
        unselected={"marker": {"opacity": _DIMMED}},
        hovertemplate=f"%{{hovertext}}<br>{style.name} · %{{x}}<extra></extra>",
    )


def _crosses() -> go.Scatter:
    return go.Scatter(
        name="on the wrong side",
        yaxis="y2",
        mode="markers",
        marker={
            **{"symbol": "x-thin", "size": 10, "line": {"color": NEUTRAL_COLOUR, "width": 2}},
            **_DRAWN_BY_THE_PAGE,
        },
        hoverinfo="skip",
    )


def _histogram_layout(parts: Parts) -> dict[str, Any]:
    rows = {"range": [-0.6, 1.6], "automargin": True, **mark_rows(parts)}
    return {
        "margin": {"l": 70, "r": 20, "t": 56, "b": 50},
        "barmode": "overlay",
        "bargap": 0,
        "hovermode": "closest",
        "dragmode": "select",
        "selectdirection": "any",
        **SEE_THROUGH,
        "legend": {"orientation": "h", "x": 0, "y": 1.1, "yanchor": "bottom"},
        "xaxis": {"anchor": "y2", "zeroline": False},
        "yaxis": {
            "title": {"text": "prompts per bin"},
            "domain": [0.34, 1],
            "rangemode": "tozero",
            "fixedrange": True,
        },
        "yaxis2": {"domain": [0, 0.3], "fixedrange": True, "showgrid": False, "zeroline": False}
        | rows,
    }


# --- two places --------------------------------------------------------------------------------


def projection_scatter(
    x: Float[Tensor, " n_prompts"],
    y: Float[Tensor, " n_prompts"],
    marks: Marks,
    prompts: Sequence[Prompt],
) -> go.Figure:
    """Draw every prompt by its projections, or cosines, at two places."""
    traces = [
        _marks(style, marks.parts.rows(label), prompts)
        for label, style in enumerate(marks.parts.styles)
    ]
    for trace in traces:
        trace.hovertemplate = f"%{{hovertext}}<br>{trace.name} · %{{x}}, %{{y}}<extra></extra>"
    layout = {
        "margin": {"l": 70, "r": 20, "t": 40, "b": 50},
        "hovermode": "closest",
        "dragmode": "select",
        **SEE_THROUGH,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {"zeroline": False},
        "yaxis": {"zeroline": False},
    }
    figure = go.Figure(traces, layout)
    _apply(figure, scatter_changes(x, y, marks))
    return figure


def scatter_changes(
    x: Float[Tensor, " n_prompts"], y: Float[Tensor, " n_prompts"], marks: Marks
) -> dict[str, Any]:
    """Return what other places, filters or selections change in `projection_scatter`."""
    labels, along = range(len(marks.parts.styles)), _decimals(x)
    data = [_mark_data(label, marks, along, x) for label in labels]
    digits = _decimals(y)
    for label, changes in zip(labels, data, strict=True):
        across = y[marks.parts.rows(label)].tolist()
        changes["y"] = [round(number, digits) for number in across]
    has_none = bool(x.isnan().any() or y.isnan().any())
    if has_none:
        data = [{"x": [], "y": []} for _ in labels]
    return {"data": data, "layout": {"annotations": [_note_of_none()] if has_none else []}}


# --- common ------------------------------------------------------------------------------------


def _apply(figure: Any, changes: dict[str, Any]) -> None:
    for trace, values in zip(figure.data, changes["data"], strict=True):
        for key, value in values.items():
            # Arrays of numbers pass plotly's checks much faster than lists.
            is_numbers = key in ("x", "y") and len(value) > 2
            trace[key] = np.array(value) if is_numbers else value
    for key, value in changes["layout"].items():
        figure.layout[key] = value


def _jitter(parts: Parts, label: int) -> list[float]:
    """Spread the marks of a row so that neighbours can be told apart; the same every time."""
    n, height = len(parts.rows(label)), 0.24 if parts.is_by_outcome else 0.7
    spread = height * ((np.arange(n) * _GOLDEN) % 1 - 0.5)
    return np.round(parts.styles[label].row + spread, 3).tolist()


def _decimals(numbers: Tensor) -> int:
    """Return how many decimals to send; any will do where there is no number."""
    return 4 if bool(numbers.isnan().any()) else decimals_of(numbers)
