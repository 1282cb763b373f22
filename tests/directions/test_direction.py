"""Directions: planted ones are recovered, moments merge exactly, and nothing else is changed."""

import pytest
import torch

from refusal_lens.activations.moments import Moments, class_moments
from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import (
    clip,
    cosine_project,
    fit_directions,
    normalise,
    project,
)
from refusal_lens.directions.methods import METHODS, OF_MEANS, difference
from refusal_lens.errors import RefusalLensError, RefusalLensWarning

D_MODEL = 64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(n: int = 400, strength: float = 3.0) -> tuple[Activations, torch.Tensor]:
    """Noise of unit size on an offset, with one direction added to the harmful prompts."""
    unit = normalise(torch.randn(D_MODEL, generator=generator(1)))
    offset = torch.randn(D_MODEL, generator=generator(2)) * 5
    is_harmful = torch.arange(2 * n) % 2 == 0
    values = torch.randn(2 * n, 1, 1, D_MODEL, generator=generator(3)) + offset
    values[is_harmful] += strength * unit
    return Activations(values, is_harmful, ("blocks.0.hook_resid_post",), ("last",)), unit


def test_planted_direction_is_recovered():
    activations, unit = planted()
    fitted = fit_directions(activations, clip_quantile=None)["blocks.0.hook_resid_post", "last"]
    # Noise of the difference has length sqrt(2 d / n) = 0.57 across the direction: cosine 0.98.
    assert fitted.unit @ unit > 0.97
    assert fitted.vector @ unit.double() == pytest.approx(3.0, abs=0.3)


def test_before_shuffled_labels_leave_nothing_of_it():
    activations, unit = planted()
    order = torch.randperm(len(activations.is_harmful), generator=generator(4))
    shuffled = Activations(
        activations.values,
        activations.is_harmful[order],
        activations.hook_points,
        activations.positions,
    )
    fitted = fit_directions(shuffled)["blocks.0.hook_resid_post", "last"]
    assert abs(fitted.unit @ unit) < 0.5


def test_vector_is_the_difference_of_means_and_unit_is_clipped_then_normalised():
    activations, _ = planted()
    values = activations.values[:, 0, 0].double()
    difference = values[activations.is_harmful].mean(0) - values[~activations.is_harmful].mean(0)
    fitted = fit_directions(activations, clip_quantile=0.9)["blocks.0.hook_resid_post", "last"]
    torch.testing.assert_close(fitted.vector, difference)
    # The article's own lines.
    threshold = torch.quantile(difference.abs(), 0.9)
    clamped = difference.clamp(-threshold, threshold)
    torch.testing.assert_close(fitted.unit, (clamped / clamped.norm()).float())


def test_places_without_a_difference_are_dropped_by_name():
    activations, _ = planted(20)
    same = torch.ones_like(activations.values)
    broken = torch.full_like(same, torch.inf)
    values = torch.cat([activations.values, same, broken], dim=1)
    names = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(3))
    grid = Activations(values, activations.is_harmful, names, ("last",))
    with pytest.warns(RefusalLensWarning) as caught:
        directions = fit_directions(grid)
    assert str(caught[0].message) == (
        "No direction where the classes have the same mean (to within rounding) or a mean that is "
        "not finite: blocks.1.hook_resid_pre, last; blocks.2.hook_resid_pre, last. At a token of "
        "the chat template that comes before anything of the prompt has been read, this is to be "
        "expected."
    )
    assert [direction.layer for direction in directions] == [0]
    with pytest.raises(RefusalLensError, match="same mean at blocks.1.hook_resid_pre, last"):
        directions["blocks.1.hook_resid_pre", "last"]


def test_float32_rounding_is_not_a_direction():
    # The same activation computed in two batches of other shape differs in its last bits.
    harmful = class_moments(torch.full((4, D_MODEL), 1.0))
    harmless = class_moments(torch.full((4, D_MODEL), 1.0 + 1e-7))
    assert not difference(harmful.mean, harmless.mean)[1]
    assert difference(harmful.mean, torch.full((D_MODEL,), 1.001).double())[1]


def test_unknown_place_says_what_exists():
    directions = fit_directions(planted(20)[0])
    with pytest.raises(RefusalLensError) as caught:
        directions["blocks.9.hook_resid_post", "last"]
    assert str(caught.value) == (
        "There is no direction at blocks.9.hook_resid_post, last. Hook points: "
        "blocks.0.hook_resid_post. Positions: last."
    )
    assert directions["blocks.0.hook_resid_post", "-1"].position == "last"


def test_clip_works_vector_by_vector_and_leaves_its_input():
    vectors = torch.tensor([[1.0, -2.0, 100.0], [0.1, 0.2, 0.3]])
    before = vectors.clone()
    clipped = clip(vectors, 0.5)
    torch.testing.assert_close(clipped, torch.tensor([[1.0, -2.0, 2.0], [0.1, 0.2, 0.2]]))
    assert torch.equal(vectors, before)
    assert clip(vectors, None) is vectors
    torch.testing.assert_close(clip(vectors, 1.0), vectors)


def test_clip_takes_more_elements_than_torch_quantile_takes_at_once():
    # torch.quantile refuses 2^24 elements and more when they are one row.
    grid = torch.randn(70, 2, 2**17, generator=generator())
    assert clip(grid, 0.995).shape == grid.shape


def test_projections():
    unit = torch.tensor([1.0, 0.0])
    values = torch.tensor([[3.0, 4.0], [-3.0, 4.0]])
    torch.testing.assert_close(project(values, unit), torch.tensor([3.0, -3.0]).double())
    torch.testing.assert_close(cosine_project(values, unit), torch.tensor([0.6, -0.6]).double())


def test_a_class_without_prompts_is_an_error():
    activations, _ = planted(20)
    one_sided = Activations(activations.values, torch.ones(40, dtype=torch.bool), ("a",), ("last",))
    with pytest.raises(RefusalLensError) as caught:
        fit_directions(one_sided)
    assert str(caught.value) == "The mean of a class needs at least one prompt; it has none."


@pytest.mark.parametrize("clip_quantile", [None, 0.9])
@pytest.mark.parametrize("method", OF_MEANS)
def test_moments_and_activations_give_the_same_directions(method, clip_quantile):
    activations, _ = planted(20)
    values, labels = activations.values, activations.is_harmful
    # In two parts that are merged, as they come from shards.
    halves = [class_moments(values[labels][part]) for part in (slice(0, 7), slice(7, None))]
    harmful = halves[0].merge(halves[1])
    places = activations.hook_points, activations.positions
    moments = Moments(harmful, class_moments(values[~labels]), *places, {"model": "m"})
    whole = fit_directions(activations, method=method, clip_quantile=clip_quantile)
    fitted = fit_directions(moments, method=method, clip_quantile=clip_quantile)
    torch.testing.assert_close(fitted.vectors, whole.vectors, rtol=1e-12, atol=1e-12)
    place = "blocks.0.hook_resid_post", "last"
    torch.testing.assert_close(fitted[place].unit, whole[place].unit)
    assert fitted.provenance == {"model": "m", "fit": whole.provenance["fit"]}


@pytest.mark.parametrize("method", sorted({*METHODS} - {*OF_MEANS}))
def test_methods_that_need_every_prompt_refuse_moments_by_name(method):
    one = class_moments(torch.randn(3, 1, 1, 8, generator=generator()))
    with pytest.raises(RefusalLensError) as caught:
        fit_directions(Moments(one, one, ("a",), ("last",)), method=method)
    assert str(caught.value) == (
        f"{method} needs every prompt's activation, and moments hold none. Collect activations "
        "(collect instead of collect_moments), or fit by difference_of_means or off_harmless_mean."
    )
