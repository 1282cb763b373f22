"""One tensor with a row a layer: persona vectors, and the assistant axis.

Knows the rows of both. A persona vector's row k is Hugging Face's `hidden_states[k]`, the input of
block k; the assistant axis's is the output of block k.

Tested in tests/directions/test_formats.py.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from refusal_lens.directions.direction import Direction
from refusal_lens.directions.formats import layouts
from refusal_lens.directions.formats.torch_files import load_tensors, save_tensors
from refusal_lens.errors import RefusalLensError

PERSONA = layouts.Layout(
    "persona_vectors",
    "input",
    "Hugging Face's last hidden state has gone through the final norm, and is no resid_post",
)
AXIS = layouts.Layout(
    "assistant_axis", "output", "its rows are outputs of blocks; the embedding is none"
)


def read_persona(path: Path, hints: layouts.ReadHints) -> layouts.Found:
    """Read `*_diff.pt`, `[n_layers + 1, d_model]`; the row after the final norm is left out."""
    rows = _rows(load_tensors(path), path, "persona vectors' files hold a tensor")
    n_layers = len(rows) - 1
    _check_count(path, n_layers, hints.n_layers, len(rows))
    position = hints.position or _position_named_in(path)
    known = layouts.ReadHints(n_layers, None, position)
    vectors, left_out = layouts.read_rows(dict(enumerate(rows)), PERSONA, known)
    return layouts.Found(vectors, PERSONA.method, n_layers, left_out=left_out)


def _position_named_in(path: Path) -> str | None:
    """Return the position that the project's own file names tell: prompt_avg or prompt_last."""
    return "mean" if "prompt_avg" in path.name else None


def write_persona(
    directions: Sequence[Direction], path: Path, context: layouts.WriteContext
) -> None:
    """Write raw vectors in float32; the row after the final norm, which has no home, is NaN."""
    n_layers = layouts.need_n_layers(context.n_layers, PERSONA.name)
    save_tensors(
        layouts.stack_rows(layouts.place(directions, PERSONA, context), n_layers + 1).float(), path
    )


def read_axis(path: Path, hints: layouts.ReadHints) -> layouts.Found:
    """Read `{"axis": [n_layers, d_model], "metadata": ...}`, or the tensor alone."""
    content = load_tensors(path)
    is_wrapped = isinstance(content, dict) and "axis" in content
    rows = _rows(content["axis"] if is_wrapped else content, path, "an assistant axis is a tensor")
    _check_count(path, len(rows), hints.n_layers, len(rows))
    known = layouts.ReadHints(len(rows), None, hints.position)
    vectors, left_out = layouts.read_rows(dict(enumerate(rows)), AXIS, known)
    notes = {"metadata": _plain(content.get("metadata"))} if is_wrapped else {}
    return layouts.Found(vectors, AXIS.method, len(rows), left_out=left_out, notes=notes)


def write_axis(directions: Sequence[Direction], path: Path, context: layouts.WriteContext) -> None:
    """Write raw vectors in float32 with the model and position as metadata."""
    n_layers = layouts.need_n_layers(context.n_layers, AXIS.name)
    placed = layouts.place(directions, AXIS, context)
    first = next(iter(placed.values()))
    metadata = {
        "model": first.provenance.get("model", {}).get("name", "unknown"),
        "position": layouts.one_position(directions, AXIS.name),
        "method": first.method,
    }
    save_tensors({"axis": layouts.stack_rows(placed, n_layers).float(), "metadata": metadata}, path)


def _rows(content: object, path: Path, what: str) -> Tensor:
    if not isinstance(content, Tensor) or content.ndim != 2:
        shape = list(content.shape) if isinstance(content, Tensor) else type(content).__name__
        raise RefusalLensError(f"{what} [rows, d_model]; {path} holds {shape}.")
    return content


def _check_count(path: Path, found: int, wanted: int | None, n_rows: int) -> None:
    if wanted is not None and found != wanted:
        raise RefusalLensError(
            f"{path} has {n_rows} rows, which is that of a model with {found} layers, and not of "
            f"{wanted}. Give the right file or format."
        )


def _plain(value: object) -> object:
    """Keep what JSON can say; of tensors, that they were there."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return f"tensor {list(value.shape)}"
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
