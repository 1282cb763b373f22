"""Heatmaps of comparisons: scores of places, cosines of directions, transfer between prompts.

Knows scales and labels. Scores and cosines come from `comparison` and `categories`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import get_colorscale
from plotly.subplots import make_subplots
from scipy.stats import norm
from torch import Tensor

from refusal_lens.directions.methods import METHODS
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import layer_of, short_name, site_of
from refusal_lens.plots.style import LIGHT, NEUTRAL_COLOUR, empty, heading
from refusal_lens.plots.tables import needs_columns
from refusal_lens.plots.text import written
from refusal_lens.validation import thresholds

SEQUENTIAL = "Cividis"
"""Made for colour-blind readers; its lightness rises evenly, so it also prints in grey."""

DIVERGING = ["#2D5A8C", "#8FB3D4", "#F7F7F7", "#E8A76B", "#A65200"]
"""Blue to brown through white at zero, alike in lightness on both sides."""

SCORE_NAMES = {
    "separation": "separation",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "cohens_d": "d'",
}
"""Scores that places have, and how they are written."""


def _bands(accuracy: float) -> tuple[float, float]:
    """Return d' and AUROC of two normal classes told apart with this accuracy."""
    cohens_d = 2 * float(norm.ppf(accuracy))
    return cohens_d, float(norm.cdf(cohens_d / math.sqrt(2)))


_FAIR_D, _FAIR_AUROC = _bands(thresholds.MIN_ACCURACY)
_GOOD_D, _GOOD_AUROC = _bands(thresholds.GOOD_ACCURACY)
_END_D, _ = _bands(0.99)

BANDS = {
    "separation": (0.0, thresholds.MIN_SEPARATION, thresholds.GOOD_SEPARATION, 1.0),
    "accuracy": (0.5, thresholds.MIN_ACCURACY, thresholds.GOOD_ACCURACY, 1.0),
    "balanced_accuracy": (0.5, thresholds.MIN_ACCURACY, thresholds.GOOD_ACCURACY, 1.0),
    "auroc": (0.5, _FAIR_AUROC, _GOOD_AUROC, 1.0),
    "cohens_d": (0.0, _FAIR_D, _GOOD_D, _END_D),
}
"""Of each score: chance, where it is acceptable, where it is good, and the end of its scale. Each
step has a third of the colours, so that a colour means the same in every run."""

ALL_ONE = 0.995
"""Scores that all read 1.00 need no matrix."""

_BEST = {"color": "#D62728", "width": 2}
"""The frame of the best place."""

MOST_TEXTS = 30
"""Columns up to which cells have room for their number."""

MOST_TEXTS_IN_SQUARE = 18
"""The same for one of two squares side by side."""


@needs_columns("hook_point", "site", "layer", "position")
def place_heatmap(
    frame: pd.DataFrame,
    score: str = "auroc",
    *,
    best: Mapping[str, tuple[str, str]] | None = None,
    title: str = "",
) -> go.Figure:
    """Draw one score over layers: a row for each site, position and method, a panel for each run.

    Only what differs between rows is written beside them. Colours stand for the bands of the score
    (`BANDS`), whatever the numbers drawn: noise stays dark.

    Args:
        frame: `hook_point`, `site`, `layer`, `position` and the score; `method`, `is_clipped` and
            `run` where there are several.
        score: Column to draw: a key of `SCORE_NAMES`.
        best: Hook point and position to frame, by run; "" is the only one of a frame without runs.
            The highest cell is not framed by itself: among ties it would be any.
        title: Written above; "" where the page says it.

    Returns:
        The figure, as wide as its container.

    Raises:
        RefusalLensError: The table lacks columns or the score.
    """
    if score not in SCORE_NAMES or score not in frame:
        there = ", ".join(name for name in SCORE_NAMES if name in frame)
        raise RefusalLensError(
            f"place_heatmap needs a score that the table has, but {score!r} came. It has: {there}."
        )
    table = _labelled(frame)
    runs = list(dict.fromkeys(table["run"])) if "run" in table else [""]
    panels = [table if run == "" else table[table["run"] == run] for run in runs]
    grids = [
        panel.pivot_table(index="row", columns="column", values=score, sort=False)
        for panel in panels
    ]
    columns = _in_order(table)
    heights = [len(grid) for grid in grids]
    figure = make_subplots(
        rows=len(grids),
        shared_xaxes=True,
        vertical_spacing=min(0.12, 1.6 / (sum(heights) + 2 * len(heights))),
        row_heights=heights,
        subplot_titles=[str(run) for run in runs] if len(runs) > 1 else None,
    )
    for number, (run, grid) in enumerate(zip(runs, grids, strict=True), start=1):
        grid = grid.reindex(columns=columns)
        hover = f"%{{y}}<br>layer %{{x}}<br>{SCORE_NAMES[score]} %{{z:.4f}}"
        figure.add_trace(_cells(grid, hover), row=number, col=1)
        if run in (best or {}):
            _frame_place(figure, grid, table, (best or {})[run], number)
        figure.update_yaxes(row=number, col=1, autorange="reversed", type="category")
    figure.update_xaxes(type="category")
    framed = " (framed: the best place)" if best else ""
    figure.update_xaxes(title_text=f"layer{framed}", row=len(grids), col=1)
    cells = 30 * sum(heights)
    height = 150 + cells + 45 * (len(grids) - 1)
    return _finished(figure, title, height, _band_colours(score, 60 + cells), 50)


def cell_names(frame: pd.DataFrame) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the column and row of `place_heatmap` that each place of one run stands at."""
    places = zip(frame["hook_point"], frame["position"], strict=True)
    cells = zip(_column_labels(frame), _row_labels(frame), strict=True)
    return dict(zip(places, cells, strict=True))


def cell_order(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the columns and rows of `place_heatmap` of one run, as they are drawn."""
    table = _labelled(frame)
    return _in_order(table), list(dict.fromkeys(table["row"]))


def _labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame in the order that it is drawn in, each place with its row and column."""
    table = frame.assign(row=_row_labels(frame), column=_column_labels(frame))
    for name in ("method", "position", "site"):
        if name in table:
            order = {value: place for place, value in enumerate(dict.fromkeys(table[name]))}
            table = table.sort_values(
                name, key=lambda column, o=order: column.map(o), kind="stable"
            )
    return table


def _row_labels(frame: pd.DataFrame) -> list[str]:
    """Name each row by what differs between rows."""
    columns = {
        name: frame[name].tolist() for name in ("site", "position", "method") if name in frame
    }
    if "method" in columns:
        columns["method"] = [name.replace("_", " ") for name in columns["method"]]
    if "is_clipped" in frame:
        is_clipped = frame["is_clipped"].tolist()
        columns["clip"] = ["clipped" if each else "not clipped" for each in is_clipped]
    shown = [
        labels for name, labels in columns.items() if name == "position" or len(set(labels)) > 1
    ]
    return [", ".join(map(str, labels)) for labels in zip(*shown, strict=True)]


def _column_labels(frame: pd.DataFrame) -> list[str]:
    """Name each column by its layer, or by its hook point outside the blocks."""
    return [
        short_name(hook_point) if pd.isna(layer) else f"{layer:.0f}"
        for hook_point, layer in zip(frame["hook_point"], frame["layer"], strict=True)
    ]


def _in_order(table: pd.DataFrame) -> list[str]:
    places = table.drop_duplicates("column").sort_values("layer", kind="stable")
    return places["column"].tolist()


def _cells(grid: pd.DataFrame, hover: str, most_texts: int = MOST_TEXTS, **more: Any) -> go.Heatmap:
    """Return the cells of a grid, with their numbers where there is room."""
    rows = grid.to_numpy(dtype=float)
    return go.Heatmap(
        z=rows,
        x=list(grid.columns),
        y=list(grid.index),
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        # The page's own number format writes a hyphen for a minus.
        text=[["" if pd.isna(value) else written(value, 2) for value in row] for row in rows],
        texttemplate="%{text}" if grid.shape[1] <= most_texts else None,
        hovertemplate=f"{hover}<extra></extra>",
        hoverongaps=False,
        **more,
    )


def _frame_place(
    figure: go.Figure, grid: pd.DataFrame, table: pd.DataFrame, place: tuple[str, str], panel: int
) -> None:
    found = table[(table["hook_point"] == place[0]) & (table["position"] == place[1])]
    rows, columns = list(grid.index), list(grid.columns)
    for row, column in dict.fromkeys(zip(found["row"], found["column"], strict=True)):
        if row in rows:
            _frame(figure, rows.index(row), columns.index(column), panel, _BEST)


def _frame(figure: go.Figure, row: int, column: int, panel: int, line: Mapping[str, Any]) -> None:
    """Draw a frame around one cell: categories stand at whole numbers."""
    figure.add_shape(
        type="rect",
        x0=column - 0.5,
        x1=column + 0.5,
        y0=row - 0.5,
        y1=row + 0.5,
        line=line,
        row=panel,  # pyright: ignore[reportArgumentType]
        col=1,  # pyright: ignore[reportArgumentType]
    )


def _band_colours(score: str, height: int) -> dict[str, Any]:
    """Return colours that turn where the score's bands begin, which its ticks name."""
    bands = BANDS[score]
    low, high = bands[0], bands[-1]
    colours = [colour for _, colour in get_colorscale(SEQUENTIAL)]
    evenly = np.linspace(0, 1, len(colours))
    # Where in the bands each colour of the even scale stands.
    at = np.interp(evenly, np.linspace(0, 1, len(bands)), bands)
    scale = [
        [float((number - low) / (high - low)), colour]
        for number, colour in zip(at, colours, strict=True)
    ]
    ticks = {"tickvals": list(bands), "ticktext": [f"{number:.2f}" for number in bands]}
    return {
        "colorscale": scale,
        "cmin": low,
        "cmax": high,
        "colorbar": _colour_bar(SCORE_NAMES[score], height) | ticks,
    }


def cosine_heatmap(
    names: Sequence[str],
    cosines: Float[Tensor, "n n"],
    ceiling: Float[Tensor, "n n"] | None = None,
    *,
    title: str = "",
) -> go.Figure:
    """Draw the cosine between every two directions, and beside it the most that noise allows.

    Args:
        names: What the directions are called.
        cosines: In [-1, 1].
        ceiling: The cosine to expect if nothing but noise told two directions apart; None or all
            NaN where it is not known.
        title: Written above; "" where the page says it.

    Returns:
        The figure, as wide as its container.
    """
    panels = [("cosine", cosines)]
    if ceiling is not None and not ceiling.isnan().all():
        panels.append(("noise ceiling", ceiling))
    labels, axis = _name_cells(names)
    figure = make_subplots(
        cols=len(panels),
        subplot_titles=[name for name, _ in panels] if len(panels) > 1 else None,
        horizontal_spacing=0.04,
        shared_yaxes=True,
    )
    for number, (name, values) in enumerate(panels, start=1):
        grid = pd.DataFrame(values.numpy(), labels, labels)
        font = {"size": 12 if len(labels) <= 10 else 9}
        hover = f"%{{y}} and %{{x}}<br>{name} %{{z:.3f}}"
        cells = _cells(grid, hover, MOST_TEXTS_IN_SQUARE, textfont=font)
        figure.add_trace(cells, row=1, col=number)
    colours = {"colorscale": DIVERGING, "cmin": -1, "cmax": 1, "colorbar": _colour_bar("cosine")}
    # Two squares of 420 pixels stand beside each other on most screens.
    most = 900 if len(panels) == 1 else 620
    return _squares(figure, labels, (axis, axis), colours, title, most)


def _squares(
    figure: go.Figure,
    labels: Sequence[str],
    axes: tuple[str | None, str | None],
    colours: Mapping[str, Any],
    title: str,
    most: int = 900,
) -> go.Figure:
    """Make every panel a square of at most so many pixels, its first cell in the upper left corner.

    `axes` say what goes across, and what goes down.
    """
    looks = {"type": "category", "constrain": "domain", "showgrid": False}
    turned = -45 if _long(labels) else 0
    figure.update_xaxes(title_text=axes[0], tickangle=turned, scaleratio=1, **looks)
    figure.update_yaxes(autorange="reversed", constraintoward="top", **looks)
    figure.update_yaxes(title_text=axes[1], col=1)
    if len(labels) > MOST_TEXTS_IN_SQUARE:
        figure.update_xaxes(nticks=12).update_yaxes(nticks=12)
    for axis in figure.select_xaxes():
        axis.scaleanchor = axis.anchor
    height = int(np.clip(180 + 34 * len(labels) + 14 * (not turned), 320, most))
    return _finished(figure, title, height, colours, 40)


def _name_cells(names: Sequence[str]) -> tuple[list[str], str | None]:
    """Write hook points of one site as layers, under an axis title; other names as they are."""
    layers = [layer_of(name) for name in names]
    sites = {site_of(name) for name in names}
    if len(sites) == 1 and None not in layers:
        return [str(layer) for layer in layers], f"layer ({sites.pop()})"
    return [
        short_name(name) if layer is not None else _method_words(name)
        for name, layer in zip(names, layers, strict=True)
    ], None


def _method_words(name: str) -> str:
    """Write a way to fit as words; positions and categories are written as everywhere."""
    return name.replace("_", " ") if name in METHODS else name


def _long(labels: Sequence[str]) -> bool:
    """Say whether labels would run into each other when written level; of numbers some do."""
    longest = max(map(len, labels), default=0)
    return longest > 3 and (longest > 12 or len(labels) * longest > 48)


@needs_columns("fit_on", "test_on")
def transfer_matrix(frame: pd.DataFrame, score: str = "auroc", *, title: str = "") -> go.Figure:
    """Draw how well a direction fitted on one set of prompts does on another.

    Args:
        frame: `fit_on`, `test_on` and the score, one row a pair.
        score: Column to draw: auroc or separation.
        title: Written above; "" where the page says it.

    Returns:
        The figure, as wide as its container; cells fitted and tested on the same set are framed.
        Without data where there is no pair, or every cell would read 1.00.
    """
    names = list(dict.fromkeys(frame["fit_on"]))
    grid = frame.pivot_table(index="fit_on", columns="test_on", values=score, dropna=False)
    if not names:
        return empty(title, "no two categories have prompts enough to fit and to test on")
    grid = grid.reindex(index=names, columns=names)
    if BANDS[score][-1] == 1 and grid.min(axis=None) >= ALL_ONE:
        n_pairs = len(names) ** 2
        return empty(title, f"all {n_pairs} pairs have an {SCORE_NAMES[score]} of 1.00")
    hover = f"fitted on %{{y}}<br>tested on %{{x}}<br>{SCORE_NAMES[score]} %{{z:.4f}}"
    figure = make_subplots().add_trace(_cells(grid, hover))
    for index in range(len(names)):
        _frame(figure, index, index, 1, {"color": NEUTRAL_COLOUR, "width": 1.5})
    axes = ("tested on (framed: the same, cross-fitted)", "fitted on")
    return _squares(figure, names, axes, _band_colours(score, 220), title)


def _finished(
    figure: go.Figure, title: str, height: int, colours: Mapping[str, Any], below: int
) -> go.Figure:
    """Give a figure its colours and, above it, its title, in room of its own."""
    room = 36 if title else 0
    margin = {"l": 20, "r": 20, "t": 40 + room, "b": below}
    figure.update_layout(title=heading(title) if title else None)
    return figure.update_layout(
        template=LIGHT, height=height + room, margin=margin, coloraxis=colours
    )


def _colour_bar(title: str, height: int = 220) -> dict[str, Any]:
    return {
        "title": {"text": title, "side": "right"},
        "thickness": 14,
        "outlinewidth": 0,
        # As high as a small figure, also beside a large one.
        **{"lenmode": "pixels", "len": min(height, 220), "y": 1, "yanchor": "top"},
    }
