"""Figures of a place: what changes is all that differs, and texts stay text."""

import re
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from scipy.stats import gaussian_kde

from refusal_lens import plots
from refusal_lens.explorer import overview_figures, place_figures
from refusal_lens.explorer.place_figures import Marks
from refusal_lens.explorer.scene import Scene
from refusal_lens.explorer.view import nearest_view
from refusal_lens.plots.parts import by_class


def patched(figure: go.Figure, changes: dict) -> dict:
    place_figures._apply(figure, changes)
    return figure.to_plotly_json()


def test_what_changes_is_all_that_differs(scene):
    """A figure given another place's changes is the other place's figure: nothing stays behind."""
    prompts, is_harmful = scene.run.prompts, scene.run.is_harmful
    everyone = torch.ones(80, dtype=torch.bool)
    plain = Marks(is_harmful, by_class(is_harmful), everyone)
    fancy = Marks(is_harmful, by_class(is_harmful), torch.arange(80) % 3 == 0, (1, 50))
    nowhere = torch.full((80,), torch.nan, dtype=torch.float64)
    states = [
        (scene.numbers, 1.0, fancy),
        (nowhere, float("nan"), plain),
        (scene.other_numbers, 0.0, plain),
        (scene.numbers * 1e-3, 1e-4, plain),
    ]
    for old in states:
        for new in states:
            figure = place_figures.place_histogram(*old, prompts)
            changed = patched(figure, place_figures.histogram_changes(*new))
            fresh = place_figures.place_histogram(*new, prompts).to_plotly_json()
            for one, other in zip(changed["data"], fresh["data"], strict=True):
                # Where nothing is drawn, what marks and labels look like may stay.
                looked_at = set(one) | set(other) if len(other["x"]) else {"x"}
                assert {k: str(one.get(k)) for k in looked_at} == {
                    k: str(other.get(k)) for k in looked_at
                }
            for key in ("shapes", "annotations"):
                assert changed["layout"].get(key, ()) == fresh["layout"].get(key, ())


def test_every_prompt_is_a_mark_and_every_misread_one_a_cross(scene):
    is_harmful = scene.run.is_harmful
    marks = Marks(is_harmful, by_class(is_harmful), torch.ones(80, dtype=torch.bool), (3, 60))
    threshold = scene.numbers.sort().values[30].item()
    figure = place_figures.place_histogram(scene.numbers, threshold, marks, scene.run.prompts)
    bars, dots, crosses = figure.data[:2], figure.data[2:4], figure.data[4]
    assert [sum(trace.y) for trace in bars] == [40, 40]
    rows = [row for trace in dots for row in trace.customdata]
    along = {row: x for trace in dots for row, x in zip(trace.customdata, trace.x, strict=True)}
    assert sorted(rows) == list(range(80))
    assert along[17] == pytest.approx(scene.numbers[17].item(), abs=1e-3)
    wrong = (scene.numbers > threshold) != is_harmful
    assert sorted(crosses.x) == pytest.approx(sorted(scene.numbers[wrong].tolist()), abs=1e-3)
    picked = [trace.customdata[point] for trace in dots for point in trace.selectedpoints]
    assert sorted(picked) == [3, 60]
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == threshold


def test_hostile_prompts_are_text_on_hover(scene):
    marks = scene.marks
    figure = place_figures.projection_scatter(
        scene.numbers, scene.numbers, marks, scene.run.prompts
    )
    shown = " ".join(text for trace in figure.data for text in trace.hovertext)
    assert "&lt;/script&gt;" in shown
    assert not re.search(r"<(?!/?b>|br>)", shown)
    assert "$" not in shown


@pytest.mark.parametrize("scale", ["raw", "cosine"])
def test_ridges_are_those_of_plots_on_the_view_s_scale(runs, view, scale):
    scene = Scene(runs[view.run], replace(view, scale=scale, position="mean"))
    figure = overview_figures.ridgeline(scene.ridges, scene.parts)
    expected = plots.ridgeline([scene.ridges])
    for trace, other in zip(figure.data, expected.data, strict=True):
        assert trace == other
    name = scene.site_hook_points[3]
    numbers = scene.projected.numbers(name, "mean", is_cosine=scale == "cosine")
    grid = scene.ridges.grids[3].numpy()
    exact = gaussian_kde(numbers[scene.run.is_harmful].numpy())(grid)
    np.testing.assert_allclose(scene.ridges.curves[3, 1], exact, rtol=1e-9)
    assert ("cosine" in figure.layout.xaxis.title.text) == (scale == "cosine")


def test_classes_are_split_by_outcome_where_the_run_has_answers(runs, view):
    """The other run has none: an address that asks for outcomes shows classes there."""
    wanted = replace(view, split="outcome")
    assert nearest_view(wanted, runs) == wanted
    assert nearest_view(replace(wanted, run="two"), runs).split == "class"
    scene = Scene(runs[view.run], wanted)
    given = (scene.numbers, scene.threshold, scene.marks)
    figure = place_figures.place_histogram(*given, scene.run.prompts)
    assert [sum(bars.y) for bars in figure.data[:3]] == [40, 20, 20]
    assert list(figure.layout.yaxis2.ticktext) == [
        "harmless, answered (40)",
        "harmful, answered (20)",
        "harmful, refused (20)",
    ]
    for marks, rows in zip(figure.data[3:6], ((40, 80, 1), (0, 40, 2), (1, 40, 2)), strict=True):
        assert list(marks.customdata) == list(range(*rows))
    assert len(figure.data) == len(place_figures.histogram_changes(*given)["data"])
    ridges = overview_figures.ridgeline(scene.ridges, scene.parts)
    assert [trace.name for trace in ridges.data] == [s.name for s in scene.parts.styles]
