"""Greedy answers: the likeliest next token again and again, with or without interventions.

Knows where a turn ends and which forward can answer. Does not judge what was answered.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.models.backends import HookedTransformer, Model, eos_token_ids, is_hooked
from refusal_lens.models.decoding import Decoder, can_decode, pad_left
from refusal_lens.models.hook_points import Hook
from refusal_lens.models.matmul import fast_products
from refusal_lens.models.torch_defaults import plain_torch
from refusal_lens.models.unembedding import unembed
from refusal_lens.prompts.tokens import Tokens


@plain_torch()
def generate_greedily(
    model: Model, tokens: Tokens, n_new_tokens: int, hooks: Sequence[Hook] = ()
) -> tuple[list[list[int]], Float[Tensor, "batch d_vocab"]]:
    """Take the likeliest next token again and again, until every prompt's turn has ended.

    Prompts are padded on the left, with a mask, so that all answers grow at the same place.

    Args:
        model: A model with its tokenizer.
        tokens: Formatted prompts.
        n_new_tokens: Most tokens to generate.
        hooks: Interventions to answer under; they are gone afterwards, also after an error.

    Returns:
        The new ids of each prompt, up to but without the end-of-turn id; and the logits of the
        first new token.
    """
    longest = max(tokens.lengths) + n_new_tokens
    # Asked before the hooks are set: afterwards any hook would speak against it.
    fast = model if is_hooked(model) else None
    if fast is not None and not can_decode(fast, longest, hooks):
        fast = None
    with torch.no_grad(), fast_products(model.cfg), model.hooks(fwd_hooks=list(hooks)):
        if fast is None:
            return _generate(model, tokens, n_new_tokens)
        decoder = Decoder(fast, tokens, n_new_tokens, shares_prefix=not hooks)
        return _decode(fast, decoder, n_new_tokens, lets_go=not hooks)


def _decode(
    model: HookedTransformer, decoder: Decoder, n_new_tokens: int, *, lets_go: bool
) -> tuple[list[list[int]], Float[Tensor, "batch d_vocab"]]:
    """Answer a batch by the fast forward.

    `lets_go` takes rows whose answers have ended out of the batch once half of its rows have.
    Hooks may act by row, so that with hooks all rows stay.
    """
    ends = torch.tensor(eos_token_ids(model))
    logits = first_logits = decoder.read_prompts()
    answers: list[list[int]] = [[] for _ in range(len(logits))]
    running = torch.arange(len(logits))
    is_done = torch.zeros(len(logits), dtype=torch.bool)
    for n_done in range(1, n_new_tokens + 1):
        # Over a bus, logits of 150,000 words for every row would take longer than the step.
        chosen = logits.argmax(dim=-1).cpu()
        is_done |= torch.isin(chosen, ends)
        for row, token in zip(running[~is_done].tolist(), chosen[~is_done].tolist(), strict=True):
            answers[row].append(token)
        if bool(is_done.all()) or n_done == n_new_tokens:
            break
        if lets_go and int(is_done.sum()) * 2 >= len(is_done):
            left = (~is_done).nonzero()[:, 0]
            decoder.keep(left)
            running, chosen, is_done = running[left], chosen[left], is_done[left]
        logits = decoder.read_token(chosen)
    return answers, first_logits.cpu()


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
        chosen.append(logits.argmax(dim=-1))
        is_done |= torch.isin(chosen[-1], ends)
        if bool(is_done.all()) or len(chosen) == n_new_tokens:
            break
        logits = step(chosen[-1][:, None], torch.ones_like(mask[:, :1]))
    rows = torch.stack(chosen, dim=1)
    return [_until_end(row, torch.isin(row, ends)) for row in rows], first_logits


def _until_end(ids: Int[Tensor, " n"], is_end: Bool[Tensor, " n"]) -> list[int]:
    stop = int(is_end.int().argmax()) if bool(is_end.any()) else len(ids)
    return ids[:stop].tolist()


def _next_logits(model: Model) -> Callable[[Tensor, Tensor], Float[Tensor, "batch d_vocab"]]:
    """Return a function that reads new tokens, with their mask, and gives the next one's logits.

    `HookedTransformer` keeps keys and values between calls; a bridge reads everything again.
    """
    device = model.cfg.device
    if is_hooked(model):
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
            return unembed(model, residual[:, -1:])[:, 0].float().cpu()

        return step
    seen: list[tuple[Tensor, Tensor]] = []

    def step_without_cache(ids: Tensor, mask: Tensor) -> Tensor:
        seen.append((ids, mask))
        all_ids, all_masks = (torch.cat(parts, dim=1) for parts in zip(*seen, strict=True))
        logits = model(all_ids.to(device), attention_mask=all_masks.to(device))
        return logits[:, -1].float().cpu()

    return step_without_cache
