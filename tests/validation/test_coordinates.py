"""Coordinates: shares with known answers, and what a clip does to an outsize one."""

import pytest
import torch
from validation.test_separation import make

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import Directions, fit_directions
from refusal_lens.validation.coordinates import (
    CLIP_QUANTILES,
    clip_sweep,
    coordinate_shares,
    coordinate_table,
)
from refusal_lens.validation.crossfit import assign_folds
from refusal_lens.validation.separation import validate


def test_shares_of_equal_coordinates_are_their_counts():
    shares = coordinate_shares(torch.ones(2, 500))
    assert shares["share_top_1"].tolist() == pytest.approx([1 / 500] * 2)
    assert shares["share_top_10"].tolist() == pytest.approx([10 / 500] * 2)
    assert shares["share_top_1_percent"].tolist() == pytest.approx([5 / 500] * 2)


def test_clipping_takes_an_outsize_coordinate_down():
    vectors = torch.ones(1, 1, 400).double()
    vectors[..., 7] = -40.0
    directions = Directions(
        vectors, torch.ones(1, 1, dtype=torch.bool), ("a",), ("last",), clip_quantile=0.99
    )
    row = coordinate_table(directions).iloc[0]
    assert row["share_top_1"] == pytest.approx(1600 / 1999)
    assert row["share_top_1_clipped"] == pytest.approx(1 / 400)
    # Raw (1, ..., -40) against clipped (1, ..., -1).
    expected = (399 + 40) / (1999**0.5 * 20)
    assert row["cosine_raw_clipped"] == pytest.approx(expected)


def test_sign_and_order_do_not_count_and_places_without_a_direction_are_empty():
    vectors = torch.tensor([[[3.0, 0.0, -4.0, 0.0]], [[0.0, 4.0, 0.0, 3.0]], [[0.0] * 4]]).double()
    is_kept = torch.tensor([[True], [True], [False]])
    table = coordinate_table(
        Directions(vectors, is_kept, ("a", "b", "c"), ("last",), clip_quantile=None)
    )
    assert table["share_top_1"].tolist()[:2] == pytest.approx([0.64, 0.64])
    assert table["cosine_raw_clipped"].tolist()[:2] == pytest.approx([1.0, 1.0])
    assert table.iloc[2][["share_top_1", "cosine_raw_clipped"]].isna().all()


def test_sweep_agrees_with_the_validation_at_each_quantile():
    activations = make(30, 20, 1.5, offset=0.5)
    folds = assign_folds(activations.is_harmful, 5, 0)
    table = clip_sweep(activations, folds)
    assert len(table) == len(CLIP_QUANTILES)
    for row, quantile in zip(table.to_dict("records"), CLIP_QUANTILES, strict=True):
        assert row["clip_quantile"] == quantile or quantile is None
        separation, _ = validate(activations, clip_quantile=quantile, n_repeats=1)
        assert row["separation"] == pytest.approx(separation.separation.item())
        assert row["accuracy"] == separation.accuracy.item()
        unclipped = fit_directions(activations, clip_quantile=None)[
            "blocks.3.hook_resid_post", "last"
        ]
        clipped = fit_directions(activations, clip_quantile=quantile)[
            "blocks.3.hook_resid_post", "last"
        ]
        expected = (unclipped.unit @ clipped.unit).item()
        assert row["cosine_to_unclipped"] == pytest.approx(expected, abs=1e-6)
    assert table["cosine_to_unclipped"].is_monotonic_decreasing


def test_sweep_shows_where_an_inert_coordinate_hides_the_direction():
    activations = make(100, 50, 2.0)
    values = activations.values.clone()
    # One coordinate with large noise, alike in both classes: the difference has its noise in it.
    values[..., 9] += (
        200 * torch.randn(200, generator=torch.Generator().manual_seed(1))[:, None, None]
    )
    noisy = Activations(values, activations.is_harmful, ("a",), ("last",))
    table = clip_sweep(noisy, assign_folds(noisy.is_harmful, 5, 0)).set_index("clip_quantile")
    assert table["auroc"].iloc[0] < 0.65
    assert table.loc[0.9, "auroc"] > table["auroc"].iloc[0]
