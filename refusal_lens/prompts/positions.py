"""Which tokens of a prompt are read, and how they become one vector.

Knows how positions are written, where they lie and how to pool a padded activation. Does not run
the model.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.tokens import Tokens


@dataclass(frozen=True)
class PositionRead:
    """Which token one position read in one prompt; for a mean, the tokens it spans."""

    prompt_id: str
    position: str
    token_indices: str
    token_ids: str
    tokens: str


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


def token_span(position: str, length: int, instruction: tuple[int, ...]) -> tuple[int, int]:
    """Return the half-open range of tokens that a position reads in a prompt of this length."""
    if position == "mean":
        return 0, length
    if position == "instruction_mean":
        first, stop = instruction
        return first, stop
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


def make_pool(tokens: Tokens, positions: Sequence[str], n_before: int = 0) -> Callable[..., Tensor]:
    """Return the function that reads the positions out of one padded activation.

    Means are taken in float32 whatever the model's dtype: a sum of many bfloat16 vectors loses
    what a direction is made of.

    Args:
        tokens: The prompts of the batch.
        positions: Positions in their normal spelling.
        n_before: Tokens that all prompts begin with and that the activation leaves out.

    Returns:
        A function of the activation `[batch, pos, d_model]` and, where tokens were left out, of
        their activations `[n_before, d_model]`; it gives `[batch, n_positions, d_model]`.
    """
    spans = position_spans(tokens, positions)

    def pool(
        activation: Float[Tensor, "batch pos d_model"],
        before: Float[Tensor, "n_before d_model"] | None = None,
    ) -> Float[Tensor, "batch n_positions d_model"]:
        read = []
        for span in spans.unbind(1):
            first, stop = span.unbind(-1)
            if bool((stop - first == 1).all()) and bool((first >= n_before).all()):
                rows = torch.arange(len(first), device=activation.device)
                read.append(activation[rows, (first - n_before).to(activation.device)].float())
                continue
            total = _sum_between(activation, first - n_before, stop - n_before)
            if before is not None:
                total = total + _sum_between(before[None], first, stop)
            read.append(total / (stop - first).to(total.device)[:, None])
        return torch.stack(read, dim=1)

    return pool


def position_spans(tokens: Tokens, positions: Sequence[str]) -> Int[Tensor, "batch n_positions 2"]:
    """Return the half-open range of tokens that each position reads in each prompt."""
    return torch.tensor(
        [
            [token_span(position, length, span) for position in positions]
            for length, span in zip(tokens.lengths, tokens.instruction_spans, strict=True)
        ]
    )


def _sum_between(
    activation: Float[Tensor, "rows pos d_model"],
    first: Int[Tensor, " batch"],
    stop: Int[Tensor, " batch"],
) -> Float[Tensor, "batch d_model"]:
    """Sum the positions from `first` to before `stop`, row by row; one row serves all."""
    index = torch.arange(activation.shape[1])
    inside = (index >= first[:, None]) & (index < stop[:, None])
    weights = inside.to(activation.device, torch.float32)
    # where: what is padding may be anything, and zero times infinity is not zero.
    values = activation.float().expand(len(first), -1, -1)
    return torch.where(weights[..., None] > 0, values, 0.0).sum(dim=1)


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
