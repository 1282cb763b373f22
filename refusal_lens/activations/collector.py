"""Residual-stream activations of a whole contrast set, in batches, to memory or to disk.

Knows how to read all prompts, shard by shard. Does not know how a batch is read, nor what the
activations are for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from refusal_lens.activations.batch_reader import Reader, make_reader
from refusal_lens.activations.first_pass import Survey, survey
from refusal_lens.activations.moments import Moments
from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.provenance import describe_collection, prompts_key, reading_key
from refusal_lens.activations.shard_reader import no_moments, read_moments, read_shard
from refusal_lens.activations.store import Store, load_activations, open_store, shard_rows
from refusal_lens.models.batching import BatchRecord
from refusal_lens.models.loading import Model, tokenizer_of
from refusal_lens.models.torch_defaults import plain_torch
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.groups import find_groups
from refusal_lens.prompts.positions import check_positions, normalise_positions


@plain_torch()
def collect(
    model: Model,
    prompts: ContrastSet,
    hook_points: str | Sequence[str] = "resid_post",
    positions: str | Sequence[str] = "last",
    *,
    system_prompt: str | None = None,
    token_budget: int | None = None,
    folder: Path | None = None,
    resume: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    show_progress: bool | None = None,
) -> Activations:
    """Collect activations at any hook points and positions of the residual stream.

    Each hook pools at once, so that no whole activation outlives its layer. What all prompts begin
    with is run once; the forward ends at the last hook point needed. Where that cannot be done
    exactly, TransformerLens's own forward runs; `provenance["collection"]` says which and why.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`, with its tokenizer.
        prompts: Harmful and harmless prompts.
        hook_points: Selectors, see `resolve_hook_points`.
        positions: `last`, `mean` (all tokens of the formatted prompt), `instruction_mean` (the
            user's own tokens), or `-k` (k-th token from the end).
        system_prompt: What the system says before each prompt.
        token_budget: Most tokens in a batch, padding included; None finds what is fastest here.
        folder: Where to store them: each shard of prompts is written as soon as it is read.
        resume: Go on with what is in `folder`; the result is the same to the last bit.
        dtype: Precision in `folder`; no matter without one.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

    Returns:
        Activations in the order of `prompts.prompts`: harmful first, with the groups that
        `find_groups` sees in them.

    Raises:
        RefusalLensError: A hook point or position that this model or a prompt does not have, a
            prompt that does not fit in memory, a folder of other activations, or a full disk.

    Example:
        >>> activations = collect(tiny_model, prompts, "resid_post:0-1", ["last", "mean"])
        >>> activations.values.shape
        torch.Size([8, 2, 2, 32])
    """
    surveyed, reader = _prepare(model, prompts, hook_points, positions, system_prompt)
    if folder is not None:
        key = {**reading_key(model, reader), **prompts_key(surveyed)}
        key |= {"dtype": dtype, "token_budget": token_budget}
        store = open_store(folder, key, n_prompts=len(prompts), resume=resume)
        record, n_read = _fill(store, model, surveyed, reader, show_progress)
        described = describe_collection(model, prompts, reader, record, system_prompt, n_read)
        store.finish(described, find_groups(prompts))
        return load_activations(folder)
    rows = range(len(prompts))
    with _class_progress(prompts, show_progress) as advance:
        tokens, device = surveyed.tokens(rows), str(model.cfg.device)
        shard = read_shard(reader, tokens, device, token_budget=token_budget, advance=advance)
    provenance = describe_collection(model, prompts, reader, shard.record, system_prompt)
    labels = class_labels(prompts, rows)
    places = reader.hook_points, reader.positions
    return Activations(shard.values, labels, *places, provenance, find_groups(prompts))


@plain_torch()
def collect_moments(
    model: Model,
    prompts: ContrastSet,
    hook_points: str | Sequence[str] = "resid_post",
    positions: str | Sequence[str] = "last",
    *,
    system_prompt: str | None = None,
    token_budget: int | None = None,
    show_progress: bool | None = None,
) -> Moments:
    """Collect only what directions need, in memory that does not grow with the prompts.

    The arguments are those of `collect`. No prompt's activation is kept, so that directions can be
    fitted but not validated.

    Returns:
        Moments of both classes, in float64.

    Raises:
        RefusalLensError: As `collect`.

    Example:
        >>> collect_moments(tiny_model, prompts, "resid_post:0-1").harmful.mean.shape
        torch.Size([2, 1, 32])
    """
    surveyed, reader = _prepare(model, prompts, hook_points, positions, system_prompt)
    harmful = harmless = no_moments(reader)
    budget, n_tokens, seconds = token_budget, 0, 0.0
    with _class_progress(prompts, show_progress) as advance:
        for rows in shard_rows(len(prompts)):
            part = read_moments(
                reader,
                surveyed.tokens(rows),
                class_labels(prompts, rows),
                str(model.cfg.device),
                token_budget=budget,
                advance=lambda done, rows=rows: advance([rows[row] for row in done]),
            )
            harmful, harmless = harmful.merge(part.harmful), harmless.merge(part.harmless)
            budget = part.record.token_budget
            n_tokens, seconds = n_tokens + part.record.n_tokens, seconds + part.record.seconds
    record = BatchRecord(budget or 0, n_tokens, seconds)
    provenance = describe_collection(model, prompts, reader, record, system_prompt)
    return Moments(harmful, harmless, reader.hook_points, reader.positions, provenance)


def _prepare(
    model: Model,
    prompts: ContrastSet,
    hook_points: str | Sequence[str],
    positions: str | Sequence[str],
    system_prompt: str | None,
) -> tuple[Survey, Reader]:
    """Look at all prompts, refuse those that cannot be read, and run what they share."""
    check = partial(
        check_positions,
        positions=normalise_positions(positions),
        n_ctx=getattr(model.cfg, "n_ctx", None),
    )
    surveyed = survey(tokenizer_of(model), prompts, system_prompt, check)
    return surveyed, make_reader(model, surveyed.frame, hook_points, positions)


def class_labels(prompts: ContrastSet, rows: range) -> Bool[Tensor, " n_prompts"]:
    """Say of some neighbours which are harmful: the harmful ones come first."""
    return torch.arange(rows.start, rows.stop) < len(prompts.harmful)


# --- all shards of a store --------------------------------------------------------------------


def _fill(
    store: Store,
    model: Model,
    surveyed: Survey,
    reader: Reader,
    show_progress: bool | None,
) -> tuple[BatchRecord, int]:
    """Read and write what the store lacks, one shard in memory at a time; count its prompts."""
    prompts = surveyed.prompts
    missing = store.missing()
    budget, n_tokens, seconds = store.token_budget, 0, 0.0
    with _class_progress(prompts, show_progress) as advance:
        for index, rows in enumerate(store.rows):
            if index not in missing:
                advance(rows)
        for index in missing:
            rows = store.rows[index]
            shard = read_shard(
                reader,
                surveyed.tokens(rows),
                str(model.cfg.device),
                token_budget=budget,
                batches=store.batches(index),
                advance=lambda done, rows=rows: advance([rows[row] for row in done]),
            )
            if budget is None:
                # Before the shard: once it counts, all others must be batched like it.
                budget = shard.record.token_budget
                store.settle(budget)
            store.write_shard(index, shard.values, class_labels(prompts, rows), shard.batches)
            n_tokens, seconds = n_tokens + shard.record.n_tokens, seconds + shard.record.seconds
            del shard  # before the next one is read
    n_read = sum(len(store.rows[index]) for index in missing)
    return BatchRecord(budget or 0, n_tokens, seconds), n_read


@contextmanager
def _class_progress(
    prompts: ContrastSet, is_shown: bool | None
) -> Iterator[Callable[[Sequence[int]], None]]:
    """Give a function that is told the rows that are done."""
    counts = {"harmful": len(prompts.harmful), "harmless": len(prompts.harmless)}
    with ClassProgress("Collecting", counts, is_shown) as progress:

        def advance(rows: Sequence[int]) -> None:
            n_harmful = sum(row < counts["harmful"] for row in rows)
            progress.advance({"harmful": n_harmful, "harmless": len(rows) - n_harmful})

        yield advance
