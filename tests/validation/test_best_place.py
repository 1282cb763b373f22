"""The best-layer rule and the weight kernel."""

import pytest
import torch
from conftest import make_separation

from refusal_lens.directions.kernel import WeightKernel
from refusal_lens.validation.best_place import choose_best, suggest_kernel
from refusal_lens.validation.separation import Separation


def make(separations: list[float], accuracies: list[float] | None = None) -> Separation:
    shape = (len(separations), 1)
    separation = torch.tensor(separations, dtype=torch.float64).reshape(shape)
    accuracy = torch.tensor(accuracies or [0.9] * len(separations)).double().reshape(shape)
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(len(separations)))
    return make_separation(separation, accuracy, separation, accuracy, names)


@pytest.mark.parametrize(
    ("separations", "accuracies", "layer"),
    [
        ([0.1, 0.5, 0.3, 0.2], None, 1),  # the highest
        ([0.1, 0.3, 0.2, 0.5], [0.9, 0.9, 0.9, 0.69], 1),  # of those accurate enough
        ([0.1, 0.2, 0.3, 0.4, 0.49, 0.50], None, 4),  # near-tie: nearer the middle
        ([0.1, 0.2, 0.3, 0.4, 0.47, 0.50], None, 5),  # 0.03 is no near-tie
        ([0.5, 0.5, 0.1, 0.5, 0.5], None, 1),  # as near: the higher, then the first
        # The article's own example takes 16 of 15, 16 and 17.
        ([0.0] * 15 + [0.45, 0.48, 0.47] + [0.0] * 6, None, 16),
    ],
)
def test_best_layer(separations, accuracies, layer):
    best = choose_best(make(separations, accuracies), len(separations))
    assert best is not None
    assert best.layer == layer
    assert best.is_eligible


def test_nearest_miss_where_no_layer_is_accurate_enough():
    best = choose_best(make([0.2, 0.3, 0.31], [0.6, 0.6, 0.6]), 3)
    assert best is not None
    assert (best.layer, best.is_eligible) == (2, False)
    assert best.reason == "no place reaches accuracy 0.7: the highest separation, a near miss"


def test_nothing_to_choose_from():
    assert choose_best(make([torch.nan, torch.nan]), 2) is None


def test_layers_without_a_direction_are_passed_over():
    best = choose_best(make([torch.nan, 0.4], [torch.nan, 0.8]), 2)
    assert best is not None
    assert best.layer == 1


def test_kernel_falls_off_linearly_to_its_floor():
    kernel = WeightKernel(peak=1.0, position=10, floor=0.2, distance=4)
    assert [kernel.weight(layer) for layer in (10, 12, 8, 14, 20)] == pytest.approx(
        [1.0, 0.6, 0.6, 0.2, 0.2]
    )


def test_kernel_reaches_over_the_layers_that_keep_half_of_the_separation():
    separation = make([0.6, 0.1, 0.3, 0.5, 0.6, 0.4, 0.1])
    best = choose_best(separation, 7)
    assert best is not None
    assert best.layer == 4
    kernel = suggest_kernel(separation, best)
    # 5 and 3 and 2 keep half; 1 does not, so 0 does not count either.
    assert kernel == WeightKernel(peak=1.0, position=4, floor=0.0, distance=3)
    assert kernel.weight(2) > 0
    assert kernel.weight(1) == 0
