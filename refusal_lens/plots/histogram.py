"""The projection histogram: both classes at one place, a slider over the hook points.

Knows what one place looks like. Bins and scores come from `validation`.
"""

import html
import itertools
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.hook_points import layer_of, short_name, site_of
from refusal_lens.plots.style import HARMFUL_COLOUR, HARMLESS_COLOUR, NEUTRAL_COLOUR
from refusal_lens.prompts import Prompt
from refusal_lens.validation import Histogram, Projections, Separation, shared_histogram

HOVER_LENGTH = 100
"""Characters of a prompt shown on hover."""

_TICK, _CROSS = 142, 134
"""Plotly's numbers of the symbols `line-ns-open` and `x-thin-open`: shorter than their names."""

_BLANK = " "
"""A point without a label: plotly.js never labels a point again whose text was once empty."""


@dataclass(frozen=True)
class _ClassStyle:
    """How one class looks; `row` is its height among the marks."""

    name: str
    is_harmful: bool
    colour: str
    outline: str
    pattern: str
    row: int


_CLASSES = (
    _ClassStyle("harmless", False, HARMLESS_COLOUR, "white", "", 0),
    _ClassStyle("harmful", True, HARMFUL_COLOUR, HARMFUL_COLOUR, "/", 1),
)


def projection_histogram(
    projections: Projections,
    separation: Separation,
    prompts: Sequence[Prompt],
    *,
    initial: tuple[str, str] | None = None,
    template: str = "plotly_white",
) -> go.Figure:
    """Draw both classes along the direction at every place, one place at a time.

    A slider goes over the hook points and a menu over the positions, each leaving the other as it
    is: every position has traces of its own; the slider changes the data of all of them, the menu
    which are visible. Lines and headline are traces too, so that they follow.

    Args:
        projections: Every prompt at every place.
        separation: Scores of the same places, for the headline.
        prompts: In the order of the projections' rows.
        initial: Hook point and position shown first; None takes the highest separation.
        template: Name of a plotly template.

    Returns:
        The figure, as wide as its container.

    Raises:
        RefusalLensError: The prompts are not those of the projections, or there is no such place.
    """
    _check_same(projections, separation, prompts)
    row, column = _initial_place(separation, initial)
    data = [
        [_place_data(projections, separation, at_row, at_column)
         for at_column in range(len(projections.positions))]
        for at_row in range(len(projections.hook_points))
    ]  # fmt: skip
    figure = go.Figure()
    for at_column in range(len(projections.positions)):
        traces = _position_traces(prompts, projections, data[row][at_column])
        figure.add_traces([trace.update(visible=at_column == column) for trace in traces])
    figure.add_trace(_misread_key())
    figure.update_layout(template=template, **_histogram_layout())
    if _highest_bar(data) <= 8:
        figure.update_layout(yaxis_dtick=1)  # there are no half prompts
    if len(projections.hook_points) > 1:
        of_steps = [list(itertools.chain.from_iterable(of_positions)) for of_positions in data]
        figure.update_layout(sliders=[_slider(projections.hook_points, of_steps, row)])
    if len(projections.positions) > 1:
        n_traces = len(data[row][column])
        figure.update_layout(updatemenus=[_position_menu(projections.positions, n_traces, column)])
    return figure


# --- checks and places ------------------------------------------------------------------------


def _check_same(
    projections: Projections, separation: Separation, prompts: Sequence[Prompt]
) -> None:
    if len(prompts) != len(projections.is_harmful):
        raise RefusalLensError(
            f"A histogram needs the prompts that were projected, {len(projections.is_harmful)} of "
            f"them, but {len(prompts)} came. Pass the prompts that were collected, in that order."
        )
    ours = (projections.hook_points, projections.positions)
    if ours != (separation.hook_points, separation.positions):
        raise RefusalLensError(
            "Projections and scores need the same places, but the projections are of "
            f"{_said(*ours)} and the scores of "
            f"{_said(separation.hook_points, separation.positions)}. "
            "Pass both as one call of validate returned them."
        )


def _said(hook_points: tuple[str, ...], positions: tuple[str, ...]) -> str:
    return f"{', '.join(map(short_name, hook_points))} at {', '.join(positions)}"


def _initial_place(separation: Separation, initial: tuple[str, str] | None) -> tuple[int, int]:
    """Return row and column of the place to start at."""
    if initial is None:
        flat = int(separation.separation.nan_to_num(nan=-math.inf).argmax())
        return divmod(flat, len(separation.positions))
    hook_point, position = initial
    if hook_point not in separation.hook_points or position not in separation.positions:
        raise RefusalLensError(
            f"The histogram cannot start at {hook_point}, {position}: there is only "
            f"{_said(separation.hook_points, separation.positions)}. Choose initial among these."
        )
    return separation.hook_points.index(hook_point), separation.positions.index(position)


# --- what changes from place to place -----------------------------------------------------------


def _place_data(
    projections: Projections, separation: Separation, row: int, column: int
) -> list[dict[str, Any]]:
    """Return what the traces of a position show at one hook point, in the traces' order."""
    numbers = projections.values[:, row, column]
    threshold = projections.thresholds[row, column].item()
    headline = _headline(projections, separation, row, column)
    if bool(numbers.isnan().any()) or math.isnan(threshold):
        return _empty_data(headline)
    is_right = projections.is_called_harmful[:, row, column] == projections.is_harmful
    histogram = shared_histogram(numbers, projections.is_harmful)
    decimals = _decimals(numbers)
    top = int(max(histogram.n_harmful.max(), histogram.n_harmless.max()))
    masks = [projections.is_harmful == style.is_harmful for style in _CLASSES]
    means = [numbers[mask].mean().item() for mask in masks]
    return [
        *_bar_data(histogram, decimals),
        *(
            _mark_data(style, numbers[mask], is_right[mask], decimals)
            for style, mask in zip(_CLASSES, masks, strict=True)
        ),
        *_mean_data(means, 1.1 * top, decimals),
        _line_data(threshold, 1.25 * top, decimals, "threshold"),
        {"x": [round(threshold, decimals)] * 2, "y": [-0.6, 1.6]},
        _headline_data(headline),
    ]


def _empty_data(headline: str) -> list[dict[str, Any]]:
    """Return what is shown where there is no direction."""
    nothing: dict[str, Any] = {"x": [], "y": []}
    note = {
        "x": [0, None, 0],
        "y": [0.5, None, 1],
        "text": ["<b>no direction here</b>", _BLANK, _BLANK],
        "textposition": "middle center",
    }
    return [nothing] * 6 + [note, nothing, _headline_data(headline)]


def _bar_data(histogram: Histogram, decimals: int) -> list[dict[str, Any]]:
    edges = histogram.edges
    centres = [round(x, decimals + 1) for x in ((edges[1:] + edges[:-1]) / 2).tolist()]
    width = round(float(edges[1] - edges[0]), decimals + 2)
    return [
        {"x": centres, "y": counts.tolist(), "width": width}
        for counts in (histogram.n_harmless, histogram.n_harmful)
    ]


def _mark_data(
    style: _ClassStyle, numbers: Tensor, is_right: Tensor, decimals: int
) -> dict[str, Any]:
    """Return one mark a prompt, all of a class in one row."""
    return {
        "y": [style.row] * len(numbers),
        "x": [round(x, decimals) for x in numbers.tolist()],
        "marker.symbol": [_TICK if right else _CROSS for right in is_right.tolist()],
        "customdata": ["right" if right else "wrong" for right in is_right.tolist()],
    }


def _mean_data(means: list[float], height: float, decimals: int) -> list[dict[str, Any]]:
    """Return the lines of the class means, each labelled on its outer side."""
    sides = ["middle left", "middle right"]
    if means[0] > means[1]:
        sides.reverse()
    return [
        _line_data(mean, height, decimals, "mean", side)
        for mean, side in zip(means, sides, strict=True)
    ]


def _highest_bar(data: list[list[list[dict[str, Any]]]]) -> int:
    places = itertools.chain.from_iterable(data)
    return max((count for place in places for bars in place[:2] for count in bars["y"]), default=0)


def _line_data(
    x: float, height: float, decimals: int, label: str, side: str = "top center"
) -> dict[str, Any]:
    text = f"<b> {label} {_signed(x, max(0, decimals - 2))} </b>"
    return {
        "x": [round(x, decimals)] * 2,
        "y": [0, height],
        "text": [_BLANK, text],
        "textposition": side,
    }


def _headline_data(headline: str) -> dict[str, Any]:
    return {"x": [0], "y": [1], "text": [headline], "textposition": "bottom right"}


def _decimals(numbers: Tensor) -> int:
    """Return how many decimals keep five significant digits of the spread.

    Not of the numbers: far from zero those would put neighbours on top of each other.
    """
    spread = float(numbers.max() - numbers.min()) or float(numbers.abs().max()) or 1.0
    return 4 - math.floor(math.log10(spread))


def _headline(projections: Projections, separation: Separation, row: int, column: int) -> str:
    place = f"{short_name(projections.hook_points[row])} · position {projections.positions[column]}"
    scores, accuracies, how = (
        (separation.separation, separation.accuracy, f"{separation.n_folds}-fold cross-fitted")
        if projections.is_held_out
        else (separation.separation_in_sample, separation.accuracy_in_sample, "in sample")
    )
    score, accuracy = scores[row, column].item(), accuracies[row, column].item()
    if math.isnan(score) or math.isnan(accuracy):
        return f"<b>{place}</b><br>no direction here"
    return f"<b>{place}</b><br>separation {_signed(score, 2)} · accuracy {accuracy:.1%} · {how}"


def _signed(number: float, decimals: int) -> str:
    """Write a number with a real minus sign, and zero without any."""
    return f"{round(number, decimals) + 0.0:.{decimals}f}".replace("-", "−")


# --- what stays: traces, layout, controls -----------------------------------------------------


def _position_traces(
    prompts: Sequence[Prompt], projections: Projections, data: list[dict[str, Any]]
) -> list[go.Bar | go.Scatter]:
    """Return the traces of one position, filled with the data of one hook point."""
    of_class = [
        [prompt for prompt, is_harmful in zip(prompts, projections.is_harmful, strict=True)
         if bool(is_harmful) == style.is_harmful]
        for style in _CLASSES
    ]  # fmt: skip
    traces = [
        *(_bars(style, len(own)) for style, own in zip(_CLASSES, of_class, strict=True)),
        *(_marks(style, own) for style, own in zip(_CLASSES, of_class, strict=True)),
        *(_line(f"{style.name} mean", style.colour, "dash") for style in _CLASSES),
        _line("threshold", NEUTRAL_COLOUR, "solid"),
        _line("threshold", NEUTRAL_COLOUR, "solid", yaxis="y2"),
        _headline_trace(),
    ]
    for trace, values in zip(traces, data, strict=True):
        for key, value in values.items():
            trace[key] = value
    return traces


def _bars(style: _ClassStyle, n_prompts: int) -> go.Bar:
    return go.Bar(
        name=f"{style.name} ({n_prompts})",
        legendgroup=style.name,
        opacity=0.65,
        marker={
            "color": style.colour,
            "line": {"color": style.outline, "width": 1},
            "pattern": {"shape": style.pattern, "fillmode": "replace", "size": 6, "solidity": 0.45},
        },
        hovertemplate=f"%{{y}} {style.name} prompts<br>around %{{x}}<extra></extra>",
    )


def _marks(style: _ClassStyle, prompts: Sequence[Prompt]) -> go.Scatter:
    """Return one mark a prompt; texts are data of the trace, never part of the template."""
    return go.Scatter(
        name=style.name,
        legendgroup=style.name,
        showlegend=False,
        yaxis="y2",
        mode="markers",
        marker={"color": style.colour, "size": 8, "line": {"color": style.colour, "width": 1.5}},
        hovertext=[_hover_text(prompt) for prompt in prompts],
        hovertemplate=(
            f"%{{hovertext}}<br>{style.name}, classified %{{customdata}}"
            "<br>projection %{x}<extra></extra>"
        ),
        hoverlabel={"align": "left"},
    )


def _hover_text(prompt: Prompt) -> str:
    text = " ".join(prompt.text.split())
    if len(text) > HOVER_LENGTH:
        text = re.sub(r"\s\S{0,20}$", "", text[: HOVER_LENGTH - 1]) + "…"
    lines = [_escape(line) for line in textwrap.wrap(text, 52)]
    return "<br>".join([f"<b>{_escape(prompt.id)}</b> · {_escape(prompt.category)}", *lines])


def _escape(text: str) -> str:
    """Escape what plotly would read as markup; a dollar would start a formula.

    Plotly reads numbered entities and a few named ones, which `&quot;` is not among.
    """
    return html.escape(text).replace("&quot;", "&#34;").replace("$", "&#36;")


def _line(name: str, colour: str, dash: str, yaxis: str = "y") -> go.Scatter:
    return go.Scatter(
        name=name,
        showlegend=False,
        yaxis=yaxis,
        mode="lines+text",
        line={"color": colour, "width": 2, "dash": dash},
        textfont={"color": colour, "size": 12},
        cliponaxis=False,
        hoverinfo="skip",
    )


def _headline_trace() -> go.Scatter:
    return go.Scatter(
        name="headline",
        showlegend=False,
        xaxis="x2",
        yaxis="y3",
        mode="text",
        textfont={"size": 15},
        cliponaxis=False,
        hoverinfo="skip",
    )


def _misread_key() -> go.Scatter:
    """Return the legend's entry for misread prompts, which belong to both classes."""
    return go.Scatter(
        name="misread prompt",
        x=[None],
        yaxis="y2",
        mode="markers",
        marker={
            "color": NEUTRAL_COLOUR,
            "size": 8,
            "symbol": _CROSS,
            "line": {"color": NEUTRAL_COLOUR, "width": 1.5},
        },
        hoverinfo="skip",
    )


def _histogram_layout() -> dict[str, Any]:
    """Return the layout: headline, legend, bars, marks and, below, the slider."""
    hidden = {"visible": False, "fixedrange": True, "range": [0, 1]}
    rows = {
        "tickvals": [0, 1],
        "ticktext": [style.name for style in _CLASSES],
        "range": [-0.6, 1.6],
    }
    return {
        "height": 620,
        "margin": {"l": 80, "r": 30, "t": 35, "b": 40},
        "barmode": "overlay",
        "bargap": 0,
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 0.86, "yanchor": "top", "itemwidth": 30},
        "xaxis": {
            "title": {"text": "projection on the unit direction (activation units)"},
            "anchor": "y2",
            "zeroline": False,
        },
        "yaxis": {
            "title": {"text": "prompts per bin"},
            "domain": [0.22, 0.74],
            "rangemode": "tozero",
        },
        "yaxis2": {"domain": [0, 0.18], "fixedrange": True, "showgrid": False, "zeroline": False}
        | rows,
        "xaxis2": hidden | {"anchor": "y3"},
        "yaxis3": hidden | {"domain": [0.88, 1], "anchor": "x2"},
    }


def _slider(
    hook_points: tuple[str, ...], of_steps: list[list[dict[str, Any]]], active: int
) -> dict[str, Any]:
    """Return the slider; with one site its steps are named by layer alone."""
    sites = {site_of(name) for name in hook_points}
    is_one_site = len(sites) == 1 and layer_of(hook_points[0]) is not None
    steps = [
        _slider_step(str(layer_of(name)) if is_one_site else short_name(name), data)
        for name, data in zip(hook_points, of_steps, strict=True)
    ]
    return {
        "active": active,
        "steps": steps,
        "currentvalue": {
            "prefix": f"{sites.pop()} " if is_one_site else "",
            "font": {"size": 14},
        },
        "pad": {"t": 68},
    }


def _slider_step(label: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a step that gives every trace its data.

    None resets what it is given for, so a key of one trace must be in the data of every trace that
    has it.
    """
    keys = dict.fromkeys(key for values in data for key in values)
    changes = {key: [values.get(key) for values in data] for key in keys}
    return {"method": "restyle", "label": label, "args": [changes, list(range(len(data)))]}


def _position_menu(positions: tuple[str, ...], n_traces: int, active: int) -> dict[str, Any]:
    """Return the menu of positions: it shows the traces of one, and changes nothing else."""
    buttons = [
        {
            "method": "restyle",
            "label": f"position {position}",
            "args": [{"visible": [shown == position for shown in positions for _ in range(n_traces)]
                      + [True]}],
        }
        for position in positions
    ]  # fmt: skip
    return {
        "type": "dropdown",
        "direction": "up",
        "active": active,
        "buttons": buttons,
        "x": 1,
        "xanchor": "right",
        "y": 0,
        "yanchor": "top",
        "pad": {"t": 50},
        # The chosen entry is nearly white under every template, so the letters must be dark.
        "bgcolor": "white",
        "font": {"color": "#2a3f5f"},
    }
