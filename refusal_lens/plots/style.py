"""The looks that figures share: one colour a class, everywhere.

Knows colours, shapes, templates and the frame around a figure. Draws no numbers.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

HARMFUL_COLOUR = "#D55E00"
HARMLESS_COLOUR = "#0072B2"
"""Vermillion and blue of Okabe and Ito (2008): told apart by colour-blind readers too."""

NEUTRAL_COLOUR = "#767676"
"""Thresholds and bands; readable on white and on black."""

LINE_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#9467BD", "#8C8C00")
LINE_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
"""Lines of a profile: colours that stand for no class, and a symbol beside each."""

LIGHT, DARK = "plotly_white", "plotly_dark"
"""Templates that every figure was looked at in."""


@dataclass(frozen=True)
class ClassStyle:
    """How one class looks: by colour, and by shape for those who see none.

    `row` is its height among the marks.
    """

    name: str
    is_harmful: bool
    colour: str
    outline: str
    pattern: str
    symbol: str
    dash: str
    row: int


CLASSES = (
    ClassStyle("harmless", False, HARMLESS_COLOUR, "white", "", "circle", "dash", 0),
    ClassStyle("harmful", True, HARMFUL_COLOUR, HARMFUL_COLOUR, "/", "diamond", "solid", 1),
)


def style_of(is_harmful: bool) -> ClassStyle:
    """Return how a class looks."""
    return CLASSES[int(is_harmful)]


def line_looks() -> Iterator[tuple[str, str]]:
    """Yield a colour and a symbol a line, without end."""
    return zip(itertools.cycle(LINE_COLOURS), itertools.cycle(LINE_SYMBOLS), strict=False)


def faded(colour: str, opacity: float) -> str:
    """Write a `#rrggbb` colour with an opacity in [0, 1]."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def signed_scale(template: str) -> list[list[Any]]:
    """Return the colours of signed numbers: harmless below zero, harmful above.

    The middle is the page's own: what is near zero recedes.
    """
    middle = "#2e2e2e" if "dark" in template else "#f4f4f4"
    return [[0.0, HARMLESS_COLOUR], [0.5, middle], [1.0, HARMFUL_COLOUR]]


def band(x: Iterable[Any], low: Iterable[float], high: Iterable[float], **looks: Any) -> go.Scatter:
    """Return an area between two lines; points where an edge is NaN are left out.

    Args:
        x: Where, ascending.
        low: Lower edge.
        high: Upper edge.
        looks: Anything else of the trace.
    """
    edges = [
        edge
        for edge in zip(x, low, high, strict=True)
        if not (math.isnan(edge[1]) or math.isnan(edge[2]))
    ]
    return go.Scatter(
        x=[edge[0] for edge in edges] + [edge[0] for edge in reversed(edges)],
        y=[edge[1] for edge in edges] + [edge[2] for edge in reversed(edges)],
        mode="lines",
        line={"width": 0},
        fill="toself",
        hoverinfo="skip",
        **looks,
    )


def layer_axis(last: int) -> dict[str, Any]:
    """Return an axis over layers 0 to `last` whose ticks do not run into each other."""
    dtick = 1 if last < 16 else 5 if last < 40 else 10
    return {"dtick": dtick, "tick0": 0, "range": [-0.4 - last / 60, last + 0.4 + last / 60]}


def dress(
    figure: go.Figure, template: str, title: str, *, height: int = 480, **layout: Any
) -> go.Figure:
    """Give a figure its title, template and the room around it, and return it.

    The legend lies below, where it takes no width from the plot on a phone.

    Args:
        figure: Changed in place.
        template: Name of a plotly template.
        title: One line, or two (`<br>`).
        height: In pixels.
        layout: Anything else of the layout.
    """
    n_lines = title.count("<br>") + 1
    figure.update_layout(
        template=template,
        title={"text": title, "x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 14},
               "y": 1, "yref": "container", "yanchor": "top", "font": {"size": 15}},
        height=height,
        hovermode="closest",
        margin={"l": 70, "r": 30, "t": 34 + 20 * n_lines, "b": 60},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
    )  # fmt: skip
    figure.update_layout(title_pad_t=14)
    return figure.update_layout(**layout)


def empty(template: str, title: str, said: str) -> go.Figure:
    """Return a figure without data that says why there is none."""
    figure = dress(go.Figure(), template, title, height=200)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.add_annotation(text=said, x=0.5, y=0.5, xref="paper", yref="paper",
                                 showarrow=False, font={"size": 14})  # fmt: skip
