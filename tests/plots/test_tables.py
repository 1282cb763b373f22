"""Figures of tables: each trace holds the table's numbers, told apart by more than colour."""

import math

import numpy as np
import pandas as pd
import planted
import plotly.graph_objects as go
import pytest
import torch

from refusal_lens import plots
from refusal_lens.directions.direction import Direction
from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.plots.style import CLASSES, HARMFUL_COLOUR, HARMLESS_COLOUR
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.densities import (
    activation_plane,
    ridges,
    shared_densities,
    top_coordinates,
)


def named(figure: go.Figure, name: str) -> list:
    return [trace for trace in figure.data if trace.name == name]


def test_learning_curve_breaks_into_measured_and_extrapolated():
    table = planted.learning_curve()
    figure = plots.learning_curve(table.sample(frac=1, random_state=0))
    (interval,) = named(figure, "resid_post 5, last")
    (measured,) = named(figure, "resid_post 5, last, measured")
    (beyond,) = named(figure, "resid_post 5, last, foretold")
    inside = table[~table["is_extrapolated"]]
    assert list(measured.x) == inside["n_per_class"].tolist()
    np.testing.assert_allclose(measured.y, inside["degrees"])
    edges = [*inside["degrees_low"], *inside["degrees_high"][::-1]]
    np.testing.assert_allclose(interval.y, edges)
    # A formula foretells it: no line leads there from what was measured.
    assert list(beyond.x) == [384, 768]
    # Which is which stands in the legend.
    assert figure.layout.showlegend
    assert (measured.showlegend, beyond.showlegend) == (None, None)
    assert beyond.line.dash == "dot"
    assert beyond.marker.symbol == "circle-open"


def test_learning_curves_of_many_places_leave_one_standing_out():
    one = planted.learning_curve()
    many = pd.concat(
        one.assign(hook_point=f"blocks.{layer}.hook_resid_post", degrees=one["degrees"] + layer)
        for layer in range(8)
    )
    figure = plots.learning_curve(many, ("blocks.3.hook_resid_post", "last"))
    others = named(figure, "other places")
    assert len(others) == 2 * 7  # measured and extrapolated
    assert [trace.showlegend for trace in others] == [True] + [False] * 13
    assert {"resid_post 0, last" in trace.hovertemplate for trace in others[:2]} == {True}
    (measured,) = named(figure, "resid_post 3, last, measured")
    np.testing.assert_allclose(measured.y, one[~one["is_extrapolated"]]["degrees"] + 3)
    assert measured.line.color not in {trace.line.color for trace in others}


def test_clip_sweep_goes_from_hard_clipping_to_none():
    table = planted.clip_sweep()
    figure = plots.clip_sweep(table)
    lines = named(figure, "resid_post 5, last")
    own = table[table["hook_point"] == "blocks.5.hook_resid_post"]
    for line, expected in zip(
        lines, [own["separation"], 100 * own["accuracy"], own["cosine_to_unclipped"]], strict=True
    ):
        assert list(line.x) == ["0.9", "0.95", "0.99", "0.995", "0.999", "none"]
        np.testing.assert_allclose(line.y, expected)
    assert list(figure.layout.xaxis.categoryarray) == list(lines[0].x)


def test_stability_draws_both_cosines_and_the_interval():
    table = planted.stability(8)
    figure = plots.stability(table)
    own = table[table["position"] == "mean"]
    np.testing.assert_allclose(
        named(figure, "resid_post, mean, halves")[0].y, own["split_half_cosine"]
    )
    np.testing.assert_allclose(
        named(figure, "resid_post, mean, resampled")[0].y, own["bootstrap_cosine"]
    )
    (interval,) = named(figure, "resid_post, mean")
    assert min(interval.y) == pytest.approx(own["bootstrap_cosine_low"].min())


def test_coordinate_shares_are_percent_before_and_after_clipping():
    table = planted.coordinates(8)
    own = table[table["position"] == "last"]
    figure = plots.coordinate_shares(own)
    np.testing.assert_allclose(
        named(figure, "ten largest, clipped")[0].y, 100 * own["share_top_10_clipped"]
    )
    assert len(figure.data) == 6


def test_nested_choice_counts_every_fold_once():
    table = planted.nested_choice()
    figure = plots.nested_choice(table)
    bars, separation, accuracy = figure.data
    assert sum(bars.x) == len(table)
    assert dict(zip(bars.y, bars.x, strict=True)) == {f"resid_post {i}, last": 5 for i in (4, 5, 6)}
    assert list(separation.x) == table["separation"].tolist()
    np.testing.assert_allclose(accuracy.x, 100 * table["accuracy"])
    assert separation.y[:3] == ("resid_post 4, last", "resid_post 5, last", "resid_post 6, last")


def test_confounds_stand_in_order_beside_the_direction():
    figure = plots.confounds(planted.confounds())
    plain, direction = figure.data
    assert list(direction.x) == [0.995]
    assert plain.x == (0.5, 0.55, 0.62, 0.81)
    np.testing.assert_allclose(plain.error_x.arrayminus, 0.05)
    np.testing.assert_allclose(plain.error_x.array, 0.005)
    assert plain.marker.symbol != direction.marker.symbol
    assert figure.layout.yaxis.categoryarray[-1] == "direction"


def test_method_comparison_dashes_what_is_clipped():
    table = planted.methods(8)
    own = table[table["position"] == "last"]
    figure = plots.method_comparison(own)
    raw, clipped = named(figure, "lda"), named(figure, "lda, clipped")
    of_method = own[(own["method"] == "lda") & ~own["is_clipped"]]
    scores = ("separation", "auroc", "cosine_to_difference_of_means")
    for line, score in zip(raw, scores, strict=True):
        np.testing.assert_allclose(line.y, of_method[score])
    assert {line.line.color for line in raw} == {line.line.color for line in clipped}
    assert {line.line.dash for line in clipped} == {"dot"}
    assert "resid_post, last" in figure.layout.title.text


def test_methods_at_one_place_are_dots_beside_their_names():
    table = planted.methods(8)
    own = table[(table["position"] == "last") & (table["layer"] == 5)]
    figure = plots.method_comparison(own)
    raw, clipped = named(figure, "not clipped"), named(figure, "clipped")
    scores = ("separation", "auroc", "cosine_to_difference_of_means")
    for dots, score in zip(raw, scores, strict=True):
        of_raw = own[~own["is_clipped"]]
        np.testing.assert_allclose(dots.x, of_raw[score])
        assert [text.replace(" ", "_") for text in dots.text] == of_raw["method"].tolist()
        named_at = dict(
            zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True)
        )
        assert [named_at[round(y)] for y in dots.y] == list(dots.text)
    assert all(above > below for above, below in zip(raw[0].y, clipped[0].y, strict=True))
    low, high = figure.layout.xaxis2.range
    assert low < own["auroc"].min() <= own["auroc"].max() < high


# ---- prompts ----


def test_categories_have_a_row_each_in_their_class_s_colour():
    table = planted.categories(8)
    own = table[(table["layer"] == 5) & (table["position"] == "last")]
    figure = plots.category_breakdown(own)
    for style in CLASSES:
        rows = own[own["is_harmful"] == style.is_harmful].sort_values("mean_cosine")
        marks, bars = named(figure, style.name)
        np.testing.assert_allclose(marks.x, rows["mean_cosine"])
        np.testing.assert_allclose(bars.x, 100 * rows["share_called_harmful"])
        assert marks.marker.color == bars.marker.color == style.colour
        assert marks.y == bars.y
    assert "resid_post 5 · position last" in figure.layout.title.text


def test_categories_of_both_classes_with_one_name_keep_their_rows():
    table = planted.categories(1)
    own = table[table["position"] == "last"].assign(category="same", n=3)
    marks = [named(plots.category_breakdown(own), style.name)[0] for style in CLASSES]
    assert not set(marks[0].y) & set(marks[1].y)


def test_misread_prompts_are_the_farthest_first_and_escaped():
    table = planted.misread(8, 40)
    figure = plots.misread_prompts(table)
    shown = sorted((x for bars in figure.data for x in bars.x), reverse=True)
    np.testing.assert_allclose(shown, sorted(table["margin"].abs(), reverse=True)[:30])
    assert figure.layout.title.subtitle.text == "the 30 farthest of 40"
    assert figure.layout.yaxis.categoryarray[-1] == "harmless-039"
    for style, bars in zip(CLASSES, figure.data, strict=True):
        assert bars.marker.color == style.colour
        assert all(name.startswith(style.name + "-") for name in bars.y)
        assert "this &amp;<br>that &lt;b&gt;" in bars.hovertext[0]
    assert "<b>." not in figure.to_json()


def test_no_misread_prompt_says_so():
    figure = plots.misread_prompts(planted.misread(8, 0))
    said = [note.text for note in figure.layout.annotations]
    assert said == ["every prompt is on its own side of the threshold"]


# ---- interventions ----


def test_causal_scores_mark_what_passes_and_what_was_chosen():
    table = planted.causal_scores(8)
    figure = plots.causal_scores(table, n_kept_layers=6)
    own = table[table["position"] == "-1"]
    lines = named(figure, "resid_post, -1")
    # Bypass and KL have a line for each intervention; induce, which is under addition, has one.
    drawn = [
        ("bypass", "ablate"),
        ("bypass", "affine_ablate"),
        ("induce", "ablate"),
        ("kl", "ablate"),
        ("kl", "affine_ablate"),
    ]
    for line, (column, intervention) in zip(lines, drawn, strict=True):
        np.testing.assert_allclose(line.y, own[own["intervention"] == intervention][column])
        assert line.line.dash == {"affine_ablate": "dot", "ablate": "solid"}[intervention]
    assert "ablation at zero solid, affine ablation dotted" in figure.layout.title.subtitle.text
    is_hollow = [symbol.endswith("-open") for symbol in lines[0].marker.symbol]
    assert is_hollow == (~own[own["intervention"] == "ablate"]["is_eligible"]).tolist()
    assert not all(is_hollow)
    chosen = table[table["is_chosen"]].iloc[0]
    rings = named(figure, f"chosen: resid_post {chosen['layer']}, {chosen['position']}")
    assert [ring.y[0] for ring in rings] == [chosen["bypass"], chosen["induce"], chosen["kl"]]


def test_causal_scores_label_limits_at_their_lines():
    figure = plots.causal_scores(
        planted.causal_scores(8), rule=CausalRule(max_kl=0.2, min_induce=1.0)
    )
    notes = {note.text: note for note in figure.layout.annotations}
    assert notes["at least 1"].y == 1
    # The KL axis is logarithmic: plotly places labels there by the logarithm.
    assert figure.layout.yaxis3.type == "log"
    assert notes["at most 0.2"].y == pytest.approx(math.log10(0.2))
    lines = [(shape.yref, shape.y0) for shape in figure.layout.shapes if shape.y0 == shape.y1]
    assert sorted(lines) == [("y", 5), ("y2", -7), ("y2", 1), ("y3", 0.2)]
    assert "too late" not in notes


def test_dose_response_draws_a_line_a_class_direction_and_seed():
    table = planted.dose_response()
    figure = plots.dose_response(table)
    own = table[
        (table["intervention"] == "add") & (table["direction"] == "random") & (table["seed"] == 2)
    ].sort_values("strength")
    lines = [trace for trace in named(figure, "harmless, random") if trace.xaxis in ("x3", "x6")]
    assert len(lines) == 2 * 3
    np.testing.assert_allclose(lines[2].y, own["refusal_score"])
    np.testing.assert_allclose(lines[5].y, 100 * own["refusal_rate"])
    for name, colour in (("harmful", HARMFUL_COLOUR), ("harmless", HARMLESS_COLOUR)):
        dashes = [
            named(figure, f"{name}, {kind}")[-1].line.dash
            for kind in ("fitted", "random", "permuted")
        ]
        assert dashes == ["solid", "dot", "dashdot"]
        assert named(figure, f"{name}, fitted")[-1].line.color == colour
    entries = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(entries) == sorted(set(entries))
    assert len(entries) == 6


# ---- attribution ----


def test_head_attribution_lays_heads_and_mlps_out_by_layer():
    table = planted.attribution(8, n_heads=12)
    figure = plots.head_attribution(table)
    heatmap, harmless, harmful = figure.data
    assert list(heatmap.x) == [*map(str, range(12)), "MLP"]
    own = table[table["category"] == ""].set_index(["component", "head"])["contribution"]
    cells = np.array(heatmap.z, dtype=float)
    assert cells[3, 10] == own["blocks.3.attn", 10.0]
    assert cells[5, 12] == own["blocks.5.mlp"].iloc[0]
    assert heatmap.zmin == -heatmap.zmax
    assert max(*harmless.x, *harmful.x, key=abs) == max(own, key=abs)
    assert len(harmless.x) + len(harmful.x) == 14
    assert all(x <= 0 for x in harmless.x)
    assert all(x > 0 for x in harmful.x)
    # Both classes in one order: what is largest stands above.
    sizes = dict(zip((*harmless.y, *harmful.y), map(abs, (*harmless.x, *harmful.x)), strict=True))
    assert list(figure.layout.yaxis2.categoryarray) == sorted(sizes, key=sizes.get)


def test_attribution_without_heads_has_one_column_for_attention():
    table = planted.attribution(3, n_heads=1)
    heatmap = plots.head_attribution(table.assign(head=np.nan)).data[0]
    assert list(heatmap.x) == ["attention", "MLP"]


def test_unembedding_keeps_tokens_that_look_alike_apart():
    table = planted.unembedding()
    table["token"] = "same"
    lowered, raised = plots.unembedding(table).data
    assert len(set(raised.y)) == len(raised.y) == 10
    assert max(lowered.x) < 0 < min(raised.x)
    assert raised.y[-1] == "same  1"
    assert raised.marker.color == HARMFUL_COLOUR


def test_tokens_keep_their_projections_in_lines():
    table = planted.prompt_tokens()
    figure = plots.prompt_tokens(table)
    own = table[table["prompt_id"] == "harmless-000"]
    (heatmap,) = figure.data
    cells = [cell for line in heatmap.z for cell in line]
    np.testing.assert_allclose(cells[: len(own)], own["projection"], atol=1e-4)
    assert cells[len(own) :] == [None] * (len(cells) - len(own))
    assert list(heatmap.text[0][:3]) == ["&lt;|im_sta…", "user", "↵"]
    assert heatmap.zmin == -heatmap.zmax == -table["projection"].abs().max()
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == list(dict.fromkeys(table["prompt_id"]))
    other = table[table["prompt_id"] == "harmful-001"]
    (z,) = buttons[1].args[0]["z"]
    assert z[0][0] == pytest.approx(other["projection"].iloc[0], abs=1e-4)


def test_tokens_at_several_hook_points_are_a_row_for_each():
    one = planted.prompt_tokens()
    table = pd.concat(
        one.assign(hook_point=f"blocks.{layer}.hook_resid_post", cosine=one["cosine"] / (layer + 1))
        for layer in range(3)
    )
    (heatmap,) = plots.prompt_tokens(
        table.sample(frac=1, random_state=0).sort_values(
            ["prompt_id", "hook_point"], ascending=[False, True]
        )
    ).data
    own = one[one["prompt_id"] == "harmless-002"]
    assert list(heatmap.y) == ["resid_post 0", "resid_post 1", "resid_post 2"]
    assert len(set(heatmap.x)) == len(own)  # "\n" stands there three times
    for layer, row in enumerate(heatmap.z):
        np.testing.assert_allclose(row, own["cosine"] / (layer + 1), atol=1e-4)


# ---- shapes ----


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


def test_tables_are_not_changed():
    for name, table in planted.every_table(3).items():
        before = table.copy(deep=True)
        plot = {
            "coordinates": "coordinate_shares",
            "methods": "method_comparison",
            "categories": "category_breakdown",
            "misread": "misread_prompts",
            "attribution": "head_attribution",
        }.get(name, name)
        if name != "nulls":
            getattr(plots, plot)(table)
        pd.testing.assert_frame_equal(table, before)
