"""`refusal_direction.pt`: the article's layout, and what this project adds to it.

Knows that file, in its two kinds. The article's scripts read Hugging Face's `hidden_states`, whose
last is after the final norm and is no place of the stream, and keep unit vectors only. This
project's hold residual-stream vectors in every layer, raw ones among them, and say where they
stand and what they came from. In both, layer k is block k.

Tested in tests/directions/test_formats.py.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_lens.directions.direction import Direction
from refusal_lens.directions.formats import layouts
from refusal_lens.directions.formats.torch_files import load_tensors, save_tensors
from refusal_lens.directions.guard import check_n_layers, check_units, sealed
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import layer_of, site_of

LAYOUT = layouts.Layout(
    "article",
    "output",
    "the article's scripts read the last layer after the final norm",
    n_spared=1,
)
PLACE = ("hook_point", "site", "layer", "position")
"""Columns of separation.csv that are no scores."""


def read(path: Path, hints: layouts.ReadHints) -> layouts.Found:
    """Read the raw directions of this project's file, or the unit ones of the article's scripts."""
    content = load_tensors(path)
    if not isinstance(content, dict) or not {"directions", "num_layers"} <= set(content):
        raise RefusalLensError(
            f"The article's file is a dict with model, num_layers, directions and validation; "
            f"{path} holds something else."
        )
    check_units(content["directions"], path)
    if {"site", "position", "raw_directions", "provenance"} <= set(content):
        return _read_ours(content)
    n_layers = check_n_layers(content["num_layers"], path)
    known = layouts.ReadHints(n_layers, None, hints.position)
    vectors, left_out = layouts.read_rows(content["directions"], LAYOUT, known)
    name = content.get("model")
    return layouts.Found(vectors, DIFFERENCE_OF_MEANS, n_layers, name, left_out=left_out)


def _read_ours(content: Mapping[str, Any]) -> layouts.Found:
    site, position, provenance = content["site"], content["position"], content["provenance"]
    # `attn.hook_z` and its like keep their full name as site.
    named = site if "." in site else f"hook_{site}"
    vectors = {
        (f"blocks.{layer}.{named}", position): vector
        for layer, vector in content["raw_directions"].items()
    }
    fit = provenance.get("fit", {})
    return layouts.Found(
        vectors,
        fit.get("method", layouts.IMPORTED),
        clip_quantile=fit.get("clip_quantile"),
        provenance=provenance,
    )


def write(directions: Sequence[Direction], path: Path, context: layouts.WriteContext) -> None:
    """Write unit directions by layer, raw ones beside them, and a run's scores where it has some.

    They must be of one site inside the blocks, and one position.
    """
    n_layers = layouts.need_n_layers(context.n_layers, "The article's file")
    position = layouts.one_position(directions, "The article's file")
    sites = list(dict.fromkeys(site_of(direction.hook_point) for direction in directions))
    if len(sites) != 1 or directions[0].layer is None:
        raise RefusalLensError(
            f"The article's file holds one direction a layer of one site; {', '.join(sites)} came. "
            "Choose one site inside the blocks."
        )
    provenance = directions[0].provenance
    saved = lay_out(directions, (sites[0], position), provenance, n_layers, context.scores)
    save_tensors(saved, path)


def lay_out(
    directions: Sequence[Direction],
    column: tuple[str, str],
    provenance: Mapping[str, Any],
    n_layers: int,
    scores: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Lay directions out as the article's file: at most one a layer, of one site and position.

    `separation` and `accuracy` of a run (one row a place, such as its separation.csv) are out of
    sample; the article's own in-sample numbers, the other scores, their intervals and p-values
    stand beside them. No directions leave the file empty.

    Returns:
        `model`, `num_layers`, `directions`, `validation` as in the article, then our own keys.
    """
    by_layer = {each.layer: each for each in sorted(directions, key=lambda each: each.layer or 0)}
    best = provenance.get("best") or {}
    places = {(each.hook_point, each.position) for each in directions}
    is_best_among = (best.get("hook_point"), best.get("position")) in places
    fit = dict(provenance.get("fit", {}))
    if directions:
        # Raw vectors need method and clip to be read back as the same directions.
        fit |= {"method": directions[0].method, "clip_quantile": directions[0].clip_quantile}
    content = {
        "model": provenance.get("model", {}).get("name", "unknown"),
        "num_layers": n_layers,
        "directions": {layer: each.unit for layer, each in by_layer.items()},
        "validation": _validation(places, scores),
        "best_layer": layer_of(best["hook_point"]) if is_best_among else None,
        "site": column[0],
        "position": column[1],
        "raw_directions": {layer: layouts.raw_vector(each) for layer, each in by_layer.items()},
        "provenance": {**provenance, "fit": fit},
    }
    return sealed(content)


def _validation(places: Collection[tuple[str, str]], scores: pd.DataFrame | None) -> dict[Any, Any]:
    """Take the scores of these places out of a table; none where nothing was scored."""
    if scores is None:
        return {}
    return {
        layer_of(row["hook_point"]): {key: value for key, value in row.items() if key not in PLACE}
        for row in scores.to_dict("records")
        if (row["hook_point"], row["position"]) in places
    }
