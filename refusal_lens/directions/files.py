"""Directions of a file, for a model.

Knows whether directions fit a model. Does not know how files are laid out.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refusal_lens.directions.direction import Direction, Directions
from refusal_lens.directions.formats import read_directions, take
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.models.backends import Model, describe_model


def load_directions(path: str | Path, model: Model | None = None) -> Directions:
    """Read directions of any file that `read_directions` reads, for use with a model.

    Args:
        path: `directions.safetensors` or `refusal_direction.pt` of a run, or another project's.
        model: The model they are to be used with; None checks nothing.

    Raises:
        RefusalLensError: As `read_directions`; or they do not fit the model: another d_model, or
            hook points that it lacks.
    """
    directions = read_directions(path)
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
        path: As in `load_directions`.
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
        # Only the hook point that is used has to exist in the model.
        check_model(take(directions, [direction.hook_point], [direction.position]), model)
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
