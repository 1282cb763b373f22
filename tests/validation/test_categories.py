"""Categories, misread prompts and transfer: planted structure shows where it was planted."""

import pytest
import torch

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.subspaces import fit_categories, fit_subspace
from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.validation.categories import category_table, misread_table, transfer_table
from refusal_lens.validation.crossfit import assign_folds
from refusal_lens.validation.scores import auroc
from refusal_lens.validation.separation import validate

N = 30


def planted(axes: dict[str, tuple[int, ...]], shift: float = 4.0, d_model: int = 16):
    """Each category of harm shifted along axes of its own; as many harmless prompts as harmful."""
    generator = torch.Generator().manual_seed(0)
    n_harmful = N * len(axes)
    values = torch.randn(2 * n_harmful, 1, 1, d_model, generator=generator)
    values[..., -1] += 3.0
    labels = torch.arange(2 * n_harmful) < n_harmful
    prompts = [Prompt(f"harmful-{i}", f"bad {i}", name) for name in axes for i in range(N)] + [
        Prompt(f"harmless-{i}", f"good {i}", "calm") for i in range(n_harmful)
    ]
    for place, axis in enumerate(axes.values()):
        for coordinate in axis:
            values[place * N : (place + 1) * N, ..., coordinate] += shift
    return Activations(values, labels, ("blocks.2.hook_resid_post",), ("last",)), prompts


def test_category_that_the_direction_misses_stands_out():
    activations, prompts = planted({"theft": (0,), "fraud": (0,), "poems": ()})
    _, projections = validate(activations, clip_quantile=None)
    table = category_table(projections, prompts).set_index("category")
    assert table["n"].to_dict() == {"theft": N, "fraud": N, "poems": N, "calm": 3 * N}
    assert table.loc[["theft", "fraud"], "share_called_harmful"].min() > 0.9
    assert table.loc["poems", "share_called_harmful"] < 0.5
    assert abs(table.loc["poems", "separation"]) < 0.15 < table.loc["theft", "separation"]
    # Weighted by their size, the categories of a class make up the separation of all.
    apart = table[table["is_harmful"]]["separation"].mean()
    separation, _ = validate(activations, clip_quantile=None, n_repeats=1)
    assert apart == pytest.approx(separation.separation.item())
    assert table.loc["calm", "separation"] == pytest.approx(separation.separation.item())


def test_misread_prompts_are_those_on_the_wrong_side_the_worst_first():
    activations, prompts = planted({"theft": (0,), "poems": ()}, shift=3.0)
    separation, projections = validate(activations, n_repeats=1)
    table = misread_table(projections, prompts)
    n_wrong = round((1 - separation.accuracy.item()) * len(prompts))
    assert len(table) == min(n_wrong, 100) > 5
    assert table["margin"].abs().is_monotonic_decreasing
    by_id = {prompt.id + prompt.text: prompt for prompt in prompts}
    for row in table.to_dict("records"):
        assert by_id[row["prompt_id"] + row["text"]].category == row["category"]
        assert row["is_harmful"] == row["text"].startswith("bad")
        assert row["margin"] == pytest.approx(row["projection"] - projections.thresholds.item())
    called = projections.is_called_harmful[:, 0, 0]
    wrong = {
        p.text + p.category
        for p, c, h in zip(prompts, called, projections.is_harmful, strict=True)
        if c != h
    }
    assert set(table["text"] + table["category"]) <= wrong


def test_nothing_misread_is_an_empty_table_with_its_columns():
    activations, prompts = planted({"theft": (0,), "fraud": (0,)}, shift=60.0)
    table = misread_table(validate(activations, clip_quantile=None)[1], prompts)
    assert len(table) == 0
    assert {"text", "projection", "margin"} <= set(table.columns)


def test_transfer_follows_the_planted_axes():
    activations, prompts = planted({"theft": (0,), "fraud": (0,), "poison": (1,)})
    folds = assign_folds(activations.is_harmful, 5, 0)
    table = transfer_table(activations, prompts, folds, clip_quantile=None)
    grid = table.pivot(index="fit_on", columns="test_on", values="auroc")
    assert grid.loc["theft", "fraud"] > 0.95
    assert grid.loc["fraud", "theft"] > 0.95
    assert grid.loc["poison", "poison"] > 0.95
    for pair in (("theft", "poison"), ("poison", "fraud")):
        assert 0.3 < grid.loc[pair] < 0.75, pair
    assert set(table["kind"]) == {"category"}


def test_transfer_of_noise_is_chance_on_its_own_category_too():
    areas = []
    for seed in range(12):
        activations, prompts = planted({"theft": (), "fraud": ()}, d_model=200)
        noise = torch.randn(activations.values.shape, generator=torch.Generator().manual_seed(seed))
        activations = Activations(noise, activations.is_harmful, ("a",), ("last",))
        folds = assign_folds(activations.is_harmful, 5, seed)
        table = transfer_table(activations, prompts, folds)
        areas += table[table["fit_on"] == table["test_on"]]["auroc"].tolist()
    assert sum(areas) / len(areas) == pytest.approx(0.5, abs=0.05)
    # Fitted and tested on the same prompts it would look perfect.
    values, labels = activations.values[:, 0, 0], activations.is_harmful
    theft = fit_categories(values, labels, prompts).vectors[0]
    mine = torch.arange(len(labels)) < N
    assert auroc(values.double() @ theft, mine).item() > 0.95


def test_one_category_transfers_to_nothing():
    activations, prompts = planted({"theft": (0,)})
    folds = assign_folds(activations.is_harmful, 5, 0)
    assert len(transfer_table(activations, prompts, folds)) == 0


def test_subspace_holds_the_planted_axes():
    activations, prompts = planted(
        {"theft": (0, 1), "fraud": (0, 1), "poison": (0, 2), "venom": (0, 2)}, shift=12.0
    )
    place = ("blocks.2.hook_resid_post", "last")
    found = fit_subspace(activations, prompts, *place, k=2)
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(2), atol=1e-5, rtol=0)
    # Planted in the span of (0, 1) and (0, 2): all but noise lies in these two.
    planted_axes = torch.eye(16)[:3]
    assert (found.basis @ planted_axes.T).norm(dim=1).min() > 0.98
    assert found.shares.sum().item() > 0.98
    # The first is what all have in common, with its sign.
    common = torch.tensor([2.0, 1.0, 1.0] + [0.0] * 13) / 6**0.5
    assert (found.basis[0] @ common).item() > 0.98


def test_subspace_of_one_dimension_is_the_direction_of_one_category():
    activations, prompts = planted({"theft": (0,), "fraud": (0,)})
    one = fit_subspace(
        activations,
        prompts[:N]
        + [Prompt(p.id, p.text, "theft") for p in prompts[N : 2 * N]]
        + prompts[2 * N :],
        "blocks.2.hook_resid_post",
        "last",
        k=1,
    )
    labels = activations.is_harmful
    values = activations.values[:, 0, 0]
    difference = values[labels].mean(0) - values[~labels].mean(0)
    torch.testing.assert_close(one.basis[0], difference / difference.norm(), atol=1e-5, rtol=0)
    assert one.shares.item() == pytest.approx(1.0)


def test_too_few_categories_are_told():
    activations, prompts = planted({"theft": (0,), "fraud": (0,)})
    with pytest.raises(RefusalLensError) as caught:
        fit_subspace(activations, prompts, "blocks.2.hook_resid_post", "last", k=3)
    assert str(caught.value) == (
        "A subspace of 3 dimensions needs 3 categories with 2 harmful prompts each; there are 2 "
        "(theft, fraud). Lower k, or give the prompts categories."
    )
