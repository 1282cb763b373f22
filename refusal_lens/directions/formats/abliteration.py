"""Measurements of llm-abliteration: class means and their difference, a dict of one row a layer.

Knows that project's file. Its layer k is the input of block k, at the last token.

Tested in tests/directions/test_formats.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refusal_lens.directions.direction import Direction
from refusal_lens.directions.formats import layouts
from refusal_lens.directions.formats.torch_files import load_tensors, save_tensors
from refusal_lens.directions.guard import check_n_layers
from refusal_lens.errors import RefusalLensError

LAYOUT = layouts.Layout(
    "llm-abliteration",
    "input",
    "it ends with the input of the last block, and the last output is no block's input",
)


def read(path: Path, hints: layouts.ReadHints) -> layouts.Found:
    """Read `refuse_k`, raw; where a layer has only `refusenorm_k`, that, of unit length."""
    content = load_tensors(path)
    if not isinstance(content, dict) or "layers" not in content:
        raise RefusalLensError(
            f"llm-abliteration writes a dict with layers, harmful_0, harmless_0, refuse_0, ...; "
            f"{path} holds something else."
        )
    rows, n_layers = {}, check_n_layers(content["layers"], path)
    for layer in range(n_layers):
        for key in (f"refuse_{layer}", f"refusenorm_{layer}"):
            if key in content:
                rows[layer] = content[key]
                break
    vectors, left_out = layouts.read_rows(
        rows, LAYOUT, layouts.ReadHints(n_layers, None, hints.position)
    )
    return layouts.Found(vectors, LAYOUT.method, n_layers, left_out=left_out)


def write(directions: Sequence[Direction], path: Path, context: layouts.WriteContext) -> None:
    """Write `harmful_k`, `harmless_k`, `refuse_k` (raw) and `refusenorm_k`, in float32.

    Raises:
        RefusalLensError: As `place`; or there are no activations to take the class means from.
    """
    if context.activations is None:
        raise RefusalLensError(
            "llm-abliteration's file holds the means of both classes, which directions alone do "
            "not tell. Give the activations they were fitted to (export a run that has them)."
        )
    n_layers = layouts.need_n_layers(context.n_layers, LAYOUT.name)
    content: dict[str, Any] = {"layers": n_layers}
    is_harmful = context.activations.is_harmful
    for layer, direction in layouts.place(directions, LAYOUT, context).items():
        values = context.activations.at(direction.hook_point, direction.position).double()
        content[f"harmful_{layer}"] = values[is_harmful].mean(0).float()
        content[f"harmless_{layer}"] = values[~is_harmful].mean(0).float()
        content[f"refuse_{layer}"] = layouts.raw_vector(direction).float()
        content[f"refusenorm_{layer}"] = direction.unit
    save_tensors(content, path)
