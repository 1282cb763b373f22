"""What the model does: prompts between harm and refusal, rates over lengths, effect against cost.

Knows how outcomes look. Their numbers come as tables.

Tested in tests/runs/test_figures.py.
"""

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.experiments.arms import intervention_of
from refusal_lens.plots.style import (
    CLASSES,
    LINE_COLOURS,
    NEUTRAL_COLOUR,
    Classes,
    LineLook,
    dress,
    hatched,
    line,
    line_looks,
    name_rows,
    ribbon,
    whiskers,
)
from refusal_lens.plots.tables import groups, needs_columns, of_class
from refusal_lens.plots.text import escape, place_name, rounded, shorten
from refusal_lens.validation.frames import rows_that, rows_where

_COLOURS = {each.name: each.colour for each in CLASSES} | {"borderline": LINE_COLOURS[1]}
_SYMBOLS = {
    "refused": "diamond",
    "answered": "circle-open",
    "evaded": "triangle-up-open",
    "broken": "x-thin-open",
    "unjudged": "cross-thin-open",
}
_CORNERS = (
    (1, 1, "harmful and refused"),
    (0, 1, "refused, not harmful"),
    (0, 0, "neither"),
    (1, 0, "harmful, not refused"),
)
"""Of the quadrants: right or left, upper or lower, and what the axes call what lies there."""


def quadrants(table: pd.DataFrame) -> go.Figure:
    """Draw every prompt between the direction of harm and that of refusal, by outcome.

    Colour is the class, shape the outcome; filled diamonds were refused.

    Args:
        table: `quadrants`.

    Source:
        Zhao et al. 2025, arXiv 2507.11878, figure 1.
    """
    figure = go.Figure()
    for name, outcome, rows in groups(table, "class", "outcome"):
        label = f"{name}, {outcome}"
        figure.add_trace(
            go.Scatter(
                name=f"{label} ({len(rows)})",
                x=rounded(rows["harm"]),
                y=rounded(rows["refusal"]),
                mode="markers",
                marker={"color": _COLOURS[str(name)], "symbol": _SYMBOLS[str(outcome)], "size": 8},
                text=[escape(str(prompt_id)) for prompt_id in rows["prompt_id"]],
                hovertemplate=f"%{{text}}<br>{label}<br>harm %{{x}}, refusal %{{y}}<extra></extra>",
            )
        )
    for axis in (figure.add_vline, figure.add_hline):
        axis(0, line={"color": NEUTRAL_COLOUR, "width": 1, "dash": "dash"})
    for x, y, corner in _CORNERS:
        place: dict[str, Any] = {"x": x, "y": y, "xref": "paper", "yref": "paper"}
        anchors = {"xanchor": "right" if x else "left", "yanchor": "top" if y else "bottom"}
        figure.add_annotation(
            text=corner,
            showarrow=False,
            font={"size": 11, "color": NEUTRAL_COLOUR},
            **place,
            **anchors,
        )
    first = table.iloc[0]
    figure.update_xaxes(title_text=_axis("harm", first), zeroline=False)
    figure.update_yaxes(title_text=_axis("refusal", first), zeroline=False)
    subtitle = "colour is the class; filled were refused"
    title = "Harm and refusal"
    return dress(figure, title, subtitle=subtitle, height=640, margin_b=150)


def _axis(name: str, row: pd.Series) -> str:
    place = place_name(str(row[f"{name}_hook_point"]), str(row[f"{name}_position"]))
    return f"{name}<br><sub>{place}</sub>"


@needs_columns("name", "is_harmful", "n_prompts", "refusal_rate")
def refusal_bars(
    table: pd.DataFrame, title: str = "Refusal", *, classes: Classes = CLASSES
) -> go.Figure:
    """Draw how much was refused, a bar a row, with its 95 % interval.

    Args:
        table: `refusal_rate` with `refusal_rate_low` and `refusal_rate_high`, of `n_prompts`; rows
            of both classes with one `name` are two.
        title: Of the figure.
        classes: How the classes look, and what they are called.
    """
    figure = go.Figure()
    for style in reversed(classes):
        rows = of_class(table, style)
        # A space keeps the rows of the classes apart.
        labels = [
            f"{escape(shorten(str(name), 34))} ({int(n)}){' ' * style.is_harmful}"
            for name, n in zip(rows["name"], rows["n_prompts"], strict=True)
        ]
        figure.add_bar(
            name=style.name,
            x=(100 * rows["refusal_rate"]).tolist(),
            y=labels,
            orientation="h",
            marker=hatched(style.colour, style.pattern),
            error_x=whiskers(rows, "refusal_rate", 100.0) | {"color": NEUTRAL_COLOUR},
            hovertemplate=f"%{{y}}, {style.name}<br>%{{x:.1f}} % refused<extra></extra>",
        )
    figure.update_xaxes(title_text="refused (%), with 95 % intervals", range=[0, 100], dtick=25)
    name_rows(figure, dtick=1, autorange="reversed")
    return dress(figure, title, height=170 + 22 * len(table), barmode="overlay")


def refusal_by_length(table: pd.DataFrame) -> go.Figure:
    """Draw refusal and evasion over the length at which answers are cut off.

    Args:
        table: `refusal_by_length`.
    """
    figure = go.Figure()
    for style in CLASSES:
        rows = rows_where(table, is_harmful=style.is_harmful)
        if rows.empty:
            continue
        name = f"{style.name}, refused"
        looks = {"name": name, "legendgroup": name, "scale": 100.0}
        figure.add_trace(ribbon(rows, "n_tokens", "refused", style.colour, **looks))
        for outcome, dash in (("refused", "solid"), ("evaded", "dot")):
            label = f"{style.name}, {outcome}"
            look = LineLook(style.colour, style.symbol, dash, is_hollow=outcome == "evaded")
            hover = f"{label}<br>within %{{x}} tokens: %{{y:.1f}} %"
            figure.add_trace(line(label, rows["n_tokens"], rows[outcome] * 100, look, hover))
    after = rows_that(table, table["is_settled"].astype(bool))
    subtitle = "still moving at the last length"
    if not after.empty:
        first = min(int(n) for n in after["n_tokens"])
        figure.add_vline(first, line={"color": NEUTRAL_COLOUR, "width": 1, "dash": "dash"})
        subtitle = f"stands still from {first} tokens on"
    lengths = sorted(int(n) for n in set(table["n_tokens"]))
    figure.update_xaxes(
        title_text="tokens of the answer that are judged", type="log", tickvals=lengths
    )
    figure.update_xaxes(range=[math.log10(lengths[0] * 0.9), math.log10(lengths[-1] * 1.1)])
    figure.update_yaxes(title_text="answers (%)", range=[-4, 104])
    title = "Refusal by length of answer"
    return dress(figure, title, subtitle=subtitle, height=460, margin_b=110)


def side_effects(table: pd.DataFrame, *, classes: Classes = CLASSES) -> go.Figure:
    """Draw what each strength does against what it costs, one panel for removal, one for addition.

    The cost is the KL on the class that should stay as it is. Filled marks lie on the front: no
    other strength does more at less cost.

    Args:
        table: `side_effects`.
        classes: What the classes are called.
    """
    effects = [e for e in ("removes", "adds") if e in {_effect(n) for n in table["intervention"]}]
    titles = {
        "removes": f"removal: {classes[True].name} answered",
        "adds": f"addition: {classes[False].name} refused",
    }
    panels = [titles[effect] for effect in effects]
    figure = make_subplots(
        rows=len(effects), shared_xaxes=True, subplot_titles=panels, vertical_spacing=0.1
    )
    looks = dict(zip(dict.fromkeys(table["intervention"]), line_looks(), strict=False))
    for row, effect in enumerate(effects, start=1):
        of_effect = rows_that(table, [_effect(name) == effect for name in table["intervention"]])
        for intervention, direction, rows in groups(of_effect, "intervention", "direction"):
            rows = rows.sort_values("strength")
            look = looks[str(intervention)]
            is_fitted = direction == "fitted"
            name = f"{intervention_of(str(intervention)).title}, {direction}"
            hover = f"{name}<br>strength %{{customdata}}: %{{y:.1f}} % at a KL of %{{x:.3~g}} nats"
            trace = line(
                name,
                rows["kl"],
                rows["effect"] * 100,
                look if is_fitted else LineLook(look.colour, look.symbol, "dot", 1.2, 6.0, True),
                hover,
                customdata=rows["strength"].tolist(),
            )
            if is_fitted:
                on_front = rows["is_on_front"].astype(bool)
                symbols = [look.symbol if front else f"{look.symbol}-open" for front in on_front]
                trace.update(
                    mode="lines+markers+text", textposition="bottom right", cliponaxis=False
                )
                trace.update(text=[f"{strength:g}" for strength in rows["strength"]])
                trace.update(marker_symbol=symbols)
            figure.add_trace(trace, row=row, col=1)
    figure.update_annotations(font_size=13)
    figure.update_yaxes(title_text="%", range=[-6, 108])
    figure.update_xaxes(rangemode="tozero")
    figure.update_xaxes(
        title_text="KL of the first token on the class left alone (nats)", row=len(effects), col=1
    )
    title = "What it does against what it costs"
    subtitle = "numbers are strengths; filled: none does more for less"
    return dress(figure, title, subtitle=subtitle, height=160 + 270 * len(effects), margin_t=104)


def _effect(intervention: str) -> str:
    return intervention_of(intervention).effect
