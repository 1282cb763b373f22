"""The layer profile: separation, accuracy and AUROC over the layers.

Knows the bands of the article. Scores come from `validation`.

Tested in tests/plots/test_histogram.py.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.models.hook_points import short_name
from refusal_lens.plots.style import (
    NEUTRAL_COLOUR,
    LineLook,
    dress,
    faded,
    layer_axis,
    limit_line,
    line,
    line_looks,
    ribbon,
    ring,
)
from refusal_lens.plots.tables import by_layer, last_layer, lines_of
from refusal_lens.validation.best_place import Choice
from refusal_lens.validation.frames import rows_that
from refusal_lens.validation.separation import Separation
from refusal_lens.validation.thresholds import (
    GOOD_ACCURACY,
    GOOD_SEPARATION,
    MIN_ACCURACY,
    MIN_SEPARATION,
)

_PANELS = {
    "separation": ("separation", 1.0),
    "accuracy": ("accuracy (%)", 100.0),
    "auroc": ("AUROC", 1.0),
}
"""Scores drawn where the table has them: the axis's title, and what the score is multiplied by."""

_MOST_INTERVALS = 2
"""Lines whose intervals are drawn; with more only those of the best place's line."""


def layer_profile(
    scores: Separation | pd.DataFrame,
    *,
    nulls: pd.DataFrame | None = None,
    best: Choice | None = None,
) -> go.Figure:
    """Draw the scores over the layers, a line for each site and position.

    Solid is cross-fitted, thin and dotted is in sample: the room between them is optimism. Hook
    points outside the blocks have no layer and are left out.

    Args:
        scores: Scores of every place, or their table (`separation.csv`): intervals are drawn where
            it has `*_low` and `*_high`, AUROC where it has `auroc`.
        nulls: Scores under shuffled labels (`tables/nulls.csv`), drawn as a ribbon: the widest over
            the lines shown.
        best: The place to mark.

    Returns:
        The figure, as wide as its container.
    """
    table = scores if isinstance(scores, pd.DataFrame) else scores.to_frame()
    frame = by_layer(table)
    panels = [name for name in _PANELS if name in frame]
    figure = make_subplots(rows=len(panels), shared_xaxes=True, vertical_spacing=0.05)
    groups = lines_of(frame)
    for row, score in enumerate(panels, start=1):
        figure.add_traces(list(_null_ribbon(nulls, frame, score, row)), rows=row, cols=1)
    for (name, rows), look in zip(groups, line_looks(), strict=False):
        has_interval = len(groups) <= _MOST_INTERVALS or _is_of(rows, best)
        for row, score in enumerate(panels, start=1):
            lines = list(_score_lines(name, rows, score, look))
            lines[-1].showlegend = row == 1
            if has_interval and {f"{score}_low", f"{score}_high"} <= set(rows):
                scale, fill = _PANELS[score][1], faded(look.colour, 0.25)
                names = {"name": f"{name}, interval", "legendgroup": name, "fillcolor": fill}
                lines.insert(0, ribbon(rows, "layer", score, look.colour, scale=scale, **names))
            figure.add_traces(lines, rows=row, cols=1)
    if groups and any(f"{score}_in_sample" in frame for score in panels):
        figure.add_trace(_in_sample_key(), row=1, col=1)
    if best is not None and best.layer is not None:
        figure.add_traces(list(_best_marks(best)), rows=[1, 2], cols=[1, 1])
    _add_bands(figure, panels)
    return dress(figure, _title(best), **_profile_layout(frame, nulls, panels))


def _title(best: Choice | None) -> str:
    if best is None:
        return "Scores over the layers"
    text = "best" if best.is_eligible else "nearest miss"
    return f"Scores over the layers · {text}: {short_name(best.hook_point)}, {best.position}"


def _is_of(rows: pd.DataFrame, best: Choice | None) -> bool:
    """Whether the best place is on this line."""
    return best is not None and bool(
        ((rows["hook_point"] == best.hook_point) & (rows["position"] == best.position)).any()
    )


def _null_ribbon(
    nulls: pd.DataFrame | None, frame: pd.DataFrame, score: str, row: int
) -> Iterator[go.Scatter]:
    """Yield the ribbon that shuffled labels stay in, at each layer the widest of the places."""
    rows = _null_of(nulls, frame, score)
    if rows.empty:
        return
    edges = rows.groupby("layer", as_index=False).agg(
        null_low=("low", "min"), null_high=("high", "max")
    )
    yield ribbon(
        edges,
        "layer",
        "null",
        NEUTRAL_COLOUR,
        scale=_PANELS[score][1],
        name="scores of shuffled labels, 95 %",
        legendgroup="null",
        showlegend=row == 1,
        fillcolor=faded(NEUTRAL_COLOUR, 0.3),
    )


def _null_of(nulls: pd.DataFrame | None, frame: pd.DataFrame, score: str) -> pd.DataFrame:
    if nulls is None:
        return pd.DataFrame()
    is_wanted = (
        (nulls["kind"] == "permutation")
        & (nulls["score"] == score)
        & nulls["hook_point"].isin(frame["hook_point"])
    )
    return by_layer(rows_that(nulls, is_wanted))


def _score_lines(name: str, rows: pd.DataFrame, score: str, look: LineLook) -> Iterator[go.Scatter]:
    """Yield one score's line in sample, where there is one, then the cross-fitted one."""
    layers, scale = rows["layer"], _PANELS[score][1]
    text = f"{name}, layer %{{x}}<br>{score} %{{y:.3~f}}{' %' if scale == 100 else ''}"
    if f"{score}_in_sample" in rows:
        thin = replace(look, width=1.0, dash="dot")
        y = rows[f"{score}_in_sample"] * scale
        yield line(name, layers, y, thin, f"{text}, in sample", mode="lines", showlegend=False)
    yield line(name, layers, rows[score] * scale, look, f"{text}, cross-fitted")


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
    """Yield a ring around the best place in the panels of separation and accuracy."""
    text = "best" if best.is_eligible else "nearest miss"
    name = f"{text}: {short_name(best.hook_point)}, {best.position}"
    for value in (best.separation, 100 * best.accuracy):
        is_first = value == best.separation
        yield ring(name, [best.layer], [value], legendgroup="best", showlegend=is_first)


def _add_bands(figure: go.Figure, panels: list[str]) -> None:
    """Draw the bands for people, labelled in the right margin."""
    bands = [
        ("separation", GOOD_SEPARATION, f"good {GOOD_SEPARATION:.2f}", "dash"),
        ("separation", MIN_SEPARATION, f"acceptable {MIN_SEPARATION:.2f}", "dash"),
        ("accuracy", 100 * GOOD_ACCURACY, f"good {GOOD_ACCURACY:.0%}", "dash"),
        ("accuracy", 100 * MIN_ACCURACY, f"acceptable {MIN_ACCURACY:.0%}", "dash"),
        ("accuracy", 50.0, "chance 50%", "dot"),
        ("auroc", 0.5, "chance 0.5", "dot"),
    ]
    for score, height, text, dash in bands:
        if score in panels:
            limit_line(figure, panels.index(score) + 1, height, text, dash)


def _profile_layout(
    frame: pd.DataFrame, nulls: pd.DataFrame | None, panels: list[str]
) -> dict[str, Any]:
    """Return axes that hold every number, line and band."""
    floors = {"separation": (0.0, GOOD_SEPARATION), "accuracy": (45.0, 100.0), "auroc": (0.45, 1.0)}
    ticks = layer_axis(last_layer(frame))
    layout: dict[str, Any] = {"margin": {"l": 70, "r": 110, "t": 44, "b": 60}}
    for row, score in enumerate(panels, start=1):
        title, scale = _PANELS[score]
        numbers = [number * scale for number in _numbers(frame, nulls, score)]
        low, high = min([floors[score][0], *numbers]), max([floors[score][1], *numbers])
        room = 0.06 * (high - low)
        bottom = low - room * (low < floors[score][0])
        suffix = "" if row == 1 else str(row)
        layout |= {
            f"xaxis{suffix}": ticks | ({"title": {"text": "layer"}} if row == len(panels) else {}),
            f"yaxis{suffix}": {"title": {"text": title}, "range": [bottom, high + room]},
        }
    return {"height": 120 + 220 * len(panels), **layout}


def _numbers(frame: pd.DataFrame, nulls: pd.DataFrame | None, score: str) -> list[float]:
    """Return every number that a panel shows."""
    names = [score + suffix for suffix in ("", "_in_sample", "_low", "_high")]
    columns = [frame[name] for name in names if name in frame]
    rows = _null_of(nulls, frame, score)
    if not rows.empty:
        columns += [rows["low"], rows["high"]]
    return list(itertools.chain.from_iterable(column.dropna().tolist() for column in columns))
