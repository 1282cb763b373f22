"""How activations lie: ridgeline, plane, largest coordinates, directions side by side.

Knows how distributions are drawn. They come from `validation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Bool, Float
from plotly.subplots import make_subplots
from torch import Tensor

from refusal_lens.models.hook_points import layer_of, short_name, site_of
from refusal_lens.plots.histogram_traces import prompt_marks
from refusal_lens.plots.style import (
    CLASSES,
    NEUTRAL_COLOUR,
    Classes,
    ClassStyle,
    dress,
    faded,
    hatched,
    line_looks,
    menu,
)
from refusal_lens.plots.text import AXIS_TITLES, SCALES, escape, rounded
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.validation.densities import Coordinates, Densities, Plane, Ridges

RIDGE_HEIGHT = 1.9
"""Height of the highest ridge, in rows: neighbours overlap a little."""


Styles = tuple[ClassStyle, ...]


def ridgeline(
    ridges: Sequence[Ridges],
    styles: Sequence[Styles] | None = None,
) -> go.Figure:
    """Draw the densities of both classes at every layer, one above the other.

    Every ridge is as high as the others: what counts is where the classes lie.

    Args:
        ridges: One for each site and position; a menu goes over them, the first is shown.
        styles: How the parts of each look; None takes them for the classes.
    """
    figure = go.Figure()
    styles = [CLASSES] * len(ridges) if styles is None else styles
    for shown, (one, looks) in enumerate(zip(ridges, styles, strict=True)):
        for label, style in enumerate(looks):
            figure.add_trace(_ridge_trace(one, label, style).update(visible=shown == 0))
    n_rows = max(len(one.hook_points) for one in ridges)
    layout: dict[str, Any] = {"height": 200 + max(14, min(44, 1100 // n_rows)) * n_rows}
    if len(ridges) > 1:
        layout |= {
            "updatemenus": [menu(_ridge_buttons(ridges, styles), x=1, xanchor="right")],
            "margin_t": 96,
        }
    figure.update_xaxes(title_text=AXIS_TITLES[ridges[0].is_cosine], zeroline=False)
    title = "Both classes at every layer"
    return dress(figure, title, **_ridge_axis(ridges[0]), **layout)


def _ridge_trace(one: Ridges, label: int, style: ClassStyle) -> go.Scatter:
    """Return all ridges of a part as one trace, its polygons apart by a gap.

    From the top down, so that a peak stands before the ridge above it.
    """
    xs: list[float | None] = []
    ys: list[float | None] = []
    places: list[str] = []
    for row in reversed(range(len(one.hook_points))):
        density, highest = one.curves[row, label], float(one.curves[row].max())
        # Where a class hardly is there is only its outline, which hides the other's.
        kept = (density > 0.004 * highest).nonzero().flatten().tolist()
        if not kept:
            continue
        x = [float(f"{value:.4g}") for value in one.grids[row, kept].tolist()]
        y = [round(row + RIDGE_HEIGHT * d / highest, 3) for d in density[kept].tolist()]
        xs += [x[0], *x, x[-1], None]
        ys += [row, *y, row, None]
        places += [short_name(one.hook_points[row])] * (len(x) + 3)
    return go.Scatter(
        name=style.name,
        legendgroup=style.name,
        x=xs,
        y=ys,
        mode="lines",
        fill="toself",
        fillcolor=faded(style.colour, 0.5),
        hoveron="points",  # pyright: ignore[reportArgumentType]
        # Ridges are small: the dashes that tell the classes apart must be too.
        line={
            "color": style.colour,
            "width": 1.3,
            "dash": {"dash": "4px,2px", "dot": "1px,2px"}.get(style.dash, "solid"),
        },
        text=places,
        hovertemplate=f"%{{text}}, {style.name}<br>"
        f"{SCALES[one.is_cosine]} %{{x:.4~g}}<extra></extra>",
    )


def _ridge_axis(one: Ridges) -> dict[str, Any]:
    """Return the axis whose rows are layers, or names where hook points have no layer."""
    n_rows = len(one.hook_points)
    stride = 1 if n_rows <= 24 else 5
    layers = [layer_of(name) for name in one.hook_points]
    labels = [
        short_name(name) if layer is None else str(layer)
        for name, layer in zip(one.hook_points, layers, strict=True)
    ]
    return {
        "yaxis": {
            "title": {"text": "layer"},
            "tickvals": list(range(0, n_rows, stride)),
            "ticktext": labels[::stride],
            "range": [-0.5, n_rows - 1 + RIDGE_HEIGHT + 0.2],
            "zeroline": False,
        }
    }


def _ridge_buttons(ridges: Sequence[Ridges], styles: Sequence[Styles]) -> list[dict[str, Any]]:
    buttons = []
    for shown, one in enumerate(ridges):
        changes = {"visible": [place == shown for place, each in enumerate(styles) for _ in each]}
        how = "" if len(styles[shown]) == len(CLASSES) else " · by outcome"
        label = f"{site_of(one.hook_points[0])}, {one.position}{how}"
        buttons.append({"method": "update", "label": label, "args": [changes, _ridge_axis(one)]})
    return buttons


def activation_plane(
    plane: Plane,
    is_harmful: Bool[Tensor, " n_prompts"],
    prompts: Sequence[Prompt],
    *,
    place: str = "",
    classes: Classes = CLASSES,
) -> go.Figure:
    """Draw every prompt along the direction and along the largest spread beside it.

    Both axes have one scale, so that distances are what they seem.

    Args:
        plane: The two coordinates.
        is_harmful: Labels.
        prompts: In the same order, for the hover.
        place: Said below the title.
        classes: How the classes look, and what they are called.
    """
    told = "along %{x}, across %{y}"
    figure = _clouds(plane.along, plane.across, is_harmful, prompts, told, classes)
    figure.update_xaxes(title_text="projection on the unit direction (activation units)")
    figure.update_yaxes(
        title_text="first component of the rest<br>"
        f"({plane.across_share:.0%} of its variance; activation units)",
        scaleanchor="x",
    )
    title = "Activations along and across the direction, in sample"
    return dress(figure, title, subtitle=place, height=560, margin_l=90)


def embedding(
    points: Float[Tensor, "n_prompts 2"],
    is_harmful: Bool[Tensor, " n_prompts"],
    prompts: Sequence[Prompt],
    *,
    place: str = "",
    classes: Classes = CLASSES,
) -> go.Figure:
    """Draw every prompt where an embedding laid it.

    Args:
        points: From `densities.embedding`.
        is_harmful: Labels.
        prompts: In the same order, for the hover.
        place: Said below the title.
        classes: As in `activation_plane`.
    """
    figure = _clouds(points[:, 0], points[:, 1], is_harmful, prompts, "", classes)
    figure.update_xaxes(showticklabels=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, zeroline=False, scaleanchor="x")
    title = "UMAP of the activations, in sample"
    subtitle = f"{place}<br>near is alike; distances between heaps and axes mean nothing"
    return dress(figure, title, subtitle=subtitle, height=560, margin_t=96)


def _clouds(
    x: Float[Tensor, " n_prompts"],
    y: Float[Tensor, " n_prompts"],
    is_harmful: Bool[Tensor, " n_prompts"],
    prompts: Sequence[Prompt],
    told: str,
    classes: Classes,
) -> go.Figure:
    """Draw the prompts of both classes as marks; `told` is said below a prompt on hover."""
    figure = go.Figure()
    for style in classes:
        rows = (is_harmful == style.is_harmful).nonzero().flatten().tolist()
        marks = prompt_marks(style, [prompts[row] for row in rows]).update(
            name=f"{style.name} ({len(rows)})",
            x=rounded(x[rows]),
            y=rounded(y[rows]),
            marker={"symbol": style.symbol, "size": 7, "opacity": 0.75},
            hovertemplate=f"%{{hovertext}}<br>{told}<extra></extra>",
        )
        figure.add_trace(marks)
    return figure


def direction_components(coordinates: Coordinates, *, place: str = "") -> go.Figure:
    """Draw the largest coordinates of a direction, and how much of it the first ones hold.

    Args:
        coordinates: From `distributions.top_coordinates`.
        place: Said below the title.
    """
    names = [str(index) for index in coordinates.index.tolist()]
    figure = make_subplots(rows=2, row_heights=[0.6, 0.4], vertical_spacing=0.19)
    looks = (("raw", coordinates.raw, ""), ("clipped", coordinates.clipped, "/"))
    for (text, numbers, pattern), look in zip(looks, line_looks(), strict=False):
        bars = go.Bar(
            name=text,
            x=names,
            y=rounded(numbers),
            marker=hatched(look.colour, pattern),
            hovertemplate=f"coordinate %{{x}}, {text}: %{{y:.3~f}}<extra></extra>",
        )
        figure.add_trace(bars, row=1, col=1)
    shares = [100 * share for share in coordinates.cumulative.tolist()]
    held = go.Scatter(
        name="share held",
        showlegend=False,
        x=list(range(1, len(shares) + 1)),
        y=[round(share, 3) for share in shares],
        mode="lines",
        line={"color": NEUTRAL_COLOUR, "width": 2},
        hovertemplate="%{x} largest: %{y:.1f} % of squared length<extra></extra>",
    )
    figure.add_trace(held, row=2, col=1)
    figure.update_xaxes(title_text="coordinate, largest first", type="category", row=1, col=1)
    figure.update_yaxes(title_text="share of length, signed", row=1, col=1)
    figure.update_xaxes(title_text="number of largest coordinates", type="log", row=2, col=1)
    figure.update_xaxes(dtick=1, row=2, col=1)
    figure.update_yaxes(title_text="squared length (%)", range=[0, 103], row=2, col=1)
    title = "Largest coordinates of the direction"
    return dress(figure, title, subtitle=place, height=620)


@dataclass(frozen=True, eq=False)
class Panel:
    """Both classes along one direction: what `directions_side_by_side` draws in a column.

    `prompts` are in the order of `numbers`, for the hover; `name` may have several lines.
    """

    name: str
    prompts: Sequence[Prompt]
    numbers: Float[Tensor, " n_prompts"]
    is_harmful: Bool[Tensor, " n_prompts"]
    threshold: float
    densities: Densities


def directions_side_by_side(
    panels: Sequence[Panel],
    *,
    title: str = "Directions side by side",
) -> go.Figure:
    """Draw several directions, each in a column: densities above, a mark a prompt below.

    Args:
        panels: One for each direction: of other methods, places, runs or sets of prompts.
        title: Written above; "" where the page says it.
    """
    figure = make_subplots(
        rows=2,
        cols=len(panels),
        shared_xaxes=True,
        row_heights=[0.75, 0.25],
        vertical_spacing=0.03,
        horizontal_spacing=0.05,
        subplot_titles=[escape(panel.name).replace("\n", "<br>") for panel in panels],
    )
    for column, panel in enumerate(panels, start=1):
        for style in CLASSES:
            curve = _panel_curve(panel, style).update(showlegend=column == 1)
            figure.add_traces([curve, _panel_marks(panel, style)], rows=[1, 2], cols=column)
        figure.add_vline(
            panel.threshold,
            line={"color": NEUTRAL_COLOUR, "width": 2},
            row="all",
            col=column,  # pyright: ignore[reportArgumentType]
        )
        figure.update_xaxes(title_text="projection", nticks=5, row=2, col=column)
        figure.update_yaxes(showticklabels=column == 1, row=2, col=column)
    names = [style.name for style in CLASSES]
    figure.update_yaxes(row=2, tickvals=[0, 1], ticktext=names, range=[-0.6, 1.6], showgrid=False)
    figure.update_yaxes(row=1, showticklabels=False, rangemode="tozero")
    figure.update_yaxes(row=1, col=1, title_text="density").update_annotations(font_size=13)
    return dress(figure, title, height=480, margin={"l": 80, "t": 112 if title else 68})


def _panel_curve(panel: Panel, style: ClassStyle) -> go.Scatter:
    density = panel.densities.curves[int(style.is_harmful)]
    return go.Scatter(
        name=style.name,
        legendgroup=style.name,
        x=rounded(panel.densities.grid),
        y=rounded(density),
        mode="lines",
        fill="tozeroy",
        fillcolor=faded(style.colour, 0.35),
        line={"color": style.colour, "dash": style.dash, "width": 2},
        hoverinfo="skip",
    )


def _panel_marks(panel: Panel, style: ClassStyle) -> go.Scatter:
    rows = (panel.is_harmful == style.is_harmful).nonzero().flatten().tolist()
    return prompt_marks(style, [panel.prompts[row] for row in rows]).update(
        showlegend=False,
        x=rounded(panel.numbers[rows]),
        y=[style.row] * len(rows),
        marker={"symbol": "line-ns-open", "size": 9, "line": {"width": 1.5}},
        hovertemplate="%{hovertext}<br>projection %{x}<extra></extra>",
    )
