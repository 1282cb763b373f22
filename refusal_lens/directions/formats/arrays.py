"""NumPy files: an array a hook point in `.npz`, bare vectors in `.npy`.

Knows how they are laid out. Never opens arrays of Python objects, which are pickles.

Tested in tests/directions/test_formats.py.
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from refusal_lens.directions.direction import Direction
from refusal_lens.directions.formats import layouts
from refusal_lens.directions.guard import refuse_bomb
from refusal_lens.errors import RefusalLensError
from refusal_lens.files import write_whole
from refusal_lens.models.hook_points import OUTSIDE_BLOCKS, layer_of


def read(path: Path, hints: layouts.ReadHints) -> layouts.Found:
    """Read `.npz` (`{hook point: [n_positions, d_model], "positions": [...]}`) or `.npy`.

    A `.npy` holds one vector, or `[n_layers, d_model]`; where it stands is the hint's hook point.
    For several layers its layer is that of the first row.
    """
    content = _load(path)
    if isinstance(content, np.ndarray):
        return _read_bare(content, path, hints)
    return _read_named(content, path, hints)


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    refuse_bomb(path)
    try:
        # Mapped: a shape that the file does not hold is refused and not allocated.
        content = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(content, np.ndarray):
            return np.array(content)
        with content as zipped:
            arrays = {name: zipped[name] for name in zipped.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RefusalLensError(
            f"{path} is no NumPy file of plain numbers ({error}). Arrays of objects are pickles, "
            "and are never opened."
        ) from error
    if not all(isinstance(values, np.ndarray) for values in arrays.values()):
        raise RefusalLensError(f"{path} is a zip file, but not one of NumPy arrays.")
    return arrays


def _read_named(
    arrays: dict[str, np.ndarray], path: Path, hints: layouts.ReadHints
) -> layouts.Found:
    header = json.loads(str(arrays.pop("header", "{}")))
    positions = [str(position) for position in arrays.pop("positions", [])]
    positions = positions or [hints.position or "last"]
    vectors = {}
    for hook_point, values in arrays.items():
        if layer_of(hook_point) is None and hook_point not in OUTSIDE_BLOCKS:
            raise RefusalLensError(
                f"Arrays are named by their hook points (blocks.3.hook_resid_post); {path} has "
                f"one named {hook_point}."
            )
        if np.atleast_2d(values).shape[0] != len(positions):
            raise RefusalLensError(
                f"{path} has {len(positions)} positions, but {hook_point} has shape "
                f"{list(values.shape)}; [n_positions, d_model] is needed."
            )
        for position, vector in zip(positions, np.atleast_2d(values), strict=True):
            vectors[hook_point, position] = _tensor(vector, path)
    n_layers = hints.n_layers or header.get("n_layers")
    clip_quantile = header.get("clip_quantile")
    method = header.get("method", layouts.IMPORTED)
    return layouts.Found(vectors, method, n_layers, header.get("model"), clip_quantile)


def _read_bare(values: np.ndarray, path: Path, hints: layouts.ReadHints) -> layouts.Found:
    if hints.hook_point is None or values.ndim not in (1, 2):
        raise RefusalLensError(
            f"{path} holds an array of shape {list(values.shape)} and no word on where it stands. "
            "A vector, or one a layer, can be read with a hook point (--hook-point "
            "blocks.0.hook_resid_post: that of the first row)."
        )
    prefix, layer, site = _split(hints.hook_point, is_layered=values.ndim == 2)
    vectors = {
        (
            f"{prefix}{layer + row}{site}" if values.ndim == 2 else hints.hook_point,
            hints.position or "last",
        ): _tensor(vector, path)
        for row, vector in enumerate(np.atleast_2d(values))
    }
    return layouts.Found(vectors, layouts.IMPORTED, hints.n_layers)


def _tensor(vector: np.ndarray, path: Path) -> torch.Tensor:
    """Take numbers of any width and byte order as float64."""
    if vector.dtype.kind not in "fiu":
        raise RefusalLensError(f"{path} holds {vector.dtype}, and needs to hold real numbers.")
    return torch.from_numpy(vector.astype(np.float64))


def _split(hook_point: str, *, is_layered: bool) -> tuple[str, int, str]:
    """Take `blocks.3.hook_resid_post` apart at its layer."""
    parts = hook_point.split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdecimal():
        return "blocks.", int(parts[1]), f".{parts[2]}"
    if is_layered:
        raise RefusalLensError(
            f"Rows of layers need a hook point inside the blocks; {hook_point} came."
        )
    return "", 0, ""


def write(directions: Sequence[Direction], path: Path, context: layouts.WriteContext) -> None:
    """Write raw vectors: one as `.npy`; any number as `.npz`, with positions and a JSON header."""
    if path.suffix == ".npy":
        if len(directions) != 1:
            raise RefusalLensError(
                f"A .npy file holds one array, here one direction; {len(directions)} came. "
                "Give a name that ends in .npz."
            )
        with write_whole(path) as file, file.open("wb") as stream:
            np.save(stream, layouts.raw_vector(directions[0]).numpy())
        return
    positions = list(dict.fromkeys(direction.position for direction in directions))
    arrays = {}
    for direction in directions:
        blank = np.full((len(positions), direction.vector.numel()), np.nan)
        row = arrays.setdefault(direction.hook_point, blank)
        row[positions.index(direction.position)] = layouts.raw_vector(direction).numpy()
    header = {
        "model": directions[0].provenance.get("model", {}).get("name"),
        "n_layers": context.n_layers,
        "method": directions[0].method,
        "clip_quantile": directions[0].clip_quantile,
    }
    with write_whole(path) as file, file.open("wb") as stream:
        np.savez(stream, positions=positions, header=json.dumps(header), **arrays)
