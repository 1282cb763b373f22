"""Artefacts of refusal_direction (Arditi et al. 2024): mean differences, a direction, scores.

Knows that project's files. Its layer k is the input of block k.

Tested in tests/directions/test_formats.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from refusal_lens.directions.direction import Direction
from refusal_lens.directions.formats import layouts
from refusal_lens.directions.formats.torch_files import load_tensors, save_tensors
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS
from refusal_lens.errors import RefusalLensError
from refusal_lens.files import write_whole
from refusal_lens.models.hook_points import layer_of, site_of
from refusal_lens.prompts.positions import normalise_position

LAYOUT = layouts.Layout(
    "refusal_direction",
    "input",
    "it ends with the input of the last block, and the last output is no block's input",
)
METADATA = "direction_metadata.json"
SCORES = {"refusal_score": "bypass", "steering_score": "induce", "kl_div_score": "kl"}


def read(path: Path, hints: layouts.ReadHints) -> layouts.Found:
    """Read mean_diffs.pt `[n_positions, n_layers, d_model]`, or direction.pt `[d_model]`.

    Row `n_positions + pos` is position `pos`. A direction's place is in direction_metadata.json
    beside it; without that file it is what the hints say.
    """
    content = load_tensors(path)
    if isinstance(content, Tensor) and content.ndim == 3:
        return _read_mean_differences(content)
    if isinstance(content, Tensor) and content.ndim == 2 and len(content) == 1:
        content = content[0]
    if isinstance(content, Tensor) and content.ndim == 1:
        return _read_direction(path, content, hints)
    raise RefusalLensError(
        f"refusal_direction's files are mean_diffs.pt [n_positions, n_layers, d_model] or "
        f"direction.pt [d_model]; {path} holds {describe(content)}."
    )


def _read_mean_differences(content: Tensor) -> layouts.Found:
    n_positions, n_layers, _ = content.shape
    vectors = {
        (LAYOUT.hook_point(layer), str(row - n_positions)): content[row, layer]
        for layer in range(n_layers)
        for row in reversed(range(n_positions))
    }
    return layouts.Found(vectors, DIFFERENCE_OF_MEANS, n_layers)


def _read_direction(path: Path, vector: Tensor, hints: layouts.ReadHints) -> layouts.Found:
    metadata = path.parent / METADATA
    if metadata.is_file():
        place_ = _read_place(metadata)
    elif hints.hook_point is not None:
        place_ = (hints.hook_point, hints.position or "last")
    else:
        raise RefusalLensError(
            f"The layer of {path} is in {METADATA}, which does not lie beside it. Put it there, or "
            "give hook_point and position (--hook-point, --position)."
        )
    return layouts.Found({place_: vector}, DIFFERENCE_OF_MEANS, hints.n_layers)


def _read_place(metadata: Path) -> tuple[str, str]:
    try:
        entry = json.loads(metadata.read_text(encoding="utf-8"))
        return LAYOUT.hook_point(int(entry["layer"])), normalise_position(str(entry["pos"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RefusalLensError(
            f'{metadata} is to be {{"pos": -2, "layer": 10}}, and is not ({error!r}).'
        ) from error


def write(directions: Sequence[Direction], path: Path, context: layouts.WriteContext) -> None:
    """Write one direction as direction.pt with its metadata beside it; several as mean_diffs.pt.

    Vectors are raw, in float64. Positions must be the last ones without a gap: a row's place says
    which position it is.
    """
    by_position: dict[int, list[Direction]] = {}
    for direction in directions:
        by_position.setdefault(_token(direction.position), []).append(direction)
    if len(directions) == 1:
        ((layer, direction),) = layouts.place(directions, LAYOUT, context).items()
        save_tensors(layouts.raw_vector(direction), path)
        entry = {"pos": _token(direction.position), "layer": layer}
        with write_whole(path.parent / METADATA) as file:
            file.write_text(json.dumps(entry, indent=4), encoding="utf-8")
        return
    positions = sorted(by_position)
    if positions != list(range(-len(positions), 0)):
        raise RefusalLensError(
            f"mean_diffs.pt holds the last positions without a gap, -n to -1; these are "
            f"{', '.join(map(str, positions))}. Collect those between, or export one direction."
        )
    n_layers = layouts.need_n_layers(context.n_layers, "mean_diffs.pt")
    rows = [
        layouts.stack_rows(layouts.place(by_position[position], LAYOUT, context), n_layers)
        for position in positions
    ]
    save_tensors(torch.stack(rows), path)


def _token(position: str) -> int:
    """Return a position as an index from the end."""
    if position != "last" and not position.startswith("-"):
        raise RefusalLensError(
            f"Position {position} has no home in refusal_direction, which counts from the end. "
            "Take last, -2, ..."
        )
    return -1 if position == "last" else int(position)


def read_scores(path: str | Path) -> pd.DataFrame:
    """Read direction_evaluations.json: scores of every candidate, under this project's names.

    Returns:
        One row a candidate: `hook_point`, `site`, `layer`, `position`, then `bypass` (their
        refusal_score), `induce` (steering_score) and `kl` (kl_div_score), in nats.

    Raises:
        RefusalLensError: It is no list of such scores.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, appendix C.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        table = [
            {
                "hook_point": LAYOUT.hook_point(row["layer"]),
                "position": normalise_position(str(row["position"])),
                **{name: float(row[theirs]) for theirs, name in SCORES.items()},
            }
            for row in rows
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise RefusalLensError(
            f"direction_evaluations.json is a list of objects with position, layer, "
            f"{', '.join(SCORES)}; {path} is not ({error!r})."
        ) from error
    frame = pd.DataFrame(table, columns=["hook_point", "position", *SCORES.values()])
    frame.insert(1, "site", frame["hook_point"].map(site_of))
    frame.insert(2, "layer", frame["hook_point"].map(layer_of))
    return frame


def describe(content: Any) -> str:
    """Say what a file holds, for messages."""
    if isinstance(content, Tensor):
        return f"a tensor of shape {list(content.shape)}"
    if isinstance(content, dict):
        return f"a dict with {', '.join(map(str, list(content)[:5]))}"
    return f"a {type(content).__name__}"
