"""Plots: the numbers in the figures, not their pixels."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import planted as planted_tables
import plotly.graph_objects as go
import pytest
import torch
from conftest import make_separation

from refusal_lens.errors import RefusalLensError
from refusal_lens.plots import (
    DARK,
    HARMFUL_COLOUR,
    HARMLESS_COLOUR,
    layer_profile,
    named,
    projection_histogram,
)
from refusal_lens.plots.style import ribbon
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.validation.best_place import Choice
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.densities import activation_norms, shared_densities, shared_histogram

TRACES = (
    "null",
    *(
        f"{name} {kind}"
        for kind in ("bars", "density", "share", "marks", "mean")
        for name in ("harmless", "harmful")
    ),
    "threshold",
    "marks threshold",
    "headline",
)
# The places of a view's traces. Views: every position raw, then every position as cosines.
BARS, DENSITY, SHARE, MARKS, MEANS = (
    {
        is_harmful: TRACES.index(f"{'harmful' if is_harmful else 'harmless'} {kind}")
        for is_harmful in (False, True)
    }
    for kind in ("bars", "density", "share", "marks", "mean")
)
NULL, THRESHOLD, MARKS_THRESHOLD, HEADLINE = (
    TRACES.index(name) for name in ("null", "threshold", "marks threshold", "headline")
)
N_TRACES = len(TRACES)

EVIL_TEXT = "<script>alert('%{x}')</script> costs $5$ & \"more\""


def planted(n_prompts=60, hook_points=4, positions=("last", "mean"), *, held_out=True, nan=()):
    """Classes further apart at each layer; the classes alternate, so that order matters."""
    names = (
        tuple(f"blocks.{layer}.hook_resid_post" for layer in range(hook_points))
        if isinstance(hook_points, int)
        else hook_points
    )
    generator = torch.Generator().manual_seed(0)
    is_harmful = torch.arange(n_prompts) % 2 == 0
    shape = (n_prompts, len(names), len(positions))
    strength = torch.linspace(0.2, 3.0, len(names))[:, None] * torch.linspace(
        1, 0.5, len(positions)
    )
    values = torch.randn(shape, generator=generator).double() + is_harmful[:, None, None] * strength
    values = 20 * values - 7
    thresholds = values.mean(dim=0) + 0.5
    called = values > thresholds
    scores = torch.rand(4, len(names), len(positions), generator=generator).double()
    scores[0] = torch.linspace(0.05, 0.9, scores[0].numel()).reshape(scores[0].shape)
    for place in nan:
        values[:, *place] = thresholds[place] = torch.nan
        scores[:, *place] = torch.nan
    projections = Projections(
        values, values / 100, called, thresholds, is_harmful, names, tuple(positions), held_out
    )
    separation = make_separation(*scores, names, tuple(positions))
    prompts = [Prompt(f"p-{i:03d}", f"Say number {i}.", "numbers") for i in range(n_prompts)]
    return projections, separation, prompts


def group(figure: go.Figure, column: int) -> tuple:
    return figure.data[N_TRACES * column : N_TRACES * (column + 1)]


def step_data(figure: go.Figure, row: int, column: int, key: str) -> list:
    changes, _ = figure.layout.sliders[0].steps[row].args
    return changes[key][N_TRACES * column : N_TRACES * (column + 1)]


def shown_at(trace: go.Bar | go.Scatter, key: str) -> object:
    found = trace.to_plotly_json()
    for part in key.split("."):
        found = (found or {}).get(part)
    return found


def is_class(projections: Projections, is_harmful: bool) -> torch.Tensor:
    return projections.is_harmful == is_harmful


# ---- histogram: bars, marks, lines ----


def test_bars_are_the_shared_histogram():
    projections, separation, prompts = planted()
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.2.hook_resid_post", "mean")
    )
    histogram = shared_histogram(projections.values[:, 2, 1], projections.is_harmful)
    harmless, harmful = (group(figure, 1)[BARS[label]] for label in (False, True))
    assert harmless.x == harmful.x
    assert list(harmless.y) == histogram.counts[0].tolist()
    assert list(harmful.y) == histogram.counts[1].tolist()
    assert (sum(harmless.y), sum(harmful.y)) == (30, 30)
    edges = histogram.edges.numpy()
    np.testing.assert_allclose(harmful.x, (edges[1:] + edges[:-1]) / 2, atol=1e-3)
    assert harmful.width == harmless.width == pytest.approx(edges[1] - edges[0], rel=1e-4)
    assert figure.layout.barmode == "overlay"


def test_one_place_alone_has_its_bars_and_neither_slider_nor_other_places():
    projections, separation, prompts = planted()
    initial = ("blocks.2.hook_resid_post", "mean")
    whole = projection_histogram(projections, separation, prompts, initial=initial)
    alone = projection_histogram(projections, separation, prompts, only=("resid_post:2", "mean"))
    assert not alone.layout.sliders
    assert len(alone.data) < len(whole.data)
    for label in (False, True):
        first, same = group(alone, 0)[BARS[label]], group(whole, 1)[BARS[label]]
        assert (list(first.x), list(first.y)) == (list(same.x), list(same.y))


@pytest.mark.parametrize("is_harmful", [False, True])
def test_marks_are_the_projections_of_each_prompt(is_harmful):
    projections, separation, prompts = planted()
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.1.hook_resid_post", "last")
    )
    marks = group(figure, 0)[MARKS[is_harmful]]
    own = is_class(projections, is_harmful)
    everyone = projections.values[:, 1, 0].numpy()
    np.testing.assert_allclose(marks.x, everyone[own], rtol=0, atol=5e-5 * np.ptp(everyone))
    ids = [prompt.id for prompt, mine in zip(prompts, own, strict=True) if mine]
    assert [text.split("</b>")[0] for text in marks.hovertext] == [f"<b>{name}" for name in ids]
    assert (marks.y, marks.y0) == (None, int(is_harmful))
    assert 0 < marks.dy * len(marks.x) < 1e-6


@pytest.mark.parametrize("is_harmful", [False, True])
def test_misread_prompts_have_another_symbol_and_say_so(is_harmful):
    projections, separation, prompts = planted()
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.0.hook_resid_post", "last")
    )
    marks = group(figure, 0)[MARKS[is_harmful]]
    own = is_class(projections, is_harmful)
    is_right = (projections.is_called_harmful[own, 0, 0] == is_harmful).tolist()
    assert set(is_right) == {True, False}
    assert [{"": True, ", misread": False}[said] for said in marks.customdata] == is_right
    right, wrong = (
        {s for s, ok in zip(marks.marker.symbol, is_right, strict=True) if ok is want}
        for want in (True, False)
    )
    assert len(right) == len(wrong) == 1
    assert right != wrong
    (key,) = [trace for trace in figure.data if trace.name == "misread prompt"]
    assert {key.marker.symbol} == wrong


def test_small_differences_far_from_zero_stay_apart():
    projections, separation, prompts = planted()
    values = 1e6 + projections.values / 1000
    far = Projections(
        values,
        values,
        projections.is_called_harmful,
        projections.thresholds / 1000 + 1e6,
        projections.is_harmful,
        projections.hook_points,
        projections.positions,
        True,
    )
    figure = projection_histogram(far, separation, prompts)
    marks = group(figure, 1)[MARKS[True]]
    np.testing.assert_allclose(
        np.array(marks.x) - 1e6, values[far.is_harmful, 3, 1].numpy() - 1e6, rtol=0, atol=5.1e-6
    )


def test_lines_stand_at_means_and_threshold():
    projections, separation, prompts = planted()
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.3.hook_resid_post", "mean")
    )
    traces = group(figure, 1)
    for label in (False, True):
        mean = projections.values[is_class(projections, label), 3, 1].mean().item()
        line = traces[MEANS[label]]
        assert line.x == pytest.approx((mean, mean), abs=1e-2)
        assert line.text[1] == f"<b> mean {mean:.0f} </b>".replace("-", "−")
        assert line.line.dash == "dash"
    threshold = projections.thresholds[3, 1].item()
    assert traces[THRESHOLD].x == pytest.approx((threshold, threshold), abs=1e-2)
    assert traces[MARKS_THRESHOLD].x == traces[THRESHOLD].x
    assert traces[THRESHOLD].line.dash == "solid"


def test_means_are_called_as_their_classes():
    projections, separation, prompts = planted()
    figure = projection_histogram(
        projections, separation, prompts, classes=named("answered", "refused")
    )
    means = [trace.name for trace in figure.data if (trace.name or "").endswith(" mean")]
    assert set(means) == {"answered mean", "refused mean"}


def test_no_area_is_drawn_across_a_row_without_an_interval():
    rows = pd.DataFrame({"layer": [0, 1, 2, 3], "a_low": [0, 1, math.nan, 3], "a_high": 4.0})
    area = ribbon(rows, "layer", "a", "#000000")
    assert area.x == (0, 1, 1, 0, None, 3, 3)
    assert area.y == (0, 1, 4, 4, None, 3, 4)


def test_mean_labels_point_away_from_each_other_when_classes_are_reversed():
    projections, separation, prompts = planted()
    values = -projections.values
    reversed_ = Projections(
        values,
        values,
        projections.is_called_harmful,
        -projections.thresholds,
        projections.is_harmful,
        projections.hook_points,
        projections.positions,
        True,
    )
    sides = [
        [
            group(projection_histogram(shown, separation, prompts), 1)[MEANS[label]].textposition
            for label in (False, True)
        ]
        for shown in (projections, reversed_)
    ]
    assert sides == [["middle left", "middle right"], ["middle right", "middle left"]]


def test_classes_have_one_colour_each_and_differ_without_colour():
    figure = projection_histogram(*planted())
    for label, colour in ((False, HARMLESS_COLOUR), (True, HARMFUL_COLOUR)):
        traces = group(figure, 0)
        assert traces[BARS[label]].marker.color == traces[MARKS[label]].marker.color == colour
        assert traces[MEANS[label]].line.color == colour
    patterns = [group(figure, 0)[BARS[label]].marker.pattern.shape for label in (False, True)]
    assert patterns[0] != patterns[1]


@pytest.mark.parametrize(("n_prompts", "dtick"), [(10, 1), (200, None)])
def test_few_prompts_are_counted_in_whole_ones(n_prompts, dtick):
    assert projection_histogram(*planted(n_prompts)).layout.yaxis.dtick == dtick


# ---- histogram: what is said ----


def test_hover_text_is_escaped_data_and_never_a_template():
    projections, separation, prompts = planted()
    prompts[0] = Prompt("<b>id</b>", EVIL_TEXT, "%{y} & <i>")
    figure = projection_histogram(projections, separation, prompts)
    marks = group(figure, 0)[MARKS[True]]
    assert marks.hovertext[0] == (
        "<b>&lt;b&gt;id&lt;/b&gt;</b> · %{y} &amp; &lt;i&gt;<br>"
        "&lt;script&gt;alert(&#x27;%{x}&#x27;)&lt;/script&gt; costs &#36;5&#36; &amp; "
        "&#34;more&#34;"
    )
    assert "alert" not in marks.hovertemplate
    assert "%{hovertext}" in marks.hovertemplate
    assert "<script" not in figure.to_json()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("word " * 24, "word " * 12 + "<br>" + "word " * 12),
        ("word " * 90, ("word " * 12 + "<br>") * 4 + "word " * 11 + "word…"),
        ("長" * 400, ("長" * 60 + "<br>") * 4 + "長" * 59 + "…"),
        ("two\n\n  lines", "two lines"),
        ("x" * 300, "<br>".join(["x" * 60] * 5)),
    ],
)
def test_hover_text_is_shortened_and_wrapped(text, shown):
    projections, separation, prompts = planted()
    prompts[0] = Prompt("p", text, "c")
    marks = group(projection_histogram(projections, separation, prompts), 0)[MARKS[True]]
    hover = marks.hovertext[0]
    shown = shown.replace(" <br>", "<br>").rstrip()
    assert hover == f"<b>p</b> · c<br>{shown}"


@pytest.mark.parametrize("held_out", [True, False])
def test_headline_names_the_place_and_how_its_scores_came(held_out):
    projections, separation, prompts = planted(held_out=held_out)
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.1.hook_resid_post", "mean")
    )
    scores = (
        (separation.separation, separation.accuracy)
        if held_out
        else (separation.separation_in_sample, separation.accuracy_in_sample)
    )
    how = "5-fold cross-fitted" if held_out else "in sample"
    assert group(figure, 1)[HEADLINE].text == (
        "<b>resid_post 1 · position mean</b><br>"
        f"separation {scores[0][1, 1]:.2f} · accuracy {scores[1][1, 1]:.1%}<br>{how}",
    )


# ---- histogram: slider and menu ----


def test_slider_step_gives_every_position_the_data_of_its_hook_point():
    projections, separation, prompts = planted(20, 2)
    figure = projection_histogram(projections, separation, prompts)
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == ["0", "1"]
    assert figure.layout.sliders[0].currentvalue.prefix == "resid_post "
    for (row, hook_point), (column, position) in itertools.product(
        enumerate(projections.hook_points), enumerate(2 * projections.positions)
    ):
        alone = projection_histogram(
            projections, separation, prompts, initial=(hook_point, position)
        )
        changes, touched = steps[row].args
        assert steps[row].method == "restyle"
        assert list(touched) == list(range(4 * N_TRACES))
        for key in changes:
            stepped = step_data(figure, row, column, key)
            # None resets what it is given for: then there must be nothing to reset.
            shown = [shown_at(trace, key) for trace in group(alone, column)]
            assert json.dumps(stepped) == json.dumps(shown), key


def test_slider_changes_neither_visibility_nor_prompt_texts():
    figure = projection_histogram(*planted())
    for step in figure.layout.sliders[0].steps:
        assert not {"visible", "hovertext"} & set(step.args[0])


def test_labels_are_never_empty_strings():
    # plotly.js takes the label away from a point whose text is "" and never gives it one again:
    # after a step to a place without a direction, its note stayed away.
    figure = projection_histogram(*planted(nan=[(0, 0)]))
    for row in range(4):
        texts = step_data(figure, row, 0, "text") + step_data(figure, row, 1, "text")
        assert all(text for of_trace in texts if of_trace for text in of_trace)


def test_menu_of_views_toggles_visibility_and_names_the_axis():
    figure = projection_histogram(*planted(positions=("last", "mean", "-2")))
    menu = figure.layout.updatemenus[0]
    names = ["position last", "position mean", "position -2"]
    assert [button.label for button in menu.buttons] == names + [f"{n} · cosine" for n in names]
    n_keys = len(figure.data) - 6 * N_TRACES
    for column, button in enumerate(menu.buttons):
        assert button.method == "update"
        changes, axes = button.args
        shown = [index // N_TRACES == column for index in range(6 * N_TRACES)]
        assert changes == {"visible": [*shown, *[True] * n_keys]}
        assert list(axes) == ["xaxis.title.text"]
        assert ("cosine" in axes["xaxis.title.text"]) == (column >= 3)


def test_menu_of_shapes_leaves_visibility_and_data_alone():
    figure = projection_histogram(*planted())
    shapes = {button.label: button.args for button in figure.layout.updatemenus[1].buttons}
    assert list(shapes) == ["bars", "density", "cumulative"]
    of_kind = {"bars": BARS, "density": DENSITY, "share": SHARE}
    drawn = {"bars": {"bars"}, "density": {"bars", "density"}, "cumulative": {"share"}}
    for label, (traces, axes, touched) in shapes.items():
        assert set(traces) == {"opacity", "hoverinfo"}
        opacity, hover = (dict(zip(touched, traces[key], strict=True)) for key in traces)
        for view, (kind, places) in itertools.product(range(4), of_kind.items()):
            for place in places.values():
                index = view * N_TRACES + place
                assert (opacity.pop(index) > 0) == (kind in drawn[label])
                if kind not in drawn[label]:
                    assert hover[index] == "skip"
        assert opacity == {}
        assert axes["yaxis4.visible"] == (label == "cumulative") != axes["yaxis.visible"]


def test_first_shape_is_what_is_drawn():
    figure = projection_histogram(*planted())
    traces, axes, touched = figure.layout.updatemenus[1].buttons[0].args
    drawn = [figure.data[index].opacity for index in touched]
    assert drawn == traces["opacity"]
    assert figure.layout.yaxis4.visible is axes["yaxis4.visible"] is False


def test_starts_at_the_best_place():
    projections, separation, prompts = planted()
    separation.cohens_d[2, 0] = 99.0
    figure = projection_histogram(projections, separation, prompts)
    assert figure.layout.sliders[0].active == 2
    assert figure.layout.updatemenus[0].active == 0
    visible = [trace.visible for trace in figure.data[: 4 * N_TRACES]]
    assert visible == [True] * N_TRACES + [False] * 3 * N_TRACES
    assert group(figure, 0)[HEADLINE].text[0].startswith("<b>resid_post 2 · position last</b>")


def test_starts_at_the_place_asked_for():
    projections, separation, prompts = planted()
    place = ("blocks.1.hook_resid_post", "mean")
    figure = projection_histogram(projections, separation, prompts, initial=place)
    assert figure.layout.sliders[0].active == 1
    assert figure.layout.updatemenus[0].active == 1
    visible = [trace.visible for trace in figure.data[: 4 * N_TRACES]]
    assert visible == [False] * N_TRACES + [True] * N_TRACES + [False] * 2 * N_TRACES


def test_no_slider_for_one_hook_point():
    figure = projection_histogram(*planted(hook_points=1, positions=("last",)))
    assert figure.layout.sliders == ()
    assert [b.label for b in figure.layout.updatemenus[0].buttons] == [
        "position last",
        "position last · cosine",
    ]


def test_several_sites_are_views_and_share_the_slider():
    names = (
        "hook_embed",
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_mlp_out",
        "blocks.1.hook_mlp_out",
        "ln_final.hook_normalized",
    )
    projections, separation, prompts = planted(hook_points=names, positions=("last",))
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.1.hook_mlp_out", "last")
    )
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["embed", "0", "1", "ln_final.hook_normalized"]
    assert slider.active == 2
    menu = figure.layout.updatemenus[0]
    assert [button.label for button in menu.buttons] == [
        "resid_pre, last",
        "mlp_out, last",
        "resid_pre, last · cosine",
        "mlp_out, last · cosine",
    ]
    assert menu.active == 1
    embed, zero, one, _ = (
        [step_data(figure, row, view, "x")[MARKS[True]] for view in (0, 1)] for row in range(4)
    )
    assert embed[0] == embed[1]
    assert zero[0] != zero[1]
    assert one[0] == []
    assert len(one[1]) == 30
    assert step_data(figure, 2, 0, "text")[THRESHOLD][0] == "<b>nothing collected here</b>"


def test_hook_points_outside_the_blocks_alone_are_named():
    names = ("hook_embed", "ln_final.hook_normalized")
    figure = projection_histogram(*planted(hook_points=names))
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["embed", "ln_final.hook_normalized"]
    assert slider.currentvalue.prefix == ""
    assert len(figure.layout.updatemenus[0].buttons) == 4


def test_methods_are_views_named_by_themselves():
    projections, separation, prompts = planted(positions=("last",))
    other, other_separation, _ = planted(positions=("last",), held_out=False)
    figure = projection_histogram(
        {"difference of means": projections, "lda": other},
        {"difference of means": separation, "lda": other_separation},
        prompts,
    )
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == [
        "difference of means, position last",
        "difference of means, position last · cosine",
        "lda, position last",
        "lda, position last · cosine",
    ]
    # Of three layers the first alone is not late.
    assert (
        group(figure, 2)[HEADLINE].text[0].startswith("<b>resid_post 0 · position last · lda</b>")
    )
    assert group(figure, 2)[HEADLINE].text[0].endswith("in sample")


# ---- histogram: cosines, curves, null ----


def test_cosine_view_shows_cosines_and_no_threshold():
    projections, separation, prompts = planted()
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.2.hook_resid_post", "mean")
    )
    traces = group(figure, 3)
    own = projections.is_harmful
    cosines = projections.cosines[:, 2, 1]
    np.testing.assert_allclose(traces[MARKS[True]].x, cosines[own].numpy(), atol=1e-4)
    histogram = shared_histogram(cosines, own)
    assert list(traces[BARS[False]].y) == histogram.counts[0].tolist()
    assert traces[MEANS[True]].x[0] == pytest.approx(cosines[own].mean().item(), abs=1e-4)
    # Misread are the same prompts as in the raw view, whose threshold decides.
    assert traces[MARKS[True]].marker.symbol == group(figure, 1)[MARKS[True]].marker.symbol
    assert len(traces[THRESHOLD].x) == len(traces[MARKS_THRESHOLD].x) == 0


@pytest.mark.parametrize("is_harmful", [False, True])
def test_density_is_in_prompts_per_bin(is_harmful):
    projections, separation, prompts = planted()
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.2.hook_resid_post", "last")
    )
    numbers = projections.values[:, 2, 0]
    densities = shared_densities(numbers, projections.is_harmful)
    curve, bars = (group(figure, 0)[kind[is_harmful]] for kind in (DENSITY, BARS))
    grid = curve.x0 + curve.dx * np.arange(len(curve.y))
    np.testing.assert_allclose(grid, densities.grid.numpy(), rtol=1e-4, atol=1e-2)
    expected = densities.curves[int(is_harmful)] * 30 * bars.width
    np.testing.assert_allclose(curve.y, expected.numpy(), rtol=1e-2, atol=2e-3)
    # As many prompts under the curve as in the bars.
    assert sum(curve.y) * curve.dx / bars.width == pytest.approx(sum(bars.y), rel=0.02)


def test_cumulative_share_climbs_by_one_prompt_at_each():
    projections, separation, prompts = planted()
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.1.hook_resid_post", "last")
    )
    line = group(figure, 0)[SHARE[False]]
    ordered = projections.values[~projections.is_harmful, 1, 0].sort().values
    np.testing.assert_allclose(line.x, [ordered[0], *ordered], atol=1e-2)
    assert (line.y, line.y0, line.line.shape) == (None, 0, "hv")
    assert line.dy * (len(line.x) - 1) == pytest.approx(100)


def null_table(low: float, high: float) -> pd.DataFrame:
    table = planted_tables.nulls(4)
    table.loc[table["score"] == "separation", ["low", "high"]] = low, high
    return table


def test_null_band_is_as_wide_as_shuffled_labels_put_the_means_apart():
    projections, separation, prompts = planted()
    figure = projection_histogram(
        projections,
        separation,
        prompts,
        nulls=null_table(-0.3, 0.2),
        initial=("blocks.2.hook_resid_post", "mean"),
    )
    raw, cosine = (group(figure, view)[NULL] for view in (1, 3))
    assert max(cosine.x) - min(cosine.x) == pytest.approx(0.3, abs=1e-3)
    norm = activation_norms(projections)[2, 1].item()
    assert norm == pytest.approx(100)
    assert max(raw.x) - min(raw.x) == pytest.approx(0.3 * norm, abs=0.1)
    for band, values in ((raw, projections.values), (cosine, projections.cosines)):
        own = projections.is_harmful
        middle = (values[own, 2, 1].mean() + values[~own, 2, 1].mean()) / 2
        assert (max(band.x) + min(band.x)) / 2 == pytest.approx(middle.item(), rel=1e-2)
    assert figure.data[-1].name == "class means of shuffled labels, 95 %"


def test_without_a_null_there_is_neither_band_nor_entry():
    figure = projection_histogram(*planted())
    assert "class means of shuffled labels, 95 %" not in [trace.name for trace in figure.data]
    assert all(len(group(figure, view)[NULL].x) == 0 for view in range(4))


def test_a_place_without_a_direction_says_so():
    projections, separation, prompts = planted(nan=[(1, 0)])
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.1.hook_resid_post", "last")
    )
    traces = group(figure, 0)
    assert traces[THRESHOLD].text[0] == "<b>no direction here</b>"
    assert traces[HEADLINE].text == ("<b>resid_post 1 · position last</b><br>no direction here",)
    empty = [kind[label] for kind in (BARS, DENSITY, SHARE, MARKS, MEANS) for label in kind]
    assert all(len(traces[index].x) == 0 for index in [*empty, MARKS_THRESHOLD])
    assert sum(group(figure, 1)[BARS[True]].y) == 30
    assert "NaN" not in figure.to_json()


def test_starts_somewhere_when_there_is_no_direction_anywhere():
    everywhere = list(itertools.product(range(4), range(2)))
    figure = projection_histogram(*planted(nan=everywhere))
    assert figure.layout.sliders[0].active == 0


@pytest.mark.parametrize(("n_hook_points", "positions"), [(8, ("last", "mean")), (80, ("last",))])
def test_figure_stays_small(n_hook_points, positions):
    projections, separation, prompts = planted(384, n_hook_points, positions)
    prompts = [Prompt(prompt.id, "A long request. " * 20, "category") for prompt in prompts]
    figure = projection_histogram(projections, separation, prompts)
    # Raw and cosine views of 20 numbers a prompt and place, and of 300 letters a prompt and view.
    assert len(figure.to_json()) < 3_000_000


# ---- refusals ----


def test_wants_the_prompts_that_were_projected():
    projections, separation, prompts = planted()
    with pytest.raises(RefusalLensError) as caught:
        projection_histogram(projections, separation, prompts[:-1])
    assert str(caught.value) == (
        "A histogram needs the prompts that were projected, 60 of them, but 59 came. "
        "Pass the prompts that were collected, in that order."
    )


def test_wants_the_same_methods_of_both():
    projections, separation, prompts = planted(hook_points=1)
    for given in (
        ({"lda": projections}, separation),
        ({"lda": projections}, {"pca": separation}),
        ({}, {}),
    ):
        with pytest.raises(RefusalLensError) as caught:
            projection_histogram(*given, prompts)
        assert str(caught.value) == (
            "A histogram needs projections and scores of the same methods: one of each, or both "
            "by the same names in the same order. Pass what validate returned for each method."
        )


def test_wants_scores_of_the_same_places():
    projections, _, prompts = planted(hook_points=1)
    _, separation, _ = planted(hook_points=2)
    with pytest.raises(RefusalLensError) as caught:
        projection_histogram(projections, separation, prompts)
    assert str(caught.value) == (
        "Projections and scores need the same places, but the projections are of resid_post 0 at "
        "last, mean and the scores of resid_post 0, resid_post 1 at last, mean. "
        "Pass both as one call of validate returned them."
    )


@pytest.mark.parametrize("place", [("resid_post", "last"), ("blocks.0.hook_resid_post", "first")])
def test_refuses_to_start_nowhere(place):
    with pytest.raises(RefusalLensError) as caught:
        projection_histogram(*planted(hook_points=1), initial=place)
    assert str(caught.value) == (
        f"The histogram cannot start at {place[0]}, {place[1]}: there is only resid_post 0 at "
        "last, mean. Choose initial among these."
    )


# ---- profile ----


def profile_lines(figure: go.Figure, name: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.name == name]


def test_profile_lines_are_the_frame_s_numbers():
    blocks = ("blocks.1.hook_resid_post", "blocks.0.hook_resid_post", "blocks.0.hook_mlp_out")
    separation = planted(hook_points=("hook_embed", *blocks))[1]
    figure = layer_profile(separation)
    frame = separation.to_frame()
    names = {trace.name for trace in figure.data} - {"in sample"}
    assert names == {
        f"{site}, {position}" for site in ("resid_post", "mlp_out") for position in ("last", "mean")
    }
    for position in ("last", "mean"):
        own = frame[(frame.site == "resid_post") & (frame.position == position)].sort_values(
            "layer"
        )
        lines = profile_lines(figure, f"resid_post, {position}")
        expected = [
            own.separation_in_sample,
            own.separation,
            100 * own.accuracy_in_sample,
            100 * own.accuracy,
            own.auroc_in_sample,
            own.auroc,
        ]
        for line, numbers in zip(lines, expected, strict=True):
            assert list(line.x) == [0, 1]
            np.testing.assert_allclose(line.y, numbers)
        assert [line.yaxis for line in lines] == ["y", "y", "y2", "y2", "y3", "y3"]
        assert [line.line.dash for line in lines] == ["dot", "solid"] * 3
        assert len({line.line.color for line in lines}) == 1
        assert [line.showlegend for line in lines] == [False, True, *[False] * 4]


def test_profile_shows_the_bands():
    figure = layer_profile(planted()[1])
    lines = {(shape.yref, shape.y0) for shape in figure.layout.shapes if shape.y0 == shape.y1}
    assert lines == {("y", 0.30), ("y", 0.15), ("y2", 80), ("y2", 65), ("y2", 50), ("y3", 0.5)}
    said = [note.text for note in figure.layout.annotations]
    assert said == [
        "good 0.30",
        "acceptable 0.15",
        "good 80%",
        "acceptable 65%",
        "chance 50%",
        "chance 0.5",
    ]


@pytest.mark.parametrize("lowest", [0.12, -0.4])
def test_profile_ranges_hold_every_number(lowest):
    _, separation, _ = planted()
    for drawn in (separation.separation, separation.separation_in_sample):
        drawn.clamp_(min=0.12)
    separation.scores["separation"].low.clamp_(min=0.02)
    separation.separation[0, 0] = lowest
    separation.accuracy[0, 0] = 0.2
    figure = layer_profile(separation)
    for trace in figure.data[:-1]:
        low, high = figure.layout[trace.yaxis.replace("y", "yaxis")].range
        assert all(low <= y <= high for y in trace.y)
    low, high = figure.layout.yaxis.range
    assert (low == 0) == (lowest > 0)
    assert high > 0.30


def choice(hook_point: str, *, is_eligible: bool = True) -> Choice:
    return Choice(hook_point, "last", 0.5, 0.9, is_eligible, "")


@pytest.mark.parametrize(("is_eligible", "said"), [(True, "best"), (False, "nearest miss")])
def test_profile_marks_the_best_place(is_eligible, said):
    best = choice("blocks.2.hook_resid_post", is_eligible=is_eligible)
    figure = layer_profile(planted()[1], best=best)
    upper, lower = profile_lines(figure, f"{said}: resid_post 2, last")
    assert (upper.x, upper.y, upper.yaxis) == ((2,), (0.5,), "y")
    assert (lower.x, lower.y, lower.yaxis) == ((2,), (90,), "y2")
    assert [upper.showlegend, lower.showlegend] == [True, False]


def test_profile_has_no_place_for_a_best_one_outside_the_blocks():
    separation = planted(hook_points=("hook_embed",))[1]
    assert layer_profile(separation, best=choice("hook_embed")).data == ()


def test_profile_leaves_gaps_where_there_is_no_direction():
    figure = layer_profile(planted(nan=[(1, 0)])[1])
    line = profile_lines(figure, "resid_post, last")[1]
    assert [math.isnan(y) for y in line.y] == [False, True, False, False]
    assert not any(math.isnan(end) for end in figure.layout.yaxis.range)


def test_profile_of_a_table_adds_auroc_intervals_and_null():
    table, nulls = planted_tables.separation(8), planted_tables.nulls(8)
    figure = layer_profile(table, nulls=nulls)
    own = table[table["position"] == "last"]
    lines = profile_lines(figure, "resid_post, last")
    assert [line.yaxis for line in lines] == ["y", "y", "y2", "y2", "y3", "y3"]
    np.testing.assert_allclose(lines[5].y, own["auroc"])
    intervals = profile_lines(figure, "resid_post, last, interval")
    edges = [*own["accuracy_low"], *own["accuracy_high"][::-1]]
    np.testing.assert_allclose(intervals[1].y, 100 * np.array(edges))
    null = profile_lines(figure, "scores of shuffled labels, 95 %")
    assert [set(np.round(band.y, 6)) for band in null] == [{-0.08, 0.08}, {42, 58}, {0.41, 0.59}]
    assert [band.showlegend for band in null] == [True, False, False]
    low, high = figure.layout.yaxis2.range
    assert low < 42
    assert high > 100 * table["accuracy_high"].max()


def test_profile_of_many_lines_keeps_the_best_one_s_interval():
    table = planted_tables.separation(8)
    many = pd.concat([table, table.replace({"mean": "-2"}), table.replace({"mean": "-3"})])
    many = many.drop_duplicates(["hook_point", "position"])
    best = Choice("blocks.2.hook_resid_post", "-3", 0.5, 0.9, True, "")
    figure = layer_profile(many, best=best)
    assert {trace.name for trace in figure.data if "interval" in trace.name} == {
        "resid_post, -3, interval"
    }


# ---- both ----


def test_inputs_are_not_changed():
    projections, separation, prompts = planted(nan=[(0, 1)])
    before = [
        {key: value.clone() for key, value in vars(given).items() if torch.is_tensor(value)}
        for given in (projections, separation)
    ]
    kept = list(prompts)
    projection_histogram(projections, separation, prompts)
    layer_profile(separation)
    for given, saved in zip((projections, separation), before, strict=True):
        for key, value in saved.items():
            torch.testing.assert_close(getattr(given, key), value, equal_nan=True, rtol=0, atol=0)
    assert prompts == kept


def test_figures_are_light_until_they_are_told_otherwise():
    projections, separation, prompts = planted(hook_points=1)
    for figure in (
        projection_histogram(projections, separation, prompts),
        layer_profile(separation),
    ):
        assert figure.layout.template.layout.paper_bgcolor == "white"
        figure.update_layout(template=DARK)
        assert figure.layout.template.layout.paper_bgcolor == "rgb(17,17,17)"


def test_classes_are_split_by_outcome_by_choice():
    """The harmful class of a real model has two humps: what it refused, and what it answered."""
    projections, separation, prompts = planted()
    outcomes = ["refused" if i % 4 == 0 else "answered" for i in range(60)]
    outcomes[1] = "evaded"
    figure = projection_histogram(projections, separation, prompts, outcomes=outcomes)
    menu = figure.layout.updatemenus[0]
    assert [button.label for button in menu.buttons][-2:] == [
        "position last · by outcome",
        "position mean · by outcome",
    ]
    changes, layout = menu.buttons[4].args
    shown = [t for t, on in zip(figure.data, changes["visible"], strict=True) if on]
    assert list(layout["yaxis2.ticktext"]) == [
        "harmless, answered (29)",
        "harmless, neither (1)",
        "harmful, answered (15)",
        "harmful, refused (15)",
    ]
    bars = [trace for trace in shown if trace.type == "bar"]
    assert [sum(trace.y) for trace in bars] == [29, 1, 15, 15]
    # The bars of a class stand on each other: together they are the class's own.
    of_class = group(figure, 0)[BARS[True]]
    assert [base + y for base, y in zip(bars[3].base, bars[3].y, strict=True)] == list(of_class.y)
    evaded, refused = (
        next(t for t in shown if t.legendgroup == name and t.yaxis == "y2")
        for name in ("harmless, neither", "harmful, refused")
    )
    assert ["p-001" in text for text in evaded.hovertext] == [True]
    is_refused = torch.tensor([outcome == "refused" for outcome in outcomes])
    row = figure.layout.sliders[0].active
    mine = projections.values[is_refused, row, 0].tolist()
    np.testing.assert_allclose(refused.x, mine, rtol=1e-3)


def test_where_outcomes_split_nothing_there_is_no_such_choice():
    projections, separation, prompts = planted()
    outcomes = ["refused" if is_harmful else "answered" for is_harmful in projections.is_harmful]
    figures = [
        projection_histogram(projections, separation, prompts, outcomes=each)
        for each in (None, outcomes)
    ]
    assert figures[0] == figures[1]
