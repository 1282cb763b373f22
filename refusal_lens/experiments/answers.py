"""Short greedy answers of many prompts, plainly or under an intervention: the one loop for them.

Knows how prompts are batched and answered. Does not know what an answer means.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from refusal_lens.experiments.arms import Arm, arm_hooks
from refusal_lens.models.backends import Model, tokenizer_of
from refusal_lens.models.batching import run_in_batches
from refusal_lens.models.generation import generate_greedily
from refusal_lens.models.hook_points import Hook
from refusal_lens.prompts.tokens import Tokens

ANSWER_BUDGET = 4096
"""Tokens in a batch of answers: each step of an answer is a small forward, so many go together."""


def answer_ids(
    model: Model,
    tokens: Tokens,
    n_new_tokens: int,
    hooks: Arm | Sequence[Hook] = (),
    *,
    on_batch: Callable[[list[int], Tensor], None] | None = None,
) -> list[list[int]]:
    """Answer prompts greedily; hooks are gone afterwards, also after an error.

    Args:
        model: A model with its tokenizer.
        tokens: Formatted prompts.
        n_new_tokens: Most tokens in an answer.
        hooks: What to answer under: an arm, whose hooks depend on a batch's size, or hooks.
        on_batch: Told the rows just answered and the logits of their first tokens.

    Returns:
        The ids of each answer, without the one that ended it.
    """
    answers: list[list[int]] = [[]] * len(tokens)

    def answer(rows: list[int]) -> None:
        acting = arm_hooks(model, [hooks], len(rows)) if isinstance(hooks, Arm) else hooks
        generated, first = generate_greedily(model, tokens.select(rows), n_new_tokens, acting)
        for row, ids in zip(rows, generated, strict=True):
            answers[row] = ids
        if on_batch is not None:
            on_batch(rows, first)

    run_in_batches(
        [length + n_new_tokens for length in tokens.lengths],
        answer,
        token_budget=ANSWER_BUDGET,
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
) -> list[list[int]]:
    """Answer prompts greedily, each under an arm of its own; arms of one group share batches.

    Args:
        model: A model with its tokenizer.
        tokens: Formatted prompts.
        asked: Which arm on which prompt.
        n_new_tokens: Most tokens in an answer.
        advance: Told how many answers were just given.
    """
    answers: list[list[int]] = [[]] * len(asked)
    for group in dict.fromkeys(arm.group for arm, _ in asked):
        chosen = [i for i, (arm, _) in enumerate(asked) if arm.group == group]

        def answer(rows: list[int], chosen: list[int] = chosen) -> None:
            pairs = [asked[chosen[row]] for row in rows]
            hooks = arm_hooks(model, [arm for arm, _ in pairs], 1)
            prompts = tokens.select([row for _, row in pairs])
            generated, _ = generate_greedily(model, prompts, n_new_tokens, hooks)
            for row, ids in zip(rows, generated, strict=True):
                answers[chosen[row]] = ids
            advance(len(rows))

        run_in_batches(
            [tokens.lengths[asked[i][1]] + n_new_tokens for i in chosen],
            answer,
            token_budget=ANSWER_BUDGET,
            device=str(model.cfg.device),
            name_of=lambda row, chosen=chosen: tokens.prompt_ids[asked[chosen[row]][1]],
        )
    return answers


def write_out(model: Model, answers: Sequence[Sequence[int]]) -> list[str]:
    """Turn the ids of answers into text."""
    tokenizer = tokenizer_of(model)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
