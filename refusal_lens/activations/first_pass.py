"""A first pass over the prompts, which keeps none of their tokens.

Knows what all prompts have in common, and that they are tokenised the same when they are read. Does
not know the model.
"""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt32

from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import ContrastSet, Prompt
from refusal_lens.prompts.tokens import CHUNK_PROMPTS, Tokens, tokenise


@dataclass(frozen=True, eq=False)
class Portion:
    """Some prompts with the checksums of their token ids, to tokenise again, here or elsewhere."""

    prompts: tuple[Prompt, ...]
    checksums: UInt32[np.ndarray, " n_prompts"]


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of all prompts: 4 bytes each, however long they are.

    `frame` stands for all of them: they begin with what these few begin with. `ids_sha256` is the
    fingerprint of all token ids: some templates write the day's date.
    """

    tokenizer: Any
    prompts: ContrastSet
    system_prompt: str | None
    frame: Tokens
    checksums: UInt32[np.ndarray, " n_prompts"]
    ids_sha256: str

    def portion(self, rows: range) -> Portion:
        """Return some neighbours."""
        return Portion(self.prompts.between(rows), self.checksums[rows.start : rows.stop])

    def tokens(self, rows: range) -> Tokens:
        """Tokenise some neighbours, to read them."""
        return retokenise(self.tokenizer, self.portion(rows), self.system_prompt)


def survey(
    tokenizer: Any,
    prompts: ContrastSet,
    system_prompt: str | None,
    check: Callable[[Tokens], None],
) -> Survey:
    """Tokenise all prompts once, a few at a time, and keep what they have in common.

    Tokenising twice costs less than reading them once, and the ids of a million prompts would take
    more memory than all else.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        prompts: Harmful and harmless prompts.
        system_prompt: What the system says before each prompt.
        check: Is called with the tokens of a few prompts at a time, to refuse them.

    Raises:
        RefusalLensError: As `tokenise`, and whatever `check` raises.
    """
    common, digest = Tokens.of([], [], []), hashlib.sha256()
    checksums = np.empty(len(prompts), dtype=np.uint32)
    for start in range(0, len(prompts), CHUNK_PROMPTS):
        rows = range(start, min(start + CHUNK_PROMPTS, len(prompts)))
        tokens = tokenise(tokenizer, prompts.between(rows), system_prompt)
        check(tokens)
        for row, length in zip(rows, tokens.lengths, strict=True):
            ids = tokens.ids.array(row - start).tobytes()
            checksums[row] = zlib.crc32(ids)
            digest.update(length.to_bytes(4, "little") + ids)
        common = frame(Tokens.join([common, tokens]))
    return Survey(tokenizer, prompts, system_prompt, common, checksums, digest.hexdigest())


def frame(tokens: Tokens) -> Tokens:
    """Pick the few prompts that share a prefix exactly as long as all of them do.

    What all prompts begin with is run once and decides the last bits, so that every part of them
    must be read behind the same prefix. The longest prompt is among them: it is the one that a
    model's context may not hold.

    Example:
        >>> prompts = Tokens.of(["a", "b", "c"], [(1, 2), (1, 2, 3), (1, 2, 4)], [(0, 1)] * 3)
        >>> frame(prompts).shared_prefix() == prompts.shared_prefix() == (1,)
        True
    """
    rows = range(len(tokens))
    ends = {choose(rows, key=tokens.ids.__getitem__) for choose in (min, max)}
    lengths = {choose(rows, key=tokens.lengths.__getitem__) for choose in (min, max)}
    return tokens.select(sorted(ends | lengths))


def retokenise(tokenizer: Any, portion: Portion, system_prompt: str | None) -> Tokens:
    """Tokenise prompts that were surveyed before.

    Raises:
        RefusalLensError: Their ids are others now: what was found out about them does not hold.
    """
    tokens = tokenise(tokenizer, portion.prompts, system_prompt)
    found = [zlib.crc32(tokens.ids.array(row).tobytes()) for row in range(len(tokens))]
    _check_same(portion.prompts, portion.checksums, np.array(found, dtype=np.uint32))
    return tokens


def _check_same(
    prompts: Sequence[Prompt],
    expected: UInt32[np.ndarray, " n_prompts"],
    found: UInt32[np.ndarray, " n_prompts"],
) -> None:
    changed = np.flatnonzero(expected != found)
    if len(changed):
        raise RefusalLensError(
            f"Prompt {prompts[changed[0]].id} has other token ids than when the collection began. "
            "Templates that write the date do so at midnight, and other machines may have another "
            "version of the tokenizer. Run again, with the same versions everywhere."
        )
