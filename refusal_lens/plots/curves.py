"""Lines over one quantity: learning curve, clip sweep, stability, share of the top coordinates.

Knows how such lines look. Their numbers come as tables.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.hook_points import short_name
from refusal_lens.plots.style import (
    LINE_COLOURS,
    NEUTRAL_COLOUR,
    band,
    dress,
    faded,
    layer_axis,
    line_looks,
)


def learning_curve(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw how far the direction still turns as prompts are added.

    Args:
        table: `learning_curve`: angle to the direction of other prompts, in degrees, by prompts a
            class; extrapolated rows are drawn dashed.
        template: Name of a plotly template.
    """
    figure = go.Figure()
    groups = list(table.groupby(["hook_point", "position"], sort=False))
    for ((hook_point, position), own), (colour, symbol) in zip(groups, line_looks(), strict=False):
        name = f"{short_name(str(hook_point))}, {position}"
        own = own.sort_values("n_per_class")
        is_beyond = own["is_extrapolated"].astype(bool)
        measured = own[~is_beyond]
        figure.add_trace(
            band(measured["n_per_class"], measured["degrees_low"], measured["degrees_high"],
                 name=name, legendgroup=name, showlegend=False, fillcolor=faded(colour, 0.2))
        )  # fmt: skip
        looks = {"color": colour, "width": 2}
        hover = f"{name}<br>%{{x}} prompts a class: %{{y:.1f}}°"
        figure.add_trace(
            go.Scatter(name=name, legendgroup=name, x=measured["n_per_class"].tolist(),
                       y=measured["degrees"].tolist(), mode="lines+markers", line=looks,
                       marker={"symbol": symbol, "size": 8}, hovertemplate=hover + "<extra></extra>")
        )  # fmt: skip
        if is_beyond.any():
            # From the last measured point on, so that the line does not break.
            beyond = pd.concat([measured.tail(1), own[is_beyond]])
            figure.add_trace(
                go.Scatter(name=f"{name}, extrapolated", legendgroup=name, line=looks | {"dash": "dot"},
                           x=beyond["n_per_class"].tolist(), y=beyond["degrees"].tolist(),
                           mode="lines+markers", marker={"symbol": f"{symbol}-open", "size": 8},
                           hovertemplate=hover + ", extrapolated<extra></extra>")
            )  # fmt: skip
    counts = sorted(set(table["n_per_class"].astype(int)))
    figure.update_xaxes(title_text="prompts a class", type="log", tickvals=counts,
                        ticktext=[str(count) for count in counts], minor_ticks="")  # fmt: skip
    figure.update_yaxes(title_text="angle to the direction (degrees)", rangemode="tozero")
    return dress(figure, template, "Would more prompts turn the direction?", height=430)


def clip_sweep(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw what clipping the largest coordinates does to scores and direction.

    Args:
        table: `clip_sweep`: scores by `clip_quantile` (empty: no clipping) at one or more places.
        template: Name of a plotly template.
    """
    panels = [("separation", "separation", 1), ("accuracy", "accuracy (%)", 100),
              ("cosine_to_unclipped", "cosine to unclipped", 1)]  # fmt: skip
    figure = make_subplots(rows=len(panels), shared_xaxes=True, vertical_spacing=0.05)
    levels = sorted(table["clip_quantile"].dropna().unique())
    labels = [f"{level:.4g}" for level in levels] + ["none"]
    groups = list(table.groupby(["hook_point", "position"], sort=False))
    for ((hook_point, position), own), (colour, symbol) in zip(groups, line_looks(), strict=False):
        name = f"{short_name(str(hook_point))}, {position}"
        own = own.sort_values("clip_quantile", na_position="last")
        x = [f"{level:.4g}" if level == level else "none" for level in own["clip_quantile"]]
        for row, (score, said, scale) in enumerate(panels, start=1):
            line = go.Scatter(
                name=name, legendgroup=name, showlegend=row == 1, x=x,
                y=(own[score] * scale).tolist(), mode="lines+markers",
                line={"color": colour, "width": 2}, marker={"symbol": symbol, "size": 8},
                hovertemplate=f"{name}<br>clipped at %{{x}}: {said} %{{y:.3~f}}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(line, row=row, col=1)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=labels)
    figure.update_xaxes(title_text="clipped at this quantile of the absolute coordinates",
                        row=len(panels), col=1)  # fmt: skip
    for row, (_, said, _) in enumerate(panels, start=1):
        figure.update_yaxes(title_text=said, row=row, col=1)
    return dress(figure, template, "Does the direction hang on a few coordinates?", height=640)


def stability(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw how well directions of other prompts agree, over the layers.

    Args:
        table: `stability`: cosine between halves of the prompts, and between resamples and the
            whole, with its 95 % interval.
        template: Name of a plotly template.
    """
    frame = table.dropna(subset=["layer"]).sort_values("layer", kind="stable")
    figure = go.Figure()
    groups = list(frame.groupby(frame["site"] + ", " + frame["position"].astype(str), sort=False))
    for (name, own), (colour, symbol) in zip(groups, line_looks(), strict=False):
        layers = own["layer"].astype(int).tolist()
        if len(groups) <= 2:
            figure.add_trace(
                band(layers, own["bootstrap_cosine_low"], own["bootstrap_cosine_high"], name=name,
                     legendgroup=name, showlegend=False, fillcolor=faded(colour, 0.2))
            )  # fmt: skip
        for column, said, dash in (("bootstrap_cosine", "resampled", "solid"),
                                   ("split_half_cosine", "halves", "dot")):  # fmt: skip
            figure.add_trace(
                go.Scatter(name=f"{name}, {said}", legendgroup=f"{name} {said}", x=layers,
                           y=own[column].tolist(), mode="lines+markers",
                           line={"color": colour, "width": 2, "dash": dash},
                           marker={"symbol": symbol, "size": 7 if len(layers) < 40 else 4},
                           hovertemplate=f"{name}, layer %{{x}}<br>{said}: %{{y:.3f}}<extra></extra>")
            )  # fmt: skip
    ticks = layer_axis(max(frame["layer"].astype(int).tolist(), default=0))
    figure.update_xaxes(title_text="layer", **ticks)
    figure.update_yaxes(title_text="cosine between directions")
    return dress(figure, template, "Would other prompts give the same direction?", height=430)


def coordinate_shares(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw how much of a direction's squared length its largest coordinates hold, by layer.

    Args:
        table: `coordinates`: shares before (`share_top_*`) and after clipping (`*_clipped`), at
            one site and position.
        template: Name of a plotly template.
    """
    frame = table.dropna(subset=["layer"]).sort_values("layer", kind="stable")
    layers = frame["layer"].astype(int).tolist()
    shares = [("share_top_1", "largest coordinate"), ("share_top_10", "ten largest"),
              ("share_top_1_percent", "largest 1 %")]  # fmt: skip
    figure = go.Figure()
    for (column, said), (colour, symbol) in zip(shares, line_looks(), strict=False):
        for suffix, dash in (("", "solid"), ("_clipped", "dot")):
            how = "clipped" if suffix else "raw"
            figure.add_trace(
                go.Scatter(name=f"{said}, {how}", x=layers,
                           y=(100 * frame[column + suffix]).tolist(),
                           mode="lines+markers", line={"color": colour, "dash": dash, "width": 2},
                           marker={"symbol": symbol if not suffix else f"{symbol}-open", "size": 7},
                           hovertemplate=f"layer %{{x}}<br>{said}, {how}: %{{y:.1f}} %<extra></extra>")
            )  # fmt: skip
    figure.update_xaxes(title_text="layer", **layer_axis(max(layers, default=0)))
    figure.update_yaxes(title_text="share of squared length (%)", rangemode="tozero")
    title = "How much of the direction lies in a few coordinates?"
    return dress(figure, template, title, height=430)


def nested_choice(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw which places inner folds chose, how often, and how each choice did on the outer fold.

    Args:
        table: `nested_choice`: one row a repeat and fold.
        template: Name of a plotly template.
    """
    names = [f"{short_name(hook_point)}, {position}"
             for hook_point, position in zip(table["hook_point"], table["position"], strict=True)]  # fmt: skip
    counts = pd.Series(names).value_counts()
    order = list(counts.index)[::-1]
    figure = make_subplots(cols=3, shared_yaxes=True, horizontal_spacing=0.04)
    figure.add_trace(
        go.Bar(y=order, x=[int(counts[name]) for name in order], orientation="h",
               marker_color=NEUTRAL_COLOUR, hovertemplate="%{y}: chosen %{x} times<extra></extra>"),
        row=1, col=1,
    )  # fmt: skip
    panels = (("separation", 1, "separation"), ("accuracy", 100, "accuracy (%)"))
    for column, (score, scale, said) in enumerate(panels, start=2):
        figure.add_trace(
            go.Scatter(y=names, x=(table[score] * scale).tolist(), mode="markers",
                       marker={"color": LINE_COLOURS[0], "symbol": "line-ns-open", "size": 16,
                               "line": {"width": 2}},
                       hovertemplate=f"%{{y}}: {said} %{{x:.3~f}} on the outer fold<extra></extra>"),
            row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text=said, nticks=5, row=1, col=column)
    figure.update_xaxes(title_text="times chosen", rangemode="tozero", nticks=5, row=1, col=1)
    figure.update_yaxes(categoryorder="array", categoryarray=order, automargin=True)
    title = "Choice on inner folds, scored on the outer fold"
    return dress(figure, template, title, height=160 + 34 * len(order), showlegend=False)
