"""All places at a glance: a heatmap of scores to click, and a ridgeline of all layers.

Knows how they look. Scores and projections come from `validation`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.models.hook_points import layer_of, short_name, site_of
from refusal_lens.plots.style import HARMFUL_COLOUR, HARMLESS_COLOUR, NEUTRAL_COLOUR

_N_BINS, _N_GRID = 256, 81
_HEIGHT = 1.7
"""Of a ridge, in rows: neighbours overlap a little."""


def place_heatmap(
    frame: pd.DataFrame, score: str = "separation", *, template: str = "plotly_white"
) -> go.Figure:
    """Draw one score of every place: layers upwards, a column for each site and position.

    Args:
        frame: One row a place, as `Separation.to_frame` returns it.
        score: The column to show.
        template: Name of a plotly template.

    Returns:
        The figure; `customdata` of a cell is its hook point and position.
    """
    rows, columns = _heatmap_axes(frame)
    values = np.full((len(rows), len(columns)), np.nan)
    places: list[list[list[str] | None]] = [[None] * len(columns) for _ in rows]
    told = zip(frame["hook_point"], frame["position"], frame[score], strict=True)
    for hook_point, position, value in told:
        row = rows.index(_row_of(hook_point))
        column = columns.index((site_of(hook_point), position))
        values[row, column] = value
        places[row][column] = [hook_point, position]
    return go.Figure(
        go.Heatmap(
            z=[[None if math.isnan(number) else round(number, 4) for number in row]
               for row in values.tolist()],
            x=[_column_label(*column) for column in columns],
            y=[_row_label(row) for row in rows],
            customdata=places,
            colorscale="Cividis",
            colorbar={"thickness": 12, "title": {"text": score.replace("_", " ")}},
            xgap=1,
            ygap=1,
            hovertemplate="%{customdata[0]}<br>position %{customdata[1]}"
            f"<br>{score} %{{z:.3f}}<extra></extra>",
        ),
        {
            "template": template,
            "margin": {"l": 50, "r": 10, "t": 20, "b": 60},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": {"type": "category", "fixedrange": True, "showgrid": False},
            "yaxis": {"type": "category", "title": {"text": "layer"}, "fixedrange": True,
                      "showgrid": False, "nticks": 17},
        },
    )  # fmt: skip


def ridgeline(
    numbers: Float[Tensor, "n_prompts n_hook_points"],
    is_harmful: Bool[Tensor, " n_prompts"],
    hook_points: Sequence[str],
    *,
    axis_title: str,
    template: str = "plotly_white",
) -> go.Figure:
    """Draw both classes at every hook point of a site, one ridge above the other.

    Ridges are densities, each hook point's scaled to the same height: what is compared is where
    the classes lie, not how narrow they are. All ridges of a class are one trace, so that 80 layers
    draw as fast as 8.

    Args:
        numbers: Projections or cosines; NaN where there is no direction.
        is_harmful: Labels.
        hook_points: Names of the columns.
        axis_title: What the numbers are.
        template: Name of a plotly template.
    """
    finite = numbers[:, ~numbers.isnan().any(dim=0)]
    low, high = (finite.min().item(), finite.max().item()) if finite.numel() else (0.0, 1.0)
    room = 0.03 * ((high - low) or 1.0)
    grid = np.linspace(low - room, high + room, _N_GRID)
    gap = [np.nan]
    x, harmless, harmful = [], [], []
    for row in range(len(hook_points)):
        ridges = _ridges(numbers[:, row].numpy(), is_harmful.numpy(), grid)
        if ridges is not None:
            x.append(np.concatenate([grid[:1], grid, grid[-1:], gap]))
            for lines, ridge in zip((harmless, harmful), ridges, strict=True):
                lines.append(np.concatenate([[row], row + _HEIGHT * ridge, [row], gap]))
    traces = [
        _ridge_trace("harmless", HARMLESS_COLOUR, "dot", x, harmless),
        _ridge_trace("harmful", HARMFUL_COLOUR, "solid", x, harmful),
    ]
    return go.Figure(traces, {"template": template, **_ridge_layout(hook_points, axis_title)})


def ridge_highlight(row: int) -> list[dict[str, Any]]:
    """Return the shapes that mark one hook point of a ridgeline."""
    band = {"type": "line", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": row, "y1": row}
    return [{**band, "line": {"color": NEUTRAL_COLOUR, "width": 3}, "layer": "below"}]


def cell_labels(hook_point: str, position: str) -> tuple[str, str]:
    """Return what a place is called along the axes of the heatmap.

    Example:
        >>> cell_labels("blocks.3.hook_mlp_out", "last")
        ('mlp_out<br>last', '3')
    """
    return _column_label(site_of(hook_point), position), _row_label(_row_of(hook_point))


def heatmap_highlight(frame: pd.DataFrame, hook_point: str, position: str) -> list[dict[str, Any]]:
    """Return the shapes that mark one place of a heatmap."""
    rows, columns = _heatmap_axes(frame)
    row = rows.index(_row_of(hook_point))
    column = columns.index((site_of(hook_point), position))
    box = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
    outline = {"type": "rect", "xref": "x", "yref": "y", **box}
    # Two lines, so that it stands out on the light and the dark end of the scale.
    return [
        {**outline, "line": {"color": "black", "width": 5}},
        {**outline, "line": {"color": "white", "width": 2}},
    ]


def _heatmap_axes(frame: pd.DataFrame) -> tuple[list[int], list[tuple[str, str]]]:
    """Return the layers, -1 for what is outside the blocks, and each site with its positions."""
    rows = sorted({_row_of(name) for name in frame["hook_point"]})
    return rows, list(dict.fromkeys(zip(frame["site"], frame["position"], strict=True)))


def _column_label(site: str, position: str) -> str:
    return f"{site}<br>{position}"


def _row_label(row: int) -> str:
    return "–" if row < 0 else str(row)


def _row_of(hook_point: str) -> int:
    layer = layer_of(hook_point)
    return -1 if layer is None else layer


def _ridges(
    numbers: np.ndarray, is_harmful: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return both classes' densities, harmless first, the higher peak at 1; None without any."""
    if np.isnan(numbers).any():
        return None
    harmless, harmful = (_density(numbers[is_harmful == side], grid) for side in (False, True))
    peak = max(harmless.max(), harmful.max())
    return harmless / peak, harmful / peak


def _density(numbers: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Estimate a density by Gaussian kernels over fine bins: as good as exact, and fast.

    Source:
        Bandwidth: Silverman 1986, equation 3.31.
    """
    quartiles = np.percentile(numbers, [25, 75])
    spread = min(numbers.std(), (quartiles[1] - quartiles[0]) / 1.34) or numbers.std()
    width = max(0.9 * spread * len(numbers) ** -0.2, (grid[1] - grid[0]) / 2)
    counts, edges = np.histogram(numbers, _N_BINS, (grid[0], grid[-1]))
    away = (grid[:, None] - (edges[1:] + edges[:-1]) / 2) / width
    return np.exp(-(away**2) / 2) @ counts / (len(numbers) * width * math.sqrt(2 * math.pi))


def _ridge_trace(
    name: str, colour: str, dash: str, x: list[np.ndarray], y: list[np.ndarray]
) -> go.Scatter:
    """Return all ridges of a class. Arrays travel as bytes, which plotly takes in much faster."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return go.Scatter(
        name=name,
        x=np.concatenate([*x, []]).astype(np.float32),
        y=np.concatenate([*y, []]).astype(np.float32),
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.35)",
        line={"color": colour, "width": 1.2, "dash": dash},
        hoverinfo="skip",
    )


def _ridge_layout(hook_points: Sequence[str], axis_title: str) -> dict[str, Any]:
    every = max(1, math.ceil(len(hook_points) / 17))
    shown = range(0, len(hook_points), every)
    is_layered = all(layer_of(name) is not None for name in hook_points)
    labels = [str(layer_of(name)) if is_layered else short_name(name) for name in hook_points]
    title = f"{site_of(hook_points[0])} layer" if is_layered else ""
    return {
        "margin": {"l": 60, "r": 10, "t": 30, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        "xaxis": {"title": {"text": axis_title}, "zeroline": False, "fixedrange": True},
        "yaxis": {
            "title": {"text": title},
            "tickvals": list(shown),
            "ticktext": [labels[row] for row in shown],
            "range": [-0.5, len(hook_points) - 1 + _HEIGHT + 0.1],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    }
