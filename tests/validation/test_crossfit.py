"""Held out: no prompt helps to fit what it is scored by, and folds are stratified."""

import torch
from conftest import noise

from refusal_lens.activations.pooled import Activations
from refusal_lens.validation.crossfit import assign_folds, held_out_projections


def test_no_prompt_helps_to_fit_the_direction_it_is_projected_on():
    activations = noise(20, 1, 10, 1.0)
    folds = assign_folds(activations.is_harmful, 5, 0)
    before = held_out_projections(activations, folds, None).values
    moved = activations.values.clone()
    moved[0] *= 1000.0
    changed = Activations(moved, activations.is_harmful, ("a",), ("last",))
    after = held_out_projections(changed, folds, None).values
    same_fold = folds == folds[0]
    same_fold[0] = False
    torch.testing.assert_close(after[same_fold], before[same_fold])
    assert not torch.allclose(after[folds != folds[0]], before[folds != folds[0]])


def test_folds_are_stratified_and_seeded():
    is_harmful = torch.arange(100) < 20
    folds = assign_folds(is_harmful, 5, 0)
    for fold in range(5):
        assert int((folds == fold).sum()) == 20
        assert int(is_harmful[folds == fold].sum()) == 4
    assert torch.equal(folds, assign_folds(is_harmful, 5, 0))
    assert not torch.equal(folds, assign_folds(is_harmful, 5, 1))
