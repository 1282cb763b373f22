"""What was moved leads where it says."""

import pytest

from refusal_lens.explorer.moves import move


def moved(view, runs, trigger, value, **others):
    return move(view, [trigger], {trigger: value, **others}, runs)


def test_slider_and_site_go_where_they_say(view, runs):
    down = moved(view, runs, "layer.value", 1)
    assert down.hook_point == view.hook_point.replace("blocks.3", "blocks.1")
    assert moved(down, runs, "site.value", "mlp_out").hook_point == "blocks.1.hook_mlp_out"


def test_a_cell_is_gone_to(view, runs):
    click = {"points": [{"x": "2", "y": "mlp_out, mean"}]}
    there = moved(view, runs, "heatmap.clickData", click)
    assert (there.hook_point, there.position) == ("blocks.2.hook_mlp_out", "mean")
    assert moved(view, runs, "heatmap.clickData", {"points": [{"x": "2", "y": "?"}]}) == view


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shapes[0].x0": 1.5, "shapes[0].x1": 1.5, "shapes[0].y0": 0.1}, 1.5),
        ({"shapes[0].x0": 1.0, "shapes[0].x1": 2.0}, 1.5),
        ({"xaxis.range[0]": 1, "xaxis.range[1]": 2}, None),
        ({"autosize": True}, None),
        (None, None),
    ],
)
def test_only_the_line_moves_the_threshold(view, runs, change, expected):
    there = moved(view, runs, "histogram.relayoutData", change)
    assert there.threshold == expected
    assert there.listed == ("all" if expected is None else "flipped")


def test_a_threshold_is_bound_to_its_place_and_scale(view, runs):
    dragged = moved(view, runs, "threshold.value", 0.5)
    assert dragged.threshold == 0.5
    assert moved(dragged, runs, "text.value", "a").threshold == 0.5
    assert moved(dragged, runs, "scale.value", "cosine").threshold is None
    assert moved(dragged, runs, "position.value", "mean").threshold is None
    assert moved(dragged, runs, "reset.n_clicks", 1) == view


def test_selected_marks_are_rows_and_stay_selected_elsewhere(view, runs):
    box = {"points": [{"customdata": 7}, {"customdata": 3}, {"x": 1.0}]}
    picked = moved(view, runs, "histogram.selectedData", box)
    assert (picked.selected, picked.listed) == ((3, 7), "selected")
    assert moved(picked, runs, "layer.value", 0).selected == (3, 7)
    assert moved(picked, runs, "histogram.selectedData", {"points": []}) == picked
    assert moved(picked, runs, "scatter.selectedData", None) == picked
    assert moved(picked, runs, "clear.n_clicks", 1) == view
    assert moved(picked, runs, "run.value", list(runs)[1]).selected == ()


def test_a_control_changed_meanwhile_is_not_set_back(view, runs):
    both = moved(
        view, runs, "layer.value", 1, **{"position.value": "mean", "scale.value": "cosine"}
    )
    assert (both.position, both.scale) == ("mean", "cosine")
