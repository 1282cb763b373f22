"""Residual-stream activations of a whole contrast set, in batches, to memory or to disk.

Knows how to read all prompts, shard by shard, and what must be the same for shards to belong
together. Does not know how a batch is read, nor what the activations are for.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from refusal_lens.activations import Activations
from refusal_lens.batching import BatchRecord, run_in_batches
from refusal_lens.models import Model, describe_model, tokenizer_of
from refusal_lens.moments import ClassMoments, class_moments
from refusal_lens.positions import positions_read
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts import ContrastSet
from refusal_lens.reader import Pooled, Reader, make_reader
from refusal_lens.store import Store, load_activations, open_store
from refusal_lens.tokens import Tokens, render, tokenise


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of both classes at every place: all that fitting needs, whatever the prompts' number.

    `provenance` says which model, prompts and template they came from, as plain values.
    """

    harmful: ClassMoments
    harmless: ClassMoments
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)


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
        Activations in the order of `prompts.prompts`: harmful first.

    Raises:
        RefusalLensError: A hook point or position that this model or a prompt does not have, a
            prompt that does not fit in memory, a folder of other activations, or a full disk.

    Example:
        >>> activations = collect(tiny_model, prompts, "resid_post:0-1", ["last", "mean"])
        >>> activations.values.shape
        torch.Size([8, 2, 2, 32])
    """
    tokens = tokenise(tokenizer_of(model), prompts.prompts, system_prompt)
    reader = make_reader(model, tokens, hook_points, positions)
    if folder is not None:
        key = content_key(model, prompts, tokens, reader, system_prompt)
        key |= {"dtype": dtype, "token_budget": token_budget}
        store = open_store(folder, key, n_prompts=len(tokens), resume=resume)
        record, n_read = _fill(store, model, prompts, tokens, reader, show_progress)
        store.finish(describe_collection(model, prompts, reader, record, system_prompt, n_read))
        return load_activations(folder)
    with _class_progress(prompts, show_progress) as advance:
        device = str(model.cfg.device)
        shard = read_shard(reader, tokens, device, token_budget=token_budget, advance=advance)
    provenance = describe_collection(model, prompts, reader, shard.record, system_prompt)
    labels = torch.tensor(prompts.is_harmful)
    return Activations(shard.values, labels, reader.hook_points, reader.positions, provenance)


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
    tokens = tokenise(tokenizer_of(model), prompts.prompts, system_prompt)
    reader = make_reader(model, tokens, hook_points, positions)
    is_harmful = torch.tensor(prompts.is_harmful)
    moments: dict[bool, ClassMoments] = {}
    with _class_progress(prompts, show_progress) as advance:

        def keep(rows: list[int], pooled: Pooled) -> None:
            for label in (True, False):
                mine = pooled[is_harmful[rows] == label]
                if len(mine):
                    part = class_moments(mine)
                    moments[label] = moments[label].merge(part) if label in moments else part
            advance(rows)

        record = _read_in_batches(reader, tokens, str(model.cfg.device), keep, token_budget)
    provenance = describe_collection(model, prompts, reader, record, system_prompt)
    return Moments(moments[True], moments[False], reader.hook_points, reader.positions, provenance)


# --- one shard --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shard:
    """Activations of some prompts, and the rows of each batch they were read in."""

    values: Pooled
    batches: list[list[int]]
    record: BatchRecord


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
        reader: From `make_reader` with the tokens of all shards: what those share decides bits.
        tokens: The shard's prompts, `tokens.select(rows)`.
        device: Where the model is.
        token_budget: Most tokens in a batch, padding included; None finds what is fastest here.
        batches: The rows of each batch, to read a shard exactly as it was read before.
        advance: Is told the rows of each batch that is done, counted from the shard's first.

    Raises:
        RefusalLensError: A prompt does not fit in memory.
    """
    values = torch.empty(
        len(tokens), len(reader.hook_points), len(reader.positions), reader.d_model
    )
    done: list[list[int]] = []

    def keep(rows: list[int], pooled: Pooled) -> None:
        values[rows] = pooled
        done.append(rows)
        if advance is not None:
            advance(rows)

    if batches is None:
        record = _read_in_batches(reader, tokens, device, keep, token_budget)
        return Shard(values, done, record)
    began = time.perf_counter()
    for rows in batches:
        keep(list(rows), reader.read(tokens.select(rows)))
    record = BatchRecord(token_budget or 0, sum(tokens.lengths), time.perf_counter() - began)
    return Shard(values, done, record)


def find_token_budget(reader: Reader, tokens: Tokens, device: str) -> int:
    """Read prompts only to find out which token budget is fastest here."""
    return _read_in_batches(reader, tokens, device, lambda _rows, _pooled: None, None).token_budget


def _read_in_batches(
    reader: Reader,
    tokens: Tokens,
    device: str,
    keep: Callable[[list[int], Pooled], None],
    token_budget: int | None,
) -> BatchRecord:
    return run_in_batches(
        # What the prompts share has been run already.
        [length - reader.path["n_prefix"] for length in tokens.lengths],
        lambda rows: keep(rows, reader.read(tokens.select(rows))),
        token_budget=token_budget,
        device=device,
        name_of=lambda row: tokens.prompt_ids[row],
    )


# --- all shards of a store --------------------------------------------------------------------


def _fill(
    store: Store,
    model: Model,
    prompts: ContrastSet,
    tokens: Tokens,
    reader: Reader,
    show_progress: bool | None,
) -> tuple[BatchRecord, int]:
    """Read and write what the store lacks, one shard in memory at a time; count its prompts."""
    is_harmful = torch.tensor(prompts.is_harmful)
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
                tokens.select(rows),
                str(model.cfg.device),
                token_budget=budget,
                batches=store.batches(index),
                advance=lambda done, rows=rows: advance([rows[row] for row in done]),
            )
            if budget is None:
                # Before the shard: once it counts, all others must be batched like it.
                budget = shard.record.token_budget
                store.settle(budget)
            labels = is_harmful[rows.start : rows.stop]
            store.write_shard(index, shard.values, labels, shard.batches)
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
            n_harmful = sum(prompts.is_harmful[row] for row in rows)
            progress.advance({"harmful": n_harmful, "harmless": len(rows) - n_harmful})

        yield advance


def content_key(
    model: Model,
    prompts: ContrastSet,
    tokens: Tokens,
    reader: Reader,
    system_prompt: str | None,
) -> dict[str, Any]:
    """Say all that activations depend on, as plain values; `dtype` and `token_budget` are to add.

    The token ids count too: some templates write the day's date.
    """
    return {
        **reading_key(model, reader),
        **prompts_key(tokenizer_of(model), prompts, tokens, system_prompt),
    }


def reading_key(model: Model, reader: Reader) -> dict[str, Any]:
    """Say what of `content_key` hangs on the model and how it is read."""
    described = describe_model(model)
    # Two devices of a kind agree; two kinds round differently.
    described["device"] = described["device"].split(":")[0]
    described["weights_sample_sha256"] = _sample_weights(model)
    return {
        "model": described,
        "hook_points": list(reader.hook_points),
        "positions": list(reader.positions),
        "forward": reader.path,
    }


def prompts_key(
    tokenizer: Any, prompts: ContrastSet, tokens: Tokens, system_prompt: str | None
) -> dict[str, Any]:
    """Say what of `content_key` hangs on the prompts and how they are written out."""
    return {
        "prompts": _describe_prompts(prompts),
        "chat_template": {
            "sha256": _hash_template(tokenizer),
            "system_prompt": system_prompt,
        },
        "token_ids_sha256": hashlib.sha256(json.dumps(tokens.ids).encode()).hexdigest(),
    }


def _hash_template(tokenizer: Any) -> str:
    return hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest()


def _sample_weights(model: Model) -> str:
    """Hash some values of each parameter: weights may have been edited since they were loaded."""
    checksum = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // 64)].float().cpu()
        checksum.update(name.encode() + sample.numpy().tobytes())
    return checksum.hexdigest()


def describe_collection(
    model: Model,
    prompts: ContrastSet,
    reader: Reader,
    record: BatchRecord,
    system_prompt: str | None,
    n_read: int | None = None,
) -> dict[str, Any]:
    """Say where activations came from: model, prompts, template, with one rendered example.

    `n_read` counts the prompts of `record`, where a resumed collection found the others done.
    """
    n_read = len(prompts) if n_read is None else n_read
    return {
        "model": describe_model(model),
        **describe_prompts(tokenizer_of(model), prompts, system_prompt),
        **describe_tokens(tokenizer_of(model), prompts, reader.positions, system_prompt),
        "hook_points": list(reader.hook_points),
        "positions": list(reader.positions),
        "collection": {
            **reader.path,
            **asdict(record),
            "n_prompts_read": n_read,
            "prompts_per_second": n_read / record.seconds if record.seconds else None,
        },
    }


def describe_prompts(
    tokenizer: Any, prompts: ContrastSet, system_prompt: str | None
) -> dict[str, Any]:
    """Say which prompts, and how they are written out, with one example."""
    return {
        "prompts": _describe_prompts(prompts),
        "chat_template": {
            "has_template": tokenizer.chat_template is not None,
            "sha256": _hash_template(tokenizer),
            "system_prompt": system_prompt,
            "example": render(tokenizer, prompts.prompts[0].text, system_prompt),
        },
    }


def describe_tokens(
    tokenizer: Any, prompts: ContrastSet, positions: Sequence[str], system_prompt: str | None
) -> dict[str, Any]:
    """Say which token each position reads in the first prompt."""
    first = tokenise(tokenizer, prompts.prompts[:1], system_prompt)
    read = positions_read(tokenizer, first, positions)
    return {"tokens_read": {row.position: asdict(row) for row in read}}


def _describe_prompts(prompts: ContrastSet) -> dict[str, Any]:
    return {
        "harmful": {"n": len(prompts.harmful), "sha256": prompts.harmful.sha256},
        "harmless": {"n": len(prompts.harmless), "sha256": prompts.harmless.sha256},
    }
