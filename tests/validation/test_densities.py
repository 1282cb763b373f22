"""Distributions: equal to scipy and scikit-learn, and to what was planted."""

import sys

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from refusal_lens.directions.direction import Direction
from refusal_lens.errors import RefusalLensError
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.densities import (
    activation_norms,
    activation_plane,
    embedding,
    ridges,
    roc,
    shared_densities,
    top_coordinates,
)
from refusal_lens.validation.scores import auroc

HOOK_POINTS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


def two_classes(n_prompts: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    is_harmful = torch.arange(n_prompts) % 3 == 0
    numbers = torch.randn(n_prompts, generator=generator).double() * 2 + 5 * is_harmful
    return numbers, is_harmful


def test_densities_equal_scipy_s():
    numbers, is_harmful = two_classes()
    found = shared_densities(numbers, is_harmful)
    for density, own in zip(found.curves, (~is_harmful, is_harmful), strict=True):
        expected = gaussian_kde(numbers[own].numpy())(found.grid.numpy())
        np.testing.assert_allclose(density.numpy(), expected, rtol=1e-9)


def test_densities_integrate_to_one_on_equal_steps():
    found = shared_densities(*two_classes())
    steps = found.grid.diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    for density in found.curves:
        assert torch.trapezoid(density, found.grid).item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("numbers", [[3.0, 3.0, 3.0, 7.0], [3.0] * 4, [0.0] * 4])
def test_densities_of_a_class_without_spread_are_finite(numbers):
    is_harmful = torch.tensor([True, False, True, False])
    found = shared_densities(torch.tensor(numbers), is_harmful)
    for density in found.curves:
        assert bool(density.isfinite().all())
        assert density.max() > 0


def projections_of(cosines: torch.Tensor, norms: torch.Tensor) -> Projections:
    values = cosines * norms
    return Projections(
        values,
        cosines,
        values > 0,
        values.mean(dim=0),
        torch.arange(len(values)) % 2 == 0,
        HOOK_POINTS,
        ("last", "mean"),
        True,
    )


def test_ridges_are_each_layer_s_densities_of_cosines():
    generator = torch.Generator().manual_seed(1)
    cosines = torch.rand(20, 2, 2, generator=generator).double()
    cosines[:, 0, 1] = torch.nan
    projections = projections_of(cosines, torch.full_like(cosines, 50.0))
    found = ridges(projections, HOOK_POINTS[::-1], "mean")
    assert (found.hook_points, found.position) == (HOOK_POINTS[::-1], "mean")
    expected = shared_densities(cosines[:, 1, 1], projections.is_harmful)
    torch.testing.assert_close(found.curves[0], expected.curves)
    torch.testing.assert_close(found.grids[0], expected.grid)
    assert bool(found.grids[1].isnan().all())
    assert bool(found.curves[1].isnan().all())


def test_norms_are_the_activations_median_lengths_where_a_cosine_tells():
    generator = torch.Generator().manual_seed(2)
    cosines = torch.rand(20, 2, 2, generator=generator).double() + 0.1
    norms = torch.rand(20, 2, 2, generator=generator).double() + 1
    expected = norms.median(dim=0).values
    torch.testing.assert_close(activation_norms(projections_of(cosines, norms)), expected)
    cosines[0, 0, 0] = 0
    without = activation_norms(projections_of(cosines, norms))
    torch.testing.assert_close(without[0, 0], norms[1:, 0, 0].median())


def test_plane_is_the_projection_and_the_first_component_of_the_rest():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(50, 6, generator=generator).double() * torch.arange(1.0, 7.0).double() + 3
    unit = torch.randn(6, generator=generator).double()
    unit = unit / unit.norm()
    plane = activation_plane(values, unit)
    torch.testing.assert_close(plane.along, values @ unit)
    rest = values - (values @ unit)[:, None] * unit
    pca = PCA(2).fit(rest.numpy())
    expected = pca.transform(rest.numpy())[:, 0]
    sign = np.sign(expected[0] * plane.across[0].item())
    np.testing.assert_allclose(plane.across.numpy(), sign * expected, rtol=1e-9)
    assert plane.across_share == pytest.approx(pca.explained_variance_ratio_[0])


def test_plane_of_prompts_that_differ_along_the_direction_alone_is_a_line():
    unit = torch.tensor([1.0, 0.0, 0.0])
    values = torch.arange(4.0)[:, None] * unit + torch.tensor([0.0, 5.0, 0.0])
    plane = activation_plane(values, unit)
    assert plane.across_share == 0
    torch.testing.assert_close(plane.across, torch.zeros(4).double())


def test_top_coordinates_are_shares_of_the_raw_length():
    vector = torch.tensor([1.0, -8.0, 4.0, 0.0, 2.0])
    direction = Direction(vector, HOOK_POINTS[0], "last", clip_quantile=0.75)
    found = top_coordinates(direction, n_top=3)
    length = vector.double().norm()
    assert found.index.tolist() == [1, 2, 4]
    torch.testing.assert_close(found.raw, torch.tensor([-8.0, 4.0, 2.0]).double() / length)
    torch.testing.assert_close(found.clipped, torch.tensor([-4.0, 4.0, 2.0]).double() / length)
    squares = torch.tensor([64.0, 80, 84, 85, 85]).double() / 85
    torch.testing.assert_close(found.cumulative, squares)


def test_a_part_s_ridge_is_as_high_as_it_is_of_its_class():
    generator = torch.Generator().manual_seed(1)
    cosines = torch.rand(200, 2, 2, generator=generator).double()
    projections = projections_of(cosines, torch.full_like(cosines, 50.0))
    labels = projections.is_harmful.long()
    labels[:50] += 2 * projections.is_harmful[:50]
    labels = torch.tensor([{0: 0, 1: 1, 3: 2}[each] for each in labels.tolist()])
    found = ridges(projections, HOOK_POINTS, "mean", labels=labels)
    areas = torch.trapezoid(found.curves[0], found.grids[0], dim=-1)
    torch.testing.assert_close(areas, torch.tensor([1, 0.75, 0.25]).double(), atol=0.01, rtol=0)


@pytest.mark.parametrize("shift", [0.0, 5.0, 100.0])
def test_area_below_the_roc_is_the_auroc(shift):
    numbers, is_harmful = two_classes()
    numbers = (numbers + (shift - 5) * is_harmful)[:, None, None]
    one, nothing = ("blocks.0.hook_resid_post",), torch.zeros(1, 1, dtype=torch.float64)
    projections = Projections(
        numbers, numbers, numbers > 0, nothing, is_harmful, one, ("last",), True
    )
    table = roc(projections, "resid_post:0", "last")
    area = np.trapezoid(table["hits"], table["false_alarms"])
    assert area == pytest.approx(auroc(numbers[:, 0, 0], is_harmful))
    is_perfect = ((table["hits"] == 1) & (table["false_alarms"] == 0)).any()
    assert is_perfect == (shift == 100)


def test_an_embedding_keeps_planted_heaps_apart_and_comes_again():
    pytest.importorskip("umap")
    generator = torch.Generator().manual_seed(0)
    heaps = torch.arange(120) % 3
    values = torch.randn(120, 32, generator=generator)
    values[:, 0] += 20 * heaps
    points = embedding(values)
    assert torch.equal(points, embedding(values))
    near = KNeighborsClassifier(5).fit(points, heaps)
    assert near.score(points, heaps) == 1
    noise = embedding(torch.randn(120, 32, generator=generator))
    assert KNeighborsClassifier(5).fit(noise, heaps).score(noise, heaps) < 0.8


def test_an_embedding_without_its_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(RefusalLensError, match=r"pip install 'refusal-lens\[embed\]'"):
        embedding(torch.zeros(4, 2))
