"""GGUF control vectors, as repeng writes and llama.cpp adds them.

Knows that file. `direction.N` is added at the output of block N, at every position, N from 1 on.

Tested in tests/directions/test_formats.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refusal_lens.directions.direction import Direction
from refusal_lens.directions.formats import layouts
from refusal_lens.directions.formats.model_types import model_type_of
from refusal_lens.errors import RefusalLensError
from refusal_lens.files import write_whole
from refusal_lens.models.gguf_files import check_gguf_header, gguf_library

LAYOUT = layouts.Layout(
    "gguf",
    "output",
    "llama.cpp adds control vectors at the outputs of blocks from block 1 on",
    first=1,
    method=layouts.IMPORTED,
)
ARCHITECTURE = "controlvector"
SCALE_KEY, POSITION_KEY = "refusal_lens.recommended_scale", "refusal_lens.position"


def read(path: Path, hints: layouts.ReadHints) -> layouts.Found:
    """Read the vectors of a control vector; the extra `gguf` is needed."""
    fields, tensors = _open(path)
    rows = {}
    for name, values in tensors.items():
        kind, _, layer = name.partition(".")
        if kind != "direction" or not layer.isdecimal() or values.ndim != 1:
            raise RefusalLensError(
                f"A control vector holds vectors direction.1, direction.2, ...; {path} holds "
                f"{name} of shape {list(values.shape)}."
            )
        rows[int(layer)] = torch.from_numpy(values.astype(np.float64))
    position = hints.position or fields.get(POSITION_KEY)
    known = layouts.ReadHints(hints.n_layers, None, position)
    vectors, left_out = layouts.read_rows(dict(sorted(rows.items())), LAYOUT, known)
    notes = {
        "model_type": fields.get("controlvector.model_hint"),
        "recommended_scale": fields.get(SCALE_KEY),
    }
    return layouts.Found(vectors, LAYOUT.method, hints.n_layers, left_out=left_out, notes=notes)


def _open(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header and the tensors of a control vector, copied out of the file."""
    gguf = gguf_library()
    check_gguf_header(path)
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise RefusalLensError(f"{path} is no whole GGUF file ({error}).") from error
    fields = {name: _value(field, gguf) for name, field in reader.fields.items()}
    if fields.get("general.architecture") != ARCHITECTURE:
        raise RefusalLensError(
            f"{path} is a GGUF file of {fields.get('general.architecture')}; a control vector's "
            f"general.architecture is {ARCHITECTURE}."
        )
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def _value(field: Any, gguf: Any) -> Any:
    """Return a header field that is one string or number; None for others."""
    if len(field.data) != 1 or len(field.types) != 1:
        return None
    value = field.parts[field.data[0]]
    is_text = field.types[0] == gguf.GGUFValueType.STRING
    return bytes(value).decode("utf-8") if is_text else value[0].item()


def write(directions: Sequence[Direction], path: Path, context: layouts.WriteContext) -> None:
    """Write raw vectors in float32, and the scale to begin with.

    llama.cpp adds `scale * direction.N`, and can add only: a unit vector would be lost in a stream
    whose length is tens or hundreds. At its raw length one vector moves a harmless prompt by the
    class difference at scale 1. Added at n layers the effects pile up, so that the scale
    recommended, in `refusal_lens.recommended_scale`, is 1/n. -1/n pushes the other way; an
    ablation it is not.
    """
    gguf = gguf_library()
    placed = layouts.place(directions, LAYOUT, context)
    first = next(iter(placed.values()))
    with write_whole(path) as file:
        writer = gguf.GGUFWriter(file, ARCHITECTURE)
        writer.add_string("controlvector.model_hint", model_type_of(first))
        writer.add_uint32("controlvector.layer_count", len(placed))
        writer.add_float32(SCALE_KEY, 1 / len(placed))
        writer.add_string(POSITION_KEY, first.position)
        for layer, direction in placed.items():
            writer.add_tensor(f"direction.{layer}", layouts.raw_vector(direction).float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
