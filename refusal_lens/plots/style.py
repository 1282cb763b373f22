"""The looks that figures share: one colour a class, everywhere.

Knows colours, shapes, themes and the frame around a figure. Draws no numbers.

Tested in tests/plots/test_histogram.py.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

HARMFUL_COLOUR = "#D55E00"
HARMLESS_COLOUR = "#0072B2"
"""Vermillion and blue of Okabe and Ito (2008): told apart by colour-blind readers too."""

NEUTRAL_COLOUR = "#767676"
"""Thresholds and bands; readable on white and on black."""

LINE_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#9467BD", "#8C8C00")
LINE_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
"""Lines of a profile: colours that stand for no class, and a symbol beside each."""

PRIVATE: dict[str, Any] = {
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["sendChartToCloud"],
}
"""Settings of every drawn page: plotly's "Share chart" would send the figure, and so the prompts in
it, to plotly's own site."""


def _theme(base: str, middle: str) -> go.layout.Template:
    """Return a template of plotly's whose signed numbers are in the colours of the classes.

    The middle of the scale is nearly the page's own colour: what is near zero recedes.
    """
    signed = [[0, HARMLESS_COLOUR], [0.5, middle], [1, HARMFUL_COLOUR]]
    theme = go.layout.Template(pio.templates[base])
    return theme.update(layout={"colorscale": {"diverging": signed}})


LIGHT = _theme("plotly_white", "#f4f4f4")
DARK = _theme("plotly_dark", "#2e2e2e")
"""Figures are drawn in the first; `figure.update_layout(template=DARK)` puts on the other."""

THEMES = {"light": LIGHT, "dark": DARK}


@dataclass(frozen=True)
class ClassStyle:
    """How one class looks: by colour, and by shape for those who see none.

    `row` is its height among the marks, where classes are 1 apart.
    """

    name: str
    is_harmful: bool
    colour: str
    outline: str
    pattern: str
    symbol: str
    dash: str
    row: float


CLASSES = (
    ClassStyle("harmless", False, HARMLESS_COLOUR, "white", "", "circle", "dash", 0.0),
    ClassStyle("harmful", True, HARMFUL_COLOUR, HARMFUL_COLOUR, "/", "diamond", "solid", 1.0),
)


Classes = tuple[ClassStyle, ClassStyle]
"""How the classes look, harmless first: `style = classes[is_harmful]`."""


def named(harmless: str, harmful: str) -> Classes:
    """Return the classes under other names, such as answered and refused."""
    return replace(CLASSES[0], name=harmless), replace(CLASSES[1], name=harmful)


@dataclass(frozen=True)
class LineLook:
    """How one line of several looks; sizes in pixels."""

    colour: str
    symbol: str
    dash: str = "solid"
    width: float = 2.0
    size: float = 8.0
    is_hollow: bool = False


def line_looks() -> Iterator[LineLook]:
    """Yield a look a line, without end; colour and symbol differ together."""
    for colour, symbol in zip(
        itertools.cycle(LINE_COLOURS), itertools.cycle(LINE_SYMBOLS), strict=False
    ):
        yield LineLook(colour, symbol)


def line(
    name: str, x: Iterable[Any], y: Iterable[float], look: LineLook, hover: str, **more: Any
) -> go.Scatter:
    """Return a line with a mark a point, which shrink where there are many.

    Its name in the legend turns it off and on with all others of this name; `hover` is the template
    of what is said at a point; `more` is anything else of the trace.
    """
    places = list(x)
    return go.Scatter(
        name=name,
        x=places,
        y=list(y),
        line={"color": look.colour, "width": look.width, "dash": look.dash},
        marker={
            "symbol": f"{look.symbol}-open" if look.is_hollow else look.symbol,
            "size": look.size if len(places) < 40 else look.size / 2,
        },
        hovertemplate=f"{hover}<extra></extra>",
        # A mark at the end of a scale is drawn whole.
        cliponaxis=False,
        **{"mode": "lines+markers", "legendgroup": name, **more},
    )


def whiskers(rows: pd.DataFrame, column: str, scale: float = 1.0) -> dict[str, Any]:
    """Return the error bars of a column by its `_low` and `_high`."""
    value, low, high = (scale * rows[column + end] for end in ("", "_low", "_high"))
    ends = {"array": (high - value).tolist(), "arrayminus": (value - low).tolist()}
    return {"thickness": 2, **ends}


def hatched(colour: str, pattern: str) -> dict[str, Any]:
    """Return the marker of bars that a pattern tells apart where colour does not."""
    return {"color": colour, "pattern": {"shape": pattern, "solidity": 0.3}}


def limit_line(
    figure: go.Figure, row: int, height: float, text: str, dash: str = "dash", **annotation: Any
) -> None:
    """Draw a level across one panel, labelled in the right margin."""
    figure.add_hline(
        height,
        row=row,  # pyright: ignore[reportArgumentType]
        col=1,  # pyright: ignore[reportArgumentType]
        line={"color": NEUTRAL_COLOUR, "width": 1, "dash": dash},
        annotation={"text": text, "font": {"size": 11}, **annotation},
        annotation_position="right",
    )


def menu(buttons: list[dict[str, Any]], **place: Any) -> dict[str, Any]:
    """Return a drop-down menu that can be read under every theme."""
    # The chosen entry is nearly white under every theme, so the letters must be dark.
    looks = {"bgcolor": "white", "font": {"color": "#2a3f5f"}, "yanchor": "bottom"}
    return {"buttons": buttons, "y": 1, "pad": {"b": 6}, **looks, **place}


def faded(colour: str, opacity: float) -> str:
    """Write a `#rrggbb` colour with an opacity in [0, 1]."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def ribbon(
    rows: pd.DataFrame, x: str, column: str, colour: str, *, scale: float = 1.0, **looks: Any
) -> go.Scatter:
    """Return the area between `<column>_low` and `<column>_high`, multiplied by `scale`, over `x`.

    Where one of them is NaN there is none. The rows are sorted by `x`; `looks` is anything else of
    the trace.
    """
    is_missing = rows[[f"{column}_low", f"{column}_high"]].isna().to_numpy().any(axis=1)
    across, along = list[float | None](), list[float | None]()
    for _, run in rows[~is_missing].groupby(np.cumsum(is_missing)[~is_missing]):
        low, high = ((scale * run[f"{column}_{end}"]).tolist() for end in ("low", "high"))
        # plotly closes each area at a gap.
        across += [*run[x], *reversed(run[x].tolist()), None]
        along += [*low, *reversed(high), None]
    return go.Scatter(
        x=across[:-1],
        y=along[:-1],
        mode="lines",
        line={"width": 0},
        fill="toself",
        hoverinfo="skip",
        **{"showlegend": False, "fillcolor": faded(colour, 0.2), **looks},
    )


def ring(name: str, x: Iterable[Any], y: Iterable[float], **more: Any) -> go.Scatter:
    """Return rings around points that stand out among the marks of lines."""
    looks = {"symbol": "circle-open", "size": 17, "color": NEUTRAL_COLOUR, "line": {"width": 3}}
    return go.Scatter(
        name=name, x=list(x), y=list(y), mode="markers", marker=looks, hoverinfo="skip", **more
    )


def layer_axis(last: int) -> dict[str, Any]:
    """Return an axis over layers 0 to `last` whose ticks do not run into each other."""
    dtick = 1 if last < 16 else 5 if last < 40 else 10
    return {"dtick": dtick, "tick0": 0, "range": [-0.4 - last / 60, last + 0.4 + last / 60]}


def roomy(numbers: Iterable[float], most: float = math.inf) -> list[float]:
    """Return the ends of an axis over these numbers: equal ones still get a little room.

    NaN is passed over; nobody should read a tick beyond `most`, where the scale ends.

    Example:
        >>> roomy([1.0, 1.0]), roomy([1.0, 1.0], most=1.0)
        ([0.99, 1.01], [0.99, 1.0])
    """
    known = [number for number in numbers if not math.isnan(number)] or [0.0]
    room = max(0.06 * (max(known) - min(known)), 0.01)
    return [min(known) - room, min(max(known) + room, most)]


def heading(title: str, subtitle: str = "") -> dict[str, Any]:
    """Return the title of a figure, in its upper left corner."""
    return {
        "text": title,
        "font": {"size": 15},
        **({"subtitle": {"text": subtitle, "font": {"size": 12}}} if subtitle else {}),
        **{"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 14, "t": 14}},
        **{"y": 1, "yref": "container", "yanchor": "top"},
    }


def dress(
    figure: go.Figure,
    title: str,
    *,
    subtitle: str = "",
    height: int = 480,
    **layout: Any,
) -> go.Figure:
    """Give a figure its title, theme and the room around it, and return it.

    The legend lies below, where it takes no width from the plot on a phone. Title and subtitle are
    a line each, short enough for a phone; `layout` is anything else of the layout.
    """
    figure.update_layout(
        template=LIGHT,
        title=heading(title, subtitle),
        height=height,
        hovermode="closest",
        margin={"l": 70, "r": 30, "t": 74 if subtitle else 54, "b": 60},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
    )
    return figure.update_layout(**layout)


def empty(title: str, text: str) -> go.Figure:
    """Return a figure without data that says why there is none."""
    figure = dress(go.Figure(), title, height=200)
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.add_annotation(
        text=text,
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 14},
    )


def name_rows(figure: go.Figure, **axis: Any) -> None:
    """Make every vertical axis one of names, with room for them."""
    figure.update_yaxes(type="category", automargin=True, ticklabelstandoff=5, **axis)
