"""`directions.safetensors`: this project's file, with everything directions came from inside it.

Knows its tensors and its header. Does not know what else a run holds.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from refusal_lens.directions.direction import Directions
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
    with write_whole(Path(path)) as file:
        tensors = {"vectors": directions.vectors, "is_kept": directions.is_kept}
        save_file(tensors, file, metadata=header)


def read(path: Path) -> Directions:
    """Read what `save_directions` wrote.

    Raises:
        RefusalLensError: It is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            return Directions(
                file.get_tensor("vectors"),
                file.get_tensor("is_kept"),
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
