"""Matrix products on CPUs, by the library that is fastest there.

Knows which products torch can hand to oneDNN. Does not know what is multiplied.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, no_type_check

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

WORTHWHILE = 2**20
"""Weights in a matrix from which it pays: to look for products, Python is called for all that torch
does, which takes an eighth of a small model's time and nothing beside a large one's."""


def fast_products(cfg: Any) -> AbstractContextManager[Any]:
    """Let oneDNN multiply by a model's weights inside the context, where it is the faster one.

    torch leaves float32 products to MKL, which uses AVX-512 on Intel's processors only: on others
    that have it oneDNN is two to three times as fast, and no less exact: both add up in float32,
    in another order. Everything but float32 on the CPU, and whatever needs a gradient, is torch's
    as before. Which of the two it is depends on the machine and the model alone, so that a run
    that goes on later ends with the same bits.

    Args:
        cfg: The model's; `device`, `d_model` and `d_mlp` are looked at.

    Returns:
        A context manager; outside of it nothing changes.
    """
    return _OneDnn() if library_of_products(cfg) == "oneDNN" else nullcontext()


def library_of_products(cfg: Any) -> str:
    """Say who multiplies inside `fast_products`, for provenance: `oneDNN` or `torch`."""
    is_better = (
        str(cfg.device) == "cpu"
        and cfg.d_model * (cfg.d_mlp or 4 * cfg.d_model) >= WORTHWHILE
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
    return "oneDNN" if is_better else "torch"


class _OneDnn(TorchFunctionMode):
    """Takes the two functions by which TransformerLens multiplies by weights."""

    # Called for all that torch does, a million times in a small run: types looked at in the tests
    # would take most of their time.
    @no_type_check
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],  # noqa: ARG002
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _is_plain_float32(*args):
            return _linear(*args)
        if func is torch.addmm and not kwargs and args[0].ndim == 1 and _is_plain_float32(*args):
            bias, x, weight = args
            return _linear(x, weight.t(), bias)
        return func(*args, **(kwargs or {}))


def _is_plain_float32(*tensors: Tensor | None) -> bool:
    given = [tensor for tensor in tensors if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return False
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in given)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
