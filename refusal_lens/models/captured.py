"""Work on a CUDA device without its host: a step captured once, and flags that arrive later.

Knows streams, graphs and pinned memory. Does not know what a step computes.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

LOOKS_EVERY = 8
"""Steps between two looks at flags on a CUDA device. What is seen is one look old, so that the
device always has work left while the host waits."""


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Capture a step as a CUDA graph, and return what runs it again.

    A small model's step is hundreds of kernels, each shorter than it takes to launch it. Nothing is
    computed while it is captured.

    Args:
        step: Reads and writes tensors that stay where they are, waits for nothing, and has run
            before, so that what a library makes ready once is ready.
        device: The one device that it runs on.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        # Not torch.cuda.graph, which gives all cached memory back first.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            step()
        finally:
            graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph.replay


class Flags:
    """Flags that a device sets as it goes, seen by the host without making the device wait."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.n_steps = 0
        self.on_their_way: tuple[Tensor, torch.cuda.Event] | None = None

    def look(self, flags: Bool[Tensor, " batch"]) -> Bool[Tensor, " batch"] | None:
        """Return the flags, on the CPU; None where this is not the time to look.

        On CUDA they are those of the look before: once set, they stay set.
        """
        if not self.is_cuda:
            return flags.cpu()
        self.n_steps += 1
        if self.n_steps % LOOKS_EVERY:
            return None
        before = self.on_their_way
        pinned = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
        pinned.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(flags.device))
        self.on_their_way = pinned, event
        if before is None:
            return None
        before[1].synchronize()
        return before[0]

    def forget(self) -> None:
        """Forget flags on their way: they are of rows that have changed."""
        self.on_their_way = None
