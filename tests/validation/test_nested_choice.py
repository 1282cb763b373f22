"""Nested choice: the planted layer wins, and the luck of the best of many is not counted."""

import pytest
from conftest import noise

from refusal_lens.activations.pooled import Activations
from refusal_lens.validation.best_place import choose_best
from refusal_lens.validation.crossfit import assign_folds
from refusal_lens.validation.nested_choice import choose_nested
from refusal_lens.validation.separation import validate


def test_planted_layer_wins_every_time_with_its_held_out_scores():
    activations = noise(30, 6, 20)
    activations.values[activations.is_harmful, 4, :, 0] += 5.0
    table = choose_nested(activations, 6, n_repeats=2)
    assert len(table) == 10
    assert set(table["hook_point"]) == {"blocks.4.hook_resid_post"}
    assert table["fold"].tolist() == [*range(5), *range(5)]
    # Where the same place always wins, the outer folds are those of cross-fitting.
    separation, _ = validate(activations, n_repeats=2)
    for name in ("separation", "accuracy"):
        expected = separation.scores[name].value[4, 0].item()
        assert table[name].mean() == pytest.approx(expected, abs=1e-12)


def test_best_of_many_places_on_noise_is_luck_that_nested_choice_does_not_see():
    activations = noise(20, 60, 30)
    separation, _ = validate(activations, n_repeats=1)
    best = choose_best(separation, 60)
    assert best is not None
    nested = choose_nested(activations, 60, n_repeats=4)
    spread = separation.separation.std().item()
    assert best.separation > 1.5 * spread
    assert nested["separation"].mean() < best.separation / 2
    assert abs(nested["auroc"].mean() - 0.5) < 0.1
    assert nested["hook_point"].nunique() > 3


def test_outer_fold_helps_neither_to_choose_nor_to_fit():
    activations = noise(20, 5, 10, 1.0)
    before = choose_nested(activations, 5, n_repeats=1)
    moved = activations.values.clone()
    moved[assign_folds(activations.is_harmful, 5, 0) == 2] *= -3.0
    changed = Activations(
        moved, activations.is_harmful, *(activations.hook_points, activations.positions)
    )
    after = choose_nested(changed, 5, n_repeats=1)
    assert after.loc[2, "hook_point"] == before.loc[2, "hook_point"]
    # Mirrored, every prompt of that fold lies as far on the other side.
    assert after.loc[2, "separation"] == pytest.approx(-before.loc[2, "separation"])


def test_too_few_prompts_give_an_empty_table():
    table = choose_nested(noise(3, 2, 5, 3.0), 2)
    assert table.empty
    assert list(table.columns)[:4] == ["repeat", "fold", "hook_point", "position"]
