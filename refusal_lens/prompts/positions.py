"""Which tokens of a prompt are read, and how they become one vector.

Knows how positions are written, where they lie and how to pool a padded activation. Does not run
the model.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.tokens import Tokens

Sinks = Literal["left_out", "kept"]

MEANS = ("mean", "instruction_mean")
"""Positions that average over tokens."""

INSTRUCTION_LAST = "instruction_last"
"""The last token of the user's own text, before the template's tail: what has been read of the
request, where the model has not yet turned to its answer.

Source:
    Zhao et al. 2025, arXiv 2507.11878: harmfulness is read there, refusal at the tail's tokens.
"""

SINK_RATIO = 10.0
"""A token whose norm is above this many times its prompt's median is a sink: in the middle
layers of SmolLM2-135M, Qwen2.5-Coder-0.5B and Gemma-3-270m the first token lies at 145, 110 and 14
times."""


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
    if position in ("last", INSTRUCTION_LAST, *MEANS):
        return position
    if re.fullmatch(r"0|[1-9]\d*", position):
        return position
    if re.fullmatch(r"-[1-9]\d*", position):
        return "last" if position == "-1" else position
    raise RefusalLensError(
        f"There is no position {position!r}. Use last, mean, instruction_mean, instruction_last, "
        "-k for the k-th token from the end (-2, -3, ...), or k for a token of the template's tail "
        "(0 is the first one behind the user's text)."
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
    if position == INSTRUCTION_LAST or position.isdecimal():
        first = instruction[1] + (-1 if position == INSTRUCTION_LAST else int(position))
        return first, first + 1
    first = length - (1 if position == "last" else -int(position))
    return first, first + 1


def check_plain_positions(positions: Sequence[str]) -> None:
    """Refuse positions that only a chat template can tell, where none wrote the prompts out."""
    for position in positions:
        if not (position in ("last", "mean") or position.startswith("-")):
            raise RefusalLensError(
                f"Position {position} is counted from the user's text, and of token ids and caches "
                "nobody says where that lies. Use last, -k or mean, or give the texts."
            )


def check_positions(tokens: Tokens, positions: Sequence[str], n_ctx: int | None) -> None:
    """Refuse, by name, prompts that a position or the model's context does not fit."""
    _check_reach(tokens, positions)
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
            is_of_text = position in ("instruction_mean", INSTRUCTION_LAST)
            if stop <= first or (is_of_text and span[1] <= span[0]):
                raise RefusalLensError(
                    f"Position {position} has no tokens in prompt {prompt_id}: its text vanishes "
                    "in the chat template. Take the prompt out."
                )
            if stop > length:
                raise RefusalLensError(
                    f"Position {position} is outside prompt {prompt_id}: its template's tail has "
                    f"{length - span[1]} tokens behind the user's text. Use a smaller one."
                )


def _check_reach(tokens: Tokens, positions: Sequence[str]) -> None:
    """Refuse positions before the first token of the shortest prompt: no other need be tried."""
    if not len(tokens):
        return
    row = min(range(len(tokens)), key=lambda row: tokens.lengths[row])
    length, prompt_id = tokens.lengths[row], tokens.prompt_ids[row]
    for position in positions:
        if position.startswith("-") and -int(position) > length:
            n_short = sum(each < -int(position) for each in tokens.lengths)
            raise RefusalLensError(
                f"Position {position} is outside {n_short} of {len(tokens)} prompts; the shortest, "
                f"{prompt_id}, has {length} tokens. Use positions -{length} to -1, or drop prompts "
                f"shorter than {-int(position)} tokens."
            )


@dataclass(frozen=True, eq=False)
class PooledBatch:
    """What stands at the positions of some prompts, and how many tokens their means left out."""

    values: Float[Tensor, "batch n_positions d_model"]
    n_left_out: Int[Tensor, "batch n_positions"]


def make_pool(
    tokens: Tokens, positions: Sequence[str], n_before: int = 0, sinks: Sinks = "left_out"
) -> Callable[..., PooledBatch]:
    """Return the function that reads the positions out of one padded activation.

    Means are taken in float32 whatever the model's dtype: a sum of many bfloat16 vectors loses
    what a direction is made of. They leave out sinks, see `find_sinks`; where nothing else is
    left, as in a prompt of one token, they are the plain mean.

    Args:
        tokens: The prompts of the batch.
        positions: Positions in their normal spelling.
        n_before: Tokens that all prompts begin with and that the activation leaves out.
        sinks: `left_out` of means, or `kept` in them.

    Returns:
        A function of the activation `[batch, pos, d_model]` and, where tokens were left out, of
        their activations `[n_before, d_model]`. Given `is_sink` `[batch, n_before + pos]`, it takes
        those for the sinks instead of finding them.
    """
    spans, lengths = position_spans(tokens, positions), torch.tensor(tokens.lengths)
    takes_means = bool((spans[..., 1] - spans[..., 0] > 1).any())
    # Brought to each device once: at every layer anew, a GPU would stop and wait for it.
    on_device = functools.cache(lambda device: (spans.to(device), lengths.to(device)))
    is_single = [
        bool((stop - first == 1).all()) and bool((first >= n_before).all())
        for first, stop in (span.unbind(-1) for span in spans.unbind(1))
    ]

    def pool(
        activation: Float[Tensor, "rows pos d_model"],
        before: Float[Tensor, "n_before d_model"] | None = None,
        is_sink: Bool[Tensor, "batch all_pos"] | None = None,
    ) -> PooledBatch:
        ranges, n_tokens = on_device(activation.device)
        if is_sink is None and sinks == "left_out" and takes_means:
            is_sink = find_sinks(activation, n_tokens, before)
        values, n_left_out = [], []
        for column, is_one in enumerate(is_single):
            first, stop = ranges[:, column].unbind(-1)
            if is_one:
                rows = torch.arange(len(first), device=activation.device)
                values.append(activation[rows, first - n_before].float())
                n_left_out.append(torch.zeros_like(first))
                continue
            index = torch.arange(n_before + activation.shape[1], device=activation.device)
            inside = (index >= first[:, None]) & (index < stop[:, None])
            kept = inside if is_sink is None else _without(inside, is_sink)
            total = _sum_of(activation, kept[:, n_before:])
            if before is not None:
                total = total + _sum_of(before[None], kept[:, :n_before])
            values.append(total / kept.sum(1, keepdim=True))
            n_left_out.append((inside & ~kept).sum(1))
        return PooledBatch(torch.stack(values, dim=1), torch.stack(n_left_out, dim=1))

    return pool


def position_spans(tokens: Tokens, positions: Sequence[str]) -> Int[Tensor, "batch n_positions 2"]:
    """Return the half-open range of tokens that each position reads in each prompt."""
    return torch.tensor(
        [
            [token_span(position, length, span) for position in positions]
            for length, span in zip(tokens.lengths, tokens.instruction_spans, strict=True)
        ]
    )


def find_sinks(
    activation: Float[Tensor, "rows pos d_model"],
    lengths: Int[Tensor, " batch"],
    before: Float[Tensor, "n_before d_model"] | None = None,
) -> Bool[Tensor, "batch all_pos"]:
    """Mark attention sinks: the first token, and norms above ten times the prompt's median.

    Sinks carry nothing of the prompt and would be most of its mean: in the middle of
    SmolLM2-135M-Instruct the first token has a norm of 25,054 against a median of 173. A norm that
    is not finite is no sink, so that it shows.

    Args:
        activation: Padded on the right; one row serves all.
        lengths: Of the prompts, with what stands before.
        before: Activations of what all prompts begin with, where `activation` leaves it out.

    Source:
        Xiao et al. 2023, arXiv 2309.17453, section 3.1; Sun et al. 2024, arXiv 2402.17762.

    Example:
        >>> norms = torch.tensor([[[1.0], [2.0], [90.0], [3.0], [77.0]]])
        >>> find_sinks(norms, torch.tensor([4]))
        tensor([[ True, False,  True, False, False]])
    """
    parts = [activation] if before is None else [before[None], activation]
    norms = torch.cat(
        [
            torch.linalg.vector_norm(part, dim=-1, dtype=torch.float32).expand(len(lengths), -1)
            for part in parts
        ],
        dim=1,
    )
    index = torch.arange(norms.shape[1], device=norms.device)
    is_padding = index >= lengths.to(norms.device)[:, None]
    # What is padding depends on the batch, and must not move the median.
    median = norms.masked_fill(is_padding, torch.nan).nanmedian(dim=1, keepdim=True).values
    is_outlier = (norms > SINK_RATIO * median) & norms.isfinite() & ~is_padding
    return is_outlier | (index == 0)


def _without(
    inside: Bool[Tensor, "batch all_pos"], is_sink: Bool[Tensor, "batch all_pos"]
) -> Bool[Tensor, "batch all_pos"]:
    """Leave sinks out, except where nothing else is."""
    kept = inside & ~is_sink
    return torch.where(kept.any(1, keepdim=True), kept, inside)


def _sum_of(
    activation: Float[Tensor, "rows pos d_model"], is_kept: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch d_model"]:
    """Sum some positions of each row; one row serves all."""
    # where: what is padding may be anything, and zero times infinity is not zero.
    values = activation.float().expand(len(is_kept), -1, -1)
    return torch.where(is_kept[..., None], values, 0.0).sum(dim=1)


def positions_read(
    tokenizer: Any, tokens: Tokens, positions: Sequence[str]
) -> tuple[PositionRead, ...]:
    """Show which token (index, id, text) each position reads in each prompt."""

    def shown(row: int, position: str) -> PositionRead:
        ids = tokens.ids[row]
        first, stop = token_span(position, len(ids), tokens.instruction_spans[row])
        is_one = stop - first == 1
        return PositionRead(
            prompt_id=tokens.prompt_ids[row],
            position=position,
            token_indices=str(first) if is_one else f"{first} to {stop - 1}",
            token_ids=str(ids[first]) if is_one else f"{stop - first} tokens",
            tokens=tokenizer.decode(list(ids[first:stop])),
        )

    return tuple(shown(row, position) for row in range(len(tokens)) for position in positions)
