"""Pooled activations: what is collected, stored and fitted.

Knows neither how they come about nor files.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.models.hook_points import place_index
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.prompts.groups import Groups


@dataclass(frozen=True, eq=False)
class Activations:
    """Pooled activations of every prompt, float32, in the order the prompts came in.

    Read from one float32 shard, `values` lie in the file until they are touched. `provenance` says
    which model, prompts and template they came from, as plain values. `groups` say which prompts
    depend on each other; none do where nothing is said. `prompts` are the prompts themselves, where
    they are known.

    `activations["resid_post:3", "last"]` is one place, a row a prompt.
    """

    values: Float[Tensor, "n_prompts n_hook_points n_positions d_model"]
    is_harmful: Bool[Tensor, " n_prompts"]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    groups: Groups = None  # type: ignore[assignment]
    prompts: tuple[Prompt, ...] = ()

    def __post_init__(self) -> None:
        if self.groups is None:
            object.__setattr__(self, "groups", Groups.independent(len(self.is_harmful)))

    def take(self, rows: Any) -> "Activations":
        """Return the activations of some prompts, by their indices or a mask."""
        kept = torch.arange(len(self.is_harmful))[rows].tolist()
        return replace(
            self,
            values=self.values[rows],
            is_harmful=self.is_harmful[rows],
            groups=self.groups.take(rows),
            prompts=self.prompts and tuple(self.prompts[row] for row in kept),
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The class of every prompt, as a word."""
        return tuple("harmful" if each else "harmless" for each in self.is_harmful.tolist())

    def __getitem__(self, place: tuple[str, str]) -> Float[Tensor, "n_prompts d_model"]:
        """Return the activations at `(hook_point, position)`.

        Raises:
            RefusalLensError: Nothing was collected there, or the hook point names several.
        """
        row, column = place_index(self.hook_points, self.positions, place, "these activations")
        return self.values[:, row, column]

    def at(self, hook_point: str, position: str) -> Float[Tensor, "n_prompts d_model"]:
        """Return the activations at one hook point and position, as `activations[...]` does."""
        return self[hook_point, position]

    def only_at(self, hook_point: str, position: str) -> "Activations":
        """Return the activations at one place, as a grid of one."""
        place = hook_point, position
        row, column = place_index(self.hook_points, self.positions, place, "these activations")
        return replace(
            self,
            values=self.values[:, row, column][:, None, None],
            hook_points=(self.hook_points[row],),
            positions=(self.positions[column],),
        )

    def __repr__(self) -> str:
        """Say how much was collected and where."""
        n, d = len(self.is_harmful), self.values.shape[-1]
        return (
            f"Activations({n} prompts ({int(self.is_harmful.sum())} harmful), "
            f"{len(self.hook_points)} hook points, positions {', '.join(self.positions)}, "
            f"d_model {d})"
        )
