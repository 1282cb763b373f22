"""The page: which controls and figures there are, where, and what they are called.

Knows no run and no numbers: what controls hold is set by `callbacks`.

Tested in tests/explorer/test_server.py.
"""

from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from refusal_lens.explorer.runs import SPLITS
from refusal_lens.explorer.view import SCALES
from refusal_lens.plots.style import PRIVATE

GRAPH_CONFIG: dict[str, Any] = {
    **PRIVATE,
    "responsive": True,
    "modeBarButtonsToRemove": ["sendChartToCloud", "autoScale2d", "toImage"],
}
SELECTING = GRAPH_CONFIG | {"displayModeBar": True, "edits": {"shapePosition": True}}
"""Of figures with marks to select. The only shape among them is the threshold, to be dragged."""

STILL = GRAPH_CONFIG | {"displayModeBar": False}


def page(run_names: list[str]) -> Component:
    """Lay out the whole page."""
    return html.Div(
        [
            # Not refreshed: the callback that sets the address also sets the page.
            dcc.Location(id="url", refresh=False),
            dcc.Store(id="view"),
            dcc.Store(id="still-view"),
            dcc.Store(id="listed-rows"),
            dcc.Store(id="theme"),
            *(dcc.Store(id=f"{name}-drawn") for name in ("histogram", "scatter", "ridgeline")),
            dcc.Store(id="heatmap-drawn"),
            dcc.Download(id="download"),
            html.Header([html.H1("refusal_lens"), html.P(id="headline", role="status")]),
            html.P(id="decision", className="decision", role="status"),
            html.P(id="notice", className="notice", role="status"),
            html.Div("Working …", id="busy", className="busy", role="status"),
            html.Main([_controls(run_names), _figures(), _prompts()]),
        ],
        className="explorer",
    )


def _controls(run_names: list[str]) -> Component:
    return html.Section(
        [
            _dropdown("run", "Run", run_names),
            _dropdown("site", "Site"),
            _slider("layer", "Layer"),
            _dropdown("position", "Position"),
            _dropdown("method", "Method"),
            _radio("scale", "Scale", SCALES),
            _radio("split", "Told apart by", {name: name for name in SPLITS}),
        ],
        className="controls",
        **_named("What is shown"),
    )


def _figures() -> Component:
    threshold = [
        _slider("threshold", "Threshold"),
        html.Button("Back to fitted", id="reset", className="button"),
        html.P(id="readout", role="status"),
    ]
    others = [
        _dropdown("other-hook-point", "Other hook point"),
        _dropdown("other-position", "Other position"),
        html.P(id="correlation", role="status"),
    ]
    ridges = dcc.Loading(_graph("ridgeline", STILL, "tall"), delay_show=400)
    return html.Div(
        [
            _panel("At this place", _graph("histogram", SELECTING, "tall"), _row(*threshold)),
            _panel("All places", _row(_dropdown("score", "Score")), _graph("heatmap", STILL)),
            _panel("All layers", ridges),
            _panel("Against another place", _row(*others), _graph("scatter", SELECTING)),
        ],
        className="figures",
    )


def _panel(title: str, *children: Component) -> Component:
    return html.Section([html.H2(title), *children], className="panel", **_named(title))


def _row(*children: Component) -> Component:
    return html.Div(list(children), className="row")


def _graph(name: str, config: Any, size: str = "") -> Component:
    """Return a figure in a box of its own: a figure that follows its box has no height itself."""
    graph = dcc.Graph(id=name, config=config, responsive=True)
    return html.Div(graph, className=f"graph {size}")


def _prompts() -> Component:
    lists = {
        "all": "all",
        "selected": "selected",
        "flipped": "flipped by the threshold",
        "misread": "on the wrong side",
    }
    filters = _row(
        _radio("listed", "Listed", lists),
        _dropdown("category", "Category"),
        _input("text", "Text contains", type="search", debounce=0.25),
        html.Button("Clear selection", id="clear", className="button"),
        html.Button("Export as CSV", id="export", className="button main"),
    )
    count = html.P(id="count", role="status")
    # It scrolls, so that the keyboard must be able to reach it.
    table = html.Div(
        id="prompts", className="table", tabIndex=0, role="region", **_named("Prompts listed")
    )
    return _panel("Prompts", filters, count, table)


def _dropdown(name: str, label: str, options: list[str] | None = None) -> Component:
    box = dcc.Dropdown(id=name, options=options or [], clearable=False)
    return html.Div([html.Label(label, id=f"{name}-label", htmlFor=name), box], className="control")


def _radio(name: str, label: str, options: dict[str, str]) -> Component:
    choices = [{"value": value, "label": text} for value, text in options.items()]
    buttons = dcc.RadioItems(id=name, options=choices, inline=True)
    return html.Fieldset([html.Legend(label), buttons], className="control")


def _slider(name: str, label: str) -> Component:
    slider = dcc.Slider(
        id=name,
        min=0,
        max=1,
        value=0,
        step=1,
        marks=None,
        updatemode="drag",
        allow_direct_input=False,
        included=False,
    )
    return html.Div([html.Label(label, id=f"{name}-label"), slider], className="control wide")


def _input(name: str, label: str, **options: Any) -> Component:
    return html.Div(
        [html.Label(label, htmlFor=name), dcc.Input(id=name, **options)], className="control"
    )


def _named(label: str) -> dict[str, Any]:
    """Name a region for screen readers."""
    return {"aria-label": label}
