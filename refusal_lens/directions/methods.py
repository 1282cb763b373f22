"""Ways to fit a direction: from the activations of two classes to one raw vector.

Knows what each method computes. Does not know places, clipping or how good a direction is.

Methods other than the difference of means give a line, not a length. Their vectors are made as
long as the class means lie apart along it, `u (u . difference)`: that fixes the sign, and adding
the vector moves a harmless mean as far along the line as the harmful one is. None of them changes
when the activations are rotated.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from refusal_lens.activations.moments import ClassMoments, class_moments
from refusal_lens.errors import RefusalLensError, RefusalLensWarning

DIFFERENCE_OF_MEANS = "difference_of_means"

ROUNDING = 1e-6
"""A difference this small against the activations' own length is float32 rounding."""

MEDIAN_TOLERANCE = 1e-9
"""The geometric median is found when a step moves it by less than this share of the spread."""

MEDIAN_STEPS = 1000

Harmful = Float[Tensor, "n_harmful d_model"]
Harmless = Float[Tensor, "n_harmless d_model"]
Vector = Float[Tensor, " d_model"]


def fit_grid(
    values: Float[Tensor, "n_prompts *grid d_model"],
    is_harmful: Bool[Tensor, " n_prompts"],
    method: str = DIFFERENCE_OF_MEANS,
) -> tuple[Float[Tensor, "*grid d_model"], Bool[Tensor, "*grid"]]:
    """Fit one raw vector at every place by a key of `METHODS`.

    What needs the class means alone is computed at all places at once, the rest place by place.

    Returns:
        Raw vectors in float64, and where there is a direction at all: where the class means differ
        by more than rounding.

    Raises:
        RefusalLensError: A class is empty, or there is no such method.
    """
    check_method(method)
    classes = class_moments(values[is_harmful]), class_moments(values[~is_harmful])
    if method in OF_MEANS:
        return fit_means(*classes, method)
    means, is_kept = difference(*(one.mean for one in classes))
    places = values.flatten(1, -2)
    vectors = torch.zeros_like(means).flatten(0, -2)
    for place in is_kept.flatten().nonzero().flatten().tolist():
        rows = places[:, place].double()
        vectors[place] = METHODS[method](rows[is_harmful], rows[~is_harmful])
    vectors = vectors.reshape(means.shape)
    return vectors, is_kept & (vectors.norm(dim=-1) > 0)


def fit_means(
    harmful: ClassMoments, harmless: ClassMoments, method: str = DIFFERENCE_OF_MEANS
) -> tuple[Float[Tensor, "*grid d_model"], Bool[Tensor, "*grid"]]:
    """Fit one raw vector at every place to the class means alone, as `fit_grid` does.

    Raises:
        RefusalLensError: There is no such method, or it needs every prompt's activation.
    """
    check_method(method)
    if method not in OF_MEANS:
        raise RefusalLensError(
            f"{method} needs every prompt's activation, and moments hold none. Collect activations "
            f"(collect instead of collect_moments), or fit by {' or '.join(OF_MEANS)}."
        )
    _, is_kept = difference(harmful.mean, harmless.mean)
    vectors = OF_MEANS[method](harmful.mean, harmless.mean)
    return vectors, is_kept & (vectors.norm(dim=-1) > 0)


def check_method(method: str) -> None:
    """Refuse a name that is no method."""
    if method not in METHODS:
        raise RefusalLensError(f"There is no method {method!r}. There are: {', '.join(METHODS)}.")


def difference(
    harmful: Float[Tensor, "*grid d_model"], harmless: Float[Tensor, "*grid d_model"]
) -> tuple[Float[Tensor, "*grid d_model"], Bool[Tensor, "*grid"]]:
    """Return harmful mean minus harmless mean, and where it is more than rounding."""
    vectors = harmful - harmless
    size = torch.maximum(harmful.norm(dim=-1), harmless.norm(dim=-1))
    length = vectors.norm(dim=-1)
    # A comparison with NaN is False, so that a mean that is not finite counts as no direction.
    return vectors, (length > ROUNDING * size) & torch.isfinite(length)


# --- the methods, each (harmful, harmless) -> raw vector in float64 ---------------------------


def difference_of_means(harmful: Harmful, harmless: Harmless) -> Vector:
    """Return harmful mean minus harmless mean.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, section 2.3.
    """
    return harmful.double().mean(dim=0) - harmless.double().mean(dim=0)


def geometric_median(harmful: Harmful, harmless: Harmless) -> Vector:
    """Return the difference of the classes' geometric medians, which a few outliers cannot move.

    Cost: some tens of passes over the activations.
    """
    return find_geometric_median(harmful) - find_geometric_median(harmless)


def off_harmless_mean(harmful: Harmful, harmless: Harmless) -> Vector:
    """Return the difference of means without its part along the harmless mean.

    Ablating it leaves the harmless mean where it is, and with it what all activations share.

    Source:
        "Projected abliteration" of the community's tools; the algebra is one Gram-Schmidt step.
    """
    return _off_harmless(harmful.double().mean(dim=0), harmless.double().mean(dim=0))


def _off_harmless(
    harmful: Float[Tensor, "*grid d_model"], harmless: Float[Tensor, "*grid d_model"]
) -> Float[Tensor, "*grid d_model"]:
    """Take off the difference of two means its part along the harmless one."""
    vectors = harmful - harmless
    length = (harmless * harmless).sum(-1, keepdim=True)
    share = (vectors * harmless).sum(-1, keepdim=True) / length
    return torch.where(length == 0, vectors, vectors - share * harmless)


def pca_centred(harmful: Harmful, harmless: Harmless) -> Vector:
    """Return the first principal component of both classes about the midpoint of their means.

    It is the line on which activations vary most, for whatever reason: a direction only where the
    classes are the largest thing that varies. Each class has the same weight.

    Cost: the eigenvectors of a matrix as large as prompts or d_model, whichever is less.
    """
    difference = difference_of_means(harmful, harmless)
    middle = harmless.double().mean(dim=0) + difference / 2
    centred = [(side.double() - middle) / len(side) ** 0.5 for side in (harmful, harmless)]
    return _as_long_as(difference, _first_component(torch.cat(centred)))


def pca_paired(harmful: Harmful, harmless: Harmless) -> Vector:
    """Return the first principal component of the differences of pairs, not centred.

    The trap: PCA as libraries have it first subtracts the mean of its rows, and the mean of the
    differences is the very thing that is looked for. What is left then is how pairs differ from
    one another. So the rows go into the decomposition as they are: the component is that of their
    second moment, `difference x difference' + covariance`.

    Pairs are made in the order given, and what one class has more of is left out.

    Cost: the eigenvectors of a matrix as large as pairs or d_model, whichever is less.

    Source:
        Zou et al. 2023, arXiv 2310.01405, section 3.1, and repeng, without the centring.
    """
    n_pairs = min(len(harmful), len(harmless))
    pairs = harmful[:n_pairs].double() - harmless[:n_pairs].double()
    return _as_long_as(difference_of_means(harmful, harmless), _first_component(pairs))


def logistic_regression(harmful: Harmful, harmless: Harmless) -> Vector:
    """Return the weights of a logistic regression, ridge-penalised, classes weighted alike.

    Activations are divided by one number, so that a coordinate varies by 1 within a class on
    average; scikit-learn's penalty C = 1 then means the same at every layer. Coordinates are not
    scaled one by one: that would make the direction hang on the axes.

    Cost: the slowest of the quick ones, some 10 ms to 1 s a place.
    """
    difference = difference_of_means(harmful, harmless)
    middle = harmless.double().mean(dim=0) + difference / 2
    scale = _within(harmful, harmless).square().mean().sqrt()
    if scale == 0:
        return difference
    rows = (torch.cat([harmful, harmless]).double() - middle) / scale
    # The weights lie in the rows' span: with fewer prompts than dimensions, search only there.
    basis, coordinates = torch.linalg.qr(rows.T) if rows.shape[0] < rows.shape[1] else (None, rows)
    inputs = coordinates if basis is None else coordinates.T
    labels = np.repeat([1, 0], [len(harmful), len(harmless)])
    fitted = LogisticRegression(class_weight="balanced", max_iter=2000).fit(inputs.numpy(), labels)
    weights = torch.from_numpy(fitted.coef_[0])
    return _as_long_as(difference, weights if basis is None else basis @ weights)


def lda(harmful: Harmful, harmless: Harmless) -> Vector:
    """Return Fisher's discriminant: the difference, whitened by the covariance within classes.

    The covariance is shrunk towards a multiple of the identity by Ledoit and Wolf's amount, since
    with fewer prompts than dimensions it cannot be inverted as it is.

    Cost: a linear system as large as prompts or d_model, whichever is less.

    Source:
        Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance
        matrices", eq. 14, as in scikit-learn. With fewer prompts than dimensions the system is
        solved by Woodbury's identity.
    """
    difference = difference_of_means(harmful, harmless)
    within = _within(harmful, harmless)
    variance = within.square().mean()
    if variance == 0:
        return difference
    shrinkage = float(ledoit_wolf_shrinkage(within.numpy(), assume_centered=True))
    floor, weight = shrinkage * variance, (1 - shrinkage) / len(within)
    if len(within) < len(difference) and shrinkage < 1:
        inner = floor / weight * torch.eye(len(within)) + within @ within.T
        whitened = difference - within.T @ torch.linalg.solve(inner, within @ difference)
    else:
        covariance = floor * torch.eye(len(difference)) + weight * within.T @ within
        whitened = torch.linalg.solve(covariance, difference)
    return _as_long_as(difference, whitened)


def leace(harmful: Harmful, harmless: Harmless) -> Vector:
    """Return the direction that LEACE reads a class off, from the concept-erasure library.

    LEACE erases a binary concept by `x - a (b . (x - mean))`. What it takes away, a, is the
    difference of means; what it measures, b, is that difference whitened by the covariance of all
    activations. The direction is b, since directions are projected on. It differs from `lda` by
    the shrinkage alone: whitening by all or within classes turns the difference the same way.

    Cost: d_model cubed: 0.1 s a place at d_model 512, a minute at 4,096.

    Raises:
        RefusalLensError: The library is not installed.

    Source:
        Belrose et al. 2023, arXiv 2306.03819, theorem 4.3.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, at import
            from concept_erasure import LeaceFitter
    except ImportError as error:
        raise RefusalLensError(
            "The method leace needs the concept-erasure library, which is not installed. "
            "pip install 'refusal-lens[leace]', or take leace out of directions.method and "
            "directions.compare_methods."
        ) from error
    rows = torch.cat([harmful, harmless]).double()
    labels = (torch.arange(len(rows)) < len(harmful)).double()
    eraser = LeaceFitter.fit(rows, labels[:, None]).eraser
    return _as_long_as(difference_of_means(harmful, harmless), eraser.proj_right[0])


Method = Callable[[Tensor, Tensor], Tensor]

METHODS: dict[str, Method] = {
    DIFFERENCE_OF_MEANS: difference_of_means,
    "geometric_median": geometric_median,
    "off_harmless_mean": off_harmless_mean,
    "pca_centred": pca_centred,
    "pca_paired": pca_paired,
    "logistic_regression": logistic_regression,
    "lda": lda,
    "leace": leace,
}
"""Every method by its name in the settings."""

OF_MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    DIFFERENCE_OF_MEANS: torch.sub,
    "off_harmless_mean": _off_harmless,
}
"""Those that need the class means alone: (harmful mean, harmless mean) -> raw vectors."""


# --- what they share --------------------------------------------------------------------------


def find_geometric_median(values: Float[Tensor, "n d_model"]) -> Vector:
    """Return the point whose distances to all rows have the least sum.

    Source:
        Weiszfeld 1937; Vardi & Zhang 2000, "The multivariate L1-median and associated data depth",
        eq. 2.6, which also moves off a row that it has landed on.
    """
    rows = values.double()
    centre = rows.mean(dim=0)
    spread = (rows - centre).norm(dim=-1).mean()
    for _ in range(MEDIAN_STEPS):
        moved = _median_step(rows, centre, spread)
        if (moved - centre).norm() <= MEDIAN_TOLERANCE * spread:
            return moved
        centre = moved
    warnings.warn(
        f"The geometric median of {len(rows)} prompts still moves after {MEDIAN_STEPS} steps. "
        "It is close; take difference_of_means if it matters.",
        RefusalLensWarning,
        stacklevel=2,
    )
    return centre


def _median_step(
    rows: Float[Tensor, "n d_model"], centre: Float[Tensor, " d_model"], spread: Float[Tensor, ""]
) -> Float[Tensor, " d_model"]:
    away = rows - centre
    distances = away.norm(dim=-1)
    is_at_centre = distances <= 1e-12 * spread
    if is_at_centre.all():
        return centre
    weights = torch.where(is_at_centre, 0.0, 1 / distances)
    pull = weights @ away
    # A row that the centre lies on holds it back with weight 1.
    held = (is_at_centre.sum() / pull.norm()).clamp_max(1.0) if is_at_centre.any() else 0.0
    return centre + (1 - held) * pull / weights.sum()


def _within(
    harmful: Float[Tensor, "n_harmful d_model"], harmless: Float[Tensor, "n_harmless d_model"]
) -> Float[Tensor, "n d_model"]:
    """Return every activation minus its class's mean."""
    sides = [side.double() - side.double().mean(dim=0) for side in (harmful, harmless)]
    return torch.cat(sides)


def _first_component(rows: Float[Tensor, "n d_model"]) -> Float[Tensor, " d_model"]:
    """Return the first right singular vector: the line nearest to the rows, through zero."""
    # By the smaller of the two Gram matrices: ten times as fast as the decomposition itself.
    if rows.shape[0] >= rows.shape[1]:
        return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]
    return rows.T @ torch.linalg.eigh(rows @ rows.T).eigenvectors[:, -1]


def _as_long_as(difference: Vector, line: Vector) -> Vector:
    """Return the vector along a line that is as long as the difference reaches along it."""
    length = line.norm()
    if length == 0:
        return torch.zeros_like(difference)
    unit = line / length
    return unit * (unit @ difference)
