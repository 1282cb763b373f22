"""Layer conventions of other projects, and grids of directions built by them.

Knows which hook point an index means, which has no home, and what an imported grid records. Does
not know any file.

Tested in tests/directions/test_formats.py.
"""

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import Direction, Directions
from refusal_lens.directions.guard import check_vector
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS, ROUNDING
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.models.hook_points import layer_of, site_of
from refusal_lens.prompts.positions import normalise_position

IMPORTED = "imported"
"""Method of directions whose file does not say how they were fitted."""


@dataclass(frozen=True)
class Layout:
    """How a format counts layers: index k is the input of block k, or its output.

    Indices run from `first` to `n_layers - 1 - n_spared`; `why_not` says what stands outside.
    """

    name: str
    index_is: Literal["input", "output"]
    why_not: str
    first: int = 0
    n_spared: int = 0
    method: str = DIFFERENCE_OF_MEANS

    def hook_point(self, index: int) -> str:
        """Return the hook point that an index means.

        Example:
            >>> Layout("any", "input", "").hook_point(3)
            'blocks.3.hook_resid_pre'
        """
        return f"blocks.{index}.hook_resid_{'pre' if self.index_is == 'input' else 'post'}"

    def index(self, hook_point: str, n_layers: int | None) -> int:
        """Return the index of a hook point: the output of a block is the input of the next.

        A hook point without a home in this format is refused; without `n_layers` the upper end is
        not checked.

        Example:
            >>> Layout("any", "input", "").index("blocks.3.hook_resid_post", 8)
            4
        """
        site, layer = site_of(hook_point), layer_of(hook_point)
        if layer is None or site not in ("resid_pre", "resid_post"):
            raise RefusalLensError(
                f"{hook_point} has no home in {self.name}, which holds the stream between blocks "
                "only: resid_pre or resid_post."
            )
        index = layer
        if site == "resid_pre" and self.index_is == "output":
            index = layer - 1
        elif site == "resid_post" and self.index_is == "input":
            index = layer + 1
        if index < self.first or (n_layers is not None and index > n_layers - 1 - self.n_spared):
            raise RefusalLensError(f"{hook_point} has no home in {self.name}: {self.why_not}.")
        return index


@dataclass(frozen=True)
class ReadHints:
    """What a file does not say of itself.

    `n_layers` counts the model's blocks; `hook_point` and `position` are where a file's vectors
    stand if it does not tell.
    """

    n_layers: int | None = None
    hook_point: str | None = None
    position: str | None = None


@dataclass(frozen=True, eq=False)
class WriteContext:
    """What a format wants beside the directions.

    `activations` are those the directions were fitted to, `scores` a run's separation.csv. With
    `is_strict` a direction without a home is a fault; without, it is left out with a warning.
    """

    n_layers: int | None = None
    activations: Activations | None = None
    scores: pd.DataFrame | None = None
    is_strict: bool = True


@dataclass(frozen=True, eq=False)
class Found:
    """Vectors read from a file, by hook point and position, and what is known of them.

    `provenance` is the record that a file of this project holds, and None for other projects'.
    """

    vectors: Mapping[tuple[str, str], Tensor]
    method: str = IMPORTED
    n_layers: int | None = None
    model_name: str | None = None
    clip_quantile: float | None = None
    left_out: Sequence[str] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] | None = None


def to_directions(found: Found, path: Path | None, format_name: str) -> Directions:
    """Lay imported vectors out as a grid, as they are, in float64.

    Provenance is the file's own record. Where it has none, it says which file they come from,
    whether they are all of unit length (then the length of the difference is lost, and `vector` is
    no raw difference), and what was left out.
    """
    if not found.vectors:
        raise RefusalLensError(
            f"{path or 'The object'} holds no direction that has a place here"
            + (f": {'; '.join(found.left_out)}." if found.left_out else ".")
        )
    hook_points = tuple(dict.fromkeys(place[0] for place in found.vectors))
    positions = tuple(dict.fromkeys(normalise_position(place[1]) for place in found.vectors))
    vectors = _fill(found.vectors, hook_points, positions)
    lengths = vectors.norm(dim=-1)
    is_finite = torch.isfinite(lengths)
    longest = lengths[is_finite].max() if bool(is_finite.any()) else torch.tensor(0.0)
    is_kept = is_finite & (lengths > ROUNDING * longest)
    if not bool(is_kept.any()):
        raise RefusalLensError(f"{path or 'The object'} holds no direction: all are zero or NaN.")
    provenance = found.provenance
    if provenance is None:
        is_unit = bool(((lengths[is_kept] - 1).abs() < 1e-3).all())
        provenance = _record_import(found, path, format_name, is_unit)
    if found.left_out:
        warnings.warn(
            f"Left out of {path or 'the object'}: {'; '.join(found.left_out)}.",
            RefusalLensWarning,
            stacklevel=3,
        )
    return Directions(
        vectors, is_kept, hook_points, positions, found.method, found.clip_quantile, provenance
    )


def _record_import(
    found: Found, path: Path | None, format_name: str, is_unit: bool
) -> dict[str, Any]:
    model = {"name": found.model_name, "n_layers": found.n_layers}
    return {
        "model": {key: value for key, value in model.items() if value is not None},
        "imported": {
            "format": format_name,
            "file": None if path is None else path.name,
            "sha256": None if path is None else hashlib.sha256(path.read_bytes()).hexdigest(),
            "is_unit": is_unit,
            "left_out": list(found.left_out),
            **found.notes,
        },
    }


def _fill(
    vectors: Mapping[tuple[str, str], Tensor],
    hook_points: Sequence[str],
    positions: Sequence[str],
) -> Float[Tensor, "n_hook_points n_positions d_model"]:
    """Put vectors into a grid of their own storage; what is missing is NaN."""
    sizes = {
        tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        for vector in vectors.values()
    }
    if len(sizes) > 1 or len(next(iter(sizes))) != 1:
        raise RefusalLensError(
            "Each direction is one vector, of the same size as all others; the file holds "
            f"{', '.join(sorted(map(str, sizes)))}."
        )
    grid = torch.full(
        (len(hook_points), len(positions), *next(iter(sizes))), torch.nan, dtype=torch.float64
    )
    for (hook_point, position), vector in vectors.items():
        check_vector(vector, f"{hook_point}, {position}")
        row, column = hook_points.index(hook_point), positions.index(normalise_position(position))
        grid[row, column] = vector.double()
    return grid


def read_rows(
    rows: Mapping[int, Tensor], layout: Layout, hints: ReadHints
) -> tuple[dict[tuple[str, str], Tensor], list[str]]:
    """Give vectors by index their hook points; say what has none."""
    placed, left_out = {}, []
    for index, vector in rows.items():
        hook_point = layout.hook_point(index)
        try:
            layout.index(hook_point, hints.n_layers)
        except RefusalLensError:
            left_out.append(f"index {index} ({layout.why_not})")
            continue
        placed[hook_point, hints.position or "last"] = vector
    return placed, left_out


def place(
    directions: Iterable[Direction], layout: Layout, context: WriteContext
) -> dict[int, Direction]:
    """Give the directions of one position their indices in a format.

    Raises:
        RefusalLensError: They are of several positions; two are the same place (the output of a
            block and the input of the next); one has no home, in a strict context; or none has.
    """
    placed: dict[int, Direction] = {}
    homeless = []
    listed = list(directions)
    one_position(listed, layout.name)
    for direction in listed:
        try:
            index = layout.index(direction.hook_point, context.n_layers)
        except RefusalLensError as error:
            if context.is_strict:
                raise
            homeless.append(str(error).removesuffix("."))
            continue
        if index in placed:
            raise RefusalLensError(
                f"{placed[index].hook_point} and {direction.hook_point} are the same place; "
                f"{layout.name} holds one direction there. Choose one site."
            )
        placed[index] = direction
    if not placed:
        raise RefusalLensError("; ".join(homeless) + "." if homeless else "There is no direction.")
    if homeless:
        warnings.warn(f"Left out: {'; '.join(homeless)}.", RefusalLensWarning, stacklevel=4)
    return dict(sorted(placed.items()))


def one_position(directions: Sequence[Direction], name: str) -> str:
    """Return the position of all directions; refuse several."""
    positions = list(dict.fromkeys(direction.position for direction in directions))
    if len(positions) > 1:
        raise RefusalLensError(
            f"{name} holds directions of one position; these are of {', '.join(positions)}. "
            "Choose one."
        )
    return positions[0] if positions else "last"


def stack_rows(placed: Mapping[int, Direction], n_rows: int) -> Float[Tensor, "n_rows d_model"]:
    """Stack raw vectors by index; rows that have none are NaN, which fails loudly where zero acts.

    Warns of those rows by name.
    """
    d_model = next(iter(placed.values())).vector.numel()
    stacked = torch.full((n_rows, d_model), torch.nan, dtype=torch.float64)
    for index, direction in placed.items():
        stacked[index] = raw_vector(direction)
    missing = [str(index) for index in range(n_rows) if index not in placed]
    if missing:
        warnings.warn(
            f"No direction for rows {', '.join(missing)}: they are written as NaN.",
            RefusalLensWarning,
            stacklevel=4,
        )
    return stacked


def raw_vector(direction: Direction) -> Float[Tensor, " d_model"]:
    """Return the vector as it is, in float64 on the CPU and in storage of its own."""
    return direction.vector.detach().cpu().to(torch.float64, copy=True)


def need_n_layers(n_layers: int | None, what: str) -> int:
    """Return how many blocks the model has; refuse to go on where nobody says."""
    if n_layers is None:
        raise RefusalLensError(
            f"{what} needs to know how many layers the model has. Give n_layers (--n-layers)."
        )
    return n_layers
