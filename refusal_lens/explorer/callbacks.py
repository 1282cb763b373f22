"""What happens on the page, wired to what follows.

Knows which component has which property. Decides and draws nothing itself: see `moves` and
`drawing`.

Tested in tests/explorer/test_server.py.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from dash import Dash, Input, Output, State, callback_context, dcc, no_update
from dash.exceptions import PreventUpdate

from refusal_lens.explorer import drawing
from refusal_lens.explorer.moves import CONTROLS, EVENTS, move
from refusal_lens.explorer.runs import METHODS, ExploredRun
from refusal_lens.explorer.scene import Scene
from refusal_lens.explorer.view import View, not_shown
from refusal_lens.models.hook_points import layer_of, short_name, site_of
from refusal_lens.validation.frames import for_spreadsheets
from refusal_lens.validation.scores import SCORES

Runs = Mapping[str, ExploredRun]

VALUES = tuple(f"{name}.value" for name in CONTROLS)
FIGURES_AND_BUTTONS = tuple(event for event in EVENTS if event not in VALUES)
FURTHER = (
    *("site.options", "position.options", "method.options", "score.options", "category.options"),
    *("split.options", "other-hook-point.options", "other-position.options"),
    *("layer.max", "layer.marks", "layer.disabled", "layer-label.children"),
    *("threshold.min", "threshold.max", "threshold.step", "threshold.disabled"),
)
"""What else of the controls follows from the view."""

AT_ONCE = ("histogram", "ridgeline")
"""Figures that come with the answer to a move: those that are looked at while the slider moves."""

LIGHT_OR_DARK = """() => window.matchMedia('(prefers-color-scheme: dark)').matches
    ? 'dark' : 'light'"""

WHEN_STILL = """async (view) => {
    const move = window.refusalLensMove = (window.refusalLensMove || 0) + 1;
    await new Promise((done) => setTimeout(done, 150));
    return move === window.refusalLensMove ? view : window.dash_clientside.no_update;
}"""
"""While the slider moves, scatter and list wait: the other figures have the page alone."""

LIST = "(table) => window.refusalLensList(table)"


def register(app: Dash, runs: Runs) -> None:
    """Wire the page up."""
    _register_moves(app, runs)
    _register_figure(app, runs, "heatmap", "view")
    _register_figure(app, runs, "scatter", "still-view")
    _register_words(app, runs)
    app.clientside_callback(LIGHT_OR_DARK, Output("theme", "data"), Input("url", "pathname"))
    app.clientside_callback(WHEN_STILL, Output("still-view", "data"), Input("view", "data"))
    app.clientside_callback(LIST, Input("listed-rows", "data"))


# --- from what happened to the view ------------------------------------------------------------


def _register_moves(app: Dash, runs: Runs) -> None:
    """One callback for all that can happen: an answer never sets off another question.

    Dash does not call a callback again for outputs of its own that are inputs too, so that the
    address, the controls and the view can follow each other both ways without a loop.
    """
    inputs = {key: Input(*_split(key)) for key in ("url.search", *VALUES, *FIGURES_AND_BUTTONS)}
    # Shown again in a moment: a click on the same cell must count once more.
    settable = (*VALUES, *FURTHER, "heatmap.clickData")

    @app.callback(
        output={
            "view": Output("view", "data"),
            "search": Output("url", "search"),
            "notice": Output("notice", "children"),
            "controls": {key: Output(*_split(key)) for key in settable},
            "figures": {name: Output(name, "figure") for name in AT_ONCE},
            "drawn": {name: Output(f"{name}-drawn", "data") for name in AT_ONCE},
        },
        inputs={
            "values": inputs,
            "theme": Input("theme", "data"),
            "path": State("url", "pathname"),
            "stored": State("view", "data"),
            "further": {key: State(*_split(key)) for key in FURTHER},
            "drawn": {name: State(f"{name}-drawn", "data") for name in AT_ONCE},
        },
        # A method that is new to a run is fitted here, which can take a while.
        running=[(Output("busy", "className"), "busy on", "busy")],
    )
    def follow(
        values: dict,
        theme: str | None,
        path: str | None,
        stored: dict | None,
        further: dict,
        drawn: dict,
    ) -> dict[str, Any]:
        if values["url.search"] is None or theme is None:
            raise PreventUpdate  # the page is not read yet
        previous = View.from_store(stored) if stored else None
        triggers = set(callback_context.triggered_prop_ids)
        view = move(previous, triggers, values, runs)
        scene = Scene(runs[view.run], view)
        wanted = settings(scene) | {"heatmap.clickData": None}
        there = values | further
        # An address that was typed or gone back to stays: a new entry would trap the back button.
        is_given = previous is None or "url.search" in triggers
        is_same = view == previous and "theme.data" not in triggers
        # Figures report a move when they find their size: nothing that the reader did.
        said = no_update if view == previous else ""
        return {
            "view": no_update if view == previous else asdict(view),
            "notice": not_shown(path, values["url.search"], view) if is_given else said,
            "search": no_update if is_given or view == previous else view.to_search(),
            "controls": {k: no_update if wanted[k] == there[k] else wanted[k] for k in settable},
            **(_KEEP if is_same else _draw_at_once(scene, theme, drawn)),
        }


_KEEP = {part: dict.fromkeys(AT_ONCE, no_update) for part in ("figures", "drawn")}


def _draw_at_once(scene: Scene, theme: str, drawn: dict) -> dict[str, dict[str, Any]]:
    answers = {name: _draw(name, scene, theme, drawn[name]) for name in AT_ONCE}
    return {
        "figures": {name: figure for name, (figure, _) in answers.items()},
        "drawn": {name: key for name, (_, key) in answers.items()},
    }


def _draw(name: str, scene: Scene, theme: str, drawn: list[str] | None) -> tuple[Any, Any]:
    """Return a figure, or what is new of it, and the key of what stands in the page, if new."""
    figure, key = drawing.draw(name, scene, theme, drawn)
    return figure, no_update if key == drawn else key


def _split(key: str) -> tuple[str, str]:
    """Return component and property."""
    name, _, property_ = key.partition(".")
    return name, property_


def settings(scene: Scene) -> dict[str, Any]:
    """Return what every control holds and offers in a view."""
    run, view = scene.run, scene.view
    names = scene.site_hook_points
    places = [{"value": name, "label": short_name(name)} for name in run.hook_points]
    return {
        "run.value": run.name,
        **_choice("site", site_of(view.hook_point), run.sites),
        **_choice("position", view.position, run.positions),
        **_choice("method", view.method, run.methods),
        **_choice("score", view.score, [s for s in SCORES if s in scene.projected.scores]),
        **_choice("other-position", view.other_position, run.positions),
        "other-hook-point.value": view.other_hook_point,
        "other-hook-point.options": places,
        "category.value": view.category,
        "category.options": [{"value": "", "label": "all"}, *_options(run.categories)],
        "scale.value": view.scale,
        **_choice("split", view.split, run.splits),
        "text.value": view.text,
        "listed.value": view.listed,
        "layer.value": names.index(view.hook_point),
        "layer.max": max(len(names) - 1, 1),
        "layer.marks": _layer_marks(names),
        "layer.disabled": len(names) == 1,
        "layer-label.children": drawing.layer_label(scene),
        **_threshold_settings(scene),
    }


def _choice(name: str, value: str, offered: Any) -> dict[str, Any]:
    return {f"{name}.value": value, f"{name}.options": _options(offered)}


def _options(names: Iterable[str]) -> list[dict[str, str]]:
    """Write sites and positions as they are written elsewhere, methods and scores as words."""
    words = {name: name.replace("_", " ") for name in (*METHODS, *SCORES)}
    return [{"value": name, "label": words.get(name, name)} for name in names]


def _layer_marks(names: tuple[str, ...]) -> dict[str, str]:
    every = max(1, math.ceil(len(names) / 12))
    return {str(row): str(layer_of(names[row]) or 0) for row in range(0, len(names), every)}


def _threshold_settings(scene: Scene) -> dict[str, Any]:
    """Return the threshold's slider: about 500 steps over the numbers there are."""
    numbers, threshold = scene.numbers, scene.threshold
    is_empty = bool(numbers.isnan().any())
    low, high = (0.0, 1.0) if is_empty else (numbers.min().item(), numbers.max().item())
    step = 10.0 ** math.floor(math.log10((high - low or 1.0) / 200))
    digits = max(0, -math.floor(math.log10(step)))
    return {
        "threshold.min": round(min(low, threshold) - step, digits) if not is_empty else 0,
        "threshold.max": round(max(high, threshold) + step, digits) if not is_empty else 1,
        "threshold.step": step,
        "threshold.disabled": is_empty,
        "threshold.value": 0 if is_empty else round(threshold, digits),
    }


# --- from the view to what is shown ------------------------------------------------------------


def _register_figure(app: Dash, runs: Runs, name: str, view: str) -> None:
    @app.callback(
        Output(name, "figure"),
        Output(f"{name}-drawn", "data"),
        Input(view, "data"),
        Input("theme", "data"),
        State(f"{name}-drawn", "data"),
    )
    def follow(stored: dict | None, theme: str | None, drawn: list | None) -> tuple:
        scene = _scene(stored, runs)
        if theme is None:
            raise PreventUpdate
        return _draw(name, scene, theme, drawn)


def _register_words(app: Dash, runs: Runs) -> None:
    words = {"headline": drawing.headline, "decision": drawing.decision, "readout": drawing.readout}

    @app.callback(*(Output(name, "children") for name in words), Input("view", "data"))
    def say(stored: dict | None) -> tuple:
        scene = _scene(stored, runs)
        return tuple(word(scene) for word in words.values())

    @app.callback(
        Output("correlation", "children"),
        Output("count", "children"),
        Output("listed-rows", "data"),
        Input("still-view", "data"),
    )
    def list_prompts(stored: dict | None) -> tuple:
        scene = _scene(stored, runs)
        return drawing.correlation(scene), *drawing.prompt_list(scene)

    @app.callback(
        Output("download", "data"),
        Input("export", "n_clicks"),
        State("view", "data"),
        prevent_initial_call=True,
    )
    def export(_: int, stored: dict | None) -> dict[str, Any]:
        scene = _scene(stored, runs)
        name = f"{scene.run.folder.path.name}-{scene.view.listed}.csv"
        return dcc.send_string(for_spreadsheets(scene.table()).to_csv(index=False), name)


def _scene(stored: dict | None, runs: Runs) -> Scene:
    if stored is None:
        raise PreventUpdate
    view = View.from_store(stored)
    return Scene(runs[view.run], view)
