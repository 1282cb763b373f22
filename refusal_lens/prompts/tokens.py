"""From prompts to the token ids that the model reads.

Knows chat templates, BOS and where the user's own text lies among the tokens. Does not know
models beyond their tokenizer.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.chat_format import PLACEHOLDER, chat_format_of, render
from refusal_lens.prompts.contrast import Prompt

CHUNK_PROMPTS = 256
"""Prompts handed to the tokenizer at once: its lists of Python numbers take a hundred times the
memory of what is kept of them."""


@dataclass(frozen=True, eq=False)
class Ragged(Sequence[tuple[int, ...]]):
    """Rows of whole numbers, of any lengths, in one flat array: 4 bytes a number, 8 a row.

    A row becomes a tuple when it is asked for; to read many, slice `flat` by `offsets`.

    Example:
        >>> rows = Ragged.of([(1, 2, 3), (4,)])
        >>> rows[0], rows.flat, rows.offsets
        ((1, 2, 3), array([1, 2, 3, 4], dtype=int32), array([0, 3, 4]))
    """

    flat: Int32[np.ndarray, " n_numbers"]
    offsets: Int64[np.ndarray, " n_rows_and_one"]

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | np.ndarray]) -> "Ragged":
        """Lay rows out flat."""
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return cls(np.concatenate([np.empty(0, np.int32), *arrays]), offsets)

    @classmethod
    def join(cls, parts: Iterable["Ragged"]) -> "Ragged":
        """Put several after each other."""
        return cls.of(rows.array(row) for rows in parts for row in range(len(rows)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: Any) -> Any:
        """Return one row, or a tuple of those in a slice."""
        if isinstance(row, slice):
            return tuple(self[index] for index in range(*row.indices(len(self))))
        return tuple(self.array(range(len(self))[row]).tolist())

    def array(self, row: int) -> Int32[np.ndarray, " n"]:
        """Return one row as a view."""
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    def select(self, rows: Iterable[int]) -> "Ragged":
        """Return some of the rows, in the order asked for."""
        return Ragged.of(self.array(row) for row in rows)


def token_text(tokenizer: Any, token_id: int) -> str:
    """Write a single token out; part of a character as its bytes.

    Byte-level vocabularies cut what is rare, as most of what is not Latin, within characters: such
    a token decodes to a replacement character, which says nothing.

    Example:
        >>> token_text(tiny_model.tokenizer, tiny_model.tokenizer.convert_tokens_to_ids("ç"))
        '⟨e7⟩'
    """
    text = tokenizer.decode([token_id])
    if "\N{REPLACEMENT CHARACTER}" not in text:
        return text
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    name = str(tokenizer.convert_ids_to_tokens(token_id))
    if found := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
        return f"⟨{found[1].lower()}⟩"
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    if not all(letter in byte_of for letter in name):
        return name
    return f"⟨{' '.join(f'{byte_of[letter]:02x}' for letter in name)}⟩"


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of formatted prompts, ragged, in the order the prompts came in.

    `instruction_spans` are the half-open ranges of the tokens that hold the user's own text.
    """

    prompt_ids: tuple[str, ...]
    ids: Ragged
    instruction_spans: Ragged

    @classmethod
    def of(
        cls,
        prompt_ids: Sequence[str],
        ids: Sequence[Sequence[int]],
        instruction_spans: Sequence[tuple[int, int]],
    ) -> "Tokens":
        """Make tokens from plain sequences, one entry a prompt."""
        return cls(tuple(prompt_ids), Ragged.of(ids), Ragged.of(instruction_spans))

    def __len__(self) -> int:
        """Count the prompts."""
        return len(self.ids)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each prompt."""
        return tuple(np.diff(self.ids.offsets).tolist())

    def length_quantiles(self) -> dict[str, int]:
        """Return the shortest, median and longest prompt, and the quartiles, in tokens."""
        quantiles = np.quantile(self.lengths, [0, 0.25, 0.5, 0.75, 1], method="nearest")
        names = ("shortest", "lower quartile", "median", "upper quartile", "longest")
        return dict(zip(names, (int(q) for q in quantiles), strict=True))

    def select(self, indices: Sequence[int]) -> "Tokens":
        """Return some of the prompts, in the order asked for."""
        return Tokens(
            tuple(self.prompt_ids[i] for i in indices),
            self.ids.select(indices),
            self.instruction_spans.select(indices),
        )

    @staticmethod
    def join(parts: Sequence["Tokens"]) -> "Tokens":
        """Put several after each other."""
        return Tokens(
            tuple(prompt_id for part in parts for prompt_id in part.prompt_ids),
            Ragged.join(part.ids for part in parts),
            Ragged.join(part.instruction_spans for part in parts),
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
        RefusalLensError: The template refuses the system prompt, which may hold control tokens; a
            prompt becomes empty, or would start with two BOS tokens.
    """
    if any(isinstance(prompt, str) for prompt in prompts):
        raise RefusalLensError(
            "tokenise needs Prompts, but texts came. Make them by PromptSet.from_texts(name, texts)"
            ".prompts."
        )
    _check_tokenizer(tokenizer, system_prompt)
    chat_template = _ChatTemplate.of(tokenizer, system_prompt)
    starts = range(0, len(prompts), CHUNK_PROMPTS)
    return Tokens.join([chat_template.tokenise(prompts[i : i + CHUNK_PROMPTS]) for i in starts])


@dataclass(frozen=True)
class _ChatTemplate:
    """A tokenizer, and what its chat template writes before and after the user's text."""

    tokenizer: Any
    system_prompt: str | None
    before: str
    after: str
    adds_bos: bool

    @classmethod
    def of(cls, tokenizer: Any, system_prompt: str | None) -> "_ChatTemplate":
        """Render the template once around a placeholder."""
        before, _, after = render(tokenizer, PLACEHOLDER, system_prompt).partition(PLACEHOLDER)
        return cls(tokenizer, system_prompt, before, after, _adds_bos(tokenizer))

    def tokenise(self, prompts: Sequence[Prompt]) -> Tokens:
        """Format and tokenise some prompts at once."""
        rendered = [render(self.tokenizer, prompt.text, self.system_prompt) for prompt in prompts]
        spans = [self.span(*pair) for pair in zip(prompts, rendered, strict=True)]
        encoded = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        bos = self.tokenizer.bos_token
        ids, token_spans = [], []
        for text, row, offsets, span in zip(
            rendered, encoded["input_ids"], encoded["offset_mapping"], spans, strict=True
        ):
            # Templates mostly write the BOS themselves; add it only where neither has.
            is_bos_missing = self.adds_bos and not text.startswith(bos)
            prefix = [self.tokenizer.bos_token_id] if is_bos_missing else []
            covered = _covered_tokens(offsets, span)
            if self.is_plain and _control_tokens(self.tokenizer, text, row[slice(*covered)]):
                row, covered = self.read_plainly(text, span)
            ids.append((*prefix, *row))
            token_spans.append((covered[0] + len(prefix), covered[1] + len(prefix)))
        _check_ids(prompts, ids, self.tokenizer.bos_token_id)
        return Tokens.of([prompt.id for prompt in prompts], ids, token_spans)

    @property
    def is_plain(self) -> bool:
        """Whether control tokens in a prompt's own text are read as plain text."""
        return chat_format_of(self.tokenizer).control_tokens == "plain"

    def read_plainly(self, text: str, span: tuple[int, int]) -> tuple[list[int], tuple[int, int]]:
        """Tokenise a rendered prompt so that the user's text holds no control token.

        The template and the text are tokenised apart, which gives what they are together only with
        tokenizers that do not look across; whether this one does is seen at a harmless text.
        """
        before, users, after = text[: span[0]], text[slice(*span)], text[span[1] :]
        probe = (self.before, PLACEHOLDER, self.after)
        whole = self.tokenizer("".join(probe), add_special_tokens=False)["input_ids"]
        is_same = whole == [i for part in probe for i in self._encode(part)]
        plain = self._encode(users, split_special_tokens=True)
        if not is_same or _control_tokens(self.tokenizer, users, plain):
            raise RefusalLensError(
                "This tokenizer does not read control tokens as plain text. Take the prompts that "
                "hold them out (prompts.control_tokens: refuse names them)."
            )
        first = self._encode(before)
        return [*first, *plain, *self._encode(after)], (len(first), len(first) + len(plain))

    def _encode(self, text: str, **options: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]

    def span(self, prompt: Prompt, text: str) -> tuple[int, int]:
        """Find the user's text in a rendered prompt, as a range of characters.

        Templates may trim the text itself, so what the template does not add is the user's.
        """
        first, stop = len(self.before), len(text) - len(self.after)
        is_framed = text.startswith(self.before) and text.endswith(self.after)
        if not is_framed or text[first:stop].strip() != prompt.text.strip():
            raise RefusalLensError(
                f"The chat template writes something else around prompt {prompt.id} than around "
                f"other text ({prompt.text[:60]!r}). Take that prompt out, or shorten it to plain "
                "words."
            )
        return first, stop


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
    if system_prompt is not None and chat_format_of(tokenizer).control_tokens != "keep":
        ids = tokenizer(system_prompt, add_special_tokens=False)["input_ids"]
        held = _control_tokens(tokenizer, system_prompt, ids)
        if held:
            raise RefusalLensError(
                f"The system prompt holds {', '.join(held)}: control tokens of the chat template, "
                "which end the system's turn or begin another. Take them out of "
                "prompts.system_prompt, or set prompts.control_tokens to keep (read as turns)."
            )


def _adds_bos(tokenizer: Any) -> bool:
    """Say whether the tokenizer itself starts plain text with its BOS token."""
    if tokenizer.bos_token_id is None:
        return False
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def check_control_tokens(tokenizer: Any, prompts: Sequence[Prompt], tokens: Tokens) -> None:
    """Refuse prompts whose own text holds control tokens: they would end the user's turn.

    Text for a model without a chat template is taken as it is, and so is all text where
    `ChatFormat.control_tokens` says so.
    """
    if tokenizer.chat_template is None or chat_format_of(tokenizer).control_tokens != "refuse":
        return
    found = {
        prompt.id: held
        for row, prompt in enumerate(prompts)
        if (held := _control_tokens(tokenizer, prompt.text, _text_ids(tokens, row)))
    }
    if found:
        named = [f"{prompt_id} holds {', '.join(held)}" for prompt_id, held in found.items()]
        more = f"; so do {len(named) - 3} more of {len(prompts)}" if len(named) > 3 else ""
        raise RefusalLensError(
            f"Prompt {'; '.join(named[:3])}{more}: control tokens of the chat template, which end "
            "the user's turn or begin another. Take them out, or set prompts.control_tokens to "
            "plain (read as plain text) or keep (read as turns)."
        )


def _text_ids(tokens: Tokens, row: int) -> Sequence[int]:
    return tokens.ids[row][slice(*tokens.instruction_spans[row])]


def _control_tokens(tokenizer: Any, text: str, ids: Sequence[int]) -> list[str]:
    """Name the tokens among `ids` that the text spells out and that stand for no text.

    An unknown character becomes a special token too, without being spelt so.
    """
    added = tokenizer.added_tokens_decoder
    names = {
        i: token.content
        for i, token in added.items()
        # Gemma has line breaks among its added tokens, which are text all the same.
        if token.special or token.content.strip() and token.content in str(tokenizer.chat_template)
    }
    named = dict.fromkeys(names[i] for i in ids if i in names)
    return [name for name in named if name in text]


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
