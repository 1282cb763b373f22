"""From prompts to the token ids that the model reads.

Knows chat templates, BOS and where the user's own text lies among the tokens. Does not know
models beyond their tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts import Prompt

PLACEHOLDER = "REFUSALLENSPLACEHOLDER"
"""Stands for the user's text when a template is rendered to find what surrounds that text."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of formatted prompts, ragged, in the order the prompts came in.

    `instruction_spans` are the half-open ranges of the tokens that hold the user's own text.
    """

    prompt_ids: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    instruction_spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        """Count the prompts."""
        return len(self.ids)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each prompt."""
        return tuple(len(ids) for ids in self.ids)

    def length_quantiles(self) -> dict[str, int]:
        """Return the shortest, median and longest prompt, and the quartiles, in tokens."""
        quantiles = np.quantile(self.lengths, [0, 0.25, 0.5, 0.75, 1], method="nearest")
        names = ("shortest", "lower quartile", "median", "upper quartile", "longest")
        return dict(zip(names, (int(q) for q in quantiles), strict=True))

    def select(self, indices: Sequence[int]) -> "Tokens":
        """Return some of the prompts, in the order asked for."""
        return Tokens(
            tuple(self.prompt_ids[i] for i in indices),
            tuple(self.ids[i] for i in indices),
            tuple(self.instruction_spans[i] for i in indices),
        )

    def shared_prefix(self) -> tuple[int, ...]:
        """Return the ids that all prompts begin with; at least one token of each is left over."""
        first, last = min(self.ids), max(self.ids)
        limit = min(self.lengths) - 1
        for index, (a, b) in enumerate(zip(first, last, strict=False)):
            if a != b or index == limit:
                return first[:index]
        return first[:limit]


def tokenise(tokenizer: Any, prompts: Sequence[Prompt], system_prompt: str | None = None) -> Tokens:
    """Format prompts with the tokenizer's own chat template and tokenise them.

    Both classes go through the same template, with the generation prompt, so that every prompt
    ends where the model is about to answer. Text without a template is taken as it is.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        prompts: What the user says, one turn each.
        system_prompt: What the system says before; None for the template's own default.

    Raises:
        RefusalLensError: The template refuses the system prompt, a prompt becomes empty, or it
            would start with two BOS tokens.
    """
    _check_tokenizer(tokenizer, system_prompt)
    rendered = [render(tokenizer, prompt.text, system_prompt) for prompt in prompts]
    spans = _instruction_spans(tokenizer, prompts, rendered, system_prompt)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    bos_id, adds_bos = tokenizer.bos_token_id, _adds_bos(tokenizer)
    ids, token_spans = [], []
    for text, row, offsets, span in zip(
        rendered, encoded["input_ids"], encoded["offset_mapping"], spans, strict=True
    ):
        # Templates mostly write the BOS themselves; add it only where neither has.
        prefix = [bos_id] if adds_bos and not text.startswith(tokenizer.bos_token) else []
        ids.append((*prefix, *row))
        first, last = _covered_tokens(offsets, span)
        token_spans.append((first + len(prefix), last + len(prefix)))
    _check_ids(prompts, ids, bos_id)
    return Tokens(tuple(prompt.id for prompt in prompts), tuple(ids), tuple(token_spans))


def render(tokenizer: Any, text: str, system_prompt: str | None = None) -> str:
    """Write one prompt out as the model will see it, before tokenisation."""
    if tokenizer.chat_template is None:
        return text
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    messages = [*system, {"role": "user", "content": text}]
    try:
        # enable_thinking reaches templates that have it (Qwen3), and is ignored by all others.
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except Exception as error:
        # Templates raise jinja2's TemplateError of their own wording ("System role not supported").
        raise RefusalLensError(
            f"The chat template of {tokenizer.name_or_path} refused the messages: {error}. "
            "Set prompts.system_prompt to null if the model takes no system prompt."
        ) from error


def _check_tokenizer(tokenizer: Any, system_prompt: str | None) -> None:
    if not tokenizer.is_fast:
        raise RefusalLensError(
            f"Finding the user's text among the tokens needs a fast tokenizer; "
            f"{type(tokenizer).__name__} is not one. Save the model with its tokenizer.json."
        )
    if tokenizer.chat_template is None and system_prompt is not None:
        raise RefusalLensError(
            "A system prompt needs a chat template, and this tokenizer has none. "
            "Set prompts.system_prompt to null."
        )


def _adds_bos(tokenizer: Any) -> bool:
    """Say whether the tokenizer itself starts plain text with its BOS token."""
    if tokenizer.bos_token_id is None:
        return False
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _instruction_spans(
    tokenizer: Any, prompts: Sequence[Prompt], rendered: Sequence[str], system_prompt: str | None
) -> list[tuple[int, int]]:
    """Find the user's text in each rendered prompt, as a range of characters.

    The template is rendered once around a placeholder: what stands before and after it is what
    the template adds. Templates may trim the text itself, so the rest is the user's.
    """
    before, _, after = render(tokenizer, PLACEHOLDER, system_prompt).partition(PLACEHOLDER)
    spans = []
    for prompt, text in zip(prompts, rendered, strict=True):
        own = text[len(before) : len(text) - len(after)]
        is_framed = text.startswith(before) and text.endswith(after)
        if not is_framed or own.strip() != prompt.text.strip():
            raise RefusalLensError(
                f"The chat template writes something else around prompt {prompt.id} than around "
                f"other text ({prompt.text[:60]!r}). Take that prompt out, or shorten it to plain "
                "words."
            )
        spans.append((len(before), len(text) - len(after)))
    return spans


def _covered_tokens(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, int]:
    """Return the half-open range of tokens that hold any character of `span`."""
    start, stop = span
    covered = [i for i, (first, last) in enumerate(offsets) if first < stop and last > start]
    return (covered[0], covered[-1] + 1) if covered else (0, 0)


def _check_ids(
    prompts: Sequence[Prompt], ids: Sequence[tuple[int, ...]], bos_id: int | None
) -> None:
    for prompt, row in zip(prompts, ids, strict=True):
        if not row:
            raise RefusalLensError(f"Prompt {prompt.id} has no tokens. Take it out of its file.")
        if bos_id is not None and row[:2] == (bos_id, bos_id):
            raise RefusalLensError(
                f"Prompt {prompt.id} starts with two BOS tokens (id {bos_id}). Take the BOS token "
                "out of the prompt's text."
            )
