"""From a scene to what figures, sentences and the list of prompts show.

Knows which parts stay in the page, so that only what changed is sent. Knows no callbacks.

Tested in tests/explorer/test_browser.py.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go
from dash import Patch

from refusal_lens.explorer.overview_figures import (
    heatmap_highlight,
    place_heatmap,
    ridge_highlight,
    ridgeline,
)
from refusal_lens.explorer.place_figures import (
    histogram_changes,
    place_histogram,
    projection_scatter,
    scatter_changes,
)
from refusal_lens.explorer.scene import Scene
from refusal_lens.explorer.view import SCALES
from refusal_lens.models.hook_points import layer_of, short_name, site_of
from refusal_lens.plots.style import THEMES
from refusal_lens.plots.text import AXIS_TITLES

N_LISTED = 100
"""Prompts in the list; the export has all of them."""

Drawn = tuple[go.Figure | Patch, list[str]]
"""What is sent, and a key of what it leaves standing in the page."""

Changes = dict[str, Any]
"""Of a figure that stands: `data`, new properties of each trace, and `layout`."""


# --- figures -----------------------------------------------------------------------------------


def draw(name: str, scene: Scene, theme: str, drawn: list[str] | None) -> Drawn:
    """Draw a figure, one of `FIGURES`, or only what is new of it.

    `theme` is light or dark; `drawn` is the key of what stands in the page.
    """
    known_by, changes, whole = FIGURES[name](scene)
    key = [*known_by, theme]
    if key == drawn:
        return _patch(changes), key
    return whole().update_layout(changes["layout"]).update_layout(template=THEMES[theme]), key


Drawable = tuple[list[str], Changes, Callable[[], go.Figure]]
"""What a figure is known by, what changes while that stays, and the figure itself."""


def _histogram(scene: Scene) -> Drawable:
    """Tell of the place."""
    given = (scene.numbers, scene.threshold, scene.marks)
    changes = histogram_changes(*given)
    changes["layout"] |= _axes(scene, "xaxis", AXIS_TITLES[scene.view.is_cosine])
    key = [scene.view.run, scene.view.split]
    return key, changes, lambda: place_histogram(*given, scene.run.prompts)


def _scatter(scene: Scene) -> Drawable:
    """Tell of the place against the other."""
    given = (scene.numbers, scene.other_numbers, scene.marks)
    view = scene.view
    changes = scatter_changes(*given)
    for axis, hook_point, position in (
        ("xaxis", view.hook_point, view.position),
        ("yaxis", view.other_hook_point, view.other_position),
    ):
        title = f"{SCALES[view.scale]} at {short_name(hook_point)}, {position}"
        changes["layout"] |= _axes(scene, axis, title)
    return [view.run, view.split], changes, lambda: projection_scatter(*given, scene.run.prompts)


def _ridgeline(scene: Scene) -> Drawable:
    """Tell of all layers of the site; among them one is marked."""
    view = scene.view
    key = [view.run, view.method, site_of(view.hook_point), view.position, view.scale, view.split]
    shapes = ridge_highlight(scene.site_hook_points.index(view.hook_point))
    changes = {"data": [], "layout": {"shapes": shapes}}
    return key, changes, lambda: ridgeline(scene.ridges, scene.parts)


def _heatmap(scene: Scene) -> Drawable:
    """Tell of a score of all places; among them one is marked."""
    view, scores = scene.view, scene.projected.scores
    shapes = heatmap_highlight(scores, view.hook_point, view.position)
    changes = {"data": [], "layout": {"shapes": shapes}}
    return [view.run, view.method, view.score], changes, lambda: place_heatmap(scores, view.score)


FIGURES: dict[str, Callable[[Scene], Drawable]] = {
    "histogram": _histogram,
    "scatter": _scatter,
    "ridgeline": _ridgeline,
    "heatmap": _heatmap,
}


def _axes(scene: Scene, axis: str, title: str) -> dict[str, Any]:
    """Return title and revision of an axis: a zoom stays until the place or the scale changes."""
    view = scene.view
    revision = "|".join([*view.ruler, view.other_hook_point, view.other_position])
    # The box of a selection stands where the marks were; the marks themselves stay selected.
    return {f"{axis}_title_text": title, f"{axis}_uirevision": revision, "selections": []}


def _patch(changes: Mapping[str, Any]) -> Patch:
    """Return only what changes, for a figure that is in the page already."""
    patch = Patch()
    for index, values in enumerate(changes["data"]):
        for path, value in values.items():
            _set(patch["data"][index], path.split("."), value)
    for path, value in changes["layout"].items():
        _set(patch["layout"], path.split("_"), value)
    return patch


def _set(patch: Any, path: list[str], value: object) -> None:
    *parents, last = path
    for parent in parents:
        patch = patch[parent]
    patch[last] = value


# --- sentences and the list --------------------------------------------------------------------


def headline(scene: Scene) -> str:
    """Say where the page is and what is found there."""
    view = scene.view
    scores = scene.projected.scores_of(view.hook_point, view.position)
    place = f"{view.run} · {short_name(view.hook_point)} · position {view.position}"
    if math.isnan(scores["separation"]) or math.isnan(scores["accuracy"]):
        return f"{place} · no direction here"
    return (
        f"{place} · separation {written(scores['separation'])}, accuracy "
        f"{scores['accuracy']:.1%}, both on new prompts of the same topics"
    )


def decision(scene: Scene) -> str:
    """Say whether the run has a direction, in the words of its report; nothing of other methods."""
    return scene.run.sentence if scene.view.method == scene.run.run_method else ""


def readout(scene: Scene) -> str:
    """Say what the threshold does."""
    if bool(scene.numbers.isnan().any()):
        return "No direction here, so nothing to set apart."
    if scene.view.threshold is None:
        # Each fold has a threshold of its own: the headline's accuracy goes by those, and another
        # number for the same place would only ask which is right.
        how = "midway between the means" if scene.view.is_cosine else "the mean of the folds'"
        return f"{written(scene.threshold)} is the fitted threshold, {how}."
    return (
        f"Accuracy {scene.accuracy(scene.threshold):.1%} with all prompts cut at "
        f"{written(scene.threshold)}. {_count(int(scene.is_flipped.sum()), 'prompt')} flipped."
    )


def correlation(scene: Scene) -> str:
    """Say how far the two places agree."""
    return f"Correlation over all prompts: {written(scene.correlation())}"


def layer_label(scene: Scene) -> str:
    """Say which layer the slider is at."""
    layer = layer_of(scene.view.hook_point)
    return "Layer: outside the blocks" if layer is None else f"Layer {layer}"


def prompt_list(scene: Scene) -> tuple[str, dict[str, Any]]:
    """Return how many prompts are listed, and the first of them as `assets/explorer.js` shows them.

    Of components, every one of which is told of every event of the page, 100 rows took most of a
    step of the slider.

    Returns:
        The count in words; `head`, and for each of `rows` its `cells` (text and class), and whether
        it `is_misread`.
    """
    rows = scene.listed_rows
    shown = f", the {N_LISTED} nearest the threshold shown" if len(rows) > N_LISTED else ""
    text = f"{_count(len(rows), 'prompt')} of {len(scene.run.prompts)}{shown}"
    head = ["prompt", "category", "class", "called", SCALES[scene.view.scale], "text"]
    head += ["outcome", "answer"] if scene.run.answers else []
    numbers = scene.numbers.tolist()
    return text, {
        "head": head,
        "rows": [
            {"cells": _cells(scene, row, numbers[row]), "is_misread": bool(scene.is_misread[row])}
            for row in rows[:N_LISTED]
        ],
    }


def _cells(scene: Scene, row: int, number: float) -> list[tuple[str, str]]:
    """Return the cells of one prompt, each with its class."""
    prompt = scene.run.prompts[row]
    names, classes = scene.run.class_names, ["harmless", "harmful"]
    side, called = bool(scene.run.is_harmful[row]), number > scene.threshold
    answers = []
    if scene.run.answers:
        answer = scene.run.answers[row]
        answers = [(answer.outcome, ""), (answer.answer, "text")]
    return [
        (prompt.id, ""),
        (prompt.category, "category"),
        (names[side], classes[side]),
        (names[called] if number == number else "–", classes[called]),
        (written(number), "number"),
        (prompt.text, "text"),
        *answers,
    ]


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def written(number: float) -> str:
    """Write a number for people: four significant digits, a real minus sign.

    Example:
        >>> written(-0.123456), written(1234.5), written(float("nan"))
        ('−0.1235', '1234', '–')
    """
    if number != number:
        return "–"
    text = f"{number:.4g}" if abs(number) < 1000 else f"{number:.0f}"
    return text.replace("-", "−")
