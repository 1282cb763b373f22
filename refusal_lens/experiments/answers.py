"""Short greedy answers of many prompts, plainly or under an intervention: the one loop for them.

Knows how prompts are batched and answered. Does not know what an answer means.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from refusal_lens.experiments.arms import Arm, arm_hooks
from refusal_lens.journal import Journal, fingerprint
from refusal_lens.models.backends import Model, describe_model, tokenizer_of
from refusal_lens.models.batching import run_in_batches
from refusal_lens.models.generation import generate_greedily
from refusal_lens.models.hook_points import Hook
from refusal_lens.prompts.tokens import Tokens

ANSWER_BUDGET = 8192
"""Tokens in a batch of answers: each step of an answer is a small forward, so many go together."""

CUDA_ANSWER_BUDGET = 65_536
"""On a GPU, where a step costs nearly the same for ten rows and for hundreds."""

CACHE_SHARE = 4
"""Keys and values of a batch may take one of so many parts of the free memory of a GPU."""


def answer_budget(model: Model) -> int:
    """Return how many tokens a batch of answers may have: on a GPU, as many as its memory holds."""
    cfg = model.cfg
    if torch.device(str(cfg.device)).type != "cuda":
        return ANSWER_BUDGET
    free, _ = torch.cuda.mem_get_info(cfg.device)
    n_heads = cfg.n_key_value_heads or cfg.n_heads
    bytes_a_token = 2 * cfg.n_layers * n_heads * cfg.d_head * cfg.dtype.itemsize
    room = free // CACHE_SHARE // bytes_a_token
    return max(ANSWER_BUDGET, min(CUDA_ANSWER_BUDGET, room))


def answer_ids(
    model: Model,
    tokens: Tokens,
    n_new_tokens: int,
    hooks: Arm | Sequence[Hook] = (),
    *,
    score_first: Callable[[Tensor], Sequence[Any]] = list,
    on_batch: Callable[[list[int], Sequence[Any]], None] | None = None,
    journal: Journal | None = None,
    score_key: object = None,
) -> list[list[int]]:
    """Answer prompts greedily; hooks are gone afterwards, also after an error.

    Args:
        model: A model with its tokenizer.
        tokens: Formatted prompts.
        n_new_tokens: Most tokens in an answer.
        hooks: What to answer under: an arm, whose hooks depend on a batch's size, or hooks.
        score_first: Makes one value of each row of the first tokens' logits: plain ones with
            a journal.
        on_batch: Told the rows just answered, and what was read of each.
        journal: Keeps each batch as it comes, and has those of an interrupted process; hooks that
            are not an arm's cannot be told apart, and nothing is kept under them.
        score_key: Which plain values `score_first` goes by, to tell what it made of them from
            what it makes of others.

    Returns:
        The ids of each answer, without the one that ended it.
    """
    answers: list[list[int]] = [[]] * len(tokens)

    def answer(rows: list[int]) -> None:
        asked = tokens.select(rows)

        def generate() -> Any:
            acting = arm_hooks(model, [hooks], len(rows)) if isinstance(hooks, Arm) else hooks
            generated, first = generate_greedily(model, asked, n_new_tokens, acting)
            return generated, score_first(first)

        generated, values = _kept(
            journal, generate, lambda: _key(model, asked, hooks, n_new_tokens, score_key)
        )
        for row, ids in zip(rows, generated, strict=True):
            answers[row] = ids
        if on_batch is not None:
            on_batch(rows, values)

    run_in_batches(
        [length + n_new_tokens for length in tokens.lengths],
        answer,
        token_budget=answer_budget(model),
        device=str(model.cfg.device),
        name_of=lambda row: tokens.prompt_ids[row],
    )
    return answers


def answer_arms(
    model: Model,
    tokens: Tokens,
    asked: Sequence[tuple[Arm, int]],
    n_new_tokens: int,
    advance: Callable[[int], None],
    journal: Journal | None = None,
) -> list[list[int]]:
    """Answer prompts greedily, each under an arm of its own; arms of one group share batches.

    Args:
        model: A model with its tokenizer.
        tokens: Formatted prompts.
        asked: Which arm on which prompt.
        n_new_tokens: Most tokens in an answer.
        advance: Told how many answers were just given.
        journal: Keeps each batch as it comes, and has those of an interrupted process.
    """
    answers: list[list[int]] = [[]] * len(asked)
    for group in dict.fromkeys(arm.group for arm, _ in asked):
        chosen = [i for i, (arm, _) in enumerate(asked) if arm.group == group]

        def answer(rows: list[int], chosen: list[int] = chosen) -> None:
            pairs = [asked[chosen[row]] for row in rows]
            arms = [arm for arm, _ in pairs]
            prompts = tokens.select([row for _, row in pairs])

            def generate() -> list[list[int]]:
                hooks, n_unchanged = arm_hooks(model, arms, 1), arms[0].first_layer
                return generate_greedily(model, prompts, n_new_tokens, hooks, n_unchanged)[0]

            generated = _kept(
                journal,
                generate,
                lambda: _key(model, prompts, arms, n_new_tokens),
            )
            for row, ids in zip(rows, generated, strict=True):
                answers[chosen[row]] = ids
            advance(len(rows))

        run_in_batches(
            [tokens.lengths[asked[i][1]] + n_new_tokens for i in chosen],
            answer,
            token_budget=answer_budget(model),
            device=str(model.cfg.device),
            name_of=lambda row, chosen=chosen: tokens.prompt_ids[asked[chosen[row]][1]],
        )
    return answers


def _kept(journal: Journal | None, make: Callable[[], Any], key: Callable[[], str | None]) -> Any:
    """Make something once, where there is a journal and what it depends on can be told."""
    if journal is None or (named := key()) is None:
        return make()
    return journal.once(named, make)


def _key(
    model: Model, asked: Tokens, hooks: Arm | Sequence[Arm] | Sequence[Hook], *settings: object
) -> str | None:
    """Return what the answers of one batch depend on; None where that cannot be told."""
    acting = [hooks] if isinstance(hooks, Arm) else list(hooks)
    arms = [each for each in acting if isinstance(each, Arm)]
    if len(arms) < len(acting):
        return None
    distinct = list(dict.fromkeys(arms))
    told = [vars(arm) for arm in distinct], [distinct.index(each) for each in arms]
    ids = [list(row) for row in asked.ids]
    return fingerprint(describe_model(model), torch.__version__, ids, told, settings)


def score_nothing(first: Tensor) -> list[None]:
    """Read nothing of the logits of first tokens, for a journal that is to keep answers alone."""
    return [None] * len(first)


def write_out(model: Model, answers: Sequence[Sequence[int]]) -> list[str]:
    """Turn the ids of answers into text."""
    tokenizer = tokenizer_of(model)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
