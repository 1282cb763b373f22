"""How weights lie in memory: so that the transposes of a forward are views and not copies.

Knows which matrices TransformerLens transposes at every forward. Changes no shape and no value.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_lens.models.backends import HookedTransformer


def lay_out(model: HookedTransformer) -> int:
    """Lay the weights out as linear layers store them, in place, where they are not yet.

    TransformerLens copies the matrices of a gated MLP, of attention and of the unembedding at every
    forward, unless they lie so in memory that turning them is a view: half of the time of a model
    that it has loaded itself. Parameters stay the same objects; one matrix at a time is copied.

    Returns:
        How many matrices were laid out anew: 0 for a model of `load_model`, or the second time.

    Example:
        >>> lay_out(tiny_model)
        0
    """
    n_moved = 0
    for weight, order in _turned(model):
        turned = weight.data.permute(order)
        if not turned.is_contiguous():
            back = torch.tensor(order).argsort().tolist()
            weight.data = turned.contiguous().permute(back)
            n_moved += 1
    return n_moved


def _turned(
    model: HookedTransformer,
) -> Iterator[tuple[Float[Tensor, "..."], tuple[int, ...]]]:
    """Give each matrix that a forward turns, and the order of axes in which it reads it."""
    from transformer_lens.components.mlps.gated_mlp import GatedMLP

    for block in model.blocks:
        attn: Any = block.attn
        names = ("W_Q", "_W_K", "_W_V") if hasattr(attn, "_W_K") else ("W_Q", "W_K", "W_V")
        for weight in (getattr(attn, name) for name in names):
            yield weight, (0, 2, 1)
        yield attn.W_O, (2, 0, 1)
        mlp: Any = getattr(block, "mlp", None)
        if isinstance(mlp, GatedMLP):
            for weight in (mlp.W_in, mlp.W_gate, mlp.W_out):
                yield weight, (1, 0)
    yield model.unembed.W_U, (1, 0)
