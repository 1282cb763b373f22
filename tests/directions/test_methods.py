"""Ways to fit: planted directions are found, traps are seen to be traps, libraries agree."""

import sys

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import ortho_group
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from refusal_lens.config import Config, DirectionsConfig
from refusal_lens.config_files import load_config
from refusal_lens.directions.methods import (
    METHODS,
    difference,
    find_geometric_median,
    fit_grid,
)
from refusal_lens.errors import RefusalLensError

NAMES = list(METHODS)


def make(n=200, d_model=12, shift=3.0, seed=0, offset=2.0):
    """Two classes along the first axis, noise of unequal size, both means far along the last."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(0.5, 1.5, d_model).double()
    harmful, harmless = (
        torch.randn(n, d_model, generator=generator).double() * sizes for _ in range(2)
    )
    harmful[:, 0] += shift
    for side in (harmful, harmless):
        side[:, -1] += offset
    return harmful, harmless


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("name", NAMES)
def test_planted_direction_is_found_with_its_sign_and_length(name):
    harmful, harmless = make(n=2000, shift=6.0)
    vector = METHODS[name](harmful, harmless)
    planted = torch.eye(12).double()[0]
    assert vector.dtype == torch.float64
    assert cosine(vector, planted) > 0.99
    assert vector.norm().item() == pytest.approx(6.0, rel=0.05)
    if name == "off_harmless_mean":
        return  # what it leaves out hangs on which class is harmless
    # The other way round, the same line with the other sign.
    assert cosine(METHODS[name](harmless, harmful), planted) < -0.99


@pytest.mark.parametrize("name", NAMES)
def test_rotated_activations_give_the_rotated_direction(name):
    harmful, harmless = make(n=60)
    rotation = torch.from_numpy(ortho_group.rvs(12, random_state=1))
    turned = METHODS[name](harmful @ rotation, harmless @ rotation)
    torch.testing.assert_close(
        turned, METHODS[name](harmful, harmless) @ rotation, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_scaled_activations_give_the_scaled_direction(name):
    harmful, harmless = make(n=60)
    scaled = METHODS[name](harmful * 100, harmless * 100)
    torch.testing.assert_close(scaled / 100, METHODS[name](harmful, harmless), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_more_dimensions_than_prompts(name):
    harmful, harmless = make(n=20, d_model=64, shift=8.0)
    assert cosine(METHODS[name](harmful, harmless), torch.eye(64).double()[0]) > 0.7


def test_geometric_median_is_where_the_sum_of_distances_is_least():
    rows = make(n=40, d_model=3)[0]
    found = find_geometric_median(rows)
    best = minimize(
        lambda point: np.linalg.norm(rows.numpy() - point, axis=1).sum(),
        rows.mean(dim=0).numpy(),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    torch.testing.assert_close(found, torch.from_numpy(best.x), atol=1e-5, rtol=0)


def test_geometric_median_at_a_row_is_found_and_left():
    cross = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]]).double()
    torch.testing.assert_close(find_geometric_median(cross), torch.zeros(2).double())
    # The mean of these is the third row, which is not the median (it lies towards the pair).
    line = torch.tensor([[0.0], [0.0], [1.0], [3.0]]).double()
    assert line.mean() == 1.0
    assert 0.0 <= find_geometric_median(line).item() <= 1.0


def test_one_outlier_turns_the_mean_but_not_the_median():
    harmful, harmless = make(n=100, offset=0.0)
    harmful[0, 1] = 5000.0
    first = torch.eye(12).double()[0]
    assert cosine(METHODS["difference_of_means"](harmful, harmless), first) < 0.2
    assert cosine(METHODS["geometric_median"](harmful, harmless), first) > 0.95


def test_pca_of_pairs_avoids_the_centring_trap():
    generator = torch.Generator().manual_seed(0)
    harmless = torch.randn(300, 6, generator=generator).double()
    harmful = harmless + 0.1 * torch.randn(300, 6, generator=generator).double()
    harmful[:, 0] += 2.0  # what tells the classes apart is the same in every pair
    harmful[:, 1] += 0.5 * torch.randn(300, generator=generator)  # how the pairs differ
    first = torch.eye(6).double()[0]
    trapped = torch.from_numpy(PCA(1).fit((harmful - harmless).numpy()).components_[0])
    assert abs(cosine(trapped, first)) < 0.1
    assert cosine(METHODS["pca_paired"](harmful, harmless), first) > 0.999


def test_pca_about_the_midpoint_equals_scikit_learn_for_classes_of_one_size():
    harmful, harmless = make(n=50)
    expected = torch.from_numpy(PCA(1).fit(torch.cat([harmful, harmless]).numpy()).components_[0])
    assert abs(cosine(METHODS["pca_centred"](harmful, harmless), expected)) > 1 - 1e-9
    wide = make(n=5, d_model=40)
    expected = torch.from_numpy(PCA(1).fit(torch.cat(wide).numpy()).components_[0])
    assert abs(cosine(METHODS["pca_centred"](*wide), expected)) > 1 - 1e-9


@pytest.mark.parametrize("d_model", [12, 150])
def test_lda_equals_solving_with_the_shrunk_covariance(d_model):
    harmful, harmless = make(n=50, d_model=d_model)
    within = torch.cat([harmful - harmful.mean(dim=0), harmless - harmless.mean(dim=0)])
    covariance = LedoitWolf(assume_centered=True).fit(within.numpy()).covariance_
    difference = (harmful.mean(dim=0) - harmless.mean(dim=0)).numpy()
    expected = torch.from_numpy(np.linalg.solve(covariance, difference))
    assert cosine(METHODS["lda"](harmful, harmless), expected) > 1 - 1e-9


def test_lda_takes_away_the_noise_that_the_classes_share():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4000, generator=generator).double()
    rows = torch.randn(2, 4000, 2, generator=generator).double() * 0.3 + noise[..., None]
    harmful, harmless = rows[0] + torch.tensor([1.0, 0.0]), rows[1]
    # Covariance [[1.09, 1], [1, 1.09]]: its inverse turns (1, 0) into (1.09, -1).
    expected = torch.tensor([1.09, -1.0]).double()
    assert cosine(METHODS["lda"](harmful, harmless), expected) > 0.999
    assert cosine(METHODS["difference_of_means"](harmful, harmless), expected) < 0.75


@pytest.mark.parametrize("d_model", [12, 300])
def test_logistic_regression_in_the_span_equals_scikit_learn_outside_it(d_model):
    harmful, harmless = make(n=40, d_model=d_model)
    middle = (harmful.mean(dim=0) + harmless.mean(dim=0)) / 2
    within = torch.cat([harmful - harmful.mean(dim=0), harmless - harmless.mean(dim=0)])
    rows = (torch.cat([harmful, harmless]) - middle) / within.square().mean().sqrt()
    labels = np.repeat([1, 0], 40)
    plain = LogisticRegression(tol=1e-8, max_iter=5000).fit(rows.numpy(), labels)
    expected = torch.from_numpy(plain.coef_[0])
    assert cosine(METHODS["logistic_regression"](harmful, harmless), expected) > 0.9999


def test_leace_reads_the_whitened_difference_and_erases_along_the_difference():
    from concept_erasure import LeaceFitter

    harmful, harmless = make(n=400)
    rows, labels = torch.cat([harmful, harmless]), (torch.arange(800) < 400).double()
    eraser = LeaceFitter.fit(rows, labels[:, None]).eraser
    difference = harmful.mean(dim=0) - harmless.mean(dim=0)
    assert abs(cosine(eraser.proj_left[:, 0], difference)) > 1 - 1e-6
    found = METHODS["leace"](harmful, harmless)
    assert cosine(found, METHODS["lda"](harmful, harmless)) > 0.999
    # What was found is what LEACE looks at: nothing of it is left of the classes' difference.
    erased = eraser(rows)
    left = erased[:400].mean(dim=0) - erased[400:].mean(dim=0)
    assert left.norm() < 1e-6 * difference.norm()


def test_leace_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    with pytest.raises(RefusalLensError) as caught:
        METHODS["leace"](*make(n=5))
    assert str(caught.value) == (
        "The method leace needs the concept-erasure library, which is not installed. "
        "pip install 'refusal-lens[leace]', or take leace out of directions.method and "
        "directions.compare_methods."
    )


def test_off_harmless_mean_has_nothing_along_the_harmless_mean():
    harmful, harmless = make()
    harmful[:, -1] += 2.0
    vector = METHODS["off_harmless_mean"](harmful, harmless)
    mean = harmless.mean(dim=0)
    assert abs(cosine(vector, mean)) < 1e-12
    difference = harmful.mean(dim=0) - mean
    assert abs(cosine(difference, mean)) > 0.1
    torch.testing.assert_close(vector + (difference @ mean / (mean @ mean)) * mean, difference)


@pytest.mark.parametrize("name", NAMES)
def test_grid_is_the_method_at_every_place_and_says_where_there_is_none(name):
    harmful, harmless = make(n=30)
    values = torch.stack([torch.cat([harmful, harmless])] * 4, dim=1).reshape(60, 2, 2, 12)
    values = values * torch.tensor([[1.0, 2.0], [3.0, 0.0]])[None, :, :, None]
    before = values.clone()
    labels = torch.arange(60) < 30
    vectors, is_kept = fit_grid(values, labels, name)
    assert is_kept.tolist() == [[True, True], [True, False]]
    expected = METHODS[name](harmful * 3, harmless * 3)
    torch.testing.assert_close(vectors[1, 0], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(values, before)


def test_difference_of_means_on_the_grid_equals_that_of_moments():
    harmful, harmless = make()
    labels = torch.arange(400) < 200
    vectors, _ = fit_grid(torch.cat([harmful, harmless])[:, None], labels)
    expected = difference(harmful.double().mean(dim=0), harmless.double().mean(dim=0))[0]
    torch.testing.assert_close(vectors[0], expected)


def test_values_that_are_not_finite_have_no_direction_whatever_the_method():
    harmful, harmless = make(n=10)
    harmful[3, 2] = torch.inf
    values = torch.cat([harmful, harmless])[:, None]
    for name in NAMES:
        assert fit_grid(values, torch.arange(20) < 10, name)[1].tolist() == [False]


def test_unknown_method_is_named():
    with pytest.raises(RefusalLensError) as caught:
        fit_grid(torch.zeros(2, 1, 3), torch.tensor([True, False]), "means")
    assert str(caught.value) == f"There is no method 'means'. There are: {', '.join(NAMES)}."


def test_settings_know_the_same_methods():
    config = load_config(None, [f"directions.compare_methods=[{', '.join(NAMES)}]"])
    assert config.directions.compare_methods == NAMES
    for name in NAMES:
        assert load_config(None, [f"directions.method={name}"]).directions.method == name
    # leace is an extra: the default run must do without it.
    assert set(Config().directions.compare_methods) == set(NAMES) - {"leace"}
    assert DirectionsConfig().compare_at == "best"
    with pytest.raises(RefusalLensError, match=r"directions.method needs to be 'difference_of_me"):
        load_config(None, ["directions.method=means"])
