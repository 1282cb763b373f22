"""Answers token by token over TransformerLens's own blocks, at the speed of the bare model.

Knows where each row's tokens stand and which keys they see. Does not know which token to take.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.models.backends import HookedTransformer
from refusal_lens.models.fast_forward import (
    BlockInput,
    Slots,
    Stop,
    embed,
    forward,
    run_block,
    why_not_fast,
)
from refusal_lens.models.hook_points import Hook
from refusal_lens.models.unembedding import unembed
from refusal_lens.prompts.tokens import Tokens

NOT_CALLED = ("hook_attn_scores", "hook_pattern", "hook_result")
"""Hook points inside the fused attention, which never writes them out."""


def can_decode(model: HookedTransformer, longest: int, hooks: Sequence[Hook]) -> bool:
    """Whether this way is exact: the fast forward is, calls every hook, and has room to turn."""
    if why_not_fast(model) is not None:
        return False
    if any(str(name).endswith(NOT_CALLED) for name, _ in hooks):
        return False
    tables = [
        block.attn.rotary_cos.shape[0]
        for block in model.blocks
        if model.cfg.positional_embedding_type == "rotary"
    ]
    return longest <= min(tables, default=model.cfg.n_ctx)


class Decoder:
    """A batch of prompts and the answers that grow behind them.

    Prompts are padded on the left, so that every answer's next token stands in the same slot. What
    all prompts share at the beginning may be run once, for a single row; with hooks it is not,
    since a hook may do what it does by row.
    """

    def __init__(
        self, model: HookedTransformer, tokens: Tokens, n_new_tokens: int, *, shares_prefix: bool
    ) -> None:
        prefix = tokens.shared_prefix() if shares_prefix else ()
        self.model = model
        self.ids, is_token = pad_left(tokens, len(prefix))
        n_slots = len(prefix) + self.ids.shape[1] + n_new_tokens
        device = model.cfg.device
        self.ids, is_token = self.ids.to(device), is_token.to(device)
        before = torch.ones(len(tokens), len(prefix), dtype=torch.bool, device=device)
        self.is_token = torch.cat([before, is_token.bool()], dim=1)
        self.slots = [_room(block, len(tokens), n_slots) for block in _blocks(model)]
        if prefix:
            row = torch.tensor([prefix], device=device)
            past = forward(model, row, Stop(model.cfg.n_layers))
            for slots, known in zip(self.slots, past, strict=True):
                slots.append(
                    known.keys.expand(len(tokens), -1, -1, -1),
                    known.values.expand(len(tokens), -1, -1, -1),
                )

    def read_prompts(self) -> Float[Tensor, "batch d_vocab"]:
        """Run the prompts, and return the logits of every answer's first token, on the device."""
        return self._run(self.ids)

    def read_token(self, ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_vocab"]:
        """Run one more token of every answer, and return the logits of the next."""
        one_more = torch.ones(len(ids), 1, dtype=torch.bool, device=self.is_token.device)
        self.is_token = torch.cat([self.is_token, one_more], dim=1)
        return self._run(ids[:, None].to(self.is_token.device))

    def keep(self, rows: Int[Tensor, " n_kept"]) -> None:
        """Let the other rows go: their answers have ended."""
        rows = rows.to(self.is_token.device)
        self.is_token = self.is_token[rows]
        self.slots = [Slots(s.keys[rows], s.values[rows], s.n_filled) for s in self.slots]

    def _run(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch d_vocab"]:
        places = (self.is_token.cumsum(dim=1) - 1).clamp(min=0)
        positions = places[:, -ids.shape[1] :]
        masks: dict[str, Tensor] = {}
        residual = embed(self.model, ids, positions)
        last = len(self.slots) - 1
        for layer, block in enumerate(_blocks(self.model)):
            kind = block.attn.attn_type
            if kind not in masks:
                masks[kind] = self._mask(places, positions, _window(block))
            # Of the last block only the last token's output is needed.
            read = torch.full_like(ids[:, :1], ids.shape[1] - 1) if layer == last else None
            mask = masks[kind][:, :, -1:] if layer == last else masks[kind]
            given = BlockInput(mask=mask, offset=positions, slots=self.slots[layer], read=read)
            residual, _ = run_block(block, residual, given)
        return unembed(self.model, residual)[:, 0].float()

    def _mask(
        self,
        places: Int[Tensor, "batch n_filled"],
        positions: Int[Tensor, "batch pos"],
        window: int | None,
    ) -> Bool[Tensor, "batch 1 pos n_filled"]:
        """Say which keys each token sees: those before it and itself, padding left out."""
        away = positions[:, :, None] - places[:, None, :]
        sees = (away >= 0) & self.is_token[:, None, :]
        if window is not None:
            sees &= away < window
        # Padding sees itself: a softmax over nothing would be NaN, and spread.
        n_before = places.shape[1] - positions.shape[1]
        own = torch.arange(positions.shape[1], device=sees.device)
        sees[:, own, n_before + own] = True
        return sees[:, None]


def pad_left(
    tokens: Tokens, start: int = 0
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Lay ragged ids out as one tensor, padded on the left, and the mask that hides padding.

    Args:
        tokens: The prompts.
        start: Their first token to lay out.
    """
    longest = max(tokens.lengths)
    ids = torch.zeros(len(tokens), longest - start, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(tokens.ids):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt[start:])
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def _blocks(model: HookedTransformer) -> list[Any]:
    return list(model.blocks)


def _window(block: Any) -> int | None:
    attn = block.attn
    return attn.cfg.window_size if attn.attn_type == "local" else None


def _room(block: Any, n_rows: int, n_slots: int) -> Slots:
    cfg, like = block.attn.cfg, block.attn.W_Q
    shape = (n_rows, cfg.n_key_value_heads or cfg.n_heads, n_slots, cfg.d_head)
    empty = torch.empty(shape, dtype=like.dtype, device=like.device)
    return Slots(empty, torch.empty_like(empty))
