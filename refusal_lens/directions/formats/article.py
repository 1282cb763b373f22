"""`refusal_direction.pt`: the article's layout, and what this project adds to it.

Knows that file. Its layer k is the output of block k; in files of the article's own scripts the
last layer is read after the final norm.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refusal_lens.directions.direction import Direction
from refusal_lens.directions.formats.layouts import (
    IMPORTED,
    Found,
    Layout,
    ReadHints,
    WriteContext,
    need_n_layers,
    one_position,
    raw_vector,
    read_rows,
)
from refusal_lens.directions.formats.torch_files import load_tensors, save_tensors
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import layer_of, site_of

LAYOUT = Layout(
    "article",
    "output",
    "the article's scripts read the last layer after the final norm",
    n_spared=1,
)
PLACE = ("hook_point", "site", "layer", "position")
"""Columns of separation.csv that are no scores."""


def read(path: Path, hints: ReadHints) -> Found:
    """Read the raw directions where the file has them, and the unit ones where it does not."""
    content = load_tensors(path)
    if not isinstance(content, dict) or not {"directions", "num_layers"} <= set(content):
        raise RefusalLensError(
            f"The article's file is a dict with model, num_layers, directions and validation; "
            f"{path} holds something else."
        )
    n_layers, name = content["num_layers"], content.get("model")
    rows = content.get("raw_directions") or content["directions"]
    position = content.get("position", hints.position or "last")
    if "site" not in content:
        known = ReadHints(n_layers, None, position)
        vectors, left_out = read_rows(rows, LAYOUT, known)
        return Found(vectors, DIFFERENCE_OF_MEANS, n_layers, name, left_out=left_out)
    vectors = {
        (f"blocks.{layer}.hook_{content['site']}", position): vector
        for layer, vector in rows.items()
    }
    fit = content.get("provenance", {}).get("fit", {})
    # Unit directions are clipped already; raw ones need the run's clip to become them.
    clip_quantile = fit.get("clip_quantile") if "raw_directions" in content else None
    return Found(vectors, fit.get("method", IMPORTED), n_layers, name, clip_quantile)


def write(directions: Sequence[Direction], path: Path, context: WriteContext) -> None:
    """Write unit directions by layer, raw ones beside them, and a run's scores where it has some.

    Raises:
        RefusalLensError: They are of several sites or positions, or outside the blocks.
    """
    n_layers = need_n_layers(context.n_layers, "The article's file")
    position = one_position(directions, "The article's file")
    sites = list(dict.fromkeys(site_of(direction.hook_point) for direction in directions))
    by_layer = {direction.layer: direction for direction in directions}
    if len(sites) != 1 or None in by_layer:
        raise RefusalLensError(
            f"The article's file holds one direction a layer of one site; {', '.join(sites)} came. "
            "Choose one site inside the blocks."
        )
    provenance = directions[0].provenance
    content = {
        "model": provenance.get("model", {}).get("name", "unknown"),
        "num_layers": n_layers,
        "directions": {layer: each.unit for layer, each in by_layer.items()},
        "validation": _validation(directions, context),
        "site": sites[0],
        "position": position,
        "raw_directions": {layer: raw_vector(each) for layer, each in by_layer.items()},
        "provenance": provenance,
    }
    save_tensors(content, path)


def _validation(directions: Sequence[Direction], context: WriteContext) -> dict[Any, Any]:
    """Take the scores of these places out of separation.csv; none where nothing was scored."""
    if context.scores is None:
        return {}
    places = {(direction.hook_point, direction.position) for direction in directions}
    return {
        layer_of(row["hook_point"]): {key: value for key, value in row.items() if key not in PLACE}
        for row in context.scores.to_dict("records")
        if (row["hook_point"], row["position"]) in places
    }
