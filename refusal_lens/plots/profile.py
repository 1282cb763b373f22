"""The layer profile: separation and accuracy over the layers.

Knows the bands of the article. Scores come from `validation`.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.diagnosis import GOOD_ACCURACY
from refusal_lens.hook_points import short_name
from refusal_lens.plots.style import LINE_COLOURS, LINE_SYMBOLS, NEUTRAL_COLOUR
from refusal_lens.selection import GOOD_SEPARATION, Choice
from refusal_lens.validation import MIN_ACCURACY, MIN_SEPARATION, Separation


def layer_profile(
    separation: Separation, *, best: Choice | None = None, template: str = "plotly_white"
) -> go.Figure:
    """Draw separation and accuracy over the layers, a line for each site and position.

    Solid is cross-fitted, thin and dotted is in sample: the room between them is optimism. Hook
    points outside the blocks have no layer and are left out.

    Args:
        separation: Scores of every place.
        best: The place to mark.
        template: Name of a plotly template.

    Returns:
        The figure, as wide as its container.
    """
    frame = separation.to_frame().dropna(subset=["layer"]).sort_values("layer", kind="stable")
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.06)
    groups = list(frame.groupby(frame["site"] + ", " + frame["position"], sort=False))
    looks = zip(itertools.cycle(LINE_COLOURS), itertools.cycle(LINE_SYMBOLS), strict=False)
    for (name, scores), (colour, symbol) in zip(groups, looks, strict=False):
        lines = list(_profile_lines(str(name), scores, colour, symbol))
        figure.add_traces(lines, rows=[1, 2, 1, 2], cols=[1, 1, 1, 1])
    if groups:
        figure.add_trace(_in_sample_key(), row=1, col=1)
    if best is not None and best.layer is not None:
        figure.add_traces(list(_best_marks(best)), rows=[1, 2], cols=[1, 1])
    _add_bands(figure)
    figure.update_layout(template=template, **_profile_layout(frame))
    return figure


def _profile_lines(
    name: str, scores: pd.DataFrame, colour: str, symbol: str
) -> Iterator[go.Scatter]:
    """Yield separation and accuracy, cross-fitted first, then in sample."""
    layers = scores["layer"].astype(int).tolist()
    for suffix, said in (("", "cross-fitted"), ("_in_sample", "in sample")):
        is_main = suffix == ""
        for score, scale, unit in (("separation", 1, ""), ("accuracy", 100, " %")):
            yield go.Scatter(
                name=name,
                legendgroup=name,
                showlegend=is_main and score == "separation",
                x=layers,
                y=(scores[score + suffix] * scale).tolist(),
                mode="lines+markers" if is_main else "lines",
                line={"color": colour, "width": 2 if is_main else 1,
                      "dash": "solid" if is_main else "dot"},
                marker={"symbol": symbol, "size": 7},
                hovertemplate=f"{name}, layer %{{x}}<br>{score} %{{y:.3~f}}{unit}, {said}"
                "<extra></extra>",
            )  # fmt: skip


def _in_sample_key() -> go.Scatter:
    return go.Scatter(
        name="in sample",
        x=[None],
        y=[None],
        mode="lines",
        line={"color": NEUTRAL_COLOUR, "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )


def _best_marks(best: Choice) -> Iterator[go.Scatter]:
    """Yield a ring around the best place in either panel."""
    said = "best" if best.is_eligible else "nearest miss"
    for value in (best.separation, 100 * best.accuracy):
        yield go.Scatter(
            name=f"{said}: {short_name(best.hook_point)}, {best.position}",
            legendgroup="best",
            showlegend=value == best.separation,
            x=[best.layer],
            y=[value],
            mode="markers",
            marker={"symbol": "circle-open", "size": 17, "color": NEUTRAL_COLOUR,
                    "line": {"width": 3}},
            hoverinfo="skip",
        )  # fmt: skip


def _add_bands(figure: go.Figure) -> None:
    """Draw the bands for people, labelled in the right margin."""
    bands = [
        (1, GOOD_SEPARATION, f"good {GOOD_SEPARATION:.2f}", "dash"),
        (1, MIN_SEPARATION, f"acceptable {MIN_SEPARATION:.2f}", "dash"),
        (2, 100 * GOOD_ACCURACY, f"good {GOOD_ACCURACY:.0%}", "dash"),
        (2, 100 * MIN_ACCURACY, f"acceptable {MIN_ACCURACY:.0%}", "dash"),
        (2, 50, "chance 50%", "dot"),
    ]
    for row, height, text, dash in bands:
        figure.add_hline(
            height,
            row=row,  # pyright: ignore[reportArgumentType]
            line={"color": NEUTRAL_COLOUR, "width": 1, "dash": dash},
            annotation={"text": text, "font": {"size": 11, "color": NEUTRAL_COLOUR}},
            annotation_position="right",
        )


def _profile_layout(frame: pd.DataFrame) -> dict[str, Any]:
    scores = frame[["separation", "separation_in_sample"]].stack()
    shares = frame[["accuracy", "accuracy_in_sample"]].stack() * 100
    low = min(0.0, scores.min()) if len(scores) else 0.0
    high = max(GOOD_SEPARATION, scores.max()) if len(scores) else GOOD_SEPARATION
    least = min(45.0, shares.min() - 3) if len(shares) else 45.0
    last = max(frame["layer"].astype(int).tolist(), default=0)
    ticks = {"dtick": 1 if last < 16 else 5 if last < 40 else 10, "tick0": 0}
    room = 0.06 * (high - low)
    return {
        "height": 560,
        "margin": {"l": 70, "r": 110, "t": 30, "b": 60},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "xaxis": ticks,
        "xaxis2": ticks | {"title": {"text": "layer"}},
        "yaxis": {"title": {"text": "separation"}, "range": [low - room * (low < 0), high + room]},
        "yaxis2": {"title": {"text": "accuracy (%)"}, "range": [least, 103]},
    }
