"""A caller's own torch defaults, kept away from what this package does.

Knows which of them change what models compute. Does not know models.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def plain_torch() -> Iterator[None]:
    """Run the block with torch as it starts; put the caller's defaults back after.

    A default dtype of float64 or a default device would reach every tensor that a library makes
    without saying which; tensors made in inference mode cannot take a gradient later; and
    deterministic algorithms refuse operations that a forward needs.

    Example:
        >>> torch.set_default_dtype(torch.float64)
        >>> with plain_torch():
        ...     torch.zeros(1).dtype
        torch.float32
        >>> torch.get_default_dtype()
        torch.float64
        >>> torch.set_default_dtype(torch.float32)
    """
    dtype = torch.get_default_dtype()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    is_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    # Setting a default device looks at every call of torch: only where there is another one.
    is_elsewhere = torch.get_default_device().type != "cpu"
    try:
        with torch.device("cpu") if is_elsewhere else nullcontext(), torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=is_warn_only)
