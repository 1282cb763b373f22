"""Choices: every fold is counted once, and rows stand in their order."""

import numpy as np
import planted

from refusal_lens import plots


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
    raw, clipped = planted.named(figure, "lda"), planted.named(figure, "lda, clipped")
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
    raw, clipped = planted.named(figure, "not clipped"), planted.named(figure, "clipped")
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


def test_no_scale_goes_beyond_its_end_and_all_marks_are_on_it():
    methods = planted.methods(8)
    drawn = [
        plots.nested_choice(planted.nested_choice().assign(accuracy=1.0)),
        plots.confounds(planted.confounds().assign(auroc=1.0, auroc_high=1.0)),
        plots.clip_sweep(planted.clip_sweep().assign(accuracy=1.0)),
        plots.method_comparison(methods[methods["position"] == "last"].assign(auroc=1.0)),
        plots.stability(planted.stability(8).assign(bootstrap_cosine=1.0)),
    ]
    n_checked = 0
    for figure in drawn:
        for trace in figure.data:
            for letter, numbers in (("x", trace.x), ("y", trace.y)):
                name = (trace[f"{letter}axis"] or letter).replace(letter, f"{letter}axis")
                axis = figure.layout[name]
                if axis.range is None or axis.title.text in (None, "layer") or trace.fill:
                    continue
                low, high = axis.range
                assert all(low <= number <= high for number in numbers), axis.title.text
                assert high <= 100 if "%" in axis.title.text else high <= 1.2, axis.title.text
                assert high <= 1 or axis.title.text.startswith(("sep", "acc"))
                n_checked += 1
    assert n_checked > 20
