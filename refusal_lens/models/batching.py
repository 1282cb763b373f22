"""Batches that fit: how prompts are grouped, how large a batch may be, and what to do if it is not.

Knows lengths, time and memory. Does not know what is run on a batch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from refusal_lens.errors import RefusalLensError
from refusal_lens.models.known_budgets import Found, KnownBudget

CPU_BUDGETS = (256, 1024)
CUDA_BUDGETS = (16384, 65536)
"""Where the search for a token budget starts and ends. On CPUs larger batches take memory and are
no faster; GPUs want to be filled."""

WORTHWHILE = 1.05
"""A larger batch must be this much faster to be taken."""

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
    "could not create a primitive",  # oneDNN
)


@dataclass(frozen=True)
class BatchRecord:
    """How the batches went, for provenance: the budget settled on, tokens run, and their time."""

    token_budget: int
    n_tokens: int
    seconds: float


def run_in_batches(
    lengths: Sequence[int],
    run: Callable[[list[int]], None],
    *,
    token_budget: int | None = None,
    device: str = "cpu",
    name_of: Callable[[int], str] = str,
    known: KnownBudget | None = None,
) -> BatchRecord:
    """Run prompts of like length together, the longest first.

    What runs out of memory does so at the start, and is split and tried again. Without a budget
    the first batches measure which one is fastest; their work is kept.

    Args:
        lengths: Tokens of each prompt.
        run: Takes the indices of one batch. When it fails, it must not have kept anything.
        token_budget: Most tokens in a batch, padding included; None searches.
        device: Where batches run: it decides between which budgets the search goes.
        name_of: Names a prompt in messages.
        known: Where the search goes on from, and what it comes to is kept.

    Returns:
        The record of the run.

    Raises:
        RefusalLensError: A single prompt does not fit in memory.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    known = known if token_budget is None else None
    search = _BudgetSearch.start(token_budget, device, known.recall() if known else None)
    start, n_tokens, began = 0, 0, time.perf_counter()
    while start < len(order):
        longest = max(1, lengths[order[start]])
        rows = order[start : start + max(1, search.budget // longest)]
        batch_began = time.perf_counter()
        if not fits(run, rows):
            if len(rows) == 1:
                raise RefusalLensError(
                    f"Prompt {name_of(rows[0])} with {longest} tokens does not fit in memory on "
                    f"{device}, even alone. Take it out, or use a smaller dtype or a larger device."
                )
            search.stop_at(max(1, len(rows) // 2) * longest)
            known = None  # memory may be short just now
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
            continue
        done = sum(lengths[row] for row in rows)
        search.observe(done / (time.perf_counter() - batch_began), len(rows) * longest)
        n_tokens, start = n_tokens + done, start + len(rows)
    if known is not None and search.is_warm:
        known.keep(Found(search.budget, search.is_found, search.best_rate))
    return BatchRecord(search.budget, n_tokens, time.perf_counter() - began)


@dataclass
class _BudgetSearch:
    """Doubles the budget while that pays; state of one run."""

    budget: int
    largest: int
    is_found: bool
    best_rate: float = 0.0
    is_warm: bool = False

    @classmethod
    def start(cls, token_budget: int | None, device: str, known: Found | None) -> "_BudgetSearch":
        if token_budget is not None:
            return cls(token_budget, token_budget, True)
        smallest, largest = CUDA_BUDGETS if device.startswith("cuda") else CPU_BUDGETS
        known = known or Found(smallest, False, 0.0)
        return cls(known.token_budget, largest, known.is_final, known.rate)

    def stop_at(self, budget: int) -> None:
        self.budget, self.is_found = budget, True

    def observe(self, rate: float, n_filled: int) -> None:
        """Note the tokens per second of a batch; batches that were not full say nothing."""
        if self.is_found or n_filled * 2 < self.budget:
            return
        if not self.is_warm:
            # The first batch pays for what a process does once.
            self.is_warm = True
            return
        if rate < self.best_rate * WORTHWHILE:
            self.stop_at(self.budget // 2)
        elif self.budget * 2 > self.largest:
            self.is_found = True
        else:
            self.best_rate, self.budget = rate, self.budget * 2


def fits(run: Callable[..., None], *arguments: Any) -> bool:
    """Run something; say whether there was memory for it.

    When this returns, the error is gone, and with it the frames that held the activations.

    Example:
        >>> fits(lambda: None)
        True
    """
    try:
        run(*arguments)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Recognise CUDA's allocator, the CPU's, Python's own and the system's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error).lower() for words in OUT_OF_MEMORY)
