"""Directions on disk, with everything they came from inside the file.

Knows the two layouts, and whether a file fits a model. Does not know what else a run holds.
"""

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from refusal_lens.directions.direction import Direction, Directions
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.files import write_whole
from refusal_lens.models.loading import Model, describe_model

FORMAT = "refusal-lens directions 1"


def save_directions(path: Path, directions: Directions) -> None:
    """Write raw directions as safetensors, with what they are in the file's header."""
    header = {
        "format": FORMAT,
        "hook_points": json.dumps(directions.hook_points),
        "positions": json.dumps(directions.positions),
        "method": directions.method,
        "clip_quantile": json.dumps(directions.clip_quantile),
        "provenance": json.dumps(directions.provenance, ensure_ascii=False),
    }
    with write_whole(path) as file:
        tensors = {"vectors": directions.vectors, "is_kept": directions.is_kept}
        save_file(tensors, file, metadata=header)


def load_directions(path: str | Path, model: Model | None = None) -> Directions:
    """Read directions from `directions.safetensors` or `refusal_direction.pt`.

    Nothing is unpickled but plain tensors and values.

    Args:
        path: The file.
        model: The model they are to be used with; None checks nothing.

    Returns:
        The directions, raw, with their provenance. A `refusal_direction.pt` of other scripts holds
        unit vectors of `resid_post`, and says no more.

    Raises:
        RefusalLensError: The file holds no directions, or they do not fit the model: another
            d_model, or hook points that it lacks.
    """
    path = Path(path)
    if not path.is_file():
        raise RefusalLensError(f"There is no file {path}. Give directions.safetensors of a run.")
    directions = _read_pt(path) if path.suffix == ".pt" else _read_safetensors(path)
    if model is not None:
        check_model(directions, model)
    return directions


def load_direction(
    path: str | Path,
    model: Model | None = None,
    *,
    hook_point: str | None = None,
    position: str | None = None,
) -> Direction:
    """Read one direction, the best of its run unless another place is asked for.

    Args:
        path: `directions.safetensors` or `refusal_direction.pt`.
        model: The model it is to be used with; None checks nothing.
        hook_point: Where; None is that of the best place.
        position: Where; None is that of the best place.

    Raises:
        RefusalLensError: As `load_directions`; or there is no direction at that place; or no place
            is asked for and the file names no best one.
    """
    directions = load_directions(path)
    best = directions.provenance.get("best") or {}
    place = hook_point or best.get("hook_point"), position or best.get("position")
    if place[0] is None or place[1] is None:
        raise RefusalLensError(
            f"{path} names no best place. Give hook_point and position. Hook points: "
            f"{', '.join(directions.hook_points)}. Positions: {', '.join(directions.positions)}."
        )
    direction = directions[place[0], place[1]]
    if model is not None:
        row = directions.hook_points.index(direction.hook_point)
        # Only the hook point that is used has to exist in the model.
        check_model(
            replace(
                directions,
                vectors=directions.vectors[row : row + 1],
                is_kept=directions.is_kept[row : row + 1],
                hook_points=(direction.hook_point,),
            ),
            model,
        )
    return direction


def check_model(directions: Directions, model: Model) -> None:
    """Make sure that directions can be used with a model, and warn where they are another's.

    Raises:
        RefusalLensError: Another d_model, or hook points that the model lacks.
    """
    theirs, ours = directions.provenance.get("model", {}), describe_model(model)
    names = f"{theirs.get('name', 'an unknown model')}", f"{ours.get('name')}"
    if directions.vectors.shape[-1] != model.cfg.d_model:
        raise RefusalLensError(
            f"These directions have d_model {directions.vectors.shape[-1]} (from {names[0]}), but "
            f"{names[1]} has d_model {model.cfg.d_model}. Load the model they were fitted to."
        )
    missing = [name for name in directions.hook_points if name not in model.hook_dict]
    if missing:
        raise RefusalLensError(
            f"These directions stand at {', '.join(missing)} (of {names[0]}), which {names[1]} "
            f"does not have: its layers are 0 to {model.cfg.n_layers - 1}."
        )
    reason = _why_another(theirs, ours)
    if reason is not None:
        warnings.warn(
            f"These directions were fitted to {names[0]} and are used with {names[1]}: {reason}. "
            "Their scores do not hold here; validate them on this model's activations.",
            RefusalLensWarning,
            stacklevel=3,
        )


_IDENTITY = {
    "weights_sha256": "its weights are others",
    "revision": "its revision is another",
    "processing": "its weights were processed otherwise (model.processing)",
}


def _why_another(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """Say why this is not the model; None where it is, as far as is known."""
    known = [key for key in _IDENTITY if None not in (theirs.get(key), ours.get(key))]
    differing = [key for key in known if theirs[key] != ours[key]]
    if differing:
        return _IDENTITY[differing[0]]
    # The same weights are the same model, also from a folder that was moved.
    is_same = "weights_sha256" in known or theirs.get("name") == ours.get("name")
    return None if is_same else "it is another model"


# --- the two layouts --------------------------------------------------------------------------


def _read_safetensors(path: Path) -> Directions:
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


def _read_pt(path: Path) -> Directions:
    """Read the article's layout, ours or that of other scripts."""
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        units: dict[int, torch.Tensor] = saved["directions"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError) as error:
        raise RefusalLensError(
            f"{path} is not in the layout of refusal_direction.pt, or holds more than tensors and "
            "plain values, which are never unpickled here. Give a refusal_direction.pt."
        ) from error
    site, position = saved.get("site", "resid_post"), saved.get("position", "last")
    named = site if "." in site else f"hook_{site}"
    provenance = saved.get("provenance", {"model": {"name": saved.get("model", "unknown")}})
    fit = provenance.get("fit", {})
    raw = saved.get("raw_directions", units)
    vectors = torch.stack([raw[layer].double() for layer in sorted(raw)])[:, None]
    return Directions(
        vectors,
        torch.ones(vectors.shape[:2], dtype=torch.bool),
        tuple(f"blocks.{layer}.{named}" for layer in sorted(raw)),
        (position,),
        fit.get("method", DIFFERENCE_OF_MEANS),
        # Without raw vectors beside them, what is there has been clipped already.
        fit.get("clip_quantile") if "raw_directions" in saved else None,
        provenance,
    )
