"""The interventions that experiments compare: one row each in one table.

Knows where each acts and what it does to refusal. Does not know how one activation is changed, and
does not run the model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.interventions import ablate, add, clamp, residual_writes
from refusal_lens.models.backends import Model
from refusal_lens.models.hook_points import Hook, layer_of, site_of


@dataclass(frozen=True, eq=False)
class Steered:
    """What acts on each row of a batch.

    `unit` is what ablations take out; `vector` is what is added at strength 1; `mean` is the
    harmless mean.
    """

    unit: Float[Tensor, "batch d_model"]
    vector: Float[Tensor, "batch d_model"]
    mean: Float[Tensor, "batch d_model"]
    strength: Float[Tensor, " batch"]


@dataclass(frozen=True)
class Intervention:
    """One way to act on the residual stream with a direction.

    Args:
        name: What tables, settings and commands call it.
        title: What people read, in the middle of a sentence.
        effect: Whether it takes refusal away (tried on harmful prompts) or brings it about (on
            harmless ones).
        acts_at: `writes`: wherever the residual stream is written; `place`: at the direction's own
            hook point. Always on all tokens.
        unit: What strength 1 means, as the axis of a figure says it.
        hooks: Makes the hooks from the hook points and what acts on each row.
    """

    name: str
    title: str
    effect: Literal["removes", "adds"]
    acts_at: Literal["writes", "place"]
    unit: str
    hooks: Callable[[Sequence[str], Steered], list[Hook]]


def _ablate(hook_points: Sequence[str], rows: Steered) -> list[Hook]:
    return ablate(hook_points, rows.unit[:, None], strength=rows.strength)


def _affine_ablate(hook_points: Sequence[str], rows: Steered) -> list[Hook]:
    # Setting the projection to the harmless mean's is what affine ablation is.
    target = (rows.mean * rows.unit).sum(dim=-1, keepdim=True)
    return clamp(hook_points, rows.unit[:, None], target, strength=rows.strength)


def _add(hook_points: Sequence[str], rows: Steered) -> list[Hook]:
    return add(hook_points, (rows.vector * rows.strength[:, None])[:, None])


_SHARE = "strength (1: all)"

INTERVENTIONS = {
    each.name: each
    for each in (
        Intervention("ablate", "ablation at zero", "removes", "writes", _SHARE, _ablate),
        Intervention(
            "affine_ablate", "affine ablation", "removes", "place", _SHARE, _affine_ablate
        ),
        Intervention("add", "addition", "adds", "place", "coefficient (class differences)", _add),
    )
}
"""By name. A row here is all that commands, tables and figures need of one more."""

ADDITION = "add"
"""The intervention that the induce score is measured under."""


def intervention_of(name: str) -> Intervention:
    """Return an intervention by its name.

    Raises:
        RefusalLensError: There is none.

    Example:
        >>> intervention_of("affine_ablate").title
        'affine ablation'
    """
    if name not in INTERVENTIONS:
        known = ", ".join(INTERVENTIONS)
        raise RefusalLensError(f"There is no intervention {name!r}. Use {known}.")
    return INTERVENTIONS[name]


def removal_of(name: str) -> Intervention:
    """Return an intervention that takes refusal away.

    Raises:
        RefusalLensError: There is none of this name, or it brings refusal about.
    """
    found = intervention_of(name)
    if found.effect != "removes":
        raise RefusalLensError(
            f"A direction is chosen by what is left without it, and {name} adds it. Set "
            f"causal.intervention to {' or '.join(each.name for each in removals())}."
        )
    return found


def removals(first: str | None = None) -> list[Intervention]:
    """List the interventions that take refusal away, one of them first if so wished."""
    found = [each for each in INTERVENTIONS.values() if each.effect == "removes"]
    return sorted(found, key=lambda each: each.name != first)


@dataclass(frozen=True, eq=False)
class Arm:
    """One intervention with one direction: what is compared with the others."""

    intervention: str
    hook_point: str
    unit: Float[Tensor, " d_model"]
    vector: Float[Tensor, " d_model"]
    mean: Float[Tensor, " d_model"]
    strength: float = 1.0

    @property
    def first_layer(self) -> int:
        """The first block that it changes; those below are as in the plain model."""
        is_everywhere = intervention_of(self.intervention).acts_at == "writes"
        layer = layer_of(self.hook_point)
        if is_everywhere or layer is None:
            return 0
        # What comes out of a block goes into the next one.
        return layer + 1 if site_of(self.hook_point) == "resid_post" else layer

    @property
    def group(self) -> tuple[int, str, str]:
        """Arms of one group can share a batch."""
        is_everywhere = intervention_of(self.intervention).acts_at == "writes"
        return self.first_layer, self.intervention, "" if is_everywhere else self.hook_point


def arm_hooks(model: Model, arms: Sequence[Arm], n_rows: int) -> list[Hook]:
    """Return the hooks of a batch that holds the same rows once for each arm, arm after arm.

    Args:
        model: Of either backend.
        arms: Arms of one group.
        n_rows: Rows of each arm.
    """

    def spread(tensors: Iterable[Tensor]) -> Tensor:
        return torch.stack([t.float() for t in tensors]).repeat_interleave(n_rows, dim=0)

    acting = intervention_of(arms[0].intervention)
    rows = Steered(
        spread(arm.unit for arm in arms),
        spread(arm.vector for arm in arms),
        spread(arm.mean for arm in arms),
        torch.tensor([arm.strength for arm in arms]).repeat_interleave(n_rows),
    )
    is_everywhere = acting.acts_at == "writes"
    return acting.hooks(residual_writes(model) if is_everywhere else [arms[0].hook_point], rows)
