"""Curves: what is drawn are the table's numbers, and lines break where the table does."""

import numpy as np
import pandas as pd
import planted
import pytest

from refusal_lens import plots


def test_learning_curve_breaks_into_measured_and_extrapolated():
    table = planted.learning_curve()
    figure = plots.learning_curve(table.sample(frac=1, random_state=0))
    (interval,) = planted.named(figure, "resid_post 5, last")
    (measured,) = planted.named(figure, "resid_post 5, last, measured")
    (beyond,) = planted.named(figure, "resid_post 5, last, foretold")
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
    others = planted.named(figure, "other places")
    assert len(others) == 2 * 7  # measured and extrapolated
    assert [trace.showlegend for trace in others] == [True] + [False] * 13
    assert {"resid_post 0, last" in trace.hovertemplate for trace in others[:2]} == {True}
    (measured,) = planted.named(figure, "resid_post 3, last, measured")
    np.testing.assert_allclose(measured.y, one[~one["is_extrapolated"]]["degrees"] + 3)
    assert measured.line.color not in {trace.line.color for trace in others}


def test_clip_sweep_goes_from_hard_clipping_to_none():
    table = planted.clip_sweep()
    figure = plots.clip_sweep(table)
    lines = planted.named(figure, "resid_post 5, last")
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
        planted.named(figure, "resid_post, mean, halves")[0].y, own["split_half_cosine"]
    )
    np.testing.assert_allclose(
        planted.named(figure, "resid_post, mean, resampled")[0].y, own["bootstrap_cosine"]
    )
    (interval,) = planted.named(figure, "resid_post, mean")
    assert min(interval.y) == pytest.approx(own["bootstrap_cosine_low"].min())


def test_coordinate_shares_are_percent_before_and_after_clipping():
    table = planted.coordinates(8)
    own = table[table["position"] == "last"]
    figure = plots.coordinate_shares(own)
    np.testing.assert_allclose(
        planted.named(figure, "ten largest, clipped")[0].y, 100 * own["share_top_10_clipped"]
    )
    assert len(figure.data) == 6


def test_roc_is_drawn_in_percent_beside_chance():
    table = pd.DataFrame({"threshold": [9, 2, 1], "hits": [0, 0.5, 1], "false_alarms": [0, 0, 1]})
    figure = plots.roc_curve(table, (0.75, 0.6, 0.9), place="resid_post 5")
    curve, chance = figure.data
    assert (list(curve.x), list(curve.y)) == ([0, 0, 100], [0, 50, 100])
    assert list(chance.x) == list(chance.y) == [0, 100]
    assert figure.layout.title.subtitle.text == "resid_post 5 · AUROC 0.750 [0.600, 0.900]"


def test_models_of_other_depths_share_one_axis():
    runs = {"small": 3, "large": 5}
    table = pd.concat(
        pd.DataFrame(
            {"run": run, "layer": range(n), "n_layers": n, "auroc": np.linspace(0.5, 0.9, n)}
        )
        for run, n in runs.items()
    )
    small, large = plots.depth_curves(table).data
    assert list(small.x) == [0, 50, 100]
    assert list(large.x) == [0, 25, 50, 75, 100]
    np.testing.assert_allclose(large.y, np.linspace(0.5, 0.9, 5))
    assert list(large.customdata) == [0, 1, 2, 3, 4]
