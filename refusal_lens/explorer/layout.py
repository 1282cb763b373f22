"""The page: which controls and figures there are, where, and what they are called.

Knows no run and no numbers: what controls hold is set by `callbacks`.
"""

from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

GRAPH_CONFIG: dict[str, Any] = {"displaylogo": False, "responsive": True}
"""Of every figure. The link to plotly's own site would leave this machine."""

SELECTING = GRAPH_CONFIG | {
    "modeBarButtonsToRemove": ["autoScale2d", "toImage"],
    "displayModeBar": True,
    "edits": {"shapePosition": False},
}
STILL = GRAPH_CONFIG | {"displayModeBar": False}


def page(run_names: list[str]) -> Component:
    """Lay out the whole page."""
    return html.Div(
        [
            # Not refreshed: the callback that sets the address also sets the page.
            dcc.Location(id="url", refresh=False),
            dcc.Store(id="view"),
            dcc.Store(id="template"),
            *(dcc.Store(id=f"{name}-drawn") for name in ("histogram", "scatter", "ridgeline")),
            dcc.Store(id="heatmap-drawn"),
            dcc.Download(id="download"),
            html.Header([html.H1("refusal_lens"), html.P(id="headline", role="status")]),
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
            _radio("scale", "Scale", {"raw": "projection", "cosine": "cosine"}),
        ],
        className="controls",
        **_named("What is shown"),
    )


def _figures() -> Component:
    return html.Div(
        [
            html.Section(
                [
                    html.H2("At this place"),
                    dcc.Graph(id="histogram", config=SELECTING, className="graph tall"),
                    html.Div(
                        [
                            _slider("threshold", "Threshold"),
                            html.Button("Back to fitted", id="reset", className="button"),
                            html.P(id="readout", role="status"),
                        ],
                        className="row",
                    ),
                ],
                className="panel main",
                **_named("Histogram"),
            ),
            html.Section(
                [
                    html.H2("All places"),
                    _dropdown("score", "Score"),
                    dcc.Graph(id="heatmap", config=STILL, className="graph"),
                    html.P("Click a cell to go there.", className="hint"),
                ],
                className="panel",
                **_named("Heatmap"),
            ),
            html.Section(
                [
                    html.H2("All layers"),
                    dcc.Loading(
                        dcc.Graph(id="ridgeline", config=STILL, className="graph tall"),
                        delay_show=400,
                    ),
                ],
                className="panel",
                **_named("Ridgeline"),
            ),
            html.Section(
                [
                    html.H2("Against another place"),
                    html.Div(
                        [
                            _dropdown("other-hook-point", "Hook point"),
                            _dropdown("other-position", "Position of the other"),
                        ],
                        className="row",
                    ),
                    dcc.Graph(id="scatter", config=SELECTING, className="graph tall"),
                    html.P(id="correlation", role="status"),
                ],
                className="panel",
                **_named("Scatter"),
            ),
        ],
        className="figures",
    )


def _prompts() -> Component:
    return html.Section(
        [
            html.H2("Prompts"),
            html.Div(
                [
                    _radio(
                        "listed",
                        "Listed",
                        {
                            "all": "all",
                            "selected": "selected",
                            "flipped": "flipped by the threshold",
                            "misread": "on the wrong side",
                        },
                    ),
                    _dropdown("category", "Category"),
                    _input("text", "Text contains", type="search", debounce=0.25),
                    html.Button("Clear selection", id="clear", className="button"),
                    html.Button("Export as CSV", id="export", className="button main"),
                ],
                className="row",
            ),
            html.P(id="count", role="status"),
            html.Div(id="prompts", className="table", tabIndex=0, **_named("Prompts listed")),
        ],
        className="panel",
        **_named("Prompts"),
    )


def _dropdown(name: str, label: str, options: list[str] | None = None) -> Component:
    box = dcc.Dropdown(id=name, options=options or [], clearable=False)
    return html.Div([html.Label(label, htmlFor=name), box], className="control")


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


def _named(label: str) -> dict[str, str]:
    """Name a region for screen readers."""
    return {"aria-label": label}
