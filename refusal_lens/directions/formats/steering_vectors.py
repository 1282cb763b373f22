"""Objects of the library steering-vectors.

Knows `layer_activations` and `layer_type`. Its layer k is the output of block k.

Tested in tests/directions/test_formats.py.
"""

import importlib
from collections.abc import Iterable
from typing import Any

from refusal_lens.directions.direction import Direction, Directions
from refusal_lens.directions.formats import layouts
from refusal_lens.errors import RefusalLensError

LAYOUT = layouts.Layout(
    "steering-vectors",
    "output",
    "its layers are outputs of blocks; the embedding is none",
    method=layouts.IMPORTED,
)
LAYER_TYPE = "decoder_block"


def from_steering_vector(vector: Any, *, position: str = "last") -> Directions:
    """Take the directions out of a `SteeringVector`.

    Args:
        vector: Anything with `layer_activations` (layer to tensor) and `layer_type`.
        position: Where the vectors were read, which the object does not say.

    Raises:
        RefusalLensError: The layers are not decoder blocks: outputs of modules inside a block
            stand before its norms, if it has any, and have no certain home here.
    """
    if vector.layer_type != LAYER_TYPE:
        raise RefusalLensError(
            f"Steering vectors of layer type {vector.layer_type!r} have no certain home: some "
            f"architectures normalise that module's output before it reaches the stream. Train "
            f"them with layer_type={LAYER_TYPE!r}."
        )
    rows = {int(layer): row.detach().cpu() for layer, row in vector.layer_activations.items()}
    vectors, left_out = layouts.read_rows(rows, LAYOUT, layouts.ReadHints(None, None, position))
    return layouts.to_directions(
        layouts.Found(vectors, LAYOUT.method, left_out=left_out), None, LAYOUT.name
    )


def to_steering_vector(directions: Iterable[Direction]) -> Any:
    """Make a `SteeringVector` of raw vectors in float32, one a layer.

    Raises:
        RefusalLensError: The library is not installed, or a direction has no home in it.
    """
    placed = layouts.place(directions, LAYOUT, layouts.WriteContext())
    try:
        # By its name as a string: type checkers need not have it.
        library = importlib.import_module("steering_vectors")
    except ImportError as error:
        raise RefusalLensError(
            "A SteeringVector needs the library steering-vectors, which is not installed: "
            "pip install steering-vectors."
        ) from error
    return library.SteeringVector(
        layer_activations={
            layer: layouts.raw_vector(each).float() for layer, each in placed.items()
        },
        layer_type=LAYER_TYPE,
    )
