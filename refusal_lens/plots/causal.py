"""What interventions do: scores of the candidates, and refusal over the strength.

Knows the paper's thresholds by sight. Their numbers come as tables.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import cycle
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.experiments.arms import intervention_of
from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.models.hook_points import short_name
from refusal_lens.plots.style import (
    CLASSES,
    NEUTRAL_COLOUR,
    Classes,
    LineLook,
    dress,
    layer_axis,
    limit_line,
    line,
    line_looks,
    ribbon,
    ring,
)
from refusal_lens.plots.tables import by_layer, groups, last_layer, lines_of, needs_columns
from refusal_lens.validation.frames import rows_that

_SCORES = ("bypass", "induce", "kl")
_TITLES = ("bypass (nats)", "induce (nats)", "KL of the first<br>token (nats)")
_DASHES = ("solid", "dot", "dash", "dashdot")
_DASH_NAMES = {"solid": "solid", "dot": "dotted", "dash": "dashed", "dashdot": "dash-dotted"}
"""How the lines of one intervention after the other are drawn, and how that is called."""

_CONTROLS = {"random": "dot", "permuted": "dashdot"}
"""How the lines of directions that were not fitted are dashed."""


@needs_columns("hook_point", "site", "position", "layer", "intervention", "is_eligible")
def causal_scores(
    table: pd.DataFrame,
    *,
    rule: CausalRule | None = None,
    n_kept_layers: int | None = None,
    classes: Classes = CLASSES,
) -> go.Figure:
    """Draw bypass, induce and KL of every candidate over the layers, and the chosen one.

    Hollow marks failed a threshold; each intervention has a dash of its own.

    Args:
        table: `causal_scores`.
        rule: Candidates that it drops are hollow; None takes the paper's.
        n_kept_layers: Layers from this one on are dropped and shaded; None shades none.
        classes: What the classes are called.

    Source:
        Thresholds: Arditi et al. 2024, arXiv 2406.11717, appendix C.
    """
    frame = by_layer(table)
    last = last_layer(frame)
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.05)
    dashes = dict(zip(dict.fromkeys(frame["intervention"]), cycle(_DASHES), strict=False))
    for (name, rows), look in zip(lines_of(frame), line_looks(), strict=False):
        for row, score in enumerate(_SCORES, start=1):
            lines = list(_candidate_lines(rows, score, name, look, dashes))
            lines[0].showlegend = row == 1
            figure.add_traces(lines, rows=row, cols=1)
    figure.add_traces(list(_chosen_marks(frame)), rows=[1, 2, 3], cols=1)
    _add_limits(figure, frame, rule or CausalRule(), classes)
    if n_kept_layers is not None and n_kept_layers <= last:
        _shade_from(figure, n_kept_layers, last)
    for row, text in enumerate(_TITLES, start=1):
        figure.update_yaxes(title_text=text, row=row, col=1)
    figure.update_yaxes(type="log", dtick=1, tickformat="~g", row=3, col=1)
    figure.update_xaxes(**layer_axis(last)).update_xaxes(title_text="layer", row=3, col=1)
    title = "What each direction does to refusal"
    drawn = (f"{intervention_of(name).title} {_DASH_NAMES[dash]}" for name, dash in dashes.items())
    text = f"filled marks pass every threshold; {', '.join(drawn)}"
    return dress(figure, title, subtitle=text, height=740, margin={"r": 130, "t": 90})


def _candidate_lines(
    part: pd.DataFrame, score: str, name: str, look: LineLook, dashes: Mapping[str, str]
) -> Iterator[go.Scatter]:
    """Yield a score's line under each intervention; what does not hang on it is drawn once."""
    for intervention, rows in part.groupby("intervention", sort=False):
        is_kept = rows["is_eligible"].astype(bool).tolist()
        text = (
            score if score == "induce" else f"{score}, {intervention_of(str(intervention)).title}"
        )
        trace = line(
            name,
            rows["layer"],
            rows[score],
            replace(look, dash=dashes[str(intervention)]),
            f"{name}, layer %{{x}}<br>{text} %{{y:.3~g}} nats%{{customdata}}",
            showlegend=False,
            customdata=["" if kept else "<br>dropped" for kept in is_kept],
        )
        symbols = [look.symbol if kept else f"{look.symbol}-open" for kept in is_kept]
        trace.update(marker_symbol=symbols)
        yield trace
        if score == "induce":
            return


def _chosen_marks(frame: pd.DataFrame) -> Iterator[go.Scatter]:
    """Yield a ring around the chosen candidate in each panel."""
    chosen = rows_that(frame, frame["is_chosen"].astype(bool))
    places = zip(chosen["hook_point"], chosen["position"], strict=True)
    names = [f"chosen: {short_name(hook_point)}, {position}" for hook_point, position in places]
    for score in _SCORES:
        is_named = bool(names) and score == _SCORES[0]
        yield ring(
            "; ".join(names),
            chosen["layer"],
            chosen[score],
            legendgroup="chosen",
            showlegend=is_named,
        )


def _add_limits(figure: go.Figure, frame: pd.DataFrame, rule: CausalRule, classes: Classes) -> None:
    """Draw thresholds and what the model does untouched."""
    limit_line(figure, 2, rule.min_induce, f"at least {rule.min_induce:g}")
    # plotly wants the label of a logarithmic axis at the logarithm, but the line at the number.
    limit_line(figure, 3, rule.max_kl, f"at most {rule.max_kl:g}", y=math.log10(rule.max_kl))
    for row, column, style in (
        (1, "baseline_harmful", classes[True]),
        (2, "baseline_harmless", classes[False]),
    ):
        measured = frame[column].dropna().tolist() if column in frame else []
        if measured:
            limit_line(figure, row, float(measured[0]), f"{style.name}, untouched", "dot")


def _shade_from(figure: go.Figure, layer: int, last: int) -> None:
    """Shade the layers that are dropped for being too late."""
    figure.add_vrect(
        layer - 0.5,
        last + 0.5,
        line_width=0,
        fillcolor=NEUTRAL_COLOUR,
        opacity=0.15,
        row="all",
        col=1,  # pyright: ignore[reportArgumentType]
    )
    figure.add_annotation(
        text="too late",
        x=(layer + last) / 2,
        y=1,
        xref="x",
        yref="paper",
        showarrow=False,
        yanchor="bottom",
        font={"size": 11},
    )


@needs_columns("intervention", "direction", "is_harmful", "strength", "refusal_rate")
def dose_response(table: pd.DataFrame, *, classes: Classes = CLASSES) -> go.Figure:
    """Draw refusal over the strength of each intervention, beside its controls.

    Args:
        table: `dose_response`.
        classes: How the classes look, and what they are called.
    """
    interventions = list(dict.fromkeys(table["intervention"]))
    figure = make_subplots(
        rows=2,
        cols=len(interventions),
        shared_xaxes=True,
        shared_yaxes="rows",  # pyright: ignore[reportArgumentType]
        vertical_spacing=0.07,
        horizontal_spacing=0.03,
        column_titles=[str(name).replace("_", " ") for name in interventions],
    )
    panels = (("refusal_score", 1.0, "nats"), ("refusal_rate", 100.0, "%"))
    for column, intervention in enumerate(interventions, start=1):
        rows = rows_that(table, table["intervention"] == intervention)
        for row, (score, scale, unit) in enumerate(panels, start=1):
            lines = list(_dose_lines(rows, score, scale, unit, classes))
            figure.add_traces(lines, rows=row, cols=column)
        unit = intervention_of(intervention).unit
        figure.update_xaxes(title_text=unit, row=2, col=column)
    _name_once(figure)
    figure.update_annotations(font_size=13)
    figure.update_yaxes(title_text="refusal score (nats)", row=1, col=1)
    figure.update_yaxes(title_text="refused (%)", row=2, col=1).update_yaxes(range=[-4, 104], row=2)
    title = "Refusal over the strength of intervention"
    return dress(figure, title, height=640, margin_t=86)


def _dose_lines(
    part: pd.DataFrame, score: str, scale: float, unit: str, classes: Classes
) -> Iterator[go.Scatter]:
    """Yield a line for each class, direction and seed; the fitted direction with its interval."""
    for is_harmful, direction, seed, rows in groups(part, "is_harmful", "direction", "seed"):
        if rows[score].isna().to_numpy().all():
            continue
        style, is_fitted = classes[bool(is_harmful)], direction == "fitted"
        rows = rows.sort_values("strength")
        name = f"{style.name}, {direction}"
        if is_fitted:
            looks = {"name": name, "legendgroup": name, "scale": scale}
            yield ribbon(rows, "strength", score, style.colour, **looks)
        look = LineLook(style.colour, style.symbol, width=2.5)
        if not is_fitted:
            look = LineLook(style.colour, style.symbol, _CONTROLS[str(direction)], 1.2, 5.0, True)
        text = name if is_fitted or pd.isna(seed) else f"{name}, seed {seed:g}"
        hover = f"{text}<br>strength %{{x}}: %{{y:.3~f}} {unit}"
        yield line(name, rows["strength"], rows[score] * scale, look, hover)


def _name_once(figure: go.Figure) -> None:
    """Keep one entry of the legend for all lines of a name."""
    is_named: set[str] = set()

    def keep_first(trace: Any) -> None:
        if trace.showlegend is None:
            trace.showlegend = trace.name not in is_named
            is_named.add(trace.name)

    figure.for_each_trace(keep_first)
