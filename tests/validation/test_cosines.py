"""Comparisons: cosines with known answers, ceilings that hold, transfer that cannot cheat."""

import pytest
import torch
from validation.test_categories import planted
from validation.test_separation import make

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import fit_directions
from refusal_lens.validation.cosines import (
    NamedDirections,
    Sample,
    category_cosines,
    compare_methods,
    cosine_table,
    method_cosines,
    place_cosines,
    reliabilities,
    transfer_between,
)
from refusal_lens.validation.crossfit import assign_folds
from refusal_lens.validation.separation import validate


def test_methods_stand_beside_each_other_clipped_and_not():
    activations = make(40, 10, 2.0, offset=0.5)
    folds = assign_folds(activations.is_harmful, 5, 0)
    table = compare_methods(activations, folds, ["difference_of_means", "lda"], clip_quantile=0.8)
    assert table[["method", "is_clipped"]].to_numpy().tolist() == [
        *(["difference_of_means", True], ["difference_of_means", False]),
        *(["lda", True], ["lda", False]),
    ]
    for row in table.to_dict("records"):
        quantile = 0.8 if row["is_clipped"] else None
        separation, _ = validate(
            activations, clip_quantile=quantile, method=row["method"], n_repeats=1
        )
        assert row["separation"] == pytest.approx(separation.separation.item())
        assert row["accuracy"] == separation.accuracy.item()
    assert table["cosine_to_difference_of_means"].iloc[:2].tolist() == pytest.approx([1.0, 1.0])
    units = [
        fit_directions(activations, clip_quantile=None, method=name)[
            "blocks.3.hook_resid_post", "last"
        ].unit
        for name in ("difference_of_means", "lda")
    ]
    expected = (units[0] @ units[1]).item()
    assert table["cosine_to_difference_of_means"].iloc[3] == pytest.approx(expected, abs=1e-6)
    assert len(compare_methods(activations, folds, ["lda"], clip_quantile=None)) == 1


def test_cosines_and_ceilings_of_named_directions():
    units = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).double()
    named = NamedDirections(("a", "b"), units, torch.tensor([0.9, 0.4]).double())
    table = cosine_table("layers", named, position="last")
    assert table["cosine"].tolist() == pytest.approx([1.0, 0.6, 0.6, 1.0])
    assert table["ceiling"].tolist() == pytest.approx([1.0, 0.6, 0.6, 1.0])
    assert table["a"].tolist() == ["a", "a", "b", "b"]
    unknown = NamedDirections(("a", "b"), units, torch.full((2,), torch.nan).double())
    assert cosine_table("methods", unknown)["ceiling"].isna().all()


@pytest.mark.parametrize(("shift", "n"), [(2.0, 60), (1.0, 100)])
def test_reliability_is_the_cosine_with_a_direction_from_other_prompts(shift, n):
    # True direction of length s, noise 2 d / n: s^2 / (s^2 + 2 d / n).
    expected = shift**2 / (shift**2 + 2 * 64 / n)
    found, cosines = [], []
    for seed in range(30):
        pair = [make(n, 64, shift, seed=2 * seed + which) for which in (0, 1)]
        a, b = (
            fit_directions(each, clip_quantile=None)["blocks.3.hook_resid_post", "last"].unit
            for each in pair
        )
        cosines.append((a @ b).item())
        found.append(reliabilities(pair[0], clip_quantile=None).item())
    assert sum(cosines) / 30 == pytest.approx(expected, abs=0.04)
    assert sum(found) / 30 == pytest.approx(expected, abs=0.04)


def test_direction_of_noise_has_no_reliability():
    found = [
        reliabilities(make(50, 500, 0.0, seed), clip_quantile=None).item() for seed in range(20)
    ]
    assert sum(found) / 20 < 0.03
    assert min(found) >= 0.0


def grid() -> Activations:
    """Two sites of two layers at two positions: the second layer has the first's axes swapped."""
    one = make(40, 6, 4.0).values
    swapped = one.roll(1, dims=-1)
    names = (
        "blocks.0.hook_resid_mid",
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_mid",
        "blocks.1.hook_resid_post",
    )
    values = torch.cat([one, one, swapped, swapped], dim=1).repeat(1, 1, 2, 1)
    values[:, :, 1] *= -1
    return Activations(values, torch.arange(80) < 40, names, ("last", "mean"))


def test_places_are_compared_along_one_axis_at_a_time():
    activations = grid()
    table = place_cosines(
        fit_directions(activations, clip_quantile=None),
        reliabilities(activations, clip_quantile=None),
    )
    layers = table[(table["kind"] == "layers") & (table["a"] != table["b"])]
    assert len(layers) == 2 * 2 * 2  # two sites, two positions, both ways round
    assert layers["cosine"].abs().max() < 0.3
    sites = table[(table["kind"] == "sites") & (table["a"] != table["b"])]
    assert sites["cosine"].tolist() == pytest.approx([1.0] * 8)
    positions = table[(table["kind"] == "positions") & (table["a"] == "last")]
    assert positions[positions["b"] == "mean"]["cosine"].tolist() == pytest.approx([-1.0] * 4)
    assert set(positions["hook_point"]) == set(activations.hook_points)


def test_rotating_all_activations_changes_no_cosine():
    activations = grid()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q
    turned = Activations(
        activations.values @ rotation,
        activations.is_harmful,
        activations.hook_points,
        activations.positions,
    )
    tables = [
        place_cosines(
            fit_directions(each, clip_quantile=None), reliabilities(each, clip_quantile=None)
        )
        for each in (activations, turned)
    ]
    for column in ("cosine", "ceiling"):
        assert tables[1][column].tolist() == pytest.approx(tables[0][column].tolist(), abs=1e-4)


def test_methods_have_a_square_of_cosines():
    activations = make(40, 10, 2.0)
    table = method_cosines(activations, ["difference_of_means", "lda"], clip_quantile=None)
    assert len(table) == 4
    assert table["kind"].unique().tolist() == ["methods"]
    assert len(method_cosines(activations, [], clip_quantile=None)) == 0


def test_categories_of_one_axis_agree_up_to_their_noise():
    activations, prompts = planted({"theft": (0,), "fraud": (0,), "poison": (1,)}, shift=3.0)
    table = category_cosines(activations, prompts, clip_quantile=None)
    pairs = table.set_index(["a", "b"])
    same, other = pairs.loc[("theft", "fraud")], pairs.loc[("theft", "poison")]
    assert same["cosine"] == pytest.approx(same["ceiling"], abs=0.08)
    assert same["ceiling"] < 0.99
    assert other["cosine"] < 0.4 < other["ceiling"]


def make_sample(shift: float, seed: int, texts: str, axis: int = 0) -> Sample:
    activations = make(30, 8, shift, seed)
    values = activations.values[:, 0, 0].roll(axis, dims=-1)
    unit = torch.eye(8)[axis]
    names = tuple(f"{texts} {i}" for i in range(60))
    return Sample(values, activations.is_harmful, names, unit, {"auroc": 0.7, "separation": 0.1})


def test_transfer_between_sets_tests_on_the_other():
    samples = {
        "one": make_sample(4.0, 1, "one"),
        "alike": make_sample(4.0, 2, "alike"),
        "other": make_sample(4.0, 3, "other", axis=1),
    }
    table = transfer_between(samples, ("a", "last"))
    areas = table.pivot(index="fit_on", columns="test_on", values="auroc")
    assert areas.loc["one", "alike"] > 0.95
    assert areas.loc["alike", "one"] > 0.95
    assert 0.3 < areas.loc["one", "other"] < 0.7
    assert areas.loc["one", "one"] == 0.7  # held out within the set, not tested on its own fit
    assert table["kind"].unique().tolist() == ["prompt_set"]


def test_transfer_leaves_out_prompts_that_both_sets_hold():
    one, same = make_sample(4.0, 1, "one"), make_sample(4.0, 1, "one")
    table = transfer_between({"one": one, "same": same}, ("a", "last"))
    pair = table[(table["fit_on"] == "one") & (table["test_on"] == "same")].iloc[0]
    assert pair["n_tested"] == 0
    assert torch.tensor(pair["auroc"]).isnan()
    partly = Sample(
        same.values,
        same.is_harmful,
        ("x", *same.texts[1:-3], "y", "z", "u"),
        same.unit,
        same.held_out,
    )
    table = transfer_between({"one": one, "partly": partly}, ("a", "last"))
    pair = table[(table["fit_on"] == "one") & (table["test_on"] == "partly")].iloc[0]
    assert pair["n_tested"] == 4
    assert torch.tensor(pair["auroc"]).isnan()  # one harmful prompt says nothing
