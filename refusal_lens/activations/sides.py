"""The two sides of a contrast as a notebook has them: texts, token ids, or caches.

Knows how they become a contrast set, tokens, or activations. Does not run the model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.backends import ActivationCache, Model, describe_model
from refusal_lens.models.hook_points import read_at, resolve_of_one_width
from refusal_lens.prompts.contrast import UNCATEGORISED, ContrastSet, Prompt, PromptSet
from refusal_lens.prompts.positions import (
    Sinks,
    check_plain_positions,
    check_positions,
    make_pool,
    normalise_positions,
)
from refusal_lens.prompts.tokens import Tokens

Side = PromptSet | Sequence[str] | Tensor | Sequence[Tensor] | ActivationCache
"""Prompts of one class: texts; token ids, a row a prompt (ragged ones as a list of rows); or what
`run_with_cache` returned of them, without padding."""

NAMES = ("harmful", "harmless")


class Sides(NamedTuple):
    """Both sides, of one kind."""

    harmful: Any
    harmless: Any

    @property
    def kind(self) -> str:
        """What they are: `texts`, `ids` or `caches`."""
        kinds = {_kind(side) for side in self}
        if len(kinds) == 1 and "" not in kinds:
            return kinds.pop()
        raise RefusalLensError(
            "collect needs both classes: a ContrastSet, or harmful and harmless prompts of one "
            "kind (lists of texts, token ids, or ActivationCaches), but "
            f"{type(self.harmful).__name__} and {type(self.harmless).__name__} came."
        )


def split_sides(prompts: Any, rest: Sequence[Any]) -> tuple[ContrastSet | Sides, tuple[Any, ...]]:
    """Tell the prompts from what comes behind them: `(model, harmful, harmless, ...)` has two.

    Raises:
        RefusalLensError: One class alone came.
    """
    if isinstance(prompts, ContrastSet):
        return prompts, tuple(rest)
    if isinstance(prompts, tuple) and len(prompts) == 2 and not isinstance(prompts[0], str):
        return Sides(*prompts), tuple(rest)
    return Sides(prompts, rest[0] if rest else None), tuple(rest[1:])


def contrast_of(sides: Sides) -> ContrastSet:
    """Make a contrast set of texts."""
    made = [
        side if isinstance(side, PromptSet) else PromptSet.from_texts(name, side)
        for name, side in zip(NAMES, sides, strict=True)
    ]
    return ContrastSet(made[0], made[1])


def tokens_of(sides: Sides, tokenizer: Any) -> tuple[ContrastSet, Tokens]:
    """Take token ids as they are; their text is only shown.

    Nothing is known of where the user's text lies in them.

    Raises:
        RefusalLensError: They are no whole numbers, or a prompt has none.
    """
    rows = [[_ids(row) for row in side] for side in sides]
    made = [
        PromptSet(
            name,
            tuple(
                Prompt(f"{name}-{number:03d}", tokenizer.decode(row), UNCATEGORISED)
                for number, row in enumerate(side, start=1)
            ),
        )
        for name, side in zip(NAMES, rows, strict=True)
    ]
    contrast = ContrastSet(made[0], made[1])
    ids = [row for side in rows for row in side]
    return contrast, Tokens.of([p.id for p in contrast.prompts], ids, [(0, 0)] * len(ids))


def read_caches(
    model: Model,
    sides: Sides,
    hook_points: str | Sequence[str],
    positions: str | Sequence[str],
    sinks: Sinks = "left_out",
) -> Activations:
    """Pool what two runs with a cache have left, as `collect` would have.

    A cache of each class holds prompts of one length, without padding; positions are `last`, `-k`
    or `mean`.

    Raises:
        RefusalLensError: A cache lacks a hook point or its batch, or a position is of the template.
    """
    names, wanted = resolve_of_one_width(model, hook_points), normalise_positions(positions)
    check_plain_positions(wanted)
    parts = [_pool(model, cache, names, wanted, sinks) for cache in sides]
    is_harmful = torch.arange(sum(map(len, parts))) < len(parts[0])
    provenance = {"model": describe_model(model), "collection": {"path": "ActivationCache"}}
    return Activations(torch.cat(parts), is_harmful, names, wanted, provenance)


def _kind(side: Any) -> str:
    if isinstance(side, PromptSet):
        return "texts"
    if hasattr(side, "keys"):
        return "caches"
    if isinstance(side, Tensor):
        return "ids"
    if not isinstance(side, Sequence) or isinstance(side, str) or not side:
        return ""
    return "texts" if isinstance(side[0], str) else "ids"


def _ids(row: Any) -> list[int]:
    ids = row.tolist() if isinstance(row, Tensor) else row
    if not isinstance(ids, Sequence) or not ids or any(type(each) is not int for each in ids):
        raise RefusalLensError(
            "Token ids are rows of whole numbers, one row a prompt and none empty, but "
            f"{row!r:.60} came as a row."
        )
    return list(ids)


def _pool(
    model: Model, cache: Any, names: Sequence[str], positions: Sequence[str], sinks: Sinks
) -> Float[Tensor, "n_prompts n_hook_points n_positions d"]:
    held, pooled = set(cache.keys()), []
    for name in names:
        hooked, read = read_at(model, name)
        if hooked not in held or cache[hooked].ndim < 3:
            fault = "has no batch at" if hooked in held else "does not hold"
            raise RefusalLensError(
                f"The cache {fault} {hooked}. Make it by model.run_with_cache(tokens), without "
                "remove_batch_dim and with this name in names_filter."
            )
        activation = read(cache[hooked])
        n, length = activation.shape[:2]
        tokens = Tokens.of([f"row {i}" for i in range(n)], [[0] * length] * n, [(0, 0)] * n)
        check_positions(tokens, positions, None)
        pooled.append(make_pool(tokens, positions, 0, sinks)(activation).values.cpu())
    return torch.stack(pooled, dim=1)
