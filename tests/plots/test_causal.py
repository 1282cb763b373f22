"""What directions do to refusal: marks, limits, and a line for each of what was tried."""

import math

import numpy as np
import planted
import pytest

from refusal_lens import plots
from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.plots.style import HARMFUL_COLOUR, HARMLESS_COLOUR


def test_causal_scores_mark_what_passes_and_what_was_chosen():
    table = planted.causal_scores(8)
    figure = plots.causal_scores(table, n_kept_layers=6)
    own = table[table["position"] == "-1"]
    lines = planted.named(figure, "resid_post, -1")
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
    rings = planted.named(figure, f"chosen: resid_post {chosen['layer']}, {chosen['position']}")
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
    lines = [
        trace for trace in planted.named(figure, "harmless, random") if trace.xaxis in ("x3", "x6")
    ]
    assert len(lines) == 2 * 3
    np.testing.assert_allclose(lines[2].y, own["refusal_score"])
    np.testing.assert_allclose(lines[5].y, 100 * own["refusal_rate"])
    for name, colour in (("harmful", HARMFUL_COLOUR), ("harmless", HARMLESS_COLOUR)):
        dashes = [
            planted.named(figure, f"{name}, {kind}")[-1].line.dash
            for kind in ("fitted", "random", "permuted")
        ]
        assert dashes == ["solid", "dot", "dashdot"]
        assert planted.named(figure, f"{name}, fitted")[-1].line.color == colour
    entries = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(entries) == sorted(set(entries))
    assert len(entries) == 6
