"""The prompts of one shard, read in batches that fit: every activation, or their moments alone.

Knows how batches add up. Does not know how a batch is read, nor where shards are kept.

Tested in tests/activations/test_collector.py.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from refusal_lens.activations.batch_reader import Batch, Pooled, Reader
from refusal_lens.activations.moments import ClassMoments, class_moments
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.batching import BatchRecord, is_out_of_memory, run_in_batches
from refusal_lens.prompts.tokens import Tokens

Keep = Callable[[list[int], Batch], None]
"""Keeps the rows of one batch."""

LeftOut = Int[Tensor, "n_hook_points n_positions"]
"""Tokens that the means of all prompts together left out as sinks."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Activations of some prompts, and the rows of each batch they were read in."""

    values: Pooled
    batches: list[list[int]]
    record: BatchRecord
    n_left_out: LeftOut


def read_shard(
    reader: Reader,
    tokens: Tokens,
    device: str,
    *,
    token_budget: int | None = None,
    batches: Sequence[Sequence[int]] | None = None,
    advance: Callable[[list[int]], None] | None = None,
) -> Shard:
    """Read the prompts of one shard in batches that fit.

    Args:
        reader: From `make_reader` with the frame of all shards: what those share decides bits.
        tokens: The shard's prompts.
        device: Where the model is.
        token_budget: Most tokens in a batch, padding included; None finds what is fastest here.
        batches: The rows of each batch, to read a shard exactly as it was read before.
        advance: Is told the rows of each batch that is done, counted from the shard's first.

    Raises:
        RefusalLensError: A prompt does not fit in memory.
    """
    places = len(reader.hook_points), len(reader.positions)
    values = torch.empty(len(tokens), *places, reader.d_model)
    n_left_out = torch.zeros(places, dtype=torch.int64)
    done: list[list[int]] = []

    def keep(rows: list[int], batch: Batch) -> None:
        values[rows] = batch.values
        n_left_out.add_(batch.n_left_out.sum(0))
        done.append(rows)
        if advance is not None:
            advance(rows)

    if batches is None:
        record = _read_in_batches(reader, tokens, device, keep, token_budget)
        return Shard(values, done, record, n_left_out)
    began = time.perf_counter()
    for rows in batches:
        keep(list(rows), reader.read(tokens.select(rows)))
    record = BatchRecord(token_budget or 0, sum(tokens.lengths), time.perf_counter() - began)
    return Shard(values, done, record, n_left_out)


@dataclass(frozen=True, eq=False)
class ShardMoments:
    """Moments of some prompts, by class; a class without prompts counts zero."""

    harmful: ClassMoments
    harmless: ClassMoments
    record: BatchRecord
    n_left_out: LeftOut


def read_moments(
    reader: Reader,
    tokens: Tokens,
    is_harmful: Bool[Tensor, " n_prompts"],
    device: str,
    *,
    token_budget: int | None = None,
    advance: Callable[[list[int]], None] | None = None,
) -> ShardMoments:
    """Read the prompts of one shard and keep no more than a batch of them at a time.

    The arguments are those of `read_shard`, and the labels.
    """
    merged = dict.fromkeys((True, False), no_moments(reader))
    n_left_out = torch.zeros(len(reader.hook_points), len(reader.positions), dtype=torch.int64)

    def keep(rows: list[int], batch: Batch) -> None:
        n_left_out.add_(batch.n_left_out.sum(0))
        for label in merged:
            mine = batch.values[is_harmful[rows] == label]
            if len(mine):
                merged[label] = merged[label].merge(class_moments(mine))
        if advance is not None:
            advance(rows)

    record = _read_in_batches(reader, tokens, device, keep, token_budget)
    return ShardMoments(merged[True], merged[False], record, n_left_out)


def no_moments(reader: Reader) -> ClassMoments:
    """Return the moments of no prompts, from which merging begins."""
    shape = (len(reader.hook_points), len(reader.positions), reader.d_model)
    nothing = torch.zeros(shape, dtype=torch.float64)
    return ClassMoments(0, nothing, nothing)


def find_token_budget(reader: Reader, tokens: Tokens, device: str) -> int:
    """Read prompts only to find out which token budget is fastest here."""
    return _read_in_batches(reader, tokens, device, lambda _rows, _batch: None, None).token_budget


def _read_in_batches(
    reader: Reader,
    tokens: Tokens,
    device: str,
    keep: Keep,
    token_budget: int | None,
) -> BatchRecord:
    # What the prompts share has been run already.
    lengths = [length - reader.path["n_prefix"] for length in tokens.lengths]
    with _kept_behind(keep, device) as keep_behind:
        return run_in_batches(
            lengths,
            lambda rows: keep_behind(rows, reader.read(tokens.select(rows))),
            token_budget=token_budget,
            device=device,
            name_of=lambda row: tokens.prompt_ids[row],
            known=reader.known_budget(sum(lengths) // max(1, len(lengths))),
        )


@contextmanager
def _kept_behind(keep: Keep, device: str) -> Iterator[Keep]:
    """Keep each batch while the next one runs, where something else than this processor runs it.

    Copying a batch takes a large GPU's time of a tenth of its work, and it would stand idle. Order
    stays, one batch at a time. On a CPU both would want the same cores.

    Raises:
        RefusalLensError: There is no memory for what has been read. (Splitting the batch that runs
            meanwhile would not help, and lose the one before it.)
    """
    if not device.startswith("cuda"):
        yield keep
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        before: list[Future[None]] = []
        # A caller's inference mode holds for his thread alone.
        is_inference = torch.is_inference_mode_enabled()

        def keep_as_caller(rows: list[int], batch: Batch) -> None:
            with torch.inference_mode(is_inference):
                keep(rows, batch)

        def keep_behind(rows: list[int], batch: Batch) -> None:
            wait()
            before.append(thread.submit(keep_as_caller, rows, batch))

        def wait() -> None:
            while before:
                _finish(before.pop())

        yield keep_behind
        wait()


def _finish(kept: "Future[None]") -> None:
    try:
        kept.result()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise RefusalLensError(
                "This machine's memory does not hold the activations that were read. Collect fewer "
                "hook points or positions at a time."
            ) from error
        raise
