"""Refusal as a subspace: orthonormal vectors that span what categories of harm have in common.

Knows how a basis comes from the categories' directions. Does not intervene with it.

Tested in tests/validation/test_categories.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS, METHODS, check_method
from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.prompts.positions import normalise_position

MIN_IN_CATEGORY = 2
"""Prompts that a category needs for a direction of its own."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """An orthonormal basis at one hook point and position, the strongest vector first.

    `shares` says how much of the categories' directions, by squared length, each vector holds.
    """

    basis: Float[Tensor, "k d_model"]
    hook_point: str
    position: str
    shares: Float[Tensor, " k"]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Say where the subspace stands and how much it holds."""
        k, d_model = self.basis.shape
        return (
            f"Subspace({self.hook_point}, {self.position}, {k} of d_model {d_model}, "
            f"{self.shares.sum().item():.1%} of the categories' directions)"
        )


@dataclass(frozen=True, eq=False)
class CategoryDirections:
    """The raw direction of each category of harm at one place: its prompts against all harmless."""

    vectors: Float[Tensor, "n_categories d_model"]
    categories: tuple[str, ...]
    counts: tuple[int, ...]


def fit_categories(
    values: Float[Tensor, "n_prompts d_model"],
    is_harmful: Bool[Tensor, " n_prompts"],
    prompts: Sequence[Prompt],
    method: str = DIFFERENCE_OF_MEANS,
) -> CategoryDirections:
    """Fit one direction for each category of harmful prompts, against all harmless ones.

    Activations are those of one place, prompts in their order; the method is a key of
    `methods.METHODS`. Categories of one prompt are left out.
    """
    check_method(method)
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        if is_harmful[row]:
            rows.setdefault(prompt.category, []).append(row)
    kept = {name: mine for name, mine in rows.items() if len(mine) >= MIN_IN_CATEGORY}
    harmless = values[~is_harmful].double()
    vectors = [METHODS[method](values[mine].double(), harmless) for mine in kept.values()]
    stacked = torch.stack(vectors) if vectors else harmless.new_zeros(0, values.shape[-1])
    return CategoryDirections(stacked, tuple(kept), tuple(map(len, kept.values())))


def fit_subspace(
    activations: Activations,
    prompts: Sequence[Prompt],
    hook_point: str,
    position: str,
    *,
    k: int = 3,
    method: str = DIFFERENCE_OF_MEANS,
) -> Subspace:
    """Find the k dimensions that hold most of the categories' directions.

    The directions, each of length one, go into the decomposition as they are: centred, the first
    to go would be what all categories share. The first vector is then close to the common
    direction, and has its sign.

    Args:
        activations: Activations of both classes.
        prompts: The prompts, in the order of the activations.
        hook_point: Where.
        position: Where.
        k: Dimensions wanted; as many as there are categories at most.
        method: How the categories' directions are fitted.

    Returns:
        An orthonormal basis, float32.

    Raises:
        RefusalLensError: There are fewer than k categories with two harmful prompts.

    Example:
        >>> fit_subspace(activations, prompts.prompts, "blocks.1.hook_resid_post", "last", k=1)
        Subspace(blocks.1.hook_resid_post, last, 1 of d_model 32, 100.0% of the categories' directions)
    """  # noqa: E501
    values = activations.at(hook_point, position)
    fitted = fit_categories(values, activations.is_harmful, prompts, method)
    if not 1 <= k <= min(fitted.vectors.shape):
        raise RefusalLensError(
            f"A subspace of {k} dimensions needs {k} categories with {MIN_IN_CATEGORY} harmful "
            f"prompts each; there are {len(fitted.categories)} ({', '.join(fitted.categories)}). "
            "Lower k, or give the prompts categories."
        )
    units = torch.nn.functional.normalize(fitted.vectors, dim=-1)
    _, sizes, axes = torch.linalg.svd(units, full_matrices=False)
    signs = torch.where((axes[:k] @ units.sum(dim=0)) < 0, -1.0, 1.0)
    shares = sizes.square() / sizes.square().sum()
    fit = {"method": method, "categories": list(fitted.categories), "k": k}
    return Subspace(
        (signs[:, None] * axes[:k]).float(),
        hook_point,
        normalise_position(position),
        shares[:k],
        {**activations.provenance, "fit": fit},
    )
