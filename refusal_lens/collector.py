"""Residual-stream activations, pooled inside the hooks.

Knows how to run the model over prompts and keep only what is asked for. Does not know what the
activations are for, nor files.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.hook_points import resolve_hook_points, stop_layer
from refusal_lens.models import Model, describe_model, tokenizer_of
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts import ContrastSet
from refusal_lens.tokens import Tokens, render, tokenise

TOKEN_BUDGET = 4096
"""Tokens in one batch, padding included: enough to keep two cores busy, little enough to fit."""


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


@dataclass(frozen=True)
class PositionRead:
    """Which token one position read in one prompt; for a mean, the tokens it spans."""

    prompt_id: str
    position: str
    token_indices: str
    token_ids: str
    tokens: str


def collect(
    model: Model,
    prompts: ContrastSet,
    hook_points: str | Sequence[str] = "resid_post",
    positions: str | Sequence[str] = "last",
    *,
    system_prompt: str | None = None,
    token_budget: int = TOKEN_BUDGET,
    show_progress: bool | None = None,
) -> Activations:
    """Collect activations at any hook points and positions of the residual stream.

    Only the hook points asked for are hooked; each hook pools at once, so that no whole activation
    outlives its layer; the forward stops at the last layer needed, before the unembedding. Batches
    are padded on the right: with causal attention no real token sees the padding.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`, with its tokenizer.
        prompts: Harmful and harmless prompts.
        hook_points: Selectors, see `resolve_hook_points`.
        positions: `last`, `mean` (all tokens of the formatted prompt), `instruction_mean` (the
            user's own tokens), or `-k` (k-th token from the end).
        system_prompt: What the system says before each prompt.
        token_budget: Most tokens in a batch, padding included.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

    Returns:
        Activations in the order of `prompts.prompts`: harmful first.

    Raises:
        RefusalLensError: A hook point or position that this model or a prompt does not have.

    Example:
        >>> activations = collect(tiny_model, prompts, "resid_post:0-1", ["last", "mean"])
        >>> activations.values.shape
        torch.Size([8, 2, 2, 32])
    """
    names = resolve_hook_points(model, hook_points)
    wanted = normalise_positions(positions)
    tokens = tokenise(tokenizer_of(model), prompts.prompts, system_prompt)
    check_positions(tokens, wanted, getattr(model.cfg, "n_ctx", None))
    is_harmful = torch.tensor(prompts.is_harmful)
    values = torch.empty(len(tokens), len(names), len(wanted), model.cfg.d_model)
    counts = {"harmful": len(prompts.harmful), "harmless": len(prompts.harmless)}
    with ClassProgress("Collecting", counts, show_progress) as progress:
        for rows in tokens.batches(token_budget):
            values[rows] = collect_batch(model, tokens.select(rows), names, wanted)
            n_harmful = int(is_harmful[rows].sum())
            progress.advance({"harmful": n_harmful, "harmless": len(rows) - n_harmful})
    provenance = describe_collection(model, prompts, names, wanted, system_prompt)
    return Activations(values, is_harmful, names, wanted, provenance)


def collect_batch(
    model: Model, tokens: Tokens, hook_points: Sequence[str], positions: Sequence[str]
) -> Float[Tensor, "n_prompts n_hook_points n_positions d_model"]:
    """Run one batch and return its pooled activations on the CPU, float32."""
    ids = pad_right(tokens, _pad_id(model))
    pool = make_pool(tokens, positions)
    pooled: dict[str, Tensor] = {}

    # The name is bound here: a bridge's hook goes by another name than the one asked for.
    def keep(name: str, activation: Tensor, hook: Any) -> None:  # noqa: ARG001
        if activation.ndim != 3 or activation.shape[:2] != ids.shape:
            raise RefusalLensError(
                f"Hook point {name} gave an activation of shape {tuple(activation.shape)}; "
                f"[batch, position, d_model] is needed, here {(*ids.shape, model.cfg.d_model)}."
            )
        pooled[name] = pool(activation)

    stop = stop_layer(hook_points)
    hooks: list[Any] = [(name, partial(keep, name)) for name in hook_points]
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        # padding_side: a tokenizer that pads left would make TransformerLens mask real tokens.
        model(ids.to(model.cfg.device), return_type=None, stop_at_layer=stop, padding_side="right")
    missing = [name for name in hook_points if name not in pooled]
    if missing:
        raise RefusalLensError(f"Hook points that never fired: {', '.join(missing)}.")
    return torch.stack([pooled[name].cpu() for name in hook_points], dim=1)


def make_pool(
    tokens: Tokens, positions: Sequence[str]
) -> Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch n_positions d_model"]]:
    """Return the function that reads the positions out of one padded activation.

    Means are taken in float32 whatever the model's dtype: a sum of many bfloat16 vectors loses
    what a direction is made of.
    """
    spans = [
        torch.tensor([token_span(position, length, span) for length, span in
                      zip(tokens.lengths, tokens.instruction_spans, strict=True)])
        for position in positions
    ]  # fmt: skip

    def pool(activation: Tensor) -> Tensor:
        rows = torch.arange(activation.shape[0], device=activation.device)
        read = []
        for span in spans:
            first, stop = span.to(activation.device).unbind(-1)
            if bool((stop - first == 1).all()):
                read.append(activation[rows, first].float())
                continue
            index = torch.arange(activation.shape[1], device=activation.device)
            inside = (index >= first[:, None]) & (index < stop[:, None])
            weights = inside / (stop - first)[:, None]
            read.append(torch.einsum("bp,bpd->bd", weights, activation.float()))
        return torch.stack(read, dim=1)

    return pool


def pad_right(tokens: Tokens, pad_id: int) -> Int[Tensor, "batch pos"]:
    """Lay ragged ids out as one tensor, padded on the right."""
    ids = torch.full((len(tokens), max(tokens.lengths)), pad_id)
    for row, prompt in enumerate(tokens.ids):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    return ids


def _pad_id(model: Model) -> int:
    # Any id will do: nothing real attends to what stands right of it.
    pad_id = getattr(model.tokenizer, "pad_token_id", None)
    return 0 if pad_id is None else pad_id


# --- positions --------------------------------------------------------------------------------


def normalise_position(position: str) -> str:
    """Check one position's spelling; `-1` is `last`."""
    position = str(position)
    if position in ("last", "mean", "instruction_mean"):
        return position
    if re.fullmatch(r"-[1-9]\d*", position):
        return "last" if position == "-1" else position
    raise RefusalLensError(
        f"There is no position {position!r}. Use last, mean, instruction_mean, or -k for the k-th "
        "token from the end (-2, -3, ...)."
    )


def normalise_positions(positions: str | Sequence[str]) -> tuple[str, ...]:
    """Check the spelling of positions and drop repeats."""
    listed = [positions] if isinstance(positions, str) else list(positions)
    if not listed:
        raise RefusalLensError("At least one position is needed, for example last.")
    return tuple(dict.fromkeys(normalise_position(position) for position in listed))


def token_span(position: str, length: int, instruction: tuple[int, int]) -> tuple[int, int]:
    """Return the half-open range of tokens that a position reads in a prompt of this length."""
    if position == "mean":
        return 0, length
    if position == "instruction_mean":
        return instruction
    first = length - (1 if position == "last" else -int(position))
    return first, first + 1


def check_positions(tokens: Tokens, positions: Sequence[str], n_ctx: int | None) -> None:
    """Refuse, by name, prompts that a position or the model's context does not fit."""
    for prompt_id, length, span in zip(
        tokens.prompt_ids, tokens.lengths, tokens.instruction_spans, strict=True
    ):
        if n_ctx is not None and length > n_ctx:
            raise RefusalLensError(
                f"Prompt {prompt_id} has {length} tokens; the model's context holds {n_ctx}. "
                "Shorten the prompt or take it out."
            )
        for position in positions:
            first, stop = token_span(position, length, span)
            if first < 0:
                raise RefusalLensError(
                    f"Position {position} is outside prompt {prompt_id}, which has {length} "
                    f"tokens. Use positions -{length} to -1, or drop prompts shorter than "
                    f"{-int(position)} tokens."
                )
            if stop <= first:
                raise RefusalLensError(
                    f"Position {position} has no tokens in prompt {prompt_id}: its text vanishes "
                    "in the chat template. Take the prompt out."
                )


def positions_read(
    tokenizer: Any, tokens: Tokens, positions: Sequence[str], n_prompts: int = 3
) -> list[PositionRead]:
    """Show which token (index, id, text) each position reads in the first prompts."""
    table = []
    for row in range(min(n_prompts, len(tokens))):
        ids = tokens.ids[row]
        for position in positions:
            first, stop = token_span(position, len(ids), tokens.instruction_spans[row])
            shown = list(ids[first:stop])
            is_one = stop - first == 1
            table.append(
                PositionRead(
                    prompt_id=tokens.prompt_ids[row],
                    position=position,
                    token_indices=str(first) if is_one else f"{first} to {stop - 1}",
                    token_ids=str(ids[first]) if is_one else f"{stop - first} tokens",
                    tokens=tokenizer.decode(shown),
                )
            )
    return table


def describe_collection(
    model: Model,
    prompts: ContrastSet,
    hook_points: Sequence[str],
    positions: Sequence[str],
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
        "hook_points": list(hook_points),
        "positions": list(positions),
    }
