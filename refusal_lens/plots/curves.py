"""Lines over one quantity: learning curve, clip sweep, stability, ROC, depth, coordinates.

Knows how such lines look. Their numbers come as tables.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.models.hook_points import short_name
from refusal_lens.plots.style import (
    CLASSES,
    LINE_COLOURS,
    NEUTRAL_COLOUR,
    Classes,
    LineLook,
    dress,
    layer_axis,
    line,
    line_looks,
    ribbon,
    roomy,
)
from refusal_lens.plots.tables import by_layer, groups, last_layer, lines_of, needs_columns
from refusal_lens.plots.text import escape
from refusal_lens.validation.frames import rows_that

_MOST = {"accuracy": 100.0, "cosine_to_unclipped": 1.0}
"""Where a scale of the clip sweep ends."""

_SCORE_TEXTS = {"auroc": "AUROC", "separation": "separation"}

MOST_COLOURED = 6
"""Places up to which each has a colour of its own; of more, only one stands out."""


@needs_columns("hook_point", "position", "n_per_class", "degrees", "is_extrapolated")
def learning_curve(table: pd.DataFrame, best: tuple[str, str] | None = None) -> go.Figure:
    """Draw how far the direction still turns as prompts are added.

    Args:
        table: `learning_curve`: angle to the direction of other prompts, in degrees, by prompts a
            class; extrapolated rows are drawn dotted.
        best: Hook point and position that stand out where there are many; None for the first.
    """
    figure = go.Figure()
    places = [(name, rows.sort_values("n_per_class")) for name, rows in _of_places(table)]
    names = [name for name, _ in places]
    if len(places) > MOST_COLOURED:
        wanted = f"{short_name(best[0])}, {best[1]}" if best else ""
        shown = wanted if wanted in names else names[0]
        for name, rows in places:
            if name != shown:
                figure.add_traces(_background_lines(name, rows, is_first=not figure.data))
        places = [place for place in places if place[0] == shown]
    for (name, rows), look in zip(places, line_looks(), strict=False):
        measured = rows_that(rows, ~rows["is_extrapolated"].astype(bool))
        area = ribbon(measured, "n_per_class", "degrees", look.colour, name=name, legendgroup=name)
        figure.add_trace(area)
        figure.add_traces(list(_learning_lines(name, rows, look)))
    counts = sorted(set(table["n_per_class"].astype(int)))
    figure.update_xaxes(
        title_text="prompts a class",
        type="log",
        tickvals=counts,
        ticktext=[str(count) for count in counts],
    )
    figure.update_yaxes(title_text="angle to the direction (degrees)", rangemode="tozero")
    return dress(
        figure,
        "Would more prompts turn the direction?",
        height=460,
        showlegend=True,
    )


def _background_lines(name: str, rows: pd.DataFrame, *, is_first: bool) -> list[go.Scatter]:
    """Return the curve of a place that does not stand out; all of them are one legend entry."""
    look = LineLook(NEUTRAL_COLOUR, "circle", width=1.0, size=4.0)
    lines = list(_learning_lines(name, rows, look))
    for number, trace in enumerate(lines):
        trace.update(name="other places", legendgroup="others", showlegend=is_first and number == 0)
    return lines


def _of_places(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the name and the rows of every place."""
    for hook_point, position, rows in groups(table, "hook_point", "position"):
        yield f"{short_name(hook_point)}, {position}", rows


def _learning_lines(name: str, rows: pd.DataFrame, look: LineLook) -> Iterator[go.Scatter]:
    """Yield the measured line and the extrapolated one."""
    is_beyond = rows["is_extrapolated"].astype(bool)
    measured, beyond = rows_that(rows, ~is_beyond), rows_that(rows, is_beyond)
    hover = f"{name}<br>%{{x}} prompts a class: %{{y:.1f}}°"
    counts, degrees = measured["n_per_class"], measured["degrees"]
    yield line(f"{name}, measured", counts, degrees, look, hover, legendgroup=name)
    if len(beyond):
        # Not joined with what was measured: a formula foretells it, from all prompts at once.
        foretold = replace(look, dash="dot", is_hollow=True)
        counts, degrees = beyond["n_per_class"], beyond["degrees"]
        hover = f"{hover}, foretold"
        yield line(f"{name}, foretold", counts, degrees, foretold, hover, legendgroup=name)


@needs_columns("hook_point", "position", "clip_quantile", "separation", "accuracy")
def clip_sweep(table: pd.DataFrame) -> go.Figure:
    """Draw what clipping the largest coordinates does to scores and direction.

    Args:
        table: `clip_sweep`: scores by `clip_quantile` (empty: no clipping) at one or more places.
    """
    panels = {
        "separation": "separation",
        "accuracy": "accuracy (%)",
        "cosine_to_unclipped": "cosine to unclipped",
    }
    figure = make_subplots(rows=len(panels), shared_xaxes=True, vertical_spacing=0.05)
    levels = sorted(table["clip_quantile"].dropna().unique())
    for (name, rows), look in zip(_of_places(table), line_looks(), strict=False):
        rows = rows.sort_values("clip_quantile", na_position="last")
        x = ["none" if pd.isna(level) else f"{level:.4g}" for level in rows["clip_quantile"]]
        for row, (score, text) in enumerate(panels.items(), start=1):
            y = rows[score] * (100 if score == "accuracy" else 1)
            hover = f"{name}<br>clipped at %{{x}}: {text} %{{y:.3~f}}"
            figure.add_trace(line(name, x, y, look, hover, showlegend=row == 1), row=row, col=1)
    labels = [*(f"{level:.4g}" for level in levels), "none"]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=labels)
    figure.update_xaxes(
        title_text="clipped at this quantile of the absolute coordinates", row=len(panels), col=1
    )
    for row, (score, text) in enumerate(panels.items(), start=1):
        numbers = table[score] * (100 if score == "accuracy" else 1)
        figure.update_yaxes(
            title_text=text, range=roomy(numbers, _MOST.get(score, math.inf)), row=row, col=1
        )
    return dress(figure, "Does the direction hang on a few coordinates?", height=640)


@needs_columns("site", "position", "layer", "bootstrap_cosine", "split_half_cosine")
def stability(table: pd.DataFrame) -> go.Figure:
    """Draw how well directions of other prompts agree, over the layers.

    Args:
        table: `stability`: cosine between halves of the prompts, and between resamples and the
            whole, with its 95 % interval.
    """
    frame = by_layer(table)
    figure = go.Figure()
    lines = lines_of(frame)
    for (name, rows), look in zip(lines, line_looks(), strict=False):
        if len(lines) <= 2:
            area = ribbon(rows, "layer", "bootstrap_cosine", look.colour, name=name)
            figure.add_trace(area.update(legendgroup=f"{name}, resampled"))
        for column, text, dash in (
            ("bootstrap_cosine", "resampled", "solid"),
            ("split_half_cosine", "halves", "dot"),
        ):
            hover = f"{name}, layer %{{x}}<br>{text}: %{{y:.3f}}"
            x, y = rows["layer"], rows[column]
            figure.add_trace(line(f"{name}, {text}", x, y, replace(look, dash=dash), hover))
    last = last_layer(frame)
    figure.update_xaxes(title_text="layer", **layer_axis(last))
    columns = ["bootstrap_cosine", "bootstrap_cosine_low", "split_half_cosine"]
    numbers = [number for column in columns for number in frame[column].tolist()]
    figure.update_yaxes(title_text="cosine between directions", range=roomy(numbers, most=1.0))
    title = "Would other prompts give the same direction?"
    return dress(figure, title, height=460)


@needs_columns("layer", "share_top_1", "share_top_10")
def coordinate_shares(table: pd.DataFrame) -> go.Figure:
    """Draw how much of a direction's squared length its largest coordinates hold, by layer.

    Args:
        table: `coordinates`: shares before (`share_top_*`) and after clipping (`*_clipped`), at
            one site and position.
    """
    frame = by_layer(table)
    layers = frame["layer"].tolist()
    shares = {
        "share_top_1": "largest coordinate",
        "share_top_10": "ten largest",
        "share_top_1_percent": "largest 1 %",
    }
    figure = go.Figure()
    for (column, text), look in zip(shares.items(), line_looks(), strict=False):
        for suffix, how in (("", "raw"), ("_clipped", "clipped")):
            drawn = replace(look, dash="dot", is_hollow=True) if suffix else look
            hover = f"layer %{{x}}<br>{text}, {how}: %{{y:.1f}} %"
            y = 100 * frame[column + suffix]
            figure.add_trace(line(f"{text}, {how}", layers, y, drawn, hover))
    figure.update_xaxes(title_text="layer", **layer_axis(last_layer(frame)))
    figure.update_yaxes(title_text="share of squared length (%)", rangemode="tozero")
    title = "How much of the direction lies in a few coordinates?"
    return dress(figure, title, height=460)


@needs_columns("false_alarms", "hits", "threshold")
def roc_curve(
    table: pd.DataFrame,
    auroc: tuple[float, float, float] | None = None,
    *,
    place: str = "",
    classes: Classes = CLASSES,
) -> go.Figure:
    """Draw what every threshold would catch against what it would raise falsely.

    Args:
        table: From `densities.roc`.
        auroc: The area and the ends of its interval.
        place: Said below the title.
        classes: What the classes are called.
    """
    harmless, harmful = (style.name for style in classes)
    percent = {name: (100 * table[name]).tolist() for name in ("false_alarms", "hits")}
    figure = go.Figure(
        go.Scatter(
            name="thresholds",
            x=percent["false_alarms"],
            y=percent["hits"],
            customdata=table["threshold"].tolist(),
            mode="lines",
            line={"shape": "linear", "width": 2.5, "color": LINE_COLOURS[0]},
            hovertemplate=f"at %{{customdata:.3~f}}: %{{y:.1f}} % of {harmful}, %{{x:.1f}} % of "
            f"{harmless}<extra></extra>",
            cliponaxis=False,
        )
    )
    chance = {"color": NEUTRAL_COLOUR, "width": 1, "dash": "dash"}
    ends = [0, 100]
    room = {"range": [-1, 101], "dtick": 25}
    figure.add_scatter(name="chance", x=ends, y=ends, mode="lines", line=chance, hoverinfo="skip")
    figure.update_xaxes(title_text=f"{harmless} called {harmful} (%)", **room)
    figure.update_yaxes(title_text=f"{harmful} called {harmful} (%)", **room)
    area = ""
    if auroc is not None:
        area = f"AUROC {auroc[0]:.3f}"
        area += "" if math.isnan(auroc[1]) else f" [{auroc[1]:.3f}, {auroc[2]:.3f}]"
    subtitle = " · ".join(part for part in (place, area) if part)
    title = "Hits against false alarms, held out"
    return dress(figure, title, subtitle=subtitle, height=480)


@needs_columns("run", "layer", "n_layers")
def depth_curves(table: pd.DataFrame, score: str = "auroc") -> go.Figure:
    """Draw one score of several models over their depth, from their first block to their last.

    Args:
        table: One row a layer, at one site and position of each run; `n_layers` is its model's.
        score: Column to draw.
    """
    figure = go.Figure()
    for (run, rows), look in zip(groups(by_layer(table), "run"), line_looks(), strict=False):
        depth = 100 * rows["layer"] / (rows["n_layers"] - 1).clip(lower=1)
        hover = f"{escape(str(run))}, layer %{{customdata}}: %{{y:.3f}}"
        layers = rows["layer"].tolist()
        figure.add_trace(line(str(run), depth, rows[score], look, hover, customdata=layers))
    figure.update_xaxes(title_text="depth (% of the layers)", range=[-2, 102], dtick=25)
    figure.update_yaxes(title_text=_SCORE_TEXTS.get(score, score), range=roomy(table[score]))
    return dress(figure, "", height=420)
