"""From what the user did to the view that follows: a pure function.

Knows what each control and each figure's event means. Knows neither Dash nor how anything looks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from refusal_lens.explorer.runs import ExploredRun
from refusal_lens.explorer.view import View, nearest_view
from refusal_lens.models.hook_points import layer_of, site_of
from refusal_lens.plots.comparison import cell_names

_AS_THEY_STAND = (
    *("run", "position", "method", "scale", "split", "score"),
    *("other-hook-point", "other-position", "category", "text", "listed"),
)
"""Controls whose value is a field of the view."""

CONTROLS = (*_AS_THEY_STAND, "site", "layer", "threshold")

Runs = Mapping[str, ExploredRun]


def move(
    previous: View | None, triggers: Iterable[str], values: Mapping[str, Any], runs: Runs
) -> View:
    """Return the view after something happened on the page; the view before is None while it loads.

    `triggers` are written `component.property`, and so are the names of `values`, all that every
    control and event holds. The controls are read even where they did not trigger: one that changed
    while an answer was on its way is not set back.
    """
    triggers = set(triggers)
    if previous is None or "url.search" in triggers:
        return nearest_view(View.from_search(values["url.search"]), runs)
    view = _from_controls(previous, values, runs[previous.run])
    for trigger in triggers & set(EVENTS):
        view = EVENTS[trigger](view, values[trigger], runs[previous.run])
    if view.run != previous.run:
        # Rows of one run's prompts mean nothing in another.
        view = replace(view, selected=(), category="")
    moved = nearest_view(view, runs)
    return moved if moved.ruler == previous.ruler else replace(moved, threshold=None)


def _from_controls(previous: View, values: Mapping[str, Any], run: ExploredRun) -> View:
    given = {name.replace("-", "_"): values.get(f"{name}.value") for name in _AS_THEY_STAND}
    view = replace(previous, **{field: v for field, v in given.items() if v is not None})
    names = run.hook_points_of(site_of(previous.hook_point))
    row = values.get("layer.value")
    return view if row is None else replace(view, hook_point=names[min(int(row), len(names) - 1)])


def _go_to_site(view: View, site: str | None, run: ExploredRun) -> View:
    """Go to another site, as near to the layer as it has one."""
    near = run.nearest(site or "", layer_of(view.hook_point))
    return replace(view, hook_point=near) if near else view


def _go_to_cell(view: View, click: Mapping[str, Any] | None, run: ExploredRun) -> View:
    """Go to a cell of the heatmap, known by its labels: Dash drops what else a cell carries."""
    scores = run.projected(run.run_method).scores
    for point in (click or {}).get("points", ()):
        for (hook_point, position), cell in cell_names(scores).items():
            if cell == (str(point["x"]), str(point["y"])):
                return replace(view, hook_point=hook_point, position=position)
    return view


def _drag_threshold(view: View, change: Mapping[str, Any] | None, _: ExploredRun) -> View:
    """Take the threshold from the line; its ends can be dragged apart, so the middle counts."""
    ends = [(change or {}).get(f"shapes[0].{end}") for end in ("x0", "x1")]
    there = [float(end) for end in ends if end is not None]
    return _set_threshold(view, sum(there) / len(there) if there else None, _)


def _set_threshold(view: View, threshold: float | None, _: ExploredRun) -> View:
    if threshold is None:
        return view
    listed = "flipped" if view.listed == "all" else view.listed
    return replace(view, threshold=float(threshold), listed=listed)


def _reset_threshold(view: View, _clicks: int, _: ExploredRun) -> View:
    return replace(view, threshold=None, listed="all" if view.listed == "flipped" else view.listed)


def _select(view: View, selected: Mapping[str, Any] | None, _: ExploredRun) -> View:
    """Take the marks in the box or lasso; bars and lines are no marks.

    An empty selection changes nothing: plotly sends one too when the box is taken off the page.
    """
    points = (selected or {}).get("points", ())
    rows = tuple(sorted({point["customdata"] for point in points if "customdata" in point}))
    return replace(view, selected=rows, listed="selected") if rows else view


def _clear(view: View, _clicks: int, _: ExploredRun) -> View:
    return replace(view, selected=(), listed="all" if view.listed == "selected" else view.listed)


EVENTS = {
    "site.value": _go_to_site,
    "heatmap.clickData": _go_to_cell,
    "histogram.relayoutData": _drag_threshold,
    "threshold.value": _set_threshold,
    "reset.n_clicks": _reset_threshold,
    "histogram.selectedData": _select,
    "scatter.selectedData": _select,
    "clear.n_clicks": _clear,
}
