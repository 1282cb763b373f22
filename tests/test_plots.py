"""Plots: the numbers in the figures, not their pixels."""

import itertools
import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from conftest import make_separation

from refusal_lens.errors import RefusalLensError
from refusal_lens.plots import HARMFUL_COLOUR, HARMLESS_COLOUR, layer_profile, projection_histogram
from refusal_lens.prompts import Prompt
from refusal_lens.selection import Choice
from refusal_lens.validation import Projections, shared_histogram

# A position's traces, in their order.
BARS = {False: 0, True: 1}
MARKS = {False: 2, True: 3}
MEANS = {False: 4, True: 5}
THRESHOLD, MARKS_THRESHOLD, HEADLINE, N_TRACES = 6, 7, 8, 9

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
    assert list(harmless.y) == histogram.n_harmless.tolist()
    assert list(harmful.y) == histogram.n_harmful.tolist()
    assert (sum(harmless.y), sum(harmful.y)) == (30, 30)
    edges = histogram.edges.numpy()
    np.testing.assert_allclose(harmful.x, (edges[1:] + edges[:-1]) / 2, atol=1e-3)
    assert harmful.width == harmless.width == pytest.approx(edges[1] - edges[0], rel=1e-4)
    assert figure.layout.barmode == "overlay"


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
    assert set(marks.y) == {int(is_harmful)}


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
    assert [said == "right" for said in marks.customdata] == is_right
    right, wrong = ({s for s, ok in zip(marks.marker.symbol, is_right, strict=True) if ok is want}
                    for want in (True, False))  # fmt: skip
    assert len(right) == len(wrong) == 1
    assert right != wrong
    key = figure.data[-1]
    assert {key.marker.symbol} == wrong


def test_small_differences_far_from_zero_stay_apart():
    projections, separation, prompts = planted()
    values = 1e6 + projections.values / 1000
    far = Projections(
        values, values, projections.is_called_harmful, projections.thresholds / 1000 + 1e6,
        projections.is_harmful, projections.hook_points, projections.positions, True,
    )  # fmt: skip
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


def test_mean_labels_point_away_from_each_other_when_classes_are_reversed():
    projections, separation, prompts = planted()
    values = -projections.values
    reversed_ = Projections(
        values, values, projections.is_called_harmful, -projections.thresholds,
        projections.is_harmful, projections.hook_points, projections.positions, True,
    )  # fmt: skip
    sides = [
        [group(projection_histogram(shown, separation, prompts), 1)[MEANS[label]].textposition
         for label in (False, True)]
        for shown in (projections, reversed_)
    ]  # fmt: skip
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
        ("word " * 40, ("word " * 10 + "<br>" + "word " * 9 + "…")),
        ("長" * 200, "長" * 52 + "<br>" + "長" * 47 + "…"),
        ("two\n\n  lines", "two lines"),
        ("x" * 100, "x" * 52 + "<br>" + "x" * 48),
    ],
)
def test_hover_text_is_shortened_and_wrapped(text, shown):
    projections, separation, prompts = planted()
    prompts[0] = Prompt("p", text, "c")
    hover = group(projection_histogram(projections, separation, prompts), 0)[3].hovertext[0]
    shown = shown.replace(" <br>", "<br>").replace(" …", "…")
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
        f"separation {scores[0][1, 1]:.2f} · accuracy {scores[1][1, 1]:.1%} · {how}",
    )


# ---- histogram: slider and menu ----


def test_slider_step_gives_every_position_the_data_of_its_hook_point():
    projections, separation, prompts = planted()
    figure = projection_histogram(projections, separation, prompts)
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == ["0", "1", "2", "3"]
    assert figure.layout.sliders[0].currentvalue.prefix == "resid_post "
    for (row, hook_point), (column, position) in itertools.product(
        enumerate(projections.hook_points), enumerate(projections.positions)
    ):
        alone = projection_histogram(
            projections, separation, prompts, initial=(hook_point, position)
        )
        changes, touched = steps[row].args
        assert steps[row].method == "restyle"
        assert list(touched) == list(range(2 * N_TRACES))
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


def test_position_menu_toggles_visibility_only():
    figure = projection_histogram(*planted(positions=("last", "mean", "-2")))
    (menu,) = figure.layout.updatemenus
    assert [button.label for button in menu.buttons] == [
        "position last", "position mean", "position -2",
    ]  # fmt: skip
    for column, button in enumerate(menu.buttons):
        assert button.method == "restyle"
        (changes,) = button.args
        assert list(changes) == ["visible"]
        shown = [index // N_TRACES == column for index in range(3 * N_TRACES)]
        assert changes["visible"] == [*shown, True]


def test_starts_at_the_highest_separation():
    projections, separation, prompts = planted()
    separation.separation[2, 0] = 0.99
    figure = projection_histogram(projections, separation, prompts)
    assert figure.layout.sliders[0].active == 2
    assert figure.layout.updatemenus[0].active == 0
    assert [trace.visible for trace in figure.data[:-1]] == [True] * N_TRACES + [False] * N_TRACES
    assert group(figure, 0)[HEADLINE].text[0].startswith("<b>resid_post 2 · position last</b>")


def test_starts_at_the_place_asked_for():
    projections, separation, prompts = planted()
    place = ("blocks.1.hook_resid_post", "mean")
    figure = projection_histogram(projections, separation, prompts, initial=place)
    assert figure.layout.sliders[0].active == 1
    assert figure.layout.updatemenus[0].active == 1
    assert [trace.visible for trace in figure.data[:-1]] == [False] * N_TRACES + [True] * N_TRACES


def test_no_slider_for_one_hook_point_and_no_menu_for_one_position():
    figure = projection_histogram(*planted(hook_points=1, positions=("last",)))
    assert figure.layout.sliders == figure.layout.updatemenus == ()
    assert len(figure.data) == N_TRACES + 1


@pytest.mark.parametrize("outside", [("hook_embed",), ()])
def test_several_sites_are_named_on_the_slider(outside):
    names = (*outside, "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post")
    (slider,) = projection_histogram(*planted(hook_points=names)).layout.sliders
    said = ["embed", "resid_pre 0", "resid_post 0"]
    assert [step.label for step in slider.steps] == said[-len(names) :]
    assert slider.currentvalue.prefix == ""


def test_a_place_without_a_direction_says_so():
    projections, separation, prompts = planted(nan=[(1, 0)])
    figure = projection_histogram(
        projections, separation, prompts, initial=("blocks.1.hook_resid_post", "last")
    )
    traces = group(figure, 0)
    assert traces[THRESHOLD].text[0] == "<b>no direction here</b>"
    assert traces[HEADLINE].text == ("<b>resid_post 1 · position last</b><br>no direction here",)
    empty = [BARS[False], BARS[True], MARKS[False], MARKS[True], MEANS[False], MEANS[True]]
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
    assert len(figure.to_json()) < 1_500_000


# ---- refusals ----


def test_wants_the_prompts_that_were_projected():
    projections, separation, prompts = planted()
    with pytest.raises(RefusalLensError) as caught:
        projection_histogram(projections, separation, prompts[:-1])
    assert str(caught.value) == (
        "A histogram needs the prompts that were projected, 60 of them, but 59 came. "
        "Pass the prompts that were collected, in that order."
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
    assert names == {f"{site}, {position}" for site in ("resid_post", "mlp_out")
                     for position in ("last", "mean")}  # fmt: skip
    for position in ("last", "mean"):
        own = frame[(frame.site == "resid_post") & (frame.position == position)].sort_values(
            "layer"
        )
        lines = profile_lines(figure, f"resid_post, {position}")
        expected = [own.separation, 100 * own.accuracy,
                    own.separation_in_sample, 100 * own.accuracy_in_sample]  # fmt: skip
        for line, numbers in zip(lines, expected, strict=True):
            assert list(line.x) == [0, 1]
            np.testing.assert_allclose(line.y, numbers)
        assert [line.yaxis for line in lines] == ["y", "y2"] * 2
        assert [line.line.dash for line in lines] == ["solid", "solid", "dot", "dot"]
        assert len({line.line.color for line in lines}) == 1
        assert [line.showlegend for line in lines] == [True, False, False, False]


def test_profile_shows_the_bands():
    figure = layer_profile(planted()[1])
    lines = {(shape.yref, shape.y0) for shape in figure.layout.shapes if shape.y0 == shape.y1}
    assert lines == {("y", 0.30), ("y", 0.15), ("y2", 80), ("y2", 65), ("y2", 50)}
    said = [note.text for note in figure.layout.annotations]
    assert said == ["good 0.30", "acceptable 0.15", "good 80%", "acceptable 65%", "chance 50%"]


@pytest.mark.parametrize("lowest", [0.02, -0.4])
def test_profile_ranges_hold_every_number(lowest):
    _, separation, _ = planted()
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
    line = profile_lines(figure, "resid_post, last")[0]
    assert [math.isnan(y) for y in line.y] == [False, True, False, False]
    assert not any(math.isnan(end) for end in figure.layout.yaxis.range)


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


def test_template_is_the_one_asked_for():
    projections, separation, prompts = planted(hook_points=1)
    for template, background in (("plotly_white", "white"), ("plotly_dark", "rgb(17,17,17)")):
        for figure in (
            projection_histogram(projections, separation, prompts, template=template),
            layer_profile(separation, template=template),
        ):
            assert figure.layout.template.layout.paper_bgcolor == background
