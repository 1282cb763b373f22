"""Ways to fit a direction: from the activations of two classes to one raw vector.

Knows what each method computes. Does not know places, clipping or how good a direction is.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.moments import ClassMoments, class_moments

DIFFERENCE_OF_MEANS = "difference_of_means"

ROUNDING = 1e-6
"""A difference this small against the activations' own length is float32 rounding."""


def fit_grid(
    values: Float[Tensor, "n_prompts *grid d_model"], is_harmful: Bool[Tensor, " n_prompts"]
) -> tuple[Float[Tensor, "*grid d_model"], Bool[Tensor, "*grid"]]:
    """Fit one raw vector at every place.

    Args:
        values: Activations of both classes.
        is_harmful: Labels.

    Returns:
        Raw vectors in float64, and where there is a direction at all.

    Raises:
        RefusalLensError: A class is empty.
    """
    return mean_difference(class_moments(values[is_harmful]), class_moments(values[~is_harmful]))


def mean_difference(
    harmful: ClassMoments, harmless: ClassMoments
) -> tuple[Float[Tensor, "*grid d_model"], Bool[Tensor, "*grid"]]:
    """Return harmful mean minus harmless mean, and where it is more than rounding.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, section 2.3.
    """
    return difference(harmful.mean, harmless.mean)


def difference(
    harmful: Float[Tensor, "*grid d_model"], harmless: Float[Tensor, "*grid d_model"]
) -> tuple[Float[Tensor, "*grid d_model"], Bool[Tensor, "*grid"]]:
    """Return one mean minus the other, and where it is more than rounding."""
    vectors = harmful - harmless
    size = torch.maximum(harmful.norm(dim=-1), harmless.norm(dim=-1))
    length = vectors.norm(dim=-1)
    # A comparison with NaN is False, so that a mean that is not finite counts as no direction.
    return vectors, (length > ROUNDING * size) & torch.isfinite(length)
