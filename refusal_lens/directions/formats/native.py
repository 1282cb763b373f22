"""`directions.safetensors`: this project's file, with everything directions came from inside it.

Knows its tensors and its header. Does not know what else a run holds.

Tested in tests/directions/test_formats.py.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from refusal_lens.directions.direction import Directions
from refusal_lens.directions.guard import SEAL, check_seal, check_vector, sealed
from refusal_lens.errors import RefusalLensError
from refusal_lens.files import write_whole

FORMAT = "refusal-lens directions 1"


def save_directions(path: str | Path, directions: Directions) -> None:
    """Write raw directions as safetensors, with what they are in the file's header."""
    header = {
        "format": FORMAT,
        "hook_points": json.dumps(directions.hook_points),
        "positions": json.dumps(directions.positions),
        "method": directions.method,
        "clip_quantile": json.dumps(directions.clip_quantile),
        "provenance": json.dumps(directions.provenance, ensure_ascii=False),
    }
    tensors = {"vectors": directions.vectors, "is_kept": directions.is_kept}
    header[SEAL] = sealed({**header, **tensors})[SEAL]
    with write_whole(Path(path)) as file:
        file.write_bytes(save(tensors, metadata=header))


def read(path: Path) -> Directions:
    """Read what `save_directions` wrote, and refuse anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("vectors", "is_kept")}
        check_seal({**header, **tensors}, path)
        directions = Directions(
            tensors["vectors"],
            tensors["is_kept"],
            tuple(json.loads(header["hook_points"])),
            tuple(json.loads(header["positions"])),
            header["method"],
            json.loads(header["clip_quantile"]),
            json.loads(header["provenance"]),
        )
    except (SafetensorError, KeyError) as error:
        raise RefusalLensError(
            f"{path} holds no directions of refusal_lens ({error}). Give directions.safetensors or "
            "refusal_direction.pt of a run."
        ) from error
    _check_grid(directions, path)
    return directions


def _check_grid(directions: Directions, path: Path) -> None:
    """Make sure that shapes are those of the names, and kept vectors are vectors."""
    vectors, n = directions.vectors, (len(directions.hook_points), len(directions.positions))
    if vectors.ndim != 3 or vectors.shape[:2] != n or directions.is_kept.shape != n:
        raise RefusalLensError(
            f"{path} has vectors of shape {list(vectors.shape)} for {n[0]} hook points and {n[1]} "
            "positions: it is damaged. Write it again: refusal-lens fit RUN."
        )
    for direction in directions:
        check_vector(direction.vector, f"{direction.hook_point}, {direction.position}")
