"""All places at a glance, as panels of the page: a heatmap to click and a ridgeline of all layers.

Knows how figures of `plots` fit into the page, and what marks one place in them.
"""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from refusal_lens import plots
from refusal_lens.plots.comparison import cell_names, cell_order
from refusal_lens.plots.parts import Parts
from refusal_lens.plots.style import NEUTRAL_COLOUR
from refusal_lens.validation.densities import Ridges

SEE_THROUGH = dict.fromkeys(("paper_bgcolor", "plot_bgcolor", "modebar_bgcolor"), "rgba(0,0,0,0)")
"""Lets the page's own background show, whether it is light or dark."""


def place_heatmap(frame: pd.DataFrame, score: str) -> go.Figure:
    """Draw one score of every place, one row each."""
    figure = _embedded(plots.place_heatmap(frame, score))
    # A panel has no room for the numbers: the pointer tells them.
    return figure.update_traces(texttemplate=None).update_xaxes(title_text="layer", nticks=12)


def ridgeline(ridges: Ridges, parts: Parts) -> go.Figure:
    """Draw all parts at every layer of one site and position."""
    figure = _embedded(plots.ridgeline([ridges], [parts.styles]))
    legend = {"y": 1, "yref": "paper", "yanchor": "bottom"}
    return figure.update_layout(margin={"l": 60, "r": 10, "t": 30, "b": 50}, legend=legend)


def _embedded(figure: go.Figure) -> go.Figure:
    """Take off what the page says, and let the figure fill its panel."""
    figure.update_layout(title=None, height=None, **SEE_THROUGH)
    return figure.update_xaxes(fixedrange=True).update_yaxes(fixedrange=True)


def ridge_highlight(row: int) -> list[dict[str, Any]]:
    """Return the shapes that mark one hook point of a ridgeline."""
    stripe = {"type": "line", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": row, "y1": row}
    return [{**stripe, "line": {"color": NEUTRAL_COLOUR, "width": 3}, "layer": "below"}]


def heatmap_highlight(frame: pd.DataFrame, hook_point: str, position: str) -> list[dict[str, Any]]:
    """Return the shapes that mark one place of the heatmap of a frame."""
    columns, rows = cell_order(frame)
    column, row = cell_names(frame)[hook_point, position]
    x, y = columns.index(column), rows.index(row)
    box = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
    outline = {"type": "rect", "xref": "x", "yref": "y", **box}
    # Two lines, so that it stands out on the light and the dark end of the scale.
    return [
        {**outline, "line": {"color": "black", "width": 5}},
        {**outline, "line": {"color": "white", "width": 2}},
    ]
