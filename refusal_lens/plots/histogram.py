"""The projection histogram: both classes at one place, a slider over the layers.

Knows its layout and its controls. Bins, densities and scores come from `validation`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import layer_of, short_name, site_of
from refusal_lens.plots.histogram_data import (
    Data,
    View,
    highest_bar,
    place_data,
    step_name,
    steps_of,
    widest_null,
)
from refusal_lens.plots.histogram_traces import (
    BAR_OPACITY,
    class_keys,
    common_keys,
    view_traces,
)
from refusal_lens.plots.parts import Parts, mark_rows, ways_to_split
from refusal_lens.plots.style import CLASSES, LIGHT, Classes
from refusal_lens.plots.text import AXIS_TITLES
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.validation.best_place import choose_best
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.densities import activation_norms
from refusal_lens.validation.separation import Separation

Step = int | str


def projection_histogram(
    projections: Projections | Mapping[str, Projections],
    separation: Separation | Mapping[str, Separation],
    prompts: Sequence[Prompt],
    *,
    outcomes: Sequence[str] | None = None,
    nulls: pd.DataFrame | None = None,
    initial: tuple[str, str] | None = None,
    only: tuple[str, str] | None = None,
    classes: Classes = CLASSES,
) -> go.Figure:
    """Draw both classes along the direction at every place, one place at a time.

    A slider goes over the layers, one menu over sites, positions and methods, raw or as cosines,
    the other over bars, density and cumulative share. They leave each other alone: every entry of
    the first menu has traces of its own, a view; the slider changes the data of all views, the
    menu which one is visible. Lines and headline are traces too, so that they follow.

    Args:
        projections: Every prompt at every place; where there are several methods, by their names.
        separation: Scores of the same places, for the headline; by name as well.
        prompts: In the order of the projections' rows.
        outcomes: What became of each request: the menu then also has each raw view with its
            classes split into refused, answered and neither.
        nulls: Scores under shuffled labels (`tables/nulls.csv`): the range in which the class
            means then lie is shaded.
        initial: Hook point and position shown first; None takes the best place.
        only: Draw this place alone, without slider and menu of places: a hook point (a full name or
            such as `resid_post:3`) and a position; None draws all.
        classes: How the classes look, and what they are called.

    Returns:
        The figure, as wide as its container.

    Raises:
        RefusalLensError: The prompts are not those of the projections, or there is no such place.
    """
    methods = _by_method(projections, separation)
    for each in methods.values():
        _check_same(*each, prompts)
    if only is not None:
        methods = {
            name: (values.only_at(*only), scores.only_at(*only))
            for name, (values, scores) in methods.items()
        }
        initial = None
    first_projections, first_separation = next(iter(methods.values()))
    start = _initial_place(first_separation, initial)
    splits = ways_to_split(first_projections.is_harmful, outcomes, classes)
    views = [view for name, both in methods.items() for view in _views(name, *both, nulls, splits)]
    steps = steps_of(tuple(name for each, _ in methods.values() for name in each.hook_points))
    data = [[place_data(view, step) for view in views] for step in steps]
    active = steps.index(_step(start[0]))
    shown = _first_view_of(views, *start)
    traces = [
        trace.update(visible=index == shown)
        for index, (view, of_view) in enumerate(zip(views, data[active], strict=True))
        for trace in view_traces(view, prompts, of_view)
    ]
    traces += class_keys(splits[0])
    traces += common_keys(has_null=any(view.null for view in views))
    layout = _layout(views, data)
    layout["updatemenus"] = [_view_menu(views, shown, len(traces)), _shape_menu(views)]
    if len(steps) > 1:
        layout["sliders"] = [_slider(steps, views, data, active)]
    # All at once: each later change of the layout would copy the whole slider.
    return go.Figure(traces, {"template": LIGHT, **layout})


# --- checks and places ------------------------------------------------------------------------


def _by_method(
    projections: Projections | Mapping[str, Projections],
    separation: Separation | Mapping[str, Separation],
) -> dict[str, tuple[Projections, Separation]]:
    """Pair projections and scores; one method alone has no name."""
    if isinstance(projections, Projections) and isinstance(separation, Separation):
        return {"": (projections, separation)}
    if (
        isinstance(projections, Mapping)
        and isinstance(separation, Mapping)
        and list(projections) == list(separation)
        and projections
    ):
        return {name: (projections[name], separation[name]) for name in projections}
    raise RefusalLensError(
        "A histogram needs projections and scores of the same methods: one of each, or both by "
        "the same names in the same order. Pass what validate returned for each method."
    )


def _check_same(
    projections: Projections, separation: Separation, prompts: Sequence[Prompt]
) -> None:
    if len(prompts) != len(projections.is_harmful):
        raise RefusalLensError(
            f"A histogram needs the prompts that were projected, {len(projections.is_harmful)} of "
            f"them, but {len(prompts)} came. Pass the prompts that were collected, in that order."
        )
    ours = (projections.hook_points, projections.positions)
    if ours != (separation.hook_points, separation.positions):
        raise RefusalLensError(
            "Projections and scores need the same places, but the projections are of "
            f"{_places_text(*ours)} and the scores of "
            f"{_places_text(separation.hook_points, separation.positions)}. "
            "Pass both as one call of validate returned them."
        )


def _places_text(hook_points: tuple[str, ...], positions: tuple[str, ...]) -> str:
    return f"{', '.join(map(short_name, hook_points))} at {', '.join(positions)}"


def _initial_place(separation: Separation, initial: tuple[str, str] | None) -> tuple[str, str]:
    """Return the place to start at."""
    if initial is None:
        # Scores know no layer above the last collected: that is what the middle is taken of.
        layers = [layer_of(name) for name in separation.hook_points]
        best = choose_best(separation, 1 + max((n for n in layers if n is not None), default=0))
        first = separation.hook_points[0], separation.positions[0]
        return (best.hook_point, best.position) if best else first
    hook_point, position = initial
    if hook_point not in separation.hook_points or position not in separation.positions:
        raise RefusalLensError(
            f"The histogram cannot start at {hook_point}, {position}: there is only "
            f"{_places_text(separation.hook_points, separation.positions)}. Choose initial among "
            "these."
        )
    return initial


def _step(hook_point: str) -> Step:
    layer = layer_of(hook_point)
    return hook_point if layer is None else layer


def _views(
    method: str,
    projections: Projections,
    separation: Separation,
    nulls: pd.DataFrame | None,
    splits: Sequence[Parts],
) -> list[View]:
    """List the entries of the menu for one method: raw, as cosines, raw again where split finer."""
    kinds = [(False, splits[0]), (True, splits[0]), *((False, finer) for finer in splits[1:])]
    layered = [name for name in projections.hook_points if layer_of(name) is not None]
    sites = list(dict.fromkeys(site_of(name) for name in layered)) or [None]
    norms = activation_norms(projections)
    return [
        View(
            projections=projections,
            separation=separation,
            norms=norms,
            null=widest_null(nulls, position),
            method=method,
            site=site,
            position=position,
            is_cosine=is_cosine,
            parts=parts,
        )
        for is_cosine, parts in kinds
        for site in sites
        for position in projections.positions
    ]


def _first_view_of(views: list[View], hook_point: str, position: str) -> int:
    """Return which view shows a place first."""
    return next(
        index
        for index, view in enumerate(views)
        if view.position == position and view.hook_point(_step(hook_point)) == hook_point
    )


def _only_site(views: list[View]) -> str | None:
    """Return the site that all views have, if they do."""
    sites = {view.site for view in views}
    return sites.pop() if len(sites) == 1 else None


# --- layout and controls ------------------------------------------------------------------------


def _layout(views: list[View], data: list[list[Data]]) -> dict[str, Any]:
    """Return the layout: headline, legend, bars, marks and, below, the slider."""
    hidden = {"visible": False, "fixedrange": True, "range": [0, 1]}
    domain = [0.22, 0.72]
    highest = max(
        highest_bar(view.parts, of_view)
        for of_step in data
        for view, of_view in zip(views, of_step, strict=True)
    )
    # There are no half prompts.
    whole = {"dtick": 1} if highest <= 8 else {}
    return {
        "height": 620,
        "margin": {"l": 60, "r": 20, "t": 35, "b": 40},
        "barmode": "overlay",
        "bargap": 0,
        "hovermode": "closest",
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 0.88,
            "yanchor": "top",
            "itemwidth": 30,
            "bgcolor": "rgba(0,0,0,0)",
        },
        "xaxis": {"title": {"text": AXIS_TITLES[0]}, "anchor": "y2", "zeroline": False},
        "yaxis": {"title": {"text": "prompts per bin"}, "domain": domain, "rangemode": "tozero"}
        | whole,
        "yaxis2": {
            **{"domain": [0, 0.18], "fixedrange": True, "showgrid": False, "zeroline": False},
            **{"range": [-0.6, 1.6], "automargin": True, **mark_rows(views[0].parts)},
        },
        "xaxis2": hidden | {"anchor": "y3"},
        "yaxis3": hidden | {"domain": [0.88, 1], "anchor": "x2"},
        "yaxis4": {
            "title": {"text": "share of prompts (%)"},
            "overlaying": "y",
            "range": [0, 104],
            "tickmode": "linear",
            "tick0": 0,
            "dtick": 25,
            "showgrid": False,
            "visible": False,
        },
    }


def _slider(
    steps: list[Step], views: list[View], data: list[list[Data]], active: int
) -> dict[str, Any]:
    """Return the slider; with one site its steps are named by that and the layer."""
    has_layers, site = isinstance(steps[0], int), _only_site(views)
    return {
        "active": active,
        "steps": [
            _slider_step(step_name(step), views, of_step)
            for step, of_step in zip(steps, data, strict=True)
        ],
        "currentvalue": {
            "prefix": f"{site or 'layer'} " if has_layers else "",
            # The headline says it, and the menus need the room; pages with controls of their own
            # read the prefix.
            "visible": False,
        },
        "pad": {"t": 96},
    }


def _slider_step(label: str, views: list[View], data: list[Data]) -> dict[str, Any]:
    """Return a step that gives every trace its data.

    None resets what it is given for, so a key of one trace must be in the data of every trace that
    has it.
    """
    traces = [
        of_view[name] for view, of_view in zip(views, data, strict=True) for name in view.traces
    ]
    keys = dict.fromkeys(key for values in traces for key in values)
    changes = {key: [values.get(key) for values in traces] for key in keys}
    return {"method": "restyle", "label": label, "args": [changes, list(range(len(traces)))]}


def _view_menu(views: list[View], active: int, n_traces: int) -> dict[str, Any]:
    """Return the menu of views: it shows the traces of one and names its axes, nothing else."""

    def visible(view: View) -> list[bool]:
        shown = [other is view for other in views for _ in other.traces]
        # Finer parts are named at their rows of marks: the legend is of the classes.
        shown += [not view.parts.is_by_outcome for _ in CLASSES]
        return shown + [True] * (n_traces - len(shown))

    def rows(view: View) -> dict[str, Any]:
        is_split = any(other.parts.is_by_outcome for other in views)
        ticks = mark_rows(view.parts) if is_split else {}
        return {f"yaxis2.{key}": value for key, value in ticks.items()}

    buttons = [
        {
            "method": "update",
            "label": _view_name(view, views),
            "args": [
                {"visible": visible(view)},
                {"xaxis.title.text": AXIS_TITLES[view.is_cosine]} | rows(view),
            ],
        }
        for view in views
    ]
    return {"active": active, "buttons": buttons, "x": 1, "xanchor": "right", **_MENU}


def _view_name(view: View, views: list[View]) -> str:
    """Name a view by what tells it from the others."""
    parts = [f"position {view.position}"]
    if _only_site(views) is None and view.site is not None:
        parts = [view.site, view.position]
    if view.method:
        parts.insert(0, view.method)
    how = " · cosine" if view.is_cosine else " · by outcome" if view.parts.is_by_outcome else ""
    return ", ".join(parts) + how


def _shape_menu(views: list[View]) -> dict[str, Any]:
    """Return the menu of shapes: it changes how strongly bars and curves are drawn, nothing else.

    Not their visibility, which is the other menu's.
    """
    kinds = ("bars", "density", "share")
    at = [
        (index, name.split()[-1])
        for index, name in enumerate(name for view in views for name in view.traces)
        if name.split()[-1] in kinds
    ]
    touched = [index for index, _ in at]
    buttons = []
    for label, opacities in (
        ("bars", {"bars": BAR_OPACITY}),
        ("density", {"bars": 0.25, "density": 1}),
        ("cumulative", {"share": 1}),
    ):
        is_share = "share" in opacities
        # What is not drawn must not answer to the pointer; a density never does.
        answers = {"bars": not is_share, "density": False, "share": is_share}
        traces = {
            "opacity": [opacities.get(kind, 0) for _, kind in at],
            "hoverinfo": ["all" if answers[kind] else "skip" for _, kind in at],
        }
        axes = {"yaxis.visible": not is_share, "yaxis4.visible": is_share}
        buttons.append({"method": "update", "label": label, "args": [traces, axes, touched]})
    return {"active": 0, "buttons": buttons, "x": 0, "xanchor": "left", **_MENU}


_MENU: dict[str, Any] = {
    "type": "dropdown",
    "direction": "up",
    "y": 0,
    "yanchor": "top",
    "pad": {"t": 50},
    # The chosen entry is nearly white under every theme, so the letters must be dark.
    "bgcolor": "white",
    "font": {"color": "#2a3f5f"},
}
