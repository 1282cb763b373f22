"""Directions from activations: pure tensor maths.

Knows places, clipping and unit length. Does not know models,
files or how good a direction is.
"""

import html
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.activations.moments import Moments
from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS, fit_grid, fit_means
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.models.hook_points import layer_of, place_index, site_of

CLIP_QUANTILE = 0.995
"""Quantile of the absolute components at which a direction is clamped, as in the article."""


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction of the residual stream.

    `vector` is the difference as it is, in the activations' own units; `unit` is what projections
    and ablations use. `provenance` says what it was fitted to.
    """

    vector: Float[Tensor, " d_model"]
    hook_point: str
    position: str
    method: str = DIFFERENCE_OF_MEANS
    clip_quantile: float | None = CLIP_QUANTILE
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def unit(self) -> Float[Tensor, " d_model"]:
        """The vector clipped, then scaled to length one; float32."""
        return normalise(clip(self.vector, self.clip_quantile)).float()

    @property
    def layer(self) -> int | None:
        """Block index of the hook point."""
        return layer_of(self.hook_point)

    def __repr__(self) -> str:
        """Say where the direction stands and how long it is."""
        return (
            f"Direction({self.hook_point}, {self.position}, {self.method}, "
            f"d_model {self.vector.numel()}, length {self.vector.norm().item():.4g})"
        )


@dataclass(frozen=True, eq=False)
class Directions:
    """The grid of directions, one for each hook point and position.

    `is_kept` is False where the difference was zero or not finite: there is no direction there.
    """

    vectors: Float[Tensor, "n_hook_points n_positions d_model"]
    is_kept: Bool[Tensor, "n_hook_points n_positions"]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    method: str = DIFFERENCE_OF_MEANS
    clip_quantile: float | None = CLIP_QUANTILE
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, place: tuple[str, str]) -> Direction:
        """Return the direction at `(hook_point, position)`.

        Raises:
            RefusalLensError: There is none, because nothing was collected there or the classes do
                not differ there.
        """
        try:
            row, column = place_index(self.hook_points, self.positions, place, "these directions")
        except RefusalLensError as error:
            if isinstance(place, str):
                raise
            raise RefusalLensError(
                f"There is no direction at {place[0]}, {place[1]}. Hook points: "
                f"{', '.join(self.hook_points)}. Positions: {', '.join(self.positions)}."
            ) from error
        hook_point, position = self.hook_points[row], self.positions[column]
        if not self.is_kept[row, column]:
            raise RefusalLensError(
                f"Harmful and harmless prompts have the same mean at {hook_point}, {position}: "
                "there is no direction. Choose another hook point or position."
            )
        return Direction(
            self.vectors[row, column],
            hook_point,
            position,
            self.method,
            self.clip_quantile,
            self.provenance,
        )

    def __iter__(self) -> Iterator[Direction]:
        """Go through the directions that exist, hook point by hook point."""
        for row, hook_point in enumerate(self.hook_points):
            for column, position in enumerate(self.positions):
                if self.is_kept[row, column]:
                    yield self[hook_point, position]

    def __repr__(self) -> str:
        """Say how many directions there are, and where."""
        return (
            f"Directions({int(self.is_kept.sum())} of {self.is_kept.numel()} places, "
            f"{len(self.hook_points)} hook points, positions {', '.join(self.positions)}, "
            f"{self.method})"
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row a place: where it is, whether there is a direction, and its raw length.

        Lengths are in the activations' units; they grow with depth and choose no layer.
        """
        rows = [
            {
                "hook_point": hook_point,
                "site": site_of(hook_point),
                "layer": layer_of(hook_point),
                "position": position,
                "is_kept": bool(self.is_kept[row, column]),
                "length": self.vectors[row, column].norm().item(),
            }
            for row, hook_point in enumerate(self.hook_points)
            for column, position in enumerate(self.positions)
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Show the places as a table in notebooks."""
        table = self.to_frame().to_html(index=False, float_format="{:.4g}".format, na_rep="")
        return f"<p>{html.escape(repr(self))}</p>{table}"


def fit_directions(
    activations: Activations | Moments,
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
    method: str = DIFFERENCE_OF_MEANS,
) -> Directions:
    """Fit one direction at each hook point and position: harmful mean minus harmless mean.

    Args:
        activations: Activations of both classes, or their moments (`collect_moments`), which
            serve methods that need the class means alone.
        clip_quantile: Clamp components to plus/minus this quantile of their absolute values before
            scaling to unit length; None leaves them.
        method: Another way to fit, by its name in `methods.METHODS`.

    Returns:
        Directions, in float64 before clipping. Places where the difference is zero or not finite
        are marked, with a warning that names them.

    Raises:
        RefusalLensError: A class is empty, there is no such method, or moments are not enough.

    Source:
        Difference of means: Arditi et al. 2024, arXiv 2406.11717, section 2.3.

    Example:
        >>> fit_directions(activations)["blocks.1.hook_resid_post", "last"].unit.shape
        torch.Size([32])
    """
    if not isinstance(activations, Activations | Moments):
        raise RefusalLensError(
            f"Directions are fitted to Activations or Moments, but {type(activations).__name__} "
            "came. rl.collect and rl.load_activations give Activations."
        )
    if isinstance(activations, Moments):
        vectors, is_kept = fit_means(activations.harmful, activations.harmless, method)
        n_harmful, n_harmless = activations.harmful.count, activations.harmless.count
    else:
        vectors, is_kept = fit_grid(activations.values, activations.is_harmful, method)
        n_harmful = int(activations.is_harmful.sum())
        n_harmless = len(activations.is_harmful) - n_harmful
    _warn_of_dropped(is_kept, activations.hook_points, activations.positions)
    return Directions(
        vectors,
        is_kept,
        activations.hook_points,
        activations.positions,
        method=method,
        clip_quantile=clip_quantile,
        provenance={
            **activations.provenance,
            "fit": {
                "method": method,
                "clip_quantile": clip_quantile,
                "n_harmful": n_harmful,
                "n_harmless": n_harmless,
            },
        },
    )


def clip(
    vectors: Float[Tensor, "*grid d_model"], quantile: float | None
) -> Float[Tensor, "*grid d_model"]:
    """Clamp components to plus/minus a quantile of their absolute values, vector by vector.

    Keeps a few outsize coordinates from being most of a direction. None leaves vectors as they are.

    Example:
        >>> clip(torch.tensor([1.0, -2.0, 9.0]), 0.5)
        tensor([ 1., -2.,  2.])
    """
    if quantile is None:
        return vectors
    if not 0 <= quantile <= 1:
        raise RefusalLensError(
            f"A quantile to clip at lies from 0 to 1, but {quantile} came. 0.995 is the "
            "usual one; None does not clip."
        )
    threshold = torch.quantile(vectors.abs(), quantile, dim=-1, keepdim=True)
    return torch.minimum(torch.maximum(vectors, -threshold), threshold)


def normalise(vectors: Float[Tensor, "*grid d_model"]) -> Float[Tensor, "*grid d_model"]:
    """Scale vectors to length one."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def project(
    values: Float[Tensor, "*grid d_model"], unit: Float[Tensor, " d_model"]
) -> Float[Tensor, "*grid"]:
    """Return the signed length of activations along a unit direction, in the activations' units."""
    if values.shape[-1] != unit.shape[-1]:
        raise RefusalLensError(
            f"The direction has {unit.shape[-1]} components and the activations have "
            f"{values.shape[-1]}: they are of two models or kinds of hook point."
        )
    return values.double() @ unit.double()


def cosine_project(
    values: Float[Tensor, "*grid d_model"], unit: Float[Tensor, " d_model"]
) -> Float[Tensor, "*grid"]:
    """Return the projection divided by the activation's own length, in [-1, 1]."""
    return project(values, unit) / values.double().norm(dim=-1)


def _warn_of_dropped(
    is_kept: Bool[Tensor, "n_hook_points n_positions"],
    hook_points: tuple[str, ...],
    positions: tuple[str, ...],
) -> None:
    dropped = [
        f"{hook_points[row]}, {positions[column]}" for row, column in (~is_kept).nonzero().tolist()
    ]
    if dropped:
        warnings.warn(
            "No direction where the classes have the same mean (to within rounding) or a mean "
            f"that is not finite: {'; '.join(dropped)}. At a token of the chat template that "
            "comes before anything of the prompt has been read, this is to be expected.",
            RefusalLensWarning,
            stacklevel=3,
        )
