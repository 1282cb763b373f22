"""Files of directions, this project's and others', in and out.

Knows which format a file is and who reads and writes it. What each layout means stands in the
module of its family.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import Direction, Directions
from refusal_lens.directions.formats import (
    abliteration,
    arrays,
    article,
    control_vector,
    native,
    refusal_direction,
    stacked,
    svec,
)
from refusal_lens.directions.formats.layouts import Found, ReadHints, WriteContext, to_directions
from refusal_lens.directions.formats.native import save_directions
from refusal_lens.directions.formats.refusal_direction import describe, read_scores
from refusal_lens.directions.formats.steering_vectors import (
    from_steering_vector,
    to_steering_vector,
)
from refusal_lens.directions.formats.torch_files import load_tensors
from refusal_lens.directions.guard import reading
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.prompts.positions import normalise_position

__all__ = [
    "FORMATS",
    "from_steering_vector",
    "read_directions",
    "read_scores",
    "save_directions",
    "take",
    "to_steering_vector",
    "write_directions",
]


@dataclass(frozen=True)
class Format:
    """Who reads and writes a format, and how its files are called."""

    read: Callable[[Path, ReadHints], Found]
    write: Callable[[Sequence[Direction], Path, WriteContext], None]
    suffixes: tuple[str, ...]
    is_raw: bool = True


FORMATS = {
    "article": Format(article.read, article.write, (".pt",)),
    "refusal_direction": Format(refusal_direction.read, refusal_direction.write, (".pt",)),
    "llm-abliteration": Format(abliteration.read, abliteration.write, (".pt",)),
    "persona_vectors": Format(stacked.read_persona, stacked.write_persona, (".pt",)),
    "assistant_axis": Format(stacked.read_axis, stacked.write_axis, (".pt",)),
    "svec": Format(svec.read, svec.write, (".svec",), is_raw=False),
    "gguf": Format(control_vector.read, control_vector.write, (".gguf",)),
    "numpy": Format(arrays.read, arrays.write, (".npz", ".npy")),
}
"""Every format by name; `is_raw` where files hold vectors of their raw length."""

SAFETENSORS = ".safetensors"


def read_directions(
    path: str | Path,
    format: str | None = None,
    *,
    n_layers: int | None = None,
    hook_point: str | None = None,
    position: str | None = None,
) -> Directions:
    """Read the directions of a file, of this project or another.

    Layers are converted to hook points at once. What has none is left out, with a warning that says
    why; `provenance["imported"]` says where the rest came from and whether it is of unit length. A
    file of a run keeps the provenance that it was written with. Nothing pickled is opened.

    Args:
        path: The file, such as `directions.safetensors` or `refusal_direction.pt` of a run.
        format: A key of `FORMATS`; None finds it out.
        n_layers: Blocks of the model, where the file does not say.
        hook_point: Where a bare vector stands.
        position: Where the vectors were read, for formats that do not say; None for `last`.

    Returns:
        Directions; unclipped, but where the file tells a clip of this project.

    Raises:
        RefusalLensError: The file is of another format or of none known, is damaged, holds pickled
            objects, or leaves open where its vectors stand.

    Example:
        >>> from refusal_lens import fit_directions
        >>> directions = fit_directions(activations)
        >>> write_directions(directions["blocks.2.hook_resid_post", "last"], tmp_path / "a.npz")
        >>> read_directions(tmp_path / "a.npz").hook_points
        ('blocks.2.hook_resid_post',)
    """
    path = Path(path)
    with reading(path):
        if path.suffix == SAFETENSORS and format is None:
            return native.read(path)
        name = format or _find_format(path)
        found = _format(name).read(path, ReadHints(n_layers, hook_point, position))
        return to_directions(found, path, name)


def write_directions(
    directions: Direction | Sequence[Direction] | Directions,
    path: str | Path,
    format: str | None = None,
    *,
    n_layers: int | None = None,
    activations: Activations | None = None,
    scores: pd.DataFrame | None = None,
) -> None:
    """Write directions as another project does, whole or not at all.

    Vectors keep their raw length, but in `.svec`. A direction that the format has no home for is
    refused with the reason; out of a whole grid it is left out with a warning, while any stays.

    Args:
        directions: A grid, or some of it.
        path: The file; `.safetensors` is this project's own, for grids.
        format: A key of `FORMATS`; None takes it from the suffix where that says enough.
        n_layers: Blocks of the model; None takes them from the directions' provenance.
        activations: What they were fitted to; llm-abliteration's file wants the class means.
        scores: A run's separation.csv, for the article's file.

    Raises:
        RefusalLensError: The format is not known, or has no home for these directions.
    """
    path = Path(path)
    is_grid = isinstance(directions, Directions)
    if path.suffix == SAFETENSORS and format is None and isinstance(directions, Directions):
        save_directions(path, directions)
        return
    listed = [directions] if isinstance(directions, Direction) else list(directions)
    if not listed:
        raise RefusalLensError("There is no direction to write.")
    chosen = _format(format or _format_of_suffix(path))
    provenance = listed[0].provenance
    if chosen.is_raw and provenance.get("imported", {}).get("is_unit"):
        warnings.warn(
            f"{provenance['imported']['file']} held unit vectors only: {path} gets these, and not "
            "vectors of raw length.",
            RefusalLensWarning,
            stacklevel=2,
        )
    known = n_layers or provenance.get("model", {}).get("n_layers")
    chosen.write(listed, path, WriteContext(known, activations, scores, is_strict=not is_grid))


def take(
    directions: Directions, hook_points: Sequence[str], positions: Sequence[str]
) -> Directions:
    """Return the grid of some hook points and positions; refuse positions that are not there."""
    wanted = [normalise_position(name) for name in positions]
    absent = [name for name in wanted if name not in directions.positions]
    if absent:
        raise RefusalLensError(
            f"There is no direction at position {', '.join(absent)}. Positions: "
            f"{', '.join(directions.positions)}."
        )
    rows = [directions.hook_points.index(name) for name in hook_points]
    columns = [directions.positions.index(name) for name in wanted]
    return Directions(
        directions.vectors[rows][:, columns],
        directions.is_kept[rows][:, columns],
        tuple(hook_points),
        tuple(directions.positions[column] for column in columns),
        directions.method,
        directions.clip_quantile,
        directions.provenance,
    )


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise RefusalLensError(f"There is no format {name!r}. There are: {', '.join(FORMATS)}.")
    return FORMATS[name]


def _format_of_suffix(path: Path) -> str:
    fitting = [name for name, each in FORMATS.items() if path.suffix in each.suffixes]
    if len(fitting) != 1:
        raise RefusalLensError(
            f"{path.name} may be of any of these formats: {', '.join(fitting or FORMATS)}. "
            "Name one (--format)."
        )
    return fitting[0]


def _find_format(path: Path) -> str:
    """Find out a file's format from its name, or from what it holds."""
    if path.suffix not in (".pt", ".pth", ".bin", ""):
        return _format_of_suffix(path)
    content: Any = load_tensors(path)
    if isinstance(content, dict):
        for key, name in (
            ("num_layers", "article"),
            ("layers", "llm-abliteration"),
            ("axis", "assistant_axis"),
        ):
            if key in content:
                return name
    is_one = isinstance(content, Tensor) and content.ndim == 2 and len(content) == 1
    if is_one or (isinstance(content, Tensor) and content.ndim in (1, 3)):
        return "refusal_direction"
    if isinstance(content, Tensor) and content.ndim == 2:
        raise RefusalLensError(
            f"{path} holds {describe(content)}: rows may be inputs of blocks (persona_vectors) or "
            "outputs (assistant_axis). Name the format (--format)."
        )
    raise RefusalLensError(
        f"{path} holds {describe(content)}, which is no format known here: {', '.join(FORMATS)}."
    )
