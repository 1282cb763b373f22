"""What was chosen beside what could have been: methods, nested choice, plain features.

Knows how alternatives are set side by side. Their numbers come as tables.
"""

import math
from collections import Counter
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.models.hook_points import short_name
from refusal_lens.plots.style import (
    LINE_COLOURS,
    NEUTRAL_COLOUR,
    LineLook,
    dress,
    empty,
    layer_axis,
    line,
    line_looks,
    name_rows,
    roomy,
    whiskers,
)
from refusal_lens.plots.tables import by_layer, groups, last_layer, needs_columns
from refusal_lens.plots.text import escape
from refusal_lens.validation.frames import rows_that

METHOD_SCORES = {
    "separation": "separation",
    "auroc": "AUROC",
    "cosine_to_difference_of_means": "cosine to<br>difference<br>of means",
}

MOST = {"auroc": 1.0, "cosine_to_difference_of_means": 1.0}
"""Where a score's scale ends."""


@needs_columns("method", "is_clipped", "site", "position", "layer", "separation")
def method_comparison(table: pd.DataFrame) -> go.Figure:
    """Draw methods of fitting side by side: over the layers, or as dots where there is one place.

    Args:
        table: `methods` at one site and position.
    """
    frame = by_layer(table)
    layers = frame["layer"].unique()
    if len(frame) == 0:
        return empty("Ways to fit", "nothing was compared inside the blocks")
    place = f"{table['site'].iloc[0]}, {table['position'].iloc[0]}"
    if len(layers) == 1:
        return _methods_at_one_place(frame, f"{place} · layer {layers[0]}")
    return _methods_over_layers(frame, place)


def _methods_over_layers(frame: pd.DataFrame, place: str) -> go.Figure:
    figure = make_subplots(rows=len(METHOD_SCORES), shared_xaxes=True, vertical_spacing=0.05)
    looks = dict(zip(dict.fromkeys(frame["method"]), line_looks(), strict=False))
    for method, is_clipped, rows in groups(frame, "method", "is_clipped"):
        name = str(method).replace("_", " ") + (", clipped" if is_clipped else "")
        look = looks[method]
        look = replace(look, dash="dot", is_hollow=True) if is_clipped else look
        layers = rows["layer"]
        for row, (score, text) in enumerate(METHOD_SCORES.items(), start=1):
            hover = f"{name}, layer %{{x}}<br>{text.replace('<br>', ' ')} %{{y:.3~f}}"
            trace = line(name, layers, rows[score], look, hover, showlegend=row == 1)
            figure.add_trace(trace, row=row, col=1)
    last = last_layer(frame)
    figure.update_xaxes(**layer_axis(last)).update_xaxes(title_text="layer", row=3, col=1)
    for row, (score, text) in enumerate(METHOD_SCORES.items(), start=1):
        ends = roomy(frame[score], MOST.get(score, math.inf))
        figure.update_yaxes(title_text=text, range=ends, row=row, col=1)
    return dress(figure, f"Ways to fit · {place}", height=720, margin_l=90)


def _methods_at_one_place(frame: pd.DataFrame, place: str) -> go.Figure:
    """Draw a row a method and a panel a score; what is clipped is hollow, a little below."""
    names = list(dict.fromkeys(frame["method"]))
    figure = make_subplots(cols=len(METHOD_SCORES), shared_yaxes=True, horizontal_spacing=0.06)
    for is_clipped, rows in groups(frame, "is_clipped"):
        name = "clipped" if is_clipped else "not clipped"
        shift = -0.14 if is_clipped else 0.14
        heights = [shift - names.index(method) for method in rows["method"]]
        look = LineLook(LINE_COLOURS[0], "circle", size=10.0, is_hollow=bool(is_clipped))
        for column, (score, text) in enumerate(METHOD_SCORES.items(), start=1):
            trace = line(
                name, rows[score], heights, look, "", mode="markers", showlegend=column == 1
            )
            trace.update(
                text=[str(method).replace("_", " ") for method in rows["method"]],
                hovertemplate=f"%{{text}}, {name}<br>{text.replace('<br>', ' ')} %{{x:.4~f}}"
                "<extra></extra>",
            )
            figure.add_trace(trace, row=1, col=column)
    for column, (score, text) in enumerate(METHOD_SCORES.items(), start=1):
        figure.update_xaxes(
            title_text=text,
            range=roomy(frame[score], MOST.get(score, math.inf)),
            nticks=5,
            row=1,
            col=column,
        )
    figure.update_yaxes(
        tickvals=[-row for row in range(len(names))],
        ticktext=[str(name).replace("_", " ") for name in names],
        range=[-len(names) + 0.5, 0.5],
        # A mark at the end of the scale would stand on the name.
        ticklabelstandoff=8,
        col=1,
    )
    height = 170 + 34 * len(names)
    title = f"Ways to fit · {place}"
    return dress(figure, title, height=height, margin={"l": 140, "b": 100})


@needs_columns("hook_point", "position", "separation", "accuracy")
def nested_choice(table: pd.DataFrame) -> go.Figure:
    """Draw which places inner folds chose, how often, and how each choice did on the outer fold.

    Args:
        table: `nested_choice`: one row a repeat and fold.
    """
    places = zip(table["hook_point"], table["position"], strict=True)
    names = [f"{short_name(hook_point)}, {position}" for hook_point, position in places]
    counts = Counter(names)
    order = [name for name, _ in counts.most_common()][::-1]
    figure = make_subplots(cols=3, shared_yaxes=True, horizontal_spacing=0.06)
    bars = go.Bar(
        y=order,
        x=[counts[name] for name in order],
        orientation="h",
        marker_color=NEUTRAL_COLOUR,
        hovertemplate="%{y}: chosen %{x} times<extra></extra>",
    )
    figure.add_trace(bars, row=1, col=1)
    panels = {"separation": "separation", "accuracy": "accuracy<br>(%)"}
    for column, (score, text) in enumerate(panels.items(), start=2):
        numbers = (table[score] * (100 if score == "accuracy" else 1)).tolist()
        marks = go.Scatter(
            y=names,
            x=numbers,
            mode="markers",
            marker={
                "color": LINE_COLOURS[0],
                "symbol": "line-ns-open",
                "size": 16,
                "line": {"width": 2},
            },
            cliponaxis=False,
            hovertemplate=f"%{{y}}: {text.replace('<br>', ' ')} %{{x:.3~f}} on the outer fold"
            "<extra></extra>",
        )
        figure.add_trace(marks, row=1, col=column)
        most = 100.0 if score == "accuracy" else math.inf
        figure.update_xaxes(
            title_text=text, range=roomy(numbers, most), nticks=4, row=1, col=column
        )
    figure.update_xaxes(title_text="times<br>chosen", rangemode="tozero", nticks=4, row=1, col=1)
    figure.update_xaxes(title_font_size=12)
    name_rows(figure, categoryorder="array", categoryarray=order, range=[-0.6, len(order) - 0.4])
    title = "Choice on inner folds, scored on the outer fold"
    return dress(figure, title, height=150 + 34 * len(order), showlegend=False)


@needs_columns("feature", "auroc", "auroc_low", "auroc_high", "accuracy")
def confounds(table: pd.DataFrame) -> go.Figure:
    """Draw how well plain features of the text tell the classes apart, beside the direction.

    Args:
        table: `confounds`: AUROC with interval, a row a feature.
    """
    part = table.sort_values("auroc")
    part = part.assign(name=[escape(str(name).replace("_", " ")) for name in part["feature"]])
    figure = go.Figure()
    for is_direction, text, symbol, colour in (
        (False, "feature of the text", "square", NEUTRAL_COLOUR),
        (True, "direction", "star", LINE_COLOURS[0]),
    ):
        rows = rows_that(part, (part["feature"] == "direction") == is_direction)
        marks = go.Scatter(
            name=text,
            x=rows["auroc"].tolist(),
            y=rows["name"].tolist(),
            mode="markers",
            error_x=whiskers(rows, "auroc"),
            marker={"color": colour, "symbol": symbol, "size": 11},
            cliponaxis=False,
            customdata=(100 * rows["accuracy"]).tolist(),
            hovertemplate="%{y}<br>AUROC %{x:.3f}, accuracy %{customdata:.1f} %<extra></extra>",
        )
        figure.add_trace(marks)
    chance = {"text": "chance", "font": {"size": 11}}
    figure.add_vline(
        0.5, line={"color": NEUTRAL_COLOUR, "dash": "dot", "width": 1}, annotation=chance
    )
    ends = [*part["auroc_low"], *part["auroc_high"], *part["auroc"], 0.5]
    figure.update_xaxes(title_text="AUROC", range=roomy(ends, most=1.0))
    name_rows(figure, categoryorder="array", categoryarray=part["name"].tolist())
    title = "Could something simpler tell the classes apart?"
    return dress(figure, title, height=190 + 34 * len(part), margin_t=74)
