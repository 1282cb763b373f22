"""Ridges, planes and components are those of the activations."""

import numpy as np
import pytest
import torch

from refusal_lens import plots
from refusal_lens.directions.direction import Direction
from refusal_lens.plots.style import CLASSES
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.densities import (
    activation_plane,
    ridges,
    shared_densities,
    top_coordinates,
)


def planted_projections(n_layers: int = 3) -> tuple[Projections, list[Prompt]]:
    generator = torch.Generator().manual_seed(0)
    is_harmful = torch.arange(40) % 2 == 0
    cosines = torch.randn(40, n_layers, 1, generator=generator).double() / 10
    cosines = cosines + 0.3 * is_harmful[:, None, None]
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(n_layers))
    values = 10 * cosines
    thresholds = values.mean(dim=0)
    projections = Projections(
        values, cosines, values > thresholds, thresholds, is_harmful, names, ("last",), True
    )
    return projections, [Prompt(f"p-{i:03d}", "Do <it>.", "c") for i in range(40)]


def test_ridges_stand_on_their_layers_and_reach_one_height():
    projections, _ = planted_projections()
    projections.cosines[:, 1] = torch.nan
    one = ridges(projections, projections.hook_points, "last")
    figure = plots.ridgeline([one])
    tops: dict[int, float] = {}
    for style, trace in zip(CLASSES, figure.data, strict=True):
        assert (trace.name, trace.line.color) == (style.name, style.colour)
        gaps = [i for i, y in enumerate(trace.y) if y is None]
        polygons = np.split(np.array(trace.y, dtype=float), np.array(gaps) + 1)[:-1]
        for layer, polygon in zip((2, 0), polygons, strict=True):
            assert polygon[0] == layer
            tops[layer] = max(tops.get(layer, 0), np.nanmax(polygon) - layer)
    assert tops == {2: pytest.approx(1.9, abs=1e-3), 0: pytest.approx(1.9, abs=1e-3)}
    assert figure.data[0].line.dash != figure.data[1].line.dash
    assert figure.layout.updatemenus == ()


def test_ridge_menu_shows_one_site_and_position():
    projections, _ = planted_projections()
    one = ridges(projections, projections.hook_points, "last")
    figure = plots.ridgeline([one, one])
    assert [trace.visible for trace in figure.data] == [True, True, False, False]
    shown, axis = figure.layout.updatemenus[0].buttons[1].args
    assert shown["visible"] == [False, False, True, True]
    assert axis["yaxis"]["ticktext"] == ["0", "1", "2"]


def test_plane_keeps_every_prompt_in_its_class():
    projections, prompts = planted_projections()
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(40, 5, generator=generator)
    plane = activation_plane(values, torch.eye(5)[0])
    figure = plots.activation_plane(plane, projections.is_harmful, prompts, place="somewhere")
    for style, marks in zip(CLASSES, figure.data, strict=True):
        own = projections.is_harmful == style.is_harmful
        np.testing.assert_allclose(marks.x, plane.along[own].numpy(), rtol=1e-4)
        np.testing.assert_allclose(marks.y, plane.across[own].numpy(), rtol=1e-4)
        assert (marks.marker.color, marks.marker.symbol) == (style.colour, style.symbol)
        assert "Do &lt;it&gt;." in marks.hovertext[0]
    assert figure.layout.yaxis.scaleanchor == "x"


def test_components_are_those_of_the_direction():
    direction = Direction(torch.tensor([1.0, -8, 4, 0, 2]), "blocks.0.hook_resid_post", "last")
    coordinates = top_coordinates(direction, 3)
    raw, clipped, held = plots.direction_components(coordinates).data
    assert list(raw.x) == ["1", "2", "4"]
    np.testing.assert_allclose(raw.y, coordinates.raw.numpy(), rtol=1e-4)
    np.testing.assert_allclose(clipped.y, coordinates.clipped.numpy(), rtol=1e-4)
    assert (held.x[-1], held.y[-1]) == (5, 100)


def test_directions_stand_side_by_side():
    projections, prompts = planted_projections()
    panels = [
        plots.Panel(
            f"layer {layer}",
            prompts,
            projections.values[:, layer, 0],
            projections.is_harmful,
            projections.thresholds[layer, 0].item(),
            shared_densities(projections.values[:, layer, 0], projections.is_harmful),
        )
        for layer in (0, 2)
    ]
    figure = plots.directions_side_by_side(panels)
    assert [note.text for note in figure.layout.annotations] == ["layer 0", "layer 2"]
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    own = projections.is_harmful
    np.testing.assert_allclose(marks[3].x, projections.values[own, 2, 0].numpy(), rtol=1e-4)
    assert [line.x0 for line in figure.layout.shapes][::2] == [panel.threshold for panel in panels]
    assert sum(trace.showlegend for trace in figure.data) == 2
