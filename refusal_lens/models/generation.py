"""Greedy answers: the likeliest next token again and again, with or without interventions.

Knows where a turn ends and which forward can answer. Does not judge what was answered.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.models.backends import HookedTransformer, Model, eos_token_ids, is_hooked
from refusal_lens.models.captured import Flags, captured
from refusal_lens.models.decoding import Below, Decoder, can_decode, pad_left, read_below
from refusal_lens.models.hook_points import Hook, are_uniform
from refusal_lens.models.layout import lay_out
from refusal_lens.models.matmul import fast_products
from refusal_lens.models.torch_defaults import plain_torch
from refusal_lens.models.unembedding import unembed
from refusal_lens.prompts.tokens import Tokens

WORTH_CAPTURING = 4
"""Steps that must be left for a capture, which takes the time of one that is not captured."""


@plain_torch()
def generate_greedily(
    model: Model,
    tokens: Tokens,
    n_new_tokens: int,
    hooks: Sequence[Hook] = (),
    n_unchanged: int = 0,
) -> tuple[list[list[int]], Float[Tensor, "batch d_vocab"]]:
    """Take the likeliest next token again and again, until every prompt's turn has ended.

    Prompts are padded on the left, with a mask, so that all answers grow at the same place.

    Args:
        model: A model with its tokenizer.
        tokens: Formatted prompts.
        n_new_tokens: Most tokens to generate.
        hooks: Interventions to answer under; they are gone afterwards, also after an error.
        n_unchanged: The first blocks, of which no hook changes what is inside: they are run once
            for prompts that are the same.

    Returns:
        The new ids of each prompt, up to but without the end-of-turn id; and the logits of the
        first new token, on the model's device.
    """
    longest = max(tokens.lengths) + n_new_tokens
    # Asked before the hooks are set: afterwards any hook would speak against it.
    fast = model if is_hooked(model) else None
    if fast is not None and not can_decode(fast, longest, hooks):
        fast = None
    if fast is not None:
        lay_out(fast)
    with torch.no_grad(), fast_products(model.cfg):
        below = None if fast is None else read_below(fast, tokens, n_unchanged)
        with model.hooks(fwd_hooks=list(hooks)):
            if fast is None:
                return _generate(model, tokens, n_new_tokens)
            return _decode(fast, tokens, n_new_tokens, below, is_uniform=are_uniform(hooks))


def _decode(
    model: HookedTransformer,
    tokens: Tokens,
    n_new_tokens: int,
    below: Below | None,
    *,
    is_uniform: bool,
) -> tuple[list[list[int]], Float[Tensor, "batch d_vocab"]]:
    """Answer a batch by the fast forward.

    A user's hooks may act by row, keep numbers or copy from the CPU: unless all hooks are uniform,
    all rows stay, nothing is shared, and no step is captured.
    """
    device = torch.device(str(model.cfg.device))
    captures = device.type == "cuda" and model.cfg.n_devices == 1 and is_uniform
    decoder = Decoder(
        model,
        tokens,
        n_new_tokens,
        shares_prefix=is_uniform,
        counts_on_device=captures,
        below=below,
    )
    logits = decoder.read_prompts()
    growing = _Answers(decoder, logits, n_new_tokens, eos_token_ids(model))
    step, flags, n_steps = growing.step, Flags(device), 0
    for n_left in range(n_new_tokens - 1, 0, -1):
        is_done = flags.look(growing.is_done)
        if is_done is not None and bool(is_done.all()):
            break
        if is_done is not None and is_uniform and int(is_done.sum()) * 2 >= len(is_done):
            growing.let_go(is_done)
            flags.forget()
            step, n_steps = growing.step, 0
        if captures and n_steps == 1 and n_left >= WORTH_CAPTURING:
            step = captured(growing.step, device)
        step()
        n_steps += 1
    return growing.finished(), logits.float()


class _Answers:
    """Answers of a batch as they grow. All of it lies on the device, so that nothing waits."""

    def __init__(
        self, decoder: Decoder, logits: Tensor, n_new_tokens: int, ends: Sequence[int]
    ) -> None:
        device, n_rows = logits.device, len(logits)
        self.decoder = decoder
        self.ends = torch.tensor(ends, device=device)
        self.ids = torch.zeros(n_rows, n_new_tokens, dtype=torch.long, device=device)
        self.latest = torch.zeros(n_rows, dtype=torch.long, device=device)
        self.is_done = torch.zeros(n_rows, dtype=torch.bool, device=device)
        self.n_tokens = torch.zeros(1, dtype=torch.long, device=device)
        self.rows = torch.arange(n_rows)
        self.answers: list[list[int]] = [[] for _ in range(n_rows)]
        self._append_likeliest(logits)

    def step(self) -> None:
        """Give every answer one more token, in tensors that stay where they are."""
        self._append_likeliest(self.decoder.read_token(self.latest))

    def _append_likeliest(self, logits: Float[Tensor, "batch d_vocab"]) -> None:
        self.latest.copy_(logits.argmax(dim=-1))
        self.ids.index_copy_(1, self.n_tokens, self.latest[:, None])
        self.is_done |= (self.latest[:, None] == self.ends).any(dim=1)
        self.n_tokens += 1

    def let_go(self, is_done: Bool[Tensor, " batch"]) -> None:
        """Take rows whose answers have ended out of the batch."""
        self._finish(is_done)
        left = (~is_done).nonzero()[:, 0]
        self.decoder.keep(left)
        self.rows = self.rows[left]
        left = left.to(self.ids.device)
        self.ids, self.latest, self.is_done = self.ids[left], self.latest[left], self.is_done[left]

    def finished(self) -> list[list[int]]:
        """Return all answers, each up to its end."""
        self._finish(torch.ones(len(self.rows), dtype=torch.bool))
        return self.answers

    def _finish(self, which: Bool[Tensor, " batch"]) -> None:
        ids, ends = self.ids[:, : int(self.n_tokens)].cpu(), self.ends.cpu()
        for row in which.nonzero()[:, 0].tolist():
            self.answers[int(self.rows[row])] = _until_end(ids[row], torch.isin(ids[row], ends))


def _generate(
    model: Model, tokens: Tokens, n_new_tokens: int
) -> tuple[list[list[int]], Float[Tensor, "batch d_vocab"]]:
    ids, mask = pad_left(tokens)
    ends = torch.tensor(eos_token_ids(model))
    step = _next_logits(model)
    logits = first_logits = step(ids, mask)
    chosen: list[Int[Tensor, " batch"]] = []
    is_done = torch.zeros(len(tokens), dtype=torch.bool)
    while True:
        chosen.append(logits.argmax(dim=-1).cpu())
        is_done |= torch.isin(chosen[-1], ends)
        if bool(is_done.all()) or len(chosen) == n_new_tokens:
            break
        logits = step(chosen[-1][:, None], torch.ones_like(mask[:, :1]))
    rows = torch.stack(chosen, dim=1)
    return [_until_end(row, torch.isin(row, ends)) for row in rows], first_logits.float()


def _until_end(ids: Int[Tensor, " n"], is_end: Bool[Tensor, " n"]) -> list[int]:
    stop = int(is_end.int().argmax()) if bool(is_end.any()) else len(ids)
    return ids[:stop].tolist()


def _next_logits(model: Model) -> Callable[[Tensor, Tensor], Float[Tensor, "batch d_vocab"]]:
    """Return a function that reads new tokens, with their mask, and gives the next one's logits.

    `HookedTransformer` keeps keys and values between calls; a bridge, and layers on several
    devices, read everything again.
    """
    device = model.cfg.device
    if is_hooked(model) and model.cfg.n_devices == 1:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        cache: list[TransformerLensKeyValueCache] = []

        def step(ids: Tensor, mask: Tensor) -> Tensor:
            if not cache:
                cache.append(
                    TransformerLensKeyValueCache.init_cache(model.cfg, device, ids.shape[0])
                )
            residual = model(
                ids.to(device),
                attention_mask=mask.to(device),
                stop_at_layer=model.cfg.n_layers,
                past_kv_cache=cache[0],
            )
            return unembed(model, residual[:, -1:])[:, 0]

        return step
    seen: list[tuple[Tensor, Tensor]] = []

    def step_without_cache(ids: Tensor, mask: Tensor) -> Tensor:
        seen.append((ids, mask))
        all_ids, all_masks = (torch.cat(parts, dim=1) for parts in zip(*seen, strict=True))
        logits = model(all_ids.to(device), attention_mask=all_masks.to(device))
        return logits[:, -1]

    return step_without_cache
