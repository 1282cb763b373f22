"""The best-layer rule and the weight kernel."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import make_separation

from refusal_lens.directions.kernel import WeightKernel
from refusal_lens.experiments.causal_choice import CausalEntry, CausalRule, choose_causal
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


PUBLISHED = Path(__file__).parents[1] / "data" / "arditi_2024"


def read_published(model: str) -> tuple[list[CausalEntry], int]:
    content = json.loads((PUBLISHED / f"{model}.json").read_text(encoding="utf-8"))
    assert content["columns"] == ["position", "layer", "bypass_score", "induce_score", "kl"]
    entries = [
        CausalEntry(
            f"blocks.{layer}.hook_resid_pre",
            str(position),
            layer,
            *(math.nan if score is None else score for score in scores),
        )
        for position, layer, *scores in content["candidates"]
    ]
    return entries, content["n_layers"]


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ("gemma-2b-it", ("-2", 10)),
        ("qwen-1_8b-chat", ("-2", 15)),
        ("yi-6b-chat", ("-5", 20)),
    ],
)
def test_rule_chooses_what_the_paper_chose(model, place):
    entries, n_layers = read_published(model)
    choice = choose_causal(entries, n_layers)
    assert choice.chosen is not None
    assert (choice.chosen.position, choice.chosen.layer) == place
    # Before: without the thresholds something else would be chosen.
    lax = CausalRule(max_layer_share=1.0, max_kl=math.inf, min_induce=-math.inf)
    unruled = choose_causal(entries, n_layers, lax).chosen
    assert unruled is not None
    assert (unruled.position, unruled.layer) != place


def entry(layer: int, bypass: float, induce: float, kl: float) -> CausalEntry:
    return CausalEntry(f"blocks.{layer}.hook_resid_post", "last", layer, bypass, induce, kl)


def test_thresholds_are_where_the_paper_has_them():
    at_the_edge = entry(7, -1.0, 0.0, 0.1)
    assert choose_causal([at_the_edge], 10).chosen == at_the_edge
    for dropped in (
        entry(8, -1.0, 0.0, 0.1),
        entry(7, -1.0, -1e-9, 0.1),
        entry(7, -1.0, 0.0, 0.1001),
    ):
        assert choose_causal([dropped], 10).chosen is None


def test_where_nothing_passes_the_reasons_are_counted():
    entries = [
        entry(9, -9.0, 1.0, 0.05),
        entry(3, -5.0, -1.0, 0.3),
        entry(4, -2.0, 1.0, 0.2),
        entry(5, math.nan, 1.0, 0.0),
    ]
    choice = choose_causal(entries, 10)
    assert choice.chosen is None
    assert (choice.n_candidates, choice.n_eligible) == (4, 0)
    assert choice.dropped == {
        "KL is above 0.1": 2,
        "layer is 8 or later": 1,
        "induce score is below 0": 1,
        "a score is not a number": 1,
    }
    assert [miss.layer for miss, _ in choice.near_misses] == [9, 4, 3]
    assert choose_causal([], 10).chosen is None
