"""The engine of this process: a whole collection by one model, in batches, to memory or to disk.

Knows how to read all prompts, shard by shard. Does not know how a batch is read, nor what the
activations are for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from refusal_lens.activations.batch_reader import Reader, make_reader
from refusal_lens.activations.collection import Collection, frame
from refusal_lens.activations.moments import Moments
from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.provenance import describe_collection, reading_key
from refusal_lens.activations.shard_reader import no_moments, read_moments, read_shard
from refusal_lens.activations.store import Store, load_activations, open_store, shard_rows
from refusal_lens.models.backends import Model
from refusal_lens.models.batching import BatchRecord
from refusal_lens.models.torch_defaults import plain_torch
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.groups import find_groups


@dataclass(frozen=True, eq=False)
class LocalEngine:
    """Reads with a model that this process holds.

    Each hook pools at once, so that no whole activation outlives its layer. What all prompts begin
    with is run once; the forward ends at the last hook point needed. Where that cannot be done
    exactly, TransformerLens's own forward runs; `provenance["collection"]` says which and why.
    """

    model: Model

    @plain_torch()
    def collect(
        self,
        collection: Collection,
        folder: str | Path | None = None,
        *,
        resume: bool = False,
        show_progress: bool | None = None,
    ) -> Activations:
        """Collect activations, as `Engine.collect` says; without a folder into memory."""
        reader = self._reader(collection)
        reading = reading_key(self.model, reader)
        if folder is not None:
            key = {**reading, **collection.key()}
            store = open_store(Path(folder), key, n_prompts=len(collection), resume=resume)
            record, n_read = self._fill(store, collection, reader, show_progress)
            n_left_out = store.n_left_out()
            described = describe_collection(collection, reading, record, n_read, n_left_out)
            prompts = collection.prompts
            store.finish(described, find_groups(prompts), prompts.prompts)
            return load_activations(folder)
        with _class_progress(collection.prompts, show_progress) as advance:
            shard = read_shard(
                reader,
                collection.tokens,
                self._device,
                token_budget=collection.token_budget,
                advance=advance,
            )
        n_read, n_left_out = len(collection), shard.n_left_out
        return Activations(
            shard.values,
            collection.labels(range(len(collection))),
            reader.hook_points,
            reader.positions,
            describe_collection(collection, reading, shard.record, n_read, n_left_out),
            find_groups(collection.prompts),
            collection.prompts.prompts,
        )

    @plain_torch()
    def collect_moments(
        self, collection: Collection, *, show_progress: bool | None = None
    ) -> Moments:
        """Collect moments, as `Engine.collect_moments` says."""
        reader = self._reader(collection)
        harmful = harmless = no_moments(reader)
        budget, n_tokens, seconds = collection.token_budget, 0, 0.0
        n_left_out = torch.zeros(len(reader.hook_points), len(reader.positions), dtype=torch.int64)
        with _class_progress(collection.prompts, show_progress) as advance:
            for rows in shard_rows(len(collection)):
                part = read_moments(
                    reader,
                    collection.tokens.select(rows),
                    collection.labels(rows),
                    self._device,
                    token_budget=budget,
                    advance=lambda done, rows=rows: advance([rows[row] for row in done]),
                )
                harmful, harmless = harmful.merge(part.harmful), harmless.merge(part.harmless)
                budget, n_left_out = part.record.token_budget, n_left_out + part.n_left_out
                n_tokens, seconds = n_tokens + part.record.n_tokens, seconds + part.record.seconds
        record = BatchRecord(budget or 0, n_tokens, seconds)
        reading = reading_key(self.model, reader)
        n_read = len(collection)
        provenance = describe_collection(collection, reading, record, n_read, n_left_out)
        return Moments(harmful, harmless, reader.hook_points, reader.positions, provenance)

    @property
    def _device(self) -> str:
        return str(self.model.cfg.device)

    def _reader(self, collection: Collection) -> Reader:
        """Refuse what this model cannot read, and run what all prompts share."""
        few = frame(collection.tokens)
        places = collection.hook_points, collection.positions
        return make_reader(self.model, few, *places, collection.sinks)

    def _fill(
        self, store: Store, collection: Collection, reader: Reader, show_progress: bool | None
    ) -> tuple[BatchRecord, int]:
        """Read and write what the store lacks, one shard in memory at a time; count its prompts."""
        missing = store.missing()
        budget, n_tokens, seconds = store.token_budget, 0, 0.0
        with _class_progress(collection.prompts, show_progress) as advance:
            for index, rows in enumerate(store.rows):
                if index not in missing:
                    advance(rows)
            for index in missing:
                rows = store.rows[index]
                shard = read_shard(
                    reader,
                    collection.tokens.select(rows),
                    self._device,
                    token_budget=budget,
                    batches=store.batches(index),
                    advance=lambda done, rows=rows: advance([rows[row] for row in done]),
                )
                if budget is None:
                    # Before the shard: once it counts, all others must be batched like it.
                    budget = shard.record.token_budget
                    store.keep_budget(budget)
                how = {"batches": shard.batches, "n_left_out": shard.n_left_out.tolist()}
                store.write_shard(index, shard.values, collection.labels(rows), how)
                n_tokens, seconds = n_tokens + shard.record.n_tokens, seconds + shard.record.seconds
                del shard  # before the next one is read
        n_read = sum(len(store.rows[index]) for index in missing)
        return BatchRecord(budget or 0, n_tokens, seconds), n_read


@contextmanager
def _class_progress(
    prompts: ContrastSet, is_shown: bool | None
) -> Iterator[Callable[[Sequence[int]], None]]:
    """Give a function that is told the rows that are done."""
    with ClassProgress("Collecting", prompts.counts(), is_shown) as progress:
        yield lambda rows: progress.advance(prompts.counts(rows))
