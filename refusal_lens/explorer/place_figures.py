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

from refusal_lens.plots.histogram_data import decimals_of
from refusal_lens.plots.style import HARMFUL_COLOUR, HARMLESS_COLOUR, NEUTRAL_COLOUR
from refusal_lens.plots.text import hover_prompt, signed
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.validation.densities import Histogram, shared_histogram

_GOLDEN = (math.sqrt(5) - 1) / 2
_OPAQUE, _DIMMED = 0.8, 0.12


@dataclass(frozen=True, eq=False)
class Marks:
    """What the marks of a figure say besides where they are.

    `is_harmful` are the labels, `is_listed` which prompts pass the filter (the others are dimmed),
    `selected` the rows of those picked out; with none picked out all look alike.
    """

    is_harmful: Bool[Tensor, " n_prompts"]
    is_listed: Bool[Tensor, " n_prompts"]
    selected: tuple[int, ...] = ()

    def rows(self, is_harmful: bool) -> list[int]:
        """Return the rows of one class, in order."""
        return (self.is_harmful == is_harmful).nonzero().flatten().tolist()


@dataclass(frozen=True)
class _Look:
    name: str
    is_harmful: bool
    colour: str
    symbol: str
    pattern: str


_LOOKS = (
    _Look("harmless", False, HARMLESS_COLOUR, "circle", ""),
    _Look("harmful", True, HARMFUL_COLOUR, "diamond", "/"),
)


# --- one place ---------------------------------------------------------------------------------


def place_histogram(
    numbers: Float[Tensor, " n_prompts"],
    threshold: float,
    marks: Marks,
    prompts: Sequence[Prompt],
    *,
    template: str = "plotly_white",
) -> go.Figure:
    """Draw both classes along the direction at one place, with a threshold that can be dragged.

    Args:
        numbers: Projections or cosines; all NaN where there is no direction.
        threshold: Prompts above it are called harmful, in the units of `numbers`.
        marks: Labels and what is picked out.
        prompts: In the order of `numbers`, for the hover.
        template: Name of a plotly template.

    Returns:
        Bars, a mark a prompt below them (`customdata` is its row), a cross over each that is on
        the wrong side, means, and the threshold as `layout.shapes[0]`.
    """
    traces = [_bars(look) for look in _LOOKS]
    traces += [_marks(look, marks.rows(look.is_harmful), prompts) for look in _LOOKS]
    for trace, look in zip(traces[2:], _LOOKS, strict=True):
        heights = _jitter(len(marks.rows(look.is_harmful)), int(look.is_harmful))
        trace.update(yaxis="y2", y=heights, showlegend=False)
    traces += [_crosses(), *(_mean_line(look) for look in _LOOKS)]
    figure = go.Figure(traces, {"template": template, **_histogram_layout()})
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
        return {"data": [nothing] * 7, "layout": {"shapes": [], "annotations": [_nothing_here()]}}
    histogram = shared_histogram(numbers, marks.is_harmful)
    digits = _decimals(numbers)
    top = int(max(histogram.n_harmful.max(), histogram.n_harmless.max()))
    data = [
        *_bar_data(histogram, digits),
        *(_mark_data(look, marks, digits, numbers) for look in _LOOKS),
        _cross_data(numbers, threshold, marks, digits),
        *_mean_data(numbers, marks, 1.08 * top, digits),
    ]
    shapes = [_threshold_shape(threshold, digits)]
    return {"data": data, "layout": {"shapes": shapes, "annotations": []}}


def _bar_data(histogram: Histogram, digits: int) -> list[dict[str, Any]]:
    edges = histogram.edges
    centres = [round(x, digits + 1) for x in ((edges[1:] + edges[:-1]) / 2).tolist()]
    width = float(edges[1] - edges[0])
    return [
        {"x": centres, "y": counts.tolist(), "width": width}
        for counts in (histogram.n_harmless, histogram.n_harmful)
    ]


def _mark_data(look: _Look, marks: Marks, digits: int, x: Tensor) -> dict[str, Any]:
    """Return the marks of one class."""
    rows = marks.rows(look.is_harmful)
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
    for look in _LOOKS:
        rows = marks.rows(look.is_harmful)
        heights = _jitter(len(rows), int(look.is_harmful))
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


def _mean_data(numbers: Tensor, marks: Marks, height: float, digits: int) -> list[dict[str, Any]]:
    """Return the lines of the class means, each labelled on its outer side."""
    means = [numbers[marks.is_harmful == look.is_harmful].mean().item() for look in _LOOKS]
    sides = ["top left", "top right"] if means[0] <= means[1] else ["top right", "top left"]
    return [
        {
            "x": [round(mean, digits)] * 2,
            "y": [0, height],
            "text": [" ", f"<b>mean {signed(mean, max(0, digits - 2))}</b>"],
            "textposition": side,
        }
        for mean, side in zip(means, sides, strict=True)
    ]


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


def _nothing_here() -> dict[str, Any]:
    return {
        "text": "<b>no direction here</b>",
        "showarrow": False,
        **{"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.6},
    }


def _bars(look: _Look) -> go.Bar:
    return go.Bar(
        name=look.name,
        legendgroup=look.name,
        opacity=0.65,
        marker={
            "color": look.colour,
            "line": {"color": look.colour, "width": 1},
            "pattern": {"shape": look.pattern, "fillmode": "replace", "size": 6, "solidity": 0.45},
        },
        hovertemplate=f"%{{y}} {look.name} prompts<br>around %{{x}}<extra></extra>",
    )


def _marks(look: _Look, rows: list[int], prompts: Sequence[Prompt]) -> go.Scatter:
    """Return one mark a prompt; texts are data of the trace, never part of the template."""
    return go.Scatter(
        name=look.name,
        legendgroup=look.name,
        mode="markers",
        customdata=rows,
        marker={"color": look.colour, "size": 7, "symbol": look.symbol},
        selected={"marker": {"opacity": 1, "size": 11}},
        unselected={"marker": {"opacity": _DIMMED}},
        hovertext=[_hover(prompts[row]) for row in rows],
        hovertemplate=f"%{{hovertext}}<br>{look.name} · %{{x}}<extra></extra>",
        hoverlabel={"align": "left"},
    )


def _crosses() -> go.Scatter:
    return go.Scatter(
        name="on the wrong side",
        yaxis="y2",
        mode="markers",
        marker={"symbol": "x-thin", "size": 10, "line": {"color": NEUTRAL_COLOUR, "width": 2}},
        hoverinfo="skip",
    )


def _mean_line(look: _Look) -> go.Scatter:
    return go.Scatter(
        name=f"{look.name} mean",
        legendgroup=look.name,
        showlegend=False,
        mode="lines+text",
        line={"color": look.colour, "width": 2, "dash": "dash"},
        textfont={"color": look.colour, "size": 12},
        cliponaxis=False,
        hoverinfo="skip",
    )


def _histogram_layout() -> dict[str, Any]:
    rows = {"tickvals": [0, 1], "ticktext": [look.name for look in _LOOKS], "range": [-0.6, 1.6]}
    return {
        "margin": {"l": 70, "r": 20, "t": 56, "b": 50},
        "barmode": "overlay",
        "bargap": 0,
        "hovermode": "closest",
        "dragmode": "select",
        "selectdirection": "any",
        **_see_through(),
        "legend": {"orientation": "h", "x": 0, "y": 1.1, "yanchor": "bottom"},
        "xaxis": {"anchor": "y2", "zeroline": False},
        "yaxis": {"title": {"text": "prompts per bin"}, "domain": [0.34, 1], "rangemode": "tozero",
                  "fixedrange": True},
        "yaxis2": {"domain": [0, 0.3], "fixedrange": True, "showgrid": False, "zeroline": False}
        | rows,
    }  # fmt: skip


# --- two places --------------------------------------------------------------------------------


def projection_scatter(
    x: Float[Tensor, " n_prompts"],
    y: Float[Tensor, " n_prompts"],
    marks: Marks,
    prompts: Sequence[Prompt],
    *,
    template: str = "plotly_white",
) -> go.Figure:
    """Draw every prompt by its projections at two places.

    Args:
        x: Projections or cosines at one place.
        y: The same prompts at the other.
        marks: Labels and what is picked out.
        prompts: In that order, for the hover.
        template: Name of a plotly template.
    """
    traces = [_marks(look, marks.rows(look.is_harmful), prompts) for look in _LOOKS]
    for trace in traces:
        trace.hovertemplate = f"%{{hovertext}}<br>{trace.name} · %{{x}}, %{{y}}<extra></extra>"
    layout = {
        "margin": {"l": 70, "r": 20, "t": 40, "b": 50},
        "hovermode": "closest",
        "dragmode": "lasso",
        **_see_through(),
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {"zeroline": False},
        "yaxis": {"zeroline": False},
    }
    figure = go.Figure(traces, {"template": template, **layout})
    _apply(figure, scatter_changes(x, y, marks))
    return figure


def scatter_changes(
    x: Float[Tensor, " n_prompts"], y: Float[Tensor, " n_prompts"], marks: Marks
) -> dict[str, Any]:
    """Return what other places, filters or selections change in `projection_scatter`."""
    along = _decimals(x)
    data = [_mark_data(look, marks, along, x) for look in _LOOKS]
    digits = _decimals(y)
    for look, changes in zip(_LOOKS, data, strict=True):
        across = y[marks.rows(look.is_harmful)].tolist()
        changes["y"] = [round(number, digits) for number in across]
    has_none = bool(x.isnan().any() or y.isnan().any())
    if has_none:
        data = [{"x": [], "y": []} for _ in _LOOKS]
    return {"data": data, "layout": {"annotations": [_nothing_here()] if has_none else []}}


# --- common ------------------------------------------------------------------------------------


def _apply(figure: Any, changes: dict[str, Any]) -> None:
    for trace, values in zip(figure.data, changes["data"], strict=True):
        for key, value in values.items():
            # Arrays of numbers pass plotly's checks much faster than lists.
            is_numbers = key in ("x", "y") and len(value) > 2
            trace[key] = np.array(value) if is_numbers else value
    for key, value in changes["layout"].items():
        figure.layout[key] = value


def _see_through() -> dict[str, Any]:
    """Let the page's own background show, whether it is light or dark."""
    clear = "rgba(0,0,0,0)"
    return {"paper_bgcolor": clear, "plot_bgcolor": clear, "modebar_bgcolor": clear}


def _hover(prompt: Prompt) -> str:
    return hover_prompt(prompt.id, prompt.category, prompt.text)


def _jitter(n: int, row: int) -> list[float]:
    """Spread the marks of a row so that neighbours can be told apart; the same every time."""
    return np.round(row + 0.7 * ((np.arange(n) * _GOLDEN) % 1 - 0.5), 3).tolist()


def _decimals(numbers: Tensor) -> int:
    """Return how many decimals to send; any will do where there is no number."""
    return 4 if bool(numbers.isnan().any()) else decimals_of(numbers)
