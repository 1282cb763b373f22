"""Held out: no prompt helps to fit what it is scored by, and folds are stratified."""

from dataclasses import replace

import pytest
import torch
from conftest import held_out_projections, noise

from refusal_lens.activations.pooled import Activations
from refusal_lens.validation.crossfit import assign_folds
from refusal_lens.validation.scores import auroc
from refusal_lens.validation.separation import validate


def test_no_prompt_helps_to_fit_the_direction_it_is_projected_on():
    activations = noise(20, 1, 10, 1.0)
    folds = assign_folds(activations.is_harmful, 5, 0)

    def margins(each: Activations) -> torch.Tensor:
        projections = held_out_projections(each, folds, None)
        return projections.values - projections.thresholds

    before = margins(activations)
    moved = activations.values.clone()
    moved[0] *= 1000.0
    changed = Activations(moved, activations.is_harmful, ("a",), ("last",))
    after = margins(changed)
    same_fold = folds == folds[0]
    same_fold[0] = False
    torch.testing.assert_close(after[same_fold], before[same_fold])
    assert not torch.allclose(after[folds != folds[0]], before[folds != folds[0]])


def test_projections_of_different_folds_compare_as_in_the_scores():
    # What all prompts share is 50 times as long as the noise: along directions that differ a little
    # it lies far apart, and AUROC of the bare projections is .57.
    activations = noise(30, 1, 64, 2.0)
    activations = replace(activations, values=activations.values + 50)
    separation, projections = validate(activations, n_repeats=1)
    told = auroc(projections.values, activations.is_harmful)
    assert told.item() == pytest.approx(separation.auroc.item())
    is_above = projections.values > projections.thresholds
    assert torch.equal(is_above, projections.is_called_harmful)


def test_folds_are_stratified_and_seeded():
    is_harmful = torch.arange(100) < 20
    folds = assign_folds(is_harmful, 5, 0)
    for fold in range(5):
        assert int((folds == fold).sum()) == 20
        assert int(is_harmful[folds == fold].sum()) == 4
    assert torch.equal(folds, assign_folds(is_harmful, 5, 0))
    assert not torch.equal(folds, assign_folds(is_harmful, 5, 1))
