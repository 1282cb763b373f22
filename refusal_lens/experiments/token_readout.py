"""What a direction says: token by token through a prompt, and through the unembedding.

Knows how to read a direction against a model's tokens. Does not know which parts of the model write
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_lens.directions.direction import Direction, cosine_project, project
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.attribution import only_hooked, run_with_hooks
from refusal_lens.models.backends import HookedTransformer, Model, tokenizer_of
from refusal_lens.models.hook_points import read_at, resolve_hook_points
from refusal_lens.prompts.contrast import UNCATEGORISED, Prompt, PromptSet
from refusal_lens.prompts.positions import check_positions, make_pool
from refusal_lens.prompts.tokens import Tokens, check_control_tokens, token_text, tokenise

VOCABULARY_CHUNK = 16_384
"""Columns of the unembedding that are held in float32 at a time."""


@dataclass(frozen=True, eq=False)
class Unembedding:
    """The tokens that a direction raises and lowers most, with the change of their logits.

    `logits` are for one unit along the direction at final-norm scale 1, less their mean over the
    vocabulary; from the highest down in `top_*`, from the lowest up in `bottom_*`.
    """

    top_ids: Int[Tensor, " n_tokens"]
    top_logits: Float[Tensor, " n_tokens"]
    bottom_ids: Int[Tensor, " n_tokens"]
    bottom_logits: Float[Tensor, " n_tokens"]
    top_tokens: tuple[str, ...]
    bottom_tokens: tuple[str, ...]
    hook_point: str
    position: str

    def to_frame(self) -> pd.DataFrame:
        """Return one row a token; rank 1 is the highest at the top, the lowest at the bottom."""
        ends = (
            ("top", self.top_ids, self.top_tokens, self.top_logits),
            ("bottom", self.bottom_ids, self.bottom_tokens, self.bottom_logits),
        )
        rows = [
            (self.hook_point, self.position, rank, end, token_id, token, logit)
            for end, ids, tokens, logits in ends
            for rank, (token_id, token, logit) in enumerate(
                zip(ids.tolist(), tokens, logits.tolist(), strict=True), start=1
            )
        ]
        columns = ["hook_point", "position", "rank", "end", "token_id", "token", "logit"]
        return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """The projection of every token of one prompt on directions, each at its own hook point."""

    prompt_id: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    hook_points: tuple[str, ...]
    projections: Float[Tensor, "n_tokens n_hook_points"]
    cosines: Float[Tensor, "n_tokens n_hook_points"]

    def to_frame(self) -> pd.DataFrame:
        """Return one row a hook point and token; `index` counts the prompt's tokens from 0."""
        rows = [
            (
                *(self.prompt_id, index, token_id, token, hook_point),
                *(self.projections[index, column].item(), self.cosines[index, column].item()),
            )
            for column, hook_point in enumerate(self.hook_points)
            for index, (token_id, token) in enumerate(zip(self.token_ids, self.tokens, strict=True))
        ]
        columns = ["prompt_id", "index", "token_id", "token", "hook_point", "projection", "cosine"]
        return pd.DataFrame(rows, columns=columns)


def read_unembedding(model: Model, direction: Direction, n_tokens: int = 10) -> Unembedding:
    """Read a direction through the unembedding: which next tokens it speaks for.

    The final norm is taken with its weight and, where it is a LayerNorm, its centring; its scale is
    left at 1. The scale depends on the whole activation, is positive, and divides all logits alike:
    which tokens come first does not hang on it. Biases are left out: a direction is a difference.
    A cap on the logits is left out as well, for it does not change their order. A constant added to
    all logits changes no probability, so that their mean is taken away.

    A direction in the middle of the model is rewritten by the layers that follow; this shows only
    what would be read off if they passed it on unchanged.

    Args:
        model: A `HookedTransformer` with its tokenizer.
        direction: Anywhere in the residual stream.
        n_tokens: How many tokens at each end.

    Raises:
        RefusalLensError: The model runs on a bridge, or the direction has another size.

    Source:
        "Logit lens": nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    hooked = only_hooked(model, "The unembedding")
    logits = _logits(hooked, direction)
    top = logits.topk(min(n_tokens, len(logits)))
    bottom = logits.topk(min(n_tokens, len(logits)), largest=False)
    tokenizer = tokenizer_of(model)
    return Unembedding(
        top_ids=top.indices,
        top_logits=top.values,
        bottom_ids=bottom.indices,
        bottom_logits=bottom.values,
        top_tokens=_decode_each(tokenizer, top.indices.tolist()),
        bottom_tokens=_decode_each(tokenizer, bottom.indices.tolist()),
        hook_point=direction.hook_point,
        position=direction.position,
    )


def _logits(model: HookedTransformer, direction: Direction) -> Float[Tensor, " d_vocab"]:
    vector = direction.unit
    if vector.numel() != model.cfg.d_model:
        raise RefusalLensError(
            f"The direction has {vector.numel()} components; this model's stream has "
            f"{model.cfg.d_model}. Take a direction of this model."
        )
    if (model.cfg.normalization_type or "").startswith("LN"):
        vector = vector - vector.mean()
    weight = getattr(model.ln_final, "w", None)
    if weight is not None:
        vector = vector * weight.detach().float().cpu()
    chunks = model.unembed.W_U.detach().split(VOCABULARY_CHUNK, dim=1)
    logits = torch.cat([(vector.to(chunk.device) @ chunk.float()).cpu() for chunk in chunks])
    return logits - logits.mean()


def project_prompts(
    model: Model,
    texts: Sequence[str],
    direction: Direction,
    *,
    system_prompt: str | None = None,
) -> Float[Tensor, " n_prompts"]:
    """Project new prompts on a direction, read where it was fitted.

    Args:
        model: A `HookedTransformer` with its tokenizer.
        texts: What the user says.
        direction: Its hook point and position say what is read, attention sinks left out of means.
        system_prompt: What the system says before.

    Returns:
        Signed lengths along the unit direction, in the activations' units.

    Raises:
        RefusalLensError: The model runs on a bridge, or a prompt lacks the position.

    Example:
        >>> from refusal_lens import fit_directions
        >>> direction = fit_directions(activations)["resid_post:1", "last"]
        >>> project_prompts(tiny_model, ["How do I wash a car?"], direction).shape
        torch.Size([1])
    """
    hooked = only_hooked(model, "The projection of prompts")
    tokenizer = tokenizer_of(model)
    prompts = PromptSet.from_texts("new", texts).prompts
    tokens = tokenise(tokenizer, prompts, system_prompt)
    check_control_tokens(tokenizer, prompts, tokens)
    check_positions(tokens, [direction.position], hooked.cfg.n_ctx)
    (name,) = resolve_hook_points(hooked, direction.hook_point)
    found = []
    for row in range(len(tokens)):
        one = tokens.select([row])
        stream = _streams(hooked, one, [name])[name]
        pooled = make_pool(one, [direction.position])(stream[None])
        found.append(project(pooled.values[0, 0], direction.unit.to(stream.device)))
    return torch.stack(found).cpu()


def project_tokens(
    model: Model,
    prompt: Prompt | str,
    directions: Sequence[Direction] | Direction,
    *,
    system_prompt: str | None = None,
) -> PromptTokens:
    """Project every token of one prompt, template included, on directions.

    Args:
        model: A `HookedTransformer` with its tokenizer.
        prompt: What the user says.
        directions: Each is read at its own hook point, at every token whatever its position. One
            alone may come as it is.
        system_prompt: What the system says before.

    Returns:
        Projections (in the activations' units) and cosines, `[n_tokens, n_hook_points]`.

    Raises:
        RefusalLensError: The model runs on a bridge or lacks a hook point, or two directions are of
            the same one.

    Example:
        >>> from refusal_lens import fit_directions
        >>> directions = list(fit_directions(activations))[:1]
        >>> project_tokens(tiny_model, prompts.prompts[0], directions).tokens[0]
        '<|im_start|>'
    """
    prompt = Prompt("prompt", prompt, UNCATEGORISED) if isinstance(prompt, str) else prompt
    directions = [directions] if isinstance(directions, Direction) else directions
    hooked = only_hooked(model, "The projection of tokens")
    names = resolve_hook_points(hooked, [direction.hook_point for direction in directions])
    if len(names) < len(directions):
        raise RefusalLensError(
            "Give one direction a hook point: of one position, or of one method."
        )
    tokens = tokenise(tokenizer_of(model), [prompt], system_prompt)
    check_control_tokens(tokenizer_of(model), [prompt], tokens)
    ids = tokens.ids[0]
    streams = _streams(hooked, tokens, names)
    pairs = [(streams[each.hook_point], each.unit) for each in directions]
    return PromptTokens(
        prompt.id,
        ids,
        _decode_each(tokenizer_of(model), list(ids)),
        names,
        torch.stack([project(stream, unit) for stream, unit in pairs], dim=1),
        torch.stack([cosine_project(stream, unit) for stream, unit in pairs], dim=1),
    )


def _streams(
    model: HookedTransformer, tokens: Tokens, names: Sequence[str]
) -> dict[str, Float[Tensor, "n_tokens d_model"]]:
    """Return what one prompt's tokens are at some hook points."""
    streams: dict[str, Tensor] = {}

    def hook_at(name: str) -> tuple[str, Any]:
        hooked, part_of = read_at(model, name)

        def keep(activation: Tensor, hook: Any) -> None:  # noqa: ARG001
            streams[name] = part_of(activation)[0].float().cpu()

        return hooked, keep

    run_with_hooks(model, tokens, [hook_at(name) for name in names])
    return streams


def _decode_each(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(token_text(tokenizer, token_id) for token_id in ids)
