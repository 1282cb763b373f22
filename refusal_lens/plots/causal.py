"""What interventions do: scores of the candidates, and refusal over the strength.

Knows the paper's thresholds by sight. Their numbers come as tables.
"""

from collections.abc import Iterator

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.hook_points import short_name
from refusal_lens.plots.style import (
    NEUTRAL_COLOUR,
    band,
    dress,
    faded,
    layer_axis,
    line_looks,
    style_of,
)

_SCORES = (
    ("bypass", "bypass (nats)", "baseline_harmful", "harmful, untouched"),
    ("induce", "induce (nats)", "baseline_harmless", "harmless, untouched"),
    ("kl", "KL (nats)", None, ""),
)
"""Column, axis title, the column of its baseline and what the baseline is called."""

_DIRECTIONS = {"fitted": ("solid", 2.5), "random": ("dot", 1.2), "permuted": ("dashdot", 1.2)}
"""Dash and width of a line, by where its direction came from."""


def causal_scores(
    table: pd.DataFrame,
    *,
    max_kl: float = 0.1,
    min_induce: float = 0.0,
    max_layer_share: float = 0.8,
    n_layers: int | None = None,
    template: str = "plotly_white",
) -> go.Figure:
    """Draw bypass, induce and KL of every candidate over the layers, and the chosen one.

    Hollow marks failed a threshold; dotted lines are affine ablation, where it was measured.

    Args:
        table: `causal_scores`.
        max_kl: Candidates above are dropped.
        min_induce: Candidates below are dropped.
        max_layer_share: Layers from this share of the depth on are dropped.
        n_layers: Of the model; None takes the candidates' last layer plus one.
        template: Name of a plotly template.

    Source:
        Thresholds: Arditi et al. 2024, arXiv 2406.11717, appendix C.
    """
    frame = table.dropna(subset=["layer"]).sort_values("layer", kind="stable")
    last = max(frame["layer"].astype(int).tolist(), default=0)
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.05)
    groups = list(frame.groupby(frame["site"] + ", " + frame["position"].astype(str), sort=False))
    for (name, own), (colour, symbol) in zip(groups, line_looks(), strict=False):
        for row, (score, *_) in enumerate(_SCORES, start=1):
            lines = list(_candidate_lines(own, score, str(name), colour, symbol))
            lines[0].showlegend = row == 1
            figure.add_traces(lines, rows=row, cols=1)
    figure.add_traces(list(_chosen_marks(frame)), rows=[1, 2, 3], cols=1)
    _add_thresholds(figure, frame, {2: min_induce, 3: max_kl})
    first_dropped = int(max_layer_share * (n_layers or last + 1))
    if first_dropped <= last:
        figure.add_vrect(
            first_dropped - 0.5, last + 0.5, line_width=0, fillcolor=NEUTRAL_COLOUR, opacity=0.15,
            row="all", col=1,
        )  # fmt: skip
        figure.add_annotation(text="too late", x=last, y=1, xref="x", yref="paper", showarrow=False,
                              yanchor="bottom", font={"size": 11})  # fmt: skip
    for row, (_, said, *_) in enumerate(_SCORES, start=1):
        figure.update_yaxes(title_text=said, row=row, col=1)
    figure.update_yaxes(type="log", dtick=1, exponentformat="power", row=3, col=1)
    figure.update_xaxes(**layer_axis(last)).update_xaxes(title_text="layer", row=3, col=1)
    title = "What each direction does to refusal"
    return dress(figure, template, title, height=720, margin_r=130, margin_t=64)


def _candidate_lines(
    own: pd.DataFrame, score: str, name: str, colour: str, symbol: str
) -> Iterator[go.Scatter]:
    """Yield a score's line, and that of affine ablation where it was measured."""
    layers = own["layer"].astype(int).tolist()
    variants = (("", "is_eligible", "solid"), ("_affine", "is_eligible_affine", "dot"))
    for suffix, eligible, dash in variants:
        if score + suffix not in own or own[score + suffix].isna().all():
            continue
        is_kept = own[eligible].astype(bool).tolist() if eligible in own else [True] * len(own)
        said = f"{score}, affine" if suffix else score
        yield go.Scatter(
            name=name, legendgroup=name, showlegend=False, x=layers, y=own[score + suffix].tolist(),
            mode="lines+markers", line={"color": colour, "width": 2, "dash": dash},
            marker={"symbol": [symbol if kept else f"{symbol}-open" for kept in is_kept], "size": 8},
            customdata=["" if kept else "<br>dropped" for kept in is_kept],
            hovertemplate=f"{name}, layer %{{x}}<br>{said} %{{y:.3~g}} nats%{{customdata}}"
            "<extra></extra>",
        )  # fmt: skip


def _chosen_marks(frame: pd.DataFrame) -> Iterator[go.Scatter]:
    """Yield a ring around the chosen candidate in each panel."""
    chosen = frame[frame["is_chosen"].astype(bool)]
    names = [f"chosen: {short_name(hook_point)}, {position}"
             for hook_point, position in zip(chosen["hook_point"], chosen["position"], strict=True)]  # fmt: skip
    for row, (score, *_) in enumerate(_SCORES):
        yield go.Scatter(
            name=names[0] if names else "chosen", legendgroup="chosen",
            showlegend=bool(names) and row == 0, x=chosen["layer"].astype(int).tolist(),
            y=chosen[score].tolist(), mode="markers", hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 18, "color": NEUTRAL_COLOUR,
                    "line": {"width": 3}},
        )  # fmt: skip


def _add_thresholds(figure: go.Figure, frame: pd.DataFrame, limits: dict[int, float]) -> None:
    """Draw thresholds and baselines, labelled in the right margin."""
    for row, (_, _, baseline, said) in enumerate(_SCORES, start=1):
        lines = [(limits[row], f"limit {limits[row]:g}", "dash")] if row in limits else []
        if baseline is not None and baseline in frame and frame[baseline].notna().any():
            lines.append((float(frame[baseline].dropna().iloc[0]), said, "dot"))
        for height, text, dash in lines:
            figure.add_hline(
                height, row=row, col=1,  # pyright: ignore[reportArgumentType]
                line={"color": NEUTRAL_COLOUR, "width": 1, "dash": dash},
                annotation={"text": text, "font": {"size": 11}}, annotation_position="right",
            )  # fmt: skip


def dose_response(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw refusal over the strength of each intervention, beside its controls.

    Solid lines with intervals are the fitted direction; dotted ones random, dash-dotted permuted.

    Args:
        table: `dose_response`.
        template: Name of a plotly template.
    """
    interventions = list(dict.fromkeys(table["intervention"]))
    titles = [name.replace("_", " ") for name in interventions]
    figure = make_subplots(
        rows=2, cols=len(interventions), shared_xaxes=True, shared_yaxes="rows",
        vertical_spacing=0.07, horizontal_spacing=0.03, column_titles=titles,
    )  # fmt: skip
    is_named: set[str] = set()
    for column, intervention in enumerate(interventions, start=1):
        own = table[table["intervention"] == intervention]
        for trace, row in _dose_lines(own):
            if trace.showlegend is not False:
                trace.showlegend = trace.name not in is_named
                is_named.add(trace.name)
            figure.add_trace(trace, row=row, col=column)
        figure.update_xaxes(title_text="strength", row=2, col=column)
    figure.update_yaxes(title_text="refusal score (nats)", row=1, col=1)
    figure.update_yaxes(title_text="refused (%)", row=2, col=1)
    figure.update_yaxes(range=[-4, 104], row=2)
    return dress(figure, template, "Refusal over the strength of intervention", height=620,
                 margin_t=86)  # fmt: skip


def _dose_lines(own: pd.DataFrame) -> Iterator[tuple[go.Scatter, int]]:
    """Yield the lines of one intervention and the panel of each."""
    keys = ["is_harmful", "direction", "seed"]
    for (is_harmful, direction, seed), line in own.groupby(keys, sort=False, dropna=False):
        style, (dash, width) = style_of(bool(is_harmful)), _DIRECTIONS[str(direction)]
        line = line.sort_values("strength")
        name = f"{style.name}, {direction}"
        for row, (score, scale, unit) in enumerate(
            (("refusal_score", 1, " nats"), ("refusal_rate", 100, " %")), start=1
        ):
            if line[score].isna().all():
                continue
            if direction == "fitted":
                low, high = (line[f"{score}_{end}"] * scale for end in ("low", "high"))
                yield band(line["strength"], low, high, name=name, legendgroup=name,
                           showlegend=False, fillcolor=faded(style.colour, 0.2)), row  # fmt: skip
            said = "" if direction == "fitted" or pd.isna(seed) else f", seed {seed:g}"
            yield go.Scatter(
                name=name, legendgroup=name, x=line["strength"].tolist(),
                y=(line[score] * scale).tolist(), mode="lines+markers",
                line={"color": style.colour, "width": width, "dash": dash},
                marker={"symbol": style.symbol if direction == "fitted" else f"{style.symbol}-open",
                        "size": 8 if direction == "fitted" else 5},
                hovertemplate=f"{name}{said}<br>strength %{{x}}: %{{y:.3~f}}{unit}<extra></extra>",
            ), row  # fmt: skip
