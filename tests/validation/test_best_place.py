"""The best-layer rule and the weight kernel."""

from dataclasses import replace
from inspect import unwrap

import pytest
import torch
from conftest import make_separation

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.kernel import WeightKernel
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.models.hook_points import RESIDUAL_SITES
from refusal_lens.validation.best_place import choose_best, suggest_kernel
from refusal_lens.validation.scores import Score
from refusal_lens.validation.separation import Separation, validate


def make(
    separations: list[float],
    accuracies: list[float] | None = None,
    cohens_d: list[float] | None = None,
) -> Separation:
    shape = (len(separations), 1)
    separation = torch.tensor(separations, dtype=torch.float64).reshape(shape)
    accuracy = torch.tensor(accuracies or [0.9] * len(separations)).double().reshape(shape)
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(len(separations)))
    made = make_separation(separation, accuracy, separation, accuracy, names)
    if cohens_d is None:
        return made
    d = Score.of(torch.tensor(cohens_d, dtype=torch.float64).reshape(shape))
    return replace(made, scores={**made.scores, "cohens_d": d})


def planted(*, offset: float = 0.0, massive: float = 0.0) -> Activations:
    """Nine layers whose classes lie farthest apart at layer 2, and what misleads other rules.

    `offset` is the length of what all prompts share at the first layer, falling to none at the
    last; `massive` the deviation of a coordinate that means nothing, at even layers.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(160, 9, 1, 48, generator=generator)
    apart = 3 * torch.exp(-(((torch.arange(9) - 2) / 3) ** 2))
    is_harmful = torch.arange(160) < 80
    values[is_harmful, :, 0, 1] += apart
    values[:, :, 0, 2] += offset * torch.linspace(1, 0, 9)
    values[:, ::2, 0, 0] *= 1 + massive
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(9))
    return Activations(values, is_harmful, names, ("last",))


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
def test_articles_rule(separations, accuracies, layer):
    best = choose_best(make(separations, accuracies), len(separations), "article")
    assert best is not None
    assert best.layer == layer
    assert best.is_eligible


def test_nearest_miss_where_no_layer_is_accurate_enough():
    made = make([0.2, 0.3, 0.31], [0.6, 0.6, 0.6], [0.5, 0.7, 0.6])
    article, best = choose_best(made, 3, "article"), choose_best(made, 3)
    assert article is not None
    assert best is not None
    assert (article.layer, article.is_eligible) == (2, False)
    assert article.reason == "no place reaches accuracy 0.7: the highest separation, a near miss"
    assert (best.layer, best.is_eligible) == (1, False)


def test_places_are_compared_by_cohens_d_and_the_articles_choice_is_named():
    made = make([0.1, 0.5, 0.3, 0.2], None, [1.0, 1.5, 2.5, 2.4])
    best = choose_best(made, 10)
    assert best is not None
    assert best.layer == 2
    assert best.reason == "highest d' (2.50) among 4 places with accuracy >= 0.7"
    assert "The article's rule takes blocks.1.hook_resid_post at last" in best.other_rule
    agreed = choose_best(make([0.1, 0.5], None, [1.0, 1.5]), 2)
    assert agreed is not None
    assert agreed.other_rule == ""


def test_the_last_fifth_is_taken_only_where_nothing_before_it_is_accurate():
    growing = [float(layer) for layer in range(10)]
    best = choose_best(make([0.5] * 10, None, growing), 10)
    assert best is not None
    assert best.layer == 6  # block 7 reads it, the last before int(0.8 * 10)
    assert best.reason == (
        "highest d' (6.00) among 7 places with accuracy >= 0.7 that a block before 8 reads, where "
        "the last fifth begins"
    )
    best = choose_best(make([0.1] * 9 + [0.5], None, growing), 10)
    assert best is not None
    assert best.other_rule.endswith("): only the last fifth of the layers reads it.")
    best = choose_best(make([0.5] * 10, [0.6] * 9 + [0.9], growing), 10)
    assert best is not None
    assert best.layer == 9
    assert "the last fifth" not in best.reason


@pytest.mark.parametrize("site", RESIDUAL_SITES)
def test_no_best_place_is_refused_by_select_for_its_depth(site):
    rule = CausalRule()
    for n_layers in range(2, 81):
        names = tuple(f"blocks.{layer}.hook_{site}" for layer in range(n_layers))
        growing = [float(layer) for layer in range(n_layers)]
        best = choose_best(replace(make(growing, None, growing), hook_points=names), n_layers)
        assert best is not None
        early = [name for name in names if not rule.is_late(name, n_layers)]
        # Two blocks have no output that the rule takes: block 1 reads what comes out of block 0.
        assert best.hook_point == (early or names)[-1]


def test_what_no_block_reads_is_no_place_to_take_a_direction_from():
    made = replace(make([0.4, 0.5]), hook_points=("hook_embed", "ln_final.hook_normalized"))
    best = choose_best(made, 10)
    assert best is not None
    assert best.hook_point == "hook_embed"


def test_perfect_places_without_spread_are_chosen_among_by_the_middle():
    d = [torch.inf, torch.nan, torch.inf, torch.inf, 3.0]
    best = choose_best(make([0.5] * 5, None, d), 5)
    assert best is not None
    assert best.layer == 2


def test_what_all_prompts_share_moves_the_articles_choice_alone():
    # Both have the same classes; a common offset hides layer 2 from cosines.
    chosen = {}
    for offset in (0.0, 40.0):
        separation, _ = validate(planted(offset=offset), n_resamples=20)
        for by in ("cohens_d", "article"):
            best = choose_best(separation, 9, by)
            assert best is not None
            chosen[offset, by] = best.layer
    assert chosen[0.0, "cohens_d"] == chosen[40.0, "cohens_d"] == 2
    assert chosen[0.0, "article"] <= 3
    assert chosen[40.0, "article"] > 3


def test_coordinates_that_mean_nothing_do_not_attract_the_choice():
    separation, _ = validate(planted(massive=20.0), n_resamples=20)
    best = choose_best(separation, 9)
    assert best is not None
    assert best.layer in (1, 3)


def test_topics_left_out_decide_where_there_are_enough():
    made = make([0.3, 0.4, 0.5], None, [1.0, 2.0, 3.0])
    new = make([0.3, 0.4, 0.5], None, [3.0, 2.0, 1.0]).scores
    # Where folds disagree there is no interval, and new topics count all the same.
    unsteady = {name: Score.of(one.value) for name, one in new.items()}
    for scores, n_topics, layer in ((new, 8, 0), (unsteady, 8, 0), (new, 4, 2)):
        given = replace(made, new_topics=scores, n_units_new_topics=n_topics)
        best = choose_best(given, 10)
        assert best is not None
        assert best.layer == layer
        assert best.is_of_new_topics == (layer == 0)


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
    best = choose_best(separation, 7, "article")
    assert best is not None
    assert best.layer == 4
    kernel = suggest_kernel(separation, best)
    assert kernel is not None
    # 5 and 3 and 2 keep half; 1 does not, so 0 does not count either.
    assert kernel == WeightKernel(peak=1.0, position=4, floor=0.0, distance=3)
    assert kernel.weight(2) > 0
    assert kernel.weight(1) == 0


def test_the_kernel_goes_by_what_compares_layers():
    # All prompts share so much at layers 0 and 1 that cosines hardly differ; d' is as high there.
    separation = make([0.1, 0.1, 0.5, 0.5] + [0.1] * 6, None, [2.0, 2.1, 2.5, 2.2] + [0.2] * 6)
    best = choose_best(separation, 10)
    assert best is not None
    assert suggest_kernel(separation, best) == WeightKernel(1.0, 2, 0.0, 3)


def test_what_are_no_scores_is_named():
    with pytest.raises(RefusalLensError, match="the first that validate.* returns, but dict came"):
        unwrap(choose_best)({}, 2)  # past the tests' own check of types
