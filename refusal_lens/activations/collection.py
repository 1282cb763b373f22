"""What is to be collected: prompts as tokens, the places to read, and how values are kept.

Knows all that does not depend on the model. Does not know which engine reads it, nor how.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict, Unpack, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.prompts.chat_format import chat_format_of, date_written, find_ending, render
from refusal_lens.prompts.contrast import ContrastSet, either
from refusal_lens.prompts.groups import find_groups
from refusal_lens.prompts.positions import (
    PositionRead,
    Sinks,
    check_plain_positions,
    check_positions,
    normalise_positions,
    positions_read,
)
from refusal_lens.prompts.tokens import Tokens, check_control_tokens, tokenise

Dtype = Literal["float32", "bfloat16", "float16"]


class Reading(TypedDict, total=False):
    """How a collection is read and kept."""

    sinks: Sinks
    """Attention sinks (the first token, and norms above ten times the prompt's median) are
    `left_out` of means, or `kept` in them."""
    token_budget: int | None
    """Most tokens in a batch, padding included; None finds what is fastest."""
    dtype: Dtype
    """Precision in a folder; no matter without one."""


class CollectionOptions(Reading, total=False):
    """What may be said beside prompts and places: keywords of whatever makes a `Collection`."""

    system_prompt: str | None
    """What the system says before each prompt."""


@dataclass(frozen=True, eq=False)
class Collection:
    """What is collected, in plain values; made by `Collection.of`, which tokenises once.

    Token ids take 4 bytes each, less than the texts they come from, so that all are kept.
    """

    prompts: ContrastSet
    tokens: Tokens
    """Of `prompts.prompts`: harmful first."""
    chat_template: dict[str, Any]
    """How prompts were written out: hash, system prompt, what was added, where they end, one
    example."""
    tokens_read: tuple[PositionRead, ...]
    """What each position reads in the first prompts."""
    hook_points: tuple[str, ...]
    """Selectors, see `resolve_hook_points`."""
    positions: tuple[str, ...]
    # The others are as in `Reading`.
    sinks: Sinks = "left_out"
    token_budget: int | None = None
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        for name, allowed in (("sinks", get_args(Sinks)), ("dtype", get_args(Dtype))):
            if getattr(self, name) not in allowed:
                raise RefusalLensError(
                    f"There is no {name} {getattr(self, name)!r}. Use {either(allowed)}."
                )
        if self.token_budget is not None and self.token_budget < 1:
            raise RefusalLensError(
                f"token_budget needs to be 1 token or more, but {self.token_budget} came; None "
                "finds what is fastest."
            )

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        prompts: ContrastSet,
        hook_points: str | Sequence[str] = "resid_post",
        positions: str | Sequence[str] = "last",
        *,
        system_prompt: str | None = None,
        **reading: Unpack[Reading],
    ) -> "Collection":
        """Tokenise prompts and check that each has every position.

        Warns where prompts end elsewhere than where the answer begins.

        Args:
            tokenizer: A fast Hugging Face tokenizer.
            prompts: Harmful and harmless prompts.
            hook_points: Selectors, see `resolve_hook_points`.
            positions: `last`, `mean` (all tokens of the formatted prompt), `instruction_mean` (the
                user's own tokens), `instruction_last` (the last of them), `-k` (k-th token from the
                end), or `k` (of the template's tail; `0` is the first behind the user's text).
            system_prompt: What the system says before each prompt.
            reading: `sinks`, `token_budget` and `dtype`, see `Reading`.

        Raises:
            RefusalLensError: As `tokenise`, or a prompt that holds control tokens or does not have
                a position.

        Example:
            >>> collection = Collection.of(tiny_model.tokenizer, prompts, positions=["last", "-2"])
            >>> collection.positions, len(collection.tokens)
            (('last', '-2'), 8)
        """
        wanted = normalise_positions(positions)
        tokens = tokenise(tokenizer, prompts.prompts, system_prompt)
        check_control_tokens(tokenizer, prompts.prompts, tokens)
        check_positions(tokens, wanted, n_ctx=None)
        chat_template = _describe_chat_template(tokenizer, prompts, system_prompt)
        if chat_template["ending"] is not None:
            sentences = f"{chat_template['ending']['cause']} {chat_template['ending']['remedy']}"
            warnings.warn(sentences, RefusalLensWarning, stacklevel=3)
        first = tokens.select(range(min(3, len(tokens))))
        return cls(
            prompts,
            tokens,
            chat_template,
            positions_read(tokenizer, first, wanted),
            (hook_points,) if isinstance(hook_points, str) else tuple(hook_points),
            wanted,
            **reading,
        )

    @classmethod
    def of_ids(
        cls,
        tokenizer: Any,
        prompts: ContrastSet,
        tokens: Tokens,
        hook_points: str | Sequence[str] = "resid_post",
        positions: str | Sequence[str] = "last",
        *,
        system_prompt: str | None = None,
        **reading: Unpack[Reading],
    ) -> "Collection":
        """Take prompts whose token ids are given: no template writes them out.

        The arguments are those of `of`; positions are `last`, `-k` or `mean`.

        Raises:
            RefusalLensError: A prompt does not have a position, or something was to be written.
        """
        wanted = normalise_positions(positions)
        if system_prompt is not None:
            raise RefusalLensError(
                "Token ids are read as they are, and no system prompt can be put before them. Give "
                "the texts, or ids that begin with it."
            )
        check_plain_positions(wanted)
        check_positions(tokens, wanted, n_ctx=None)
        shown = tokens.select(range(min(3, len(prompts.harmful))))
        names = (hook_points,) if isinstance(hook_points, str) else tuple(hook_points)
        tokens_read = positions_read(tokenizer, shown, wanted)
        chat_template = {"has_template": False, "given": "token ids", "ending": None}
        return cls(prompts, tokens, chat_template, tokens_read, names, wanted, **reading)

    def __len__(self) -> int:
        """Count the prompts."""
        return len(self.tokens)

    def labels(self, rows: range) -> Bool[Tensor, " n_prompts"]:
        """Say of some neighbours which are harmful: the harmful ones come first."""
        return torch.arange(rows.start, rows.stop) < len(self.prompts.harmful)

    def key(self) -> dict[str, Any]:
        """Say what values depend on of the prompts and how these are written out.

        The token ids count too: another version of a tokenizer may cut texts otherwise.
        """
        ids = self.tokens.ids
        digest = hashlib.sha256(ids.offsets.tobytes() + ids.flat.tobytes())
        shown = ("has_template", "ending", "example")
        told = {name: value for name, value in self.chat_template.items() if name not in shown}
        return {
            "prompts": self._describe_prompts(),
            "chat_template": told,
            "token_ids_sha256": digest.hexdigest(),
            "dtype": self.dtype,
            "token_budget": self.token_budget,
        }

    def describe(self) -> dict[str, Any]:
        """Say for provenance which prompts, how they are written out, and what is read of them."""
        first = self.tokens_read[: len(self.positions)]
        return {
            "prompts": self._describe_prompts(),
            "groups": find_groups(self.prompts).describe(),
            "chat_template": self.chat_template,
            "tokens_read": {row.position: asdict(row) for row in first},
        }

    def _describe_prompts(self) -> dict[str, Any]:
        sides = {"harmful": self.prompts.harmful, "harmless": self.prompts.harmless}
        return {name: {"n": len(side), "sha256": side.sha256} for name, side in sides.items()}


def _describe_chat_template(
    tokenizer: Any, prompts: ContrastSet, system_prompt: str | None
) -> dict[str, Any]:
    """Say how prompts are written out; `date` is None where the template writes none."""
    ending = find_ending(tokenizer, system_prompt)
    return {
        "has_template": tokenizer.chat_template is not None,
        "sha256": hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest(),
        "system_prompt": system_prompt,
        **asdict(chat_format_of(tokenizer)),
        "date": date_written(tokenizer, system_prompt),
        "ending": None if ending is None else asdict(ending),
        "example": render(tokenizer, prompts.prompts[0].text, system_prompt),
    }


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
