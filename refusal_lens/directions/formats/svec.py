"""IBM's activation-steering: `.svec`, JSON with a unit vector a layer.

Knows that file. Its layer k is the output of block k, and its last is read after the final norm.

Tested in tests/directions/test_formats.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from refusal_lens.directions.direction import Direction
from refusal_lens.directions.formats import layouts
from refusal_lens.directions.formats.model_types import model_type_of
from refusal_lens.errors import RefusalLensError
from refusal_lens.files import write_whole

LAYOUT = layouts.Layout(
    "svec",
    "output",
    "activation-steering reads the last layer after the final norm, and no embedding",
    n_spared=1,
    method=layouts.IMPORTED,
)


def read(path: Path, hints: layouts.ReadHints) -> layouts.Found:
    """Read the vectors; that of the last layer, after the final norm, is left out.

    Which layer is the last the file does not say: without `n_layers` it is the highest in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            int(layer): torch.tensor(vector, dtype=torch.float64)
            for layer, vector in content["directions"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusalLensError(
            f"A .svec file is JSON with model_type, directions and explained_variances; {path} is "
            f"not ({error!r})."
        ) from error
    n_layers = hints.n_layers or max(rows, default=0) + 1
    known = layouts.ReadHints(n_layers, None, hints.position)
    vectors, left_out = layouts.read_rows(rows, LAYOUT, known)
    if left_out and hints.n_layers is None:
        left_out = [f"{left_out[0]}; if the model has more layers, give n_layers"]
    notes = {key: content.get(key) for key in ("model_type", "explained_variances")}
    return layouts.Found(vectors, LAYOUT.method, hints.n_layers, left_out=left_out, notes=notes)


def write(directions: Sequence[Direction], path: Path, context: layouts.WriteContext) -> None:
    """Write unit vectors, as that project's own files hold them.

    `explained_variances` must be there for the file to load; they are 1, as its own mean
    difference writes them.
    """
    layouts.need_n_layers(context.n_layers, LAYOUT.name)
    placed = layouts.place(directions, LAYOUT, context)
    content = {
        "model_type": model_type_of(next(iter(placed.values()))),
        "directions": {str(layer): each.unit.tolist() for layer, each in placed.items()},
        "explained_variances": dict.fromkeys(map(str, placed), 1.0),
    }
    with write_whole(path) as file:
        file.write_text(json.dumps(content), encoding="utf-8")
