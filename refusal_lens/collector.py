"""Residual-stream activations, pooled inside the hooks.

Knows how to run the model over prompts and keep only what is asked for. Does not know what the
activations are for, nor files.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from refusal_lens.batching import BatchRecord, run_in_batches
from refusal_lens.errors import RefusalLensError
from refusal_lens.fast_forward import KeyValues, Stop, forward, why_not_fast
from refusal_lens.hook_points import layer_of, resolve_hook_points, site_of, stop_layer
from refusal_lens.models import Model, describe_model, tokenizer_of
from refusal_lens.moments import ClassMoments, class_moments
from refusal_lens.positions import (
    check_positions,
    make_pool,
    normalise_position,
    normalise_positions,
    position_spans,
)
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts import ContrastSet
from refusal_lens.tokens import Tokens, render, tokenise

Pooled = Float[Tensor, "n_prompts n_hook_points n_positions d_model"]

SITES_IN_ORDER = ("resid_pre", "attn_out", "resid_mid", "resid_post")
"""Where a block can be left early; other hook points of a block need all of it."""


@dataclass(frozen=True, eq=False)
class Activations:
    """Pooled activations of every prompt, float32, in the order the prompts came in.

    `provenance` says which model, prompts and template they came from, as plain values.
    """

    values: Float[Tensor, "n_prompts n_hook_points n_positions d_model"]
    is_harmful: Bool[Tensor, " n_prompts"]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def at(self, hook_point: str, position: str) -> Float[Tensor, "n_prompts d_model"]:
        """Return the activations at one hook point and position."""
        return self.values[
            :,
            self.hook_points.index(hook_point),
            self.positions.index(normalise_position(position)),
        ]

    def __repr__(self) -> str:
        """Say how much was collected and where."""
        n, d = len(self.is_harmful), self.values.shape[-1]
        return (
            f"Activations({n} prompts ({int(self.is_harmful.sum())} harmful), "
            f"{len(self.hook_points)} hook points, positions {', '.join(self.positions)}, "
            f"d_model {d})"
        )


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


@dataclass(frozen=True, eq=False)
class Reader:
    """Runs batches of prompts through a model and returns their pooled activations.

    `path` says, for provenance, which forward it takes and why.
    """

    read: Callable[[Tokens], Pooled]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    path: dict[str, Any]


def collect(
    model: Model,
    prompts: ContrastSet,
    hook_points: str | Sequence[str] = "resid_post",
    positions: str | Sequence[str] = "last",
    *,
    system_prompt: str | None = None,
    token_budget: int | None = None,
    show_progress: bool | None = None,
) -> Activations:
    """Collect activations at any hook points and positions of the residual stream.

    Only the hook points asked for are hooked; each hook pools at once, so that no whole activation
    outlives its layer. What all prompts begin with is run once; attention is fused; the forward
    ends at the last hook point needed, before the unembedding. Where that cannot be done exactly,
    TransformerLens's own forward runs; `provenance["collection"]` says which and why. Batches are
    padded on the right: with causal attention no real token sees the padding.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`, with its tokenizer.
        prompts: Harmful and harmless prompts.
        hook_points: Selectors, see `resolve_hook_points`.
        positions: `last`, `mean` (all tokens of the formatted prompt), `instruction_mean` (the
            user's own tokens), or `-k` (k-th token from the end).
        system_prompt: What the system says before each prompt.
        token_budget: Most tokens in a batch, padding included; None finds what is fastest here.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

    Returns:
        Activations in the order of `prompts.prompts`: harmful first.

    Raises:
        RefusalLensError: A hook point or position that this model or a prompt does not have, or a
            prompt that does not fit in memory.

    Example:
        >>> activations = collect(tiny_model, prompts, "resid_post:0-1", ["last", "mean"])
        >>> activations.values.shape
        torch.Size([8, 2, 2, 32])
    """
    tokens = tokenise(tokenizer_of(model), prompts.prompts, system_prompt)
    reader = make_reader(model, tokens, hook_points, positions)
    shape = (len(tokens), len(reader.hook_points), len(reader.positions), model.cfg.d_model)
    values = torch.empty(shape)

    def keep(rows: list[int], pooled: Pooled) -> None:
        values[rows] = pooled

    record = _run(model, prompts, tokens, reader, keep, token_budget, show_progress)
    provenance = describe_collection(model, prompts, reader, record, system_prompt)
    is_harmful = torch.tensor(prompts.is_harmful)
    return Activations(values, is_harmful, reader.hook_points, reader.positions, provenance)


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

    def keep(rows: list[int], pooled: Pooled) -> None:
        for label in (True, False):
            mine = pooled[is_harmful[rows] == label]
            if len(mine):
                part = class_moments(mine)
                moments[label] = moments[label].merge(part) if label in moments else part

    record = _run(model, prompts, tokens, reader, keep, token_budget, show_progress)
    provenance = describe_collection(model, prompts, reader, record, system_prompt)
    return Moments(moments[True], moments[False], reader.hook_points, reader.positions, provenance)


def _run(
    model: Model,
    prompts: ContrastSet,
    tokens: Tokens,
    reader: Reader,
    keep: Callable[[list[int], Pooled], None],
    token_budget: int | None,
    show_progress: bool | None,
) -> BatchRecord:
    """Read all prompts in batches that fit, and show how it goes."""
    counts = {"harmful": len(prompts.harmful), "harmless": len(prompts.harmless)}
    with ClassProgress("Collecting", counts, show_progress) as progress:

        def run(rows: list[int]) -> None:
            keep(rows, reader.read(tokens.select(rows)))
            n_harmful = sum(prompts.is_harmful[row] for row in rows)
            progress.advance({"harmful": n_harmful, "harmless": len(rows) - n_harmful})

        return run_in_batches(
            tokens.lengths,
            run,
            token_budget=token_budget,
            device=str(model.cfg.device),
            name_of=lambda row: tokens.prompt_ids[row],
        )


# --- one batch --------------------------------------------------------------------------------


def make_reader(
    model: Model,
    tokens: Tokens,
    hook_points: str | Sequence[str],
    positions: str | Sequence[str],
) -> Reader:
    """Check what is asked for, choose the forward that can do it, and prepare it.

    Args:
        model: The model.
        tokens: All prompts that will be read: what they share at the beginning is run here, once.
        hook_points: Selectors.
        positions: Positions.

    Raises:
        RefusalLensError: A hook point or position that this model or a prompt does not have.
    """
    names = resolve_hook_points(model, hook_points)
    wanted = normalise_positions(positions)
    check_positions(tokens, wanted, getattr(model.cfg, "n_ctx", None))
    reason = why_not_fast(model)
    if reason is None and stop_layer(names) is None:
        reason = "a hook point stands behind the last block"
    if reason is not None or not isinstance(model, HookedTransformer):
        path = {"path": "TransformerLens", "why": reason, "n_prefix": 0}
        return Reader(partial(_read_plain, model, names, wanted), names, wanted, path)
    prefix = _run_prefix(model, tokens.shared_prefix(), names)
    path = {"path": "fast", "why": None, "n_prefix": prefix.n_tokens}
    return Reader(partial(_read_fast, model, names, wanted, prefix), names, wanted, path)


def _read_plain(
    model: Model, names: Sequence[str], positions: Sequence[str], tokens: Tokens
) -> Pooled:
    """Read one batch by TransformerLens's own forward."""
    ids = pad_right(tokens, _pad_id(model))
    pool = make_pool(tokens, positions)
    pooled: dict[str, Tensor] = {}

    # The name is bound here: a bridge's hook goes by another name than the one asked for.
    def keep(name: str, activation: Tensor, hook: Any) -> None:  # noqa: ARG001
        _check_shape(name, activation, (*ids.shape, model.cfg.d_model))
        pooled[name] = pool(activation)

    hooks: list[Any] = [(name, partial(keep, name)) for name in names]
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        # padding_side: a tokenizer that pads left would make TransformerLens mask real tokens.
        model(
            ids.to(model.cfg.device),
            return_type=None,
            stop_at_layer=stop_layer(names),
            padding_side="right",
        )
    return _gather(pooled, names)


@dataclass(frozen=True, eq=False)
class _Prefix:
    """What all prompts begin with, run once: keys and values, and its own activations."""

    n_tokens: int
    past: list[KeyValues] | None
    before: dict[str, Float[Tensor, "n_prefix d_model"]]


def _run_prefix(model: HookedTransformer, ids: tuple[int, ...], names: Sequence[str]) -> _Prefix:
    if not ids:
        return _Prefix(0, None, {})
    before: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        before[hook.name] = activation[0]

    hooks: list[Any] = [(name, keep) for name in names]
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        row = torch.tensor([ids], device=model.cfg.device)
        past = forward(model, row, Stop(stop_layer(names) or 0))
    return _Prefix(len(ids), past, before)


def _read_fast(
    model: HookedTransformer,
    names: Sequence[str],
    positions: Sequence[str],
    prefix: _Prefix,
    tokens: Tokens,
) -> Pooled:
    """Read one batch by the fast forward, behind the shared prefix."""
    rest = pad_right(tokens, _pad_id(model), start=prefix.n_tokens).to(model.cfg.device)
    pool = make_pool(tokens, positions, prefix.n_tokens)
    stop = _stop(names)
    read = _positions_of_last_block(tokens, positions, prefix.n_tokens)
    pooled: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        if read is not None and _is_after_attention(hook.name, stop):
            pooled[hook.name] = activation.float()
        else:
            _check_shape(hook.name, activation, (*rest.shape, model.cfg.d_model))
            pooled[hook.name] = pool(activation, prefix.before.get(hook.name))

    hooks: list[Any] = [(name, keep) for name in names]
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        forward(
            model,
            rest,
            stop,
            past=prefix.past,
            read=None if read is None else read.to(rest.device),
        )
    return _gather(pooled, names)


def _stop(names: Sequence[str]) -> Stop:
    """Return the last block needed, and the last of its hook points."""
    n_blocks = stop_layer(names) or 0
    sites = [site_of(name) for name in names if layer_of(name) == n_blocks - 1]
    if any(site not in SITES_IN_ORDER for site in sites):
        return Stop(n_blocks)
    return Stop(n_blocks, max(sites, key=SITES_IN_ORDER.index, default="resid_post"))


def _positions_of_last_block(
    tokens: Tokens, positions: Sequence[str], n_prefix: int
) -> Int[Tensor, "batch n_positions"] | None:
    """Return the tokens that the last block has to compute; None where it is all of them."""
    spans = position_spans(tokens, positions)
    first, stop = spans.unbind(-1)
    is_single = bool((stop - first == 1).all()) and bool((first >= n_prefix).all())
    return first - n_prefix if is_single else None


def _is_after_attention(name: str, stop: Stop) -> bool:
    before = ("resid_pre", "ln1.hook_normalized")
    return layer_of(name) == stop.n_blocks - 1 and site_of(name) not in before


def _check_shape(name: str, activation: Tensor, expected: tuple[int, ...]) -> None:
    if activation.shape != expected:
        raise RefusalLensError(
            f"Hook point {name} gave an activation of shape {tuple(activation.shape)}; "
            f"[batch, position, d_model] is needed, here {expected}."
        )


def _gather(pooled: dict[str, Tensor], names: Sequence[str]) -> Pooled:
    missing = [name for name in names if name not in pooled]
    if missing:
        raise RefusalLensError(f"Hook points that never fired: {', '.join(missing)}.")
    return torch.stack([pooled[name] for name in names], dim=1).cpu()


def pad_right(tokens: Tokens, pad_id: int, start: int = 0) -> Int[Tensor, "batch pos"]:
    """Lay ragged ids out as one tensor, padded on the right, from token `start` on."""
    ids = torch.full((len(tokens), max(tokens.lengths) - start), pad_id)
    for row, prompt in enumerate(tokens.ids):
        ids[row, : len(prompt) - start] = torch.tensor(prompt[start:])
    return ids


def _pad_id(model: Model) -> int:
    # Any id will do: nothing real attends to what stands right of it.
    pad_id = getattr(model.tokenizer, "pad_token_id", None)
    return 0 if pad_id is None else pad_id


def describe_collection(
    model: Model,
    prompts: ContrastSet,
    reader: Reader,
    record: BatchRecord,
    system_prompt: str | None,
) -> dict[str, Any]:
    """Say where activations came from: model, prompts, template, with one rendered example."""
    tokenizer = tokenizer_of(model)
    return {
        "model": describe_model(model),
        "prompts": {
            "harmful": {"n": len(prompts.harmful), "sha256": prompts.harmful.sha256},
            "harmless": {"n": len(prompts.harmless), "sha256": prompts.harmless.sha256},
        },
        "chat_template": {
            "has_template": tokenizer.chat_template is not None,
            "system_prompt": system_prompt,
            "example": render(tokenizer, prompts.prompts[0].text, system_prompt),
        },
        "hook_points": list(reader.hook_points),
        "positions": list(reader.positions),
        "collection": {
            **reader.path,
            **asdict(record),
            "prompts_per_second": len(prompts) / record.seconds,
        },
    }
