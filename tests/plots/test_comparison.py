"""Heatmaps show the numbers they were given, where they belong."""

import pandas as pd
import pytest
import torch
from scipy.stats import norm

from refusal_lens.errors import RefusalLensError
from refusal_lens.plots import cosine_heatmap, place_heatmap, transfer_matrix
from refusal_lens.plots.comparison import BANDS
from refusal_lens.runs import figures
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation.thresholds import (
    GOOD_ACCURACY,
    GOOD_SEPARATION,
    MIN_ACCURACY,
    MIN_SEPARATION,
)


def make_frame(methods=("lda",), positions=("last",), runs=None) -> pd.DataFrame:
    rows = [
        {
            **({} if runs is None else {"run": run}),
            "method": method,
            "hook_point": f"blocks.{layer}.hook_resid_post",
            "site": "resid_post",
            "layer": layer,
            "position": position,
            "auroc": 0.5 + layer / 10 + 0.01 * len(method) + 0.001 * len(position),
        }
        for run in runs or [""]
        for method in methods
        for layer in (2, 0, 1)
        for position in positions
    ]
    return pd.DataFrame(rows)


def test_places_stand_in_the_order_of_layers():
    (cells,) = place_heatmap(make_frame(), "auroc").data
    assert list(cells.x) == ["0", "1", "2"]
    assert list(cells.y) == ["last"]
    assert cells.z[0] == pytest.approx([0.534, 0.634, 0.734])


def test_rows_are_named_by_what_differs_and_sorted_by_place_then_method():
    frame = make_frame(methods=("lda", "pca_paired"), positions=("last", "mean"))
    (cells,) = place_heatmap(frame, "auroc").data
    assert list(cells.y) == ["last, lda", "last, pca paired", "mean, lda", "mean, pca paired"]
    assert cells.z[1] == pytest.approx([0.604, 0.704, 0.804])


def test_each_run_has_a_panel_and_its_best_place_a_frame():
    frame = make_frame(runs=("a", "b"))
    frame.loc[(frame["run"] == "b") & (frame["layer"] == 0), "auroc"] = 0.99
    layers = {"a": 2, "b": 0}
    position = frame["position"].iloc[0]
    best = {run: (f"blocks.{layer}.hook_resid_post", position) for run, layer in layers.items()}
    assert not place_heatmap(frame, "auroc").layout.shapes
    figure = place_heatmap(frame, "auroc", best=best)
    assert len(figure.data) == 2
    frames = [(shape.x0, shape.x1, shape.yref) for shape in figure.layout.shapes]
    assert frames == [(1.5, 2.5, "y"), (-0.5, 0.5, "y2")]
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0.5, 1.0)


def test_place_that_was_not_scored_is_left_empty_and_a_hook_point_outside_the_blocks_named():
    frame = make_frame(runs=("a", "b"))
    frame = frame[~((frame["run"] == "b") & (frame["layer"] == 1))]
    outside = {
        "run": "b",
        "method": "lda",
        "hook_point": "hook_embed",
        "site": "embed",
        "layer": float("nan"),
        "position": "last",
        "auroc": 0.6,
    }
    figure = place_heatmap(pd.concat([frame, pd.DataFrame([outside])]), "auroc")
    second = figure.data[1]
    assert list(second.x) == ["0", "1", "2", "embed"]
    assert pd.isna(second.z[0][1])


def test_cosines_stand_beside_their_ceiling_where_it_is_known():
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    cosines = torch.tensor([[1.0, -0.4], [-0.4, 1.0]])
    figure = cosine_heatmap(names, cosines, torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    assert [cells.z[0][1] for cells in figure.data] == pytest.approx([-0.4, 0.8])
    assert list(figure.data[0].x) == ["0", "1"]
    assert figure.layout.xaxis.title.text == "layer (resid_post)"
    assert len(cosine_heatmap(names, cosines, torch.full((2, 2), torch.nan)).data) == 1
    mixed = cosine_heatmap(["blocks.0.hook_resid_mid", names[1]], cosines)
    assert list(mixed.data[0].x) == ["resid_mid 0", "resid_post 1"]
    assert list(cosine_heatmap(["pca_paired", "lda"], cosines).data[0].x) == ["pca paired", "lda"]


def test_transfer_reads_from_row_to_column_and_frames_the_diagonal():
    frame = pd.DataFrame(
        [("a", "a", 0.9), ("b", "a", 0.6), ("a", "b", 0.7), ("b", "b", 0.8)],
        columns=["fit_on", "test_on", "auroc"],
    )
    figure = transfer_matrix(frame)
    (cells,) = figure.data
    assert [list(row) for row in cells.z] == [[0.9, 0.7], [0.6, 0.8]]
    assert [(shape.x0, shape.y0) for shape in figure.layout.shapes] == [(-0.5, -0.5), (0.5, 0.5)]


def test_figure_whose_table_is_missing_names_the_stage(tmp_path):
    with pytest.raises(
        RefusalLensError, match=r"needs tables/transfer.csv, .* Write it first: refusal-lens fit"
    ):
        figures.draw_figure(RunFolder(tmp_path), "transfer_matrix")


def test_colours_stand_for_the_bands_of_a_score_whatever_is_drawn():
    weak, strong = make_frame(), make_frame()
    weak["separation"], strong["separation"] = 0.02 * weak["auroc"], 2 * strong["auroc"]
    axes = [place_heatmap(frame, "separation").layout.coloraxis for frame in (weak, strong)]
    assert axes[0] == axes[1]
    assert list(axes[0].colorbar.tickvals) == [0, MIN_SEPARATION, GOOD_SEPARATION, 1]
    # A third of the colours lies below acceptable, a third below good.
    stops = [stop for stop, _ in axes[0].colorscale]
    n_colours = len(stops)
    assert sum(stop < MIN_SEPARATION - 1e-9 for stop in stops) == n_colours // 3
    assert sum(stop > GOOD_SEPARATION + 1e-9 for stop in stops) == n_colours // 3


def test_bands_of_a_d_prime_and_of_an_auroc_are_those_of_the_accuracy():
    for accuracy, d, auroc in zip(
        (MIN_ACCURACY, GOOD_ACCURACY), BANDS["cohens_d"][1:3], BANDS["auroc"][1:3], strict=True
    ):
        assert norm.cdf(d / 2) == pytest.approx(accuracy)
        assert norm.cdf(d / 2**0.5) == pytest.approx(auroc)


def test_a_matrix_of_ones_is_said_and_not_drawn():
    names = ["a", "b"]
    frame = pd.DataFrame(
        [{"fit_on": one, "test_on": other, "auroc": 0.996} for one in names for other in names]
    )
    figure = transfer_matrix(frame)
    assert not figure.data
    assert figure.layout.annotations[0].text == "all 4 pairs have an AUROC of 1.00"
    assert transfer_matrix(frame.assign(auroc=[1, 1, 1, 0.9])).data


def test_categories_too_small_to_be_tested_are_no_error():
    columns = ["fit_on", "test_on", "auroc", "separation", "accuracy", "cohens_d"]
    figure = transfer_matrix(pd.DataFrame(columns=columns))
    assert not figure.data
    assert "no two categories" in figure.layout.annotations[0].text


def test_numbers_in_cells_have_a_real_minus():
    cosines = torch.tensor([[1.0, -0.25], [-0.25, 1.0]])
    cells = cosine_heatmap(["a", "b"], cosines).data[0]
    assert [list(row) for row in cells.text] == [["1.00", "−0.25"], ["−0.25", "1.00"]]
    assert cells.texttemplate == "%{text}"


@pytest.mark.parametrize(
    ("names", "angle"),
    [
        (["last", "mean"], 0),
        (["last", "instruction_mean", "instruction_last"], -45),
        ([f"blocks.{layer}.hook_resid_post" for layer in range(30)], 0),
    ],
)
def test_labels_of_cosines_do_not_run_into_each_other(names, angle):
    figure = cosine_heatmap(names, torch.eye(len(names)))
    assert figure.layout.xaxis.tickangle == angle
    assert (figure.layout.xaxis.nticks or 99) < 15 or len(names) < 15
