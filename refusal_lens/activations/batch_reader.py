"""One batch of prompts through the model, pooled inside the hooks.

Knows which forward can read what is asked for. Does not know how prompts are batched, nor what the
activations are for.

Tested in tests/activations/test_collector.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.models.backends import HookedTransformer, Model, is_hooked
from refusal_lens.models.batching import fits
from refusal_lens.models.fast_forward import KeyValues, Stop, forward, why_not_fast
from refusal_lens.models.hook_points import (
    hooks_at,
    layer_of,
    read_at,
    resolve_of_one_width,
    site_of,
    stop_layer,
    width_of,
)
from refusal_lens.models.known_budgets import KnownBudget
from refusal_lens.models.layout import lay_out
from refusal_lens.models.matmul import fast_products, library_of_products
from refusal_lens.prompts.positions import (
    PooledBatch,
    Sinks,
    check_positions,
    make_pool,
    normalise_positions,
    position_spans,
)
from refusal_lens.prompts.tokens import Tokens

Pooled = Float[Tensor, "n_prompts n_hook_points n_positions d_model"]

SITES_IN_ORDER = ("resid_pre", "attn_out", "resid_mid", "resid_post")
"""Where a block can be left early; other hook points of a block need all of it."""


@dataclass(frozen=True, eq=False)
class Reader:
    """Runs batches of prompts through a model and returns their pooled activations.

    `path` says, for provenance, which forward it takes and why.
    """

    read: Callable[[Tokens], "Batch"]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    path: dict[str, Any]
    d_model: int
    sinks: Sinks
    known_budget: Callable[[int], KnownBudget]
    """By the tokens of a typical prompt."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Pooled activations of some prompts, and how many tokens each mean left out as sinks."""

    values: Pooled
    n_left_out: Int[Tensor, "n_prompts n_hook_points n_positions"]


def make_reader(
    model: Model,
    tokens: Tokens,
    hook_points: str | Sequence[str],
    positions: str | Sequence[str],
    sinks: Sinks = "left_out",
) -> Reader:
    """Check what is asked for, choose the forward that can do it, and prepare it.

    `tokens` are all prompts that will be read, or a `frame` of them: what they share at the
    beginning is run here, once.

    Raises:
        RefusalLensError: A hook point or position that this model or a prompt does not have, or
            hook points of several widths.
    """
    names = resolve_of_one_width(model, hook_points)
    width = width_of(model, names[0])
    wanted = normalise_positions(positions)
    check_positions(tokens, wanted, getattr(model.cfg, "n_ctx", None))
    reason, products = why_not_fast(model), library_of_products(model.cfg)
    if reason is None and stop_layer(names) is None:
        reason = "a hook point stands behind the last block"
    if reason is not None or not is_hooked(model):
        path = {"path": "TransformerLens", "why": reason, "n_prefix": 0, "products": products}
        read = partial(_read_plain, model, names, wanted, sinks)
        known = partial(KnownBudget.of, model.cfg, "TransformerLens")
        return Reader(read, names, wanted, path, width, sinks, known)
    lay_out(model)
    prefix = _run_prefix(model, tokens.shared_prefix(), names)
    path = {"path": "fast", "why": None, "n_prefix": prefix.n_tokens, "products": products}
    path["weights"] = "laid out so that transposes are views; shapes and values unchanged"
    read = partial(_read_fast, model, names, wanted, sinks, prefix)
    known = partial(KnownBudget.of, model.cfg, "fast")
    return Reader(read, names, wanted, path, width, sinks, known)


def _read_plain(
    model: Model, names: Sequence[str], positions: Sequence[str], sinks: Sinks, tokens: Tokens
) -> Batch:
    """Read one batch by TransformerLens's own forward."""
    ids = pad_right(tokens, _pad_id(model))
    pool = make_pool(tokens, positions, 0, sinks)
    pooled: dict[str, PooledBatch] = {}

    def keep(name: str, activation: Tensor) -> None:
        _check_shape(name, activation, (*ids.shape, width_of(model, name)))
        pooled[name] = pool(activation)

    with _forward_on(model, _hooks(model, names, keep)):
        # padding_side: a tokenizer that pads left would make TransformerLens mask real tokens.
        model(
            ids.to(model.cfg.device),
            return_type=None,
            stop_at_layer=stop_layer(names),
            padding_side="right",
        )
    return _checked(_gather(pooled, names), names, tokens, model)


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

    def keep(name: str, activation: Tensor) -> None:
        before[name] = activation[0]

    past: list[KeyValues] = []

    def run() -> None:
        row = torch.tensor([ids], device=model.cfg.device)
        past.extend(forward(model, row, Stop(stop_layer(names) or 0)))

    with _forward_on(model, _hooks(model, names, keep)):
        if not fits(run):
            raise RefusalLensError(
                f"The first {len(ids)} tokens, which all prompts share, do not fit in memory on "
                f"{model.cfg.device}, even alone. Shorten them, or use a smaller dtype or a larger "
                "device."
            )
    return _Prefix(len(ids), past, before)


def _read_fast(
    model: HookedTransformer,
    names: Sequence[str],
    positions: Sequence[str],
    sinks: Sinks,
    prefix: _Prefix,
    tokens: Tokens,
) -> Batch:
    """Read one batch by the fast forward, behind the shared prefix."""
    rest = pad_right(tokens, _pad_id(model), start=prefix.n_tokens).to(model.cfg.device)
    pool = make_pool(tokens, positions, prefix.n_tokens, sinks)
    stop = _stop(names)
    needed = _positions_of_last_block(tokens, positions, prefix.n_tokens)
    pooled: dict[str, PooledBatch] = {}

    def keep(name: str, activation: Tensor) -> None:
        if needed is not None and _is_after_attention(name, stop):
            # The last block computed these positions only, each a single token.
            none = torch.zeros(needed.shape, dtype=torch.int64, device=activation.device)
            pooled[name] = PooledBatch(activation.float(), none)
        else:
            _check_shape(name, activation, (*rest.shape, width_of(model, name)))
            pooled[name] = pool(activation, prefix.before.get(name))

    with _forward_on(model, _hooks(model, names, keep)):
        forward(
            model,
            rest,
            stop,
            past=prefix.past,
            needed=None if needed is None else needed.to(rest.device),
        )
    return _checked(_gather(pooled, names), names, tokens, model)


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


def _hooks(model: Model, names: Sequence[str], keep: Callable[[str, Tensor], None]) -> list[Any]:
    """Make hooks that give `keep` what is at each hook point, by the name that was asked for."""

    # A bridge's hook goes by another name, and the heads of a layer share one.
    def at(name: str) -> tuple[str, Callable[..., None]]:
        hooked, read = read_at(model, name)
        return hooked, lambda activation, hook: keep(name, read(activation))  # noqa: ARG005

    return [at(name) for name in names]


def _check_shape(name: str, activation: Tensor, expected: tuple[int, ...]) -> None:
    if activation.shape != expected:
        raise RefusalLensError(
            f"Hook point {name} gave an activation of shape {tuple(activation.shape)}; "
            f"[batch, position, component] is needed, here {expected}."
        )


@contextmanager
def _forward_on(model: Model, hooks: list[Any]) -> Iterator[None]:
    """Set hooks for one forward pass without gradients, at the machine's best speed."""
    with torch.inference_mode(), fast_products(model.cfg), hooks_at(model, hooks):
        yield


def _gather(pooled: dict[str, PooledBatch], names: Sequence[str]) -> Batch:
    missing = [name for name in names if name not in pooled]
    if missing:
        raise RefusalLensError(f"Hook points that never fired: {', '.join(missing)}.")
    # Layers may lie on several devices.
    device = pooled[names[0]].values.device
    return Batch(
        torch.stack([pooled[name].values.to(device) for name in names], dim=1),
        torch.stack([pooled[name].n_left_out.to(device) for name in names], dim=1),
    )


def _checked(batch: Batch, names: Sequence[str], tokens: Tokens, model: Model) -> Batch:
    """Refuse activations that are not finite, where they lie, and bring them to the CPU.

    Of several hook points the first is named: what comes behind it inherits the fault.
    """
    is_finite = batch.values.isfinite().flatten(2).all(-1)
    if bool(is_finite.all()):
        return Batch(_to_cpu(batch.values), batch.n_left_out.cpu())
    first = int((~is_finite).any(0).int().argmax())
    rows = (~is_finite[:, first]).nonzero().flatten().tolist()
    dtype = str(model.cfg.dtype).removeprefix("torch.")
    advice = (
        "float16 ends at 65,504: use bfloat16 or float32 (model.dtype)."
        if dtype == "float16"
        else "The checkpoint may be broken, or an intervention: look at its weights."
    )
    raise RefusalLensError(
        f"Activations at {names[first]} are not finite in {dtype}, in {len(rows)} of "
        f"{len(tokens)} prompts of a batch, such as {min(tokens.prompt_ids[r] for r in rows)}. "
        f"{advice}"
    )


def _to_cpu(values: Pooled) -> Pooled:
    """Bring activations to the CPU; over pinned memory, which a GPU fills ten times as fast."""
    if not values.is_cuda:
        return values.cpu()
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return pinned


def pad_right(tokens: Tokens, pad_id: int, start: int = 0) -> Int[Tensor, "batch pos"]:
    """Lay ragged ids out as one tensor, padded on the right, from token `start` on."""
    ids = np.full((len(tokens), max(tokens.lengths) - start), pad_id, dtype=np.int64)
    for row, length in enumerate(tokens.lengths):
        ids[row, : length - start] = tokens.ids.array(row)[start:]
    return torch.from_numpy(ids)


def _pad_id(model: Model) -> int:
    # Any id will do: nothing real attends to what stands right of it.
    pad_id = getattr(model.tokenizer, "pad_token_id", None)
    return 0 if pad_id is None else pad_id
