"""Pooled activations: what is collected, stored and fitted.

Knows neither how they come about nor files.

Tested in tests/activations/test_collector.py.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.prompts.groups import Groups
from refusal_lens.prompts.positions import normalise_position


@dataclass(frozen=True, eq=False)
class Activations:
    """Pooled activations of every prompt, float32, in the order the prompts came in.

    Read from one float32 shard, `values` lie in the file until they are touched. `provenance` says
    which model, prompts and template they came from, as plain values. `groups` say which prompts
    depend on each other; none do where nothing is said.
    """

    values: Float[Tensor, "n_prompts n_hook_points n_positions d_model"]
    is_harmful: Bool[Tensor, " n_prompts"]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    groups: Groups = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.groups is None:
            object.__setattr__(self, "groups", Groups.independent(len(self.is_harmful)))

    def take(self, rows: Any) -> "Activations":
        """Return the activations of some prompts, by their indices or a mask."""
        return replace(
            self,
            values=self.values[rows],
            is_harmful=self.is_harmful[rows],
            groups=self.groups.take(rows),
        )

    def at(self, hook_point: str, position: str) -> Float[Tensor, "n_prompts d_model"]:
        """Return the activations at one hook point and position."""
        return self.values[
            :,
            self.hook_points.index(hook_point),
            self.positions.index(normalise_position(position)),
        ]

    def only_at(self, hook_point: str, position: str) -> "Activations":
        """Return the activations at one place, as a grid of one."""
        values = self.at(hook_point, position)[:, None, None]
        positions = (normalise_position(position),)
        return replace(self, values=values, hook_points=(hook_point,), positions=positions)

    def __repr__(self) -> str:
        """Say how much was collected and where."""
        n, d = len(self.is_harmful), self.values.shape[-1]
        return (
            f"Activations({n} prompts ({int(self.is_harmful.sum())} harmful), "
            f"{len(self.hook_points)} hook points, positions {', '.join(self.positions)}, "
            f"d_model {d})"
        )
