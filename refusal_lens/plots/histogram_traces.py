"""How the histogram's traces look: what stays when the slider moves.

Knows colours, axes and hover. The numbers are `histogram_data`'s.

Tested in tests/plots/test_histogram.py.
"""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from refusal_lens.plots.histogram_data import MISREAD, Data, View
from refusal_lens.plots.parts import Parts
from refusal_lens.plots.style import NEUTRAL_COLOUR, ClassStyle, faded
from refusal_lens.plots.text import hover_prompt
from refusal_lens.prompts.contrast import Prompt

BAR_OPACITY = 0.65


def view_traces(view: View, prompts: Sequence[Prompt], data: Data) -> list[go.Bar | go.Scatter]:
    """Return the traces of one view, each filled with what it shows at one place."""
    found: dict[str, go.Bar | go.Scatter] = {
        "null": _null_ribbon(),
        "threshold": level_line("threshold", NEUTRAL_COLOUR, "solid"),
        "marks threshold": level_line("threshold", NEUTRAL_COLOUR, "solid", yaxis="y2"),
        "headline": _headline_trace(),
    }
    for label, style in enumerate(view.parts.styles):
        members = [prompts[row] for row in view.parts.rows(label)]
        found |= {
            f"{style.name} bars": class_bars(style),
            f"{style.name} density": _curve(style, f"{style.name} density", hoverinfo="skip"),
            f"{style.name} share": _share(style, len(members)),
            f"{style.name} marks": _marks(style, members),
        }
    for style in view.parts.classes:
        found[f"{style.name} mean"] = level_line(f"{style.name} mean", style.colour, "dash")
    traces = [found[name] for name in view.traces]
    for name, trace in zip(view.traces, traces, strict=True):
        for key, value in data[name].items():
            trace[key] = value
    return traces


def class_keys(parts: Parts) -> list[go.Bar]:
    """Return the legend's entries of the classes: the traces themselves may be hidden or faint."""
    return [
        class_bars(style, showlegend=True, opacity=BAR_OPACITY).update(
            name=f"{style.name} ({len(parts.rows(label))})", x=[None], y=[None]
        )
        for label, style in enumerate(parts.styles)
    ]


def common_keys(*, has_null: bool) -> list[go.Scatter]:
    """Return the legend's entries that every view has."""
    misread = {
        "color": NEUTRAL_COLOUR,
        "size": 8,
        "symbol": MISREAD,
        "line": {"color": NEUTRAL_COLOUR, "width": 1.5},
    }
    looks: dict[str, Any] = {"x": [None], "y": [None], "hoverinfo": "skip"}
    keys = [go.Scatter(name="misread prompt", yaxis="y2", mode="markers", marker=misread, **looks)]
    if has_null:
        keys.append(
            go.Scatter(
                name="class means of shuffled labels, 95 %",
                mode="markers",
                marker={"symbol": "square", "size": 12, "color": faded(NEUTRAL_COLOUR, 0.3)},
                **looks,
            )
        )
    return keys


def class_bars(style: ClassStyle, **more: Any) -> go.Bar:
    """Return the bars of a class, or of a part of one, without their counts."""
    looks = {"showlegend": False, "opacity": BAR_OPACITY} | more
    return go.Bar(
        name=style.name,
        legendgroup=style.name,
        marker={
            "color": style.colour,
            "line": {"color": style.outline, "width": 1},
            "pattern": {"shape": style.pattern, "fillmode": "replace", "size": 6, "solidity": 0.45},
        },
        hovertemplate=f"%{{y}} {style.name} prompts<br>around %{{x}}<extra></extra>",
        **looks,
    )


def _curve(style: ClassStyle, name: str, **more: Any) -> go.Scatter:
    """Return a line that is drawn only when the menu of shapes asks for it."""
    return go.Scatter(
        name=name,
        legendgroup=style.name,
        showlegend=False,
        opacity=0,
        mode="lines",
        line={"color": style.colour, "width": 2.5, "dash": style.dash},
        **more,
    )


def _share(style: ClassStyle, n_prompts: int) -> go.Scatter:
    """Return the share of a class at or below each projection."""
    text = f"%{{y:.0f}} % of {style.name} prompts<br>at or below %{{x}}<extra></extra>"
    # The heights are the same at every place: a step of the slider need not carry them.
    heights = {"y0": 0, "dy": 100 / n_prompts, "yaxis": "y4", "line_shape": "hv"}
    trace = _curve(style, f"{style.name} share", hovertemplate=text, hoverinfo="skip")
    return trace.update(heights)


def _marks(style: ClassStyle, prompts: Sequence[Prompt]) -> go.Scatter:
    """Return one mark a prompt, all in the part's row, whatever the place."""
    return prompt_marks(style, prompts).update(
        showlegend=False,
        yaxis="y2",
        # A step of the slider need not say where. plotly.js reads a step of zero as one.
        y0=style.row,
        dy=1e-9,
        marker={"size": 8, "line": {"color": style.colour, "width": 1.5}},
        hovertemplate=(
            f"%{{hovertext}}<br>{style.name}%{{customdata}}<br>projection %{{x}}<extra></extra>"
        ),
    )


def prompt_marks(style: ClassStyle, prompts: Sequence[Prompt]) -> go.Scatter:
    """Return one mark a prompt; texts are data of the trace, never part of the template."""
    return go.Scatter(
        name=style.name,
        legendgroup=style.name,
        mode="markers",
        marker={"color": style.colour},
        hovertext=[hover_prompt(prompt.id, prompt.category, prompt.text) for prompt in prompts],
        hoverlabel={"align": "left"},
    )


def level_line(name: str, colour: str, dash: str, yaxis: str = "y") -> go.Scatter:
    """Return an upright line with a label, such as a class mean's, without where it stands."""
    # Labels have the page's own colour: a class's is too dark for letters on a dark page.
    return go.Scatter(
        name=name,
        showlegend=False,
        yaxis=yaxis,
        mode="lines+text",
        line={"color": colour, "width": 2, "dash": dash},
        textfont={"size": 12},
        cliponaxis=False,
        hoverinfo="skip",
    )


def _null_ribbon() -> go.Scatter:
    return go.Scatter(
        name="means of shuffled labels",
        showlegend=False,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faded(NEUTRAL_COLOUR, 0.3),
        hoverinfo="skip",
    )


def _headline_trace() -> go.Scatter:
    return go.Scatter(
        name="headline",
        showlegend=False,
        xaxis="x2",
        yaxis="y3",
        mode="text",
        cliponaxis=False,
        hoverinfo="skip",
    )
