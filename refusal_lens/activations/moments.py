"""Counts, means and squared deviations that merge.

Knows the one monoid behind fitting in memory, in a stream and on several machines. Does not know
what the vectors are.
"""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from refusal_lens.errors import RefusalLensError


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Count, mean and sum of squared deviations of a set of activations, in float64.

    Two of them merge into that of the union, so that prompts can be taken in any order, in shards
    or on several machines.
    """

    count: int
    mean: Float[Tensor, "*grid d_model"]
    m2: Float[Tensor, "*grid d_model"]

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """Return the moments of both sets together.

        Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for
        computing sample variances", eq. 2.1.
        """
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta**2 * (self.count * other.count / count)
        return ClassMoments(count, mean, m2)


def class_moments(values: Float[Tensor, "n_prompts *grid d_model"]) -> ClassMoments:
    """Return the moments of activations over their first axis.

    Raises:
        RefusalLensError: There are no activations.

    Example:
        >>> class_moments(torch.tensor([[1.0], [3.0]])).mean
        tensor([2.], dtype=torch.float64)
    """
    if values.shape[0] == 0:
        raise RefusalLensError("The mean of a class needs at least one prompt; it has none.")
    exact = values.double()
    mean = exact.mean(dim=0)
    return ClassMoments(values.shape[0], mean, ((exact - mean) ** 2).sum(dim=0))


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of both classes at every place: all that fitting needs, whatever the prompts' number.

    `provenance` says which model, prompts and template they came from, as plain values.
    """

    harmful: ClassMoments
    harmless: ClassMoments
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
