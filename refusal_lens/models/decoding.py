"""Answers token by token over TransformerLens's own blocks, at the speed of the bare model.

Knows where each row's tokens stand and which keys they see. Does not know which token to take.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from refusal_lens.models.backends import HookedTransformer
from refusal_lens.models.fast_forward import (
    BlockInput,
    Mask,
    Slots,
    Stop,
    embed,
    forward,
    has_mlp_bias,
    run_block,
    to_block,
    why_not_fast,
)
from refusal_lens.models.hook_points import Hook
from refusal_lens.models.unembedding import unembed
from refusal_lens.prompts.tokens import Tokens

NOT_CALLED = ("hook_attn_scores", "hook_pattern", "hook_result")
"""Hook points inside the fused attention, which never writes them out."""

ALIGNED = 16
"""CUDA's attention reads masks in rows of so many numbers, and copies those of another length."""


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


@dataclass(frozen=True, eq=False)
class Below:
    """What the first blocks make of the prompts of a batch, where no hook changes it."""

    residual: Float[Tensor, "batch pos d_model"]
    slots: list[Slots]


def read_below(model: HookedTransformer, tokens: Tokens, n_blocks: int) -> Below | None:
    """Run the first blocks once for each distinct prompt, while no hook is set.

    Args:
        model: A model for which `can_decode` holds.
        tokens: The prompts of a batch, some of which may be the same.
        n_blocks: Blocks that no hook to come changes.

    Returns:
        What a `Decoder` of the same prompts goes on from; None where that spares nothing.
    """
    numbers = {ids: number for number, ids in enumerate(dict.fromkeys(tokens.ids))}
    if n_blocks == 0 or len(numbers) == len(tokens):
        return None
    rows = [numbers[ids] for ids in tokens.ids]
    firsts = [rows.index(number) for number in range(len(numbers))]
    distinct = Decoder(model, tokens.select(firsts), 0, shares_prefix=False)
    residual = distinct.run_prompts(n_blocks)
    del distinct.slots[n_blocks:]
    rows = torch.tensor(rows)
    distinct.keep(rows)
    return Below(residual[rows.to(residual.device)], distinct.slots)


class Decoder:
    """A batch of prompts and the answers that grow behind them.

    Prompts are padded on the left, so that every answer's next token stands in the same slot. What
    all prompts share at the beginning may be run once, for a single row; with hooks it is not,
    since a hook may do what it does by row.

    Args:
        model: A model for which `can_decode` holds.
        tokens: The prompts.
        n_new_tokens: Most tokens of an answer.
        shares_prefix: Run once what all prompts share.
        counts_on_device: Count on the device which slot is next. Then a step is the same from the
            first to the last, and can be captured; all slots are looked at, filled or not.
        below: What `read_below` gave for the same prompts; nothing is shared then.
    """

    def __init__(
        self,
        model: HookedTransformer,
        tokens: Tokens,
        n_new_tokens: int,
        *,
        shares_prefix: bool,
        counts_on_device: bool = False,
        below: Below | None = None,
    ) -> None:
        prefix = tokens.shared_prefix() if shares_prefix and below is None else ()
        device = torch.device(str(model.cfg.device))
        self.model = model
        self.has_mlp_bias = has_mlp_bias(model)
        ids, is_token = pad_left(tokens, len(prefix))
        self.ids = ids.to(device)
        self.n_filled = len(prefix)
        n_slots = len(prefix) + ids.shape[1] + n_new_tokens
        if counts_on_device:
            n_slots += -n_slots % ALIGNED
        n_answer = n_slots - len(prefix) - ids.shape[1]
        filled = F.pad(
            F.pad(is_token.bool(), (len(prefix), 0), value=True), (0, n_answer), value=True
        )
        self.is_token = filled.to(device)
        self.places = (self.is_token.cumsum(dim=1) - 1).clamp(min=0)
        # Room for the answers is made once the prompts are read, which takes the most memory.
        self.n_slots, n_prompt = n_slots, n_slots - n_answer
        self.slots = [] if below is None else list(below.slots)
        for block in _blocks(model)[len(self.slots) :]:
            self.slots.append(_room(block, len(tokens), n_prompt))
        self.below = below
        # From the first answer token on.
        first = torch.tensor([n_prompt], device=device)
        self.next_slot = first if counts_on_device else None
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
        logits = self._unembed(self.run_prompts(len(self.slots)))
        for slots in self.slots:
            slots.at = self.next_slot
            slots.grow(self.n_slots)
        return logits

    def read_token(self, ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_vocab"]:
        """Run one more token of every answer, and return the logits of the next."""
        ids = ids[:, None].to(self.ids.device)
        if self.next_slot is None:
            at, n_keys = self._fill(1)
        else:
            at, n_keys = self.next_slot, self.is_token.shape[1]
        residual = embed(self.model, ids, self.places[:, at])
        logits = self._unembed(self._run(residual, at, n_keys, 0, len(self.slots)))
        if self.next_slot is not None:
            self.next_slot += 1
        return logits

    def run_prompts(self, n_blocks: int) -> Float[Tensor, "batch n_left d_model"]:
        """Run the prompts through the first blocks; of the very last only the last token's."""
        at, n_keys = self._fill(self.ids.shape[1])
        if self.below is None:
            residual = embed(self.model, self.ids, self.places[:, at])
            return self._run(residual, at, n_keys, 0, n_blocks)
        start = len(self.below.slots)
        # Hooks at the end of the block below act here.
        residual = _blocks(self.model)[start - 1].hook_resid_post(self.below.residual)
        self.below = None  # as large as the prompts, and needed once
        return self._run(residual, at, n_keys, start, n_blocks)

    def keep(self, rows: Int[Tensor, " n_kept"]) -> None:
        """Go on with these rows alone, some of them perhaps several times."""
        self.is_token, self.places = (
            kept[rows.to(kept.device)] for kept in (self.is_token, self.places)
        )
        self.slots = [
            replace(s, keys=s.keys[rows.to(s.keys.device)], values=s.values[rows.to(s.keys.device)])
            for s in self.slots
        ]

    def _fill(self, n_tokens: int) -> tuple[Int[Tensor, " pos"], int]:
        """Return the next slots, and how many are filled with these."""
        first = self.n_filled
        self.n_filled += n_tokens
        return torch.arange(first, self.n_filled, device=self.ids.device), self.n_filled

    def _run(
        self,
        residual: Float[Tensor, "batch n_begun d_model"],
        at: Int[Tensor, " pos"],
        n_keys: int,
        start: int,
        stop: int,
    ) -> Float[Tensor, "batch n_left d_model"]:
        """Run tokens that stand `at` these slots, over the keys of the first `n_keys` slots."""
        positions = self.places[:, at]
        masks: dict[tuple[str, torch.device], Mask] = {}
        for layer, block in enumerate(_blocks(self.model)[start:stop], start):
            residual = to_block(self.model, block, residual)
            key = block.attn.attn_type, residual.device
            if key not in masks:
                masks[key] = self._mask(at, n_keys, block).to(residual.device)
            # Of the last block only the last token's output is needed.
            is_last_only = layer == len(self.slots) - 1 and len(at) > 1
            needed = torch.full_like(positions[:, :1], len(at) - 1) if is_last_only else None
            given = BlockInput(
                mask=masks[key][:, :, -1:] if is_last_only else masks[key],
                offset=positions.to(residual.device),
                slots=self.slots[layer],
                needed=None if needed is None else needed.to(residual.device),
                has_mlp_bias=self.has_mlp_bias,
            )
            residual, _ = run_block(block, residual, given)
        return residual

    def _unembed(
        self, residual: Float[Tensor, "batch n_left d_model"]
    ) -> Float[Tensor, "batch d_vocab"]:
        return unembed(self.model, residual)[:, 0]

    def _mask(self, at: Int[Tensor, " pos"], n_keys: int, block: Any) -> Mask:
        """Say which keys each token sees: those before it and itself, padding left out."""
        away = self.places[:, at, None] - self.places[:, None, :n_keys]
        sees = (away >= 0) & self.is_token[:, None, :n_keys]
        if block.attn.attn_type == "local":
            sees &= away < block.attn.cfg.window_size
        # Padding sees itself: a softmax over nothing would be NaN, and spread.
        sees |= at[:, None] == torch.arange(n_keys, device=at.device)
        if self.model.cfg.attn_scores_soft_cap > 0:
            return sees[:, None]
        # Added up once, and not by the attention of every layer anew.
        scores = torch.zeros(sees.shape, dtype=self.slots[0].keys.dtype, device=sees.device)
        return scores.masked_fill_(~sees, -torch.inf)[:, None]


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


def _room(block: Any, n_rows: int, n_slots: int) -> Slots:
    cfg, like = block.attn.cfg, block.attn.W_Q
    shape = (n_rows, cfg.n_key_value_heads or cfg.n_heads, n_slots, cfg.d_head)
    empty = torch.empty(shape, dtype=like.dtype, device=like.device)
    return Slots(empty, torch.empty_like(empty))
