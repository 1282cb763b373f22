"""Which heads, MLPs and embeddings write a direction into the residual stream.

Knows how a block's parts add up to the stream at a hook point, and splits the class difference
there exactly. Does not know how the direction came about or what it says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.activations.batch_reader import pad_right
from refusal_lens.directions.direction import Direction
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.backends import HookedTransformer, Model, is_hooked, tokenizer_of
from refusal_lens.models.batching import run_in_batches
from refusal_lens.models.hook_points import layer_of, site_of, stop_layer
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.positions import (
    MEANS,
    check_positions,
    find_sinks,
    make_pool,
    normalise_position,
)
from refusal_lens.prompts.tokens import Tokens, check_control_tokens, tokenise

REACH = {"resid_pre": (0, 0), "resid_mid": (1, 0), "resid_post": (1, 1)}
"""Of a stream site's own layer, whether its attention and its MLP have written already."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF_TOLERANCE = 5e-2
"""Parts may miss the whole by this share of their absolute sum: rounding, and nothing else."""

ALL = ""
"""The category that stands for all harmful prompts."""


@dataclass(frozen=True)
class Component:
    """One part of the model that writes to the residual stream.

    `name` is `embed`, `positional`, `bias` (of all attention outputs together), `blocks.i.attn`
    (then with a `head`) or `blocks.i.mlp` (its biases included).
    """

    name: str
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each component writes along a unit direction, prompt by prompt, in projection units.

    The stream at a hook point is a sum: embedding, positional embedding, and what every head and
    MLP before it has added. A head adds `z_h W_O[h]`, so that along the unit vector u it adds
    `z_h · (W_O[h] u)`: one number a head, and the vector each head adds is never formed. At a mean
    position the same holds of the mean z.

    Where an RMS norm stands between attention and stream (`ln1_post` of Gemma-2 and -3), each
    token's scale is taken from the forward pass as it is: given the scale, the norm is linear, and
    a head adds `z_h · (W_O[h] (w * u)) / scale`. The scale itself depends on all heads; that is not
    divided among them. An MLP counts as what reaches the stream, behind its own norm.

    Biases of the attention outputs are one component. Without a norm behind the attention they are
    the same in every prompt, and cancel in the class difference.

    `projections` are those of the activation at the hook point itself: the contributions of a
    prompt sum to its projection, and their class difference to that of the projections, but for
    rounding in the model's dtype. `categories` names each prompt's; empty where it has none.

    Source:
        The stream as a sum, and heads apart by W_O: Elhage et al. 2021, "A Mathematical Framework
        for Transformer Circuits".
    """

    contributions: Float[Tensor, "n_prompts n_components"]
    projections: Float[Tensor, " n_prompts"]
    is_harmful: Bool[Tensor, " n_prompts"]
    categories: tuple[str, ...]
    components: tuple[Component, ...]
    hook_point: str
    position: str

    def difference(self, category: str = ALL) -> Float[Tensor, " n_components"]:
        """Return each component's share in the class difference, in projection units.

        Args:
            category: Of the harmful prompts, whose mean is set against that of all harmless ones;
                empty for all harmful prompts.

        Raises:
            RefusalLensError: No harmful prompt has this category.
        """
        chosen = self._chosen(category)
        return self.contributions[chosen].mean(0) - self.contributions[~self.is_harmful].mean(0)

    def total(self, category: str = ALL) -> float:
        """Return the class difference of the projections at the hook point itself."""
        chosen = self._chosen(category)
        return (self.projections[chosen].mean() - self.projections[~self.is_harmful].mean()).item()

    @property
    def harmful_categories(self) -> tuple[str, ...]:
        """The categories of harmful prompts, in the order they first come."""
        pairs = zip(self.categories, self.is_harmful.tolist(), strict=True)
        return tuple(dict.fromkeys(name for name, is_harmful in pairs if is_harmful and name))

    def to_frame(self) -> pd.DataFrame:
        """Return one row a category and component; `share` is of that category's total."""
        rows = []
        for category in (ALL, *self.harmful_categories):
            total = self.total(category)
            parts = self.difference(category).tolist()
            for component, contribution in zip(self.components, parts, strict=True):
                rows.append(
                    {
                        "hook_point": self.hook_point,
                        "position": self.position,
                        "category": category,
                        "component": component.name,
                        "layer": component.layer,
                        "head": component.head,
                        "contribution": contribution,
                        "share": contribution / total if total else float("nan"),
                    }
                )
        whole = {"layer": "Int64", "head": "Int64"}
        return pd.DataFrame(rows).astype(whole)

    def _chosen(self, category: str) -> Bool[Tensor, " n_prompts"]:
        if category == ALL:
            return self.is_harmful
        if category not in self.harmful_categories:
            raise RefusalLensError(
                f"No harmful prompt has the category {category!r}. There are: "
                f"{', '.join(self.harmful_categories) or 'none'}."
            )
        return self.is_harmful & torch.tensor([name == category for name in self.categories])

    def __repr__(self) -> str:
        """Say what was split, and where."""
        return (
            f"Attribution({self.hook_point}, {self.position}: {self.total():.4g} over "
            f"{len(self.components)} components, {len(self.is_harmful)} prompts)"
        )


def attribute(
    model: Model,
    prompts: ContrastSet,
    direction: Direction,
    *,
    system_prompt: str | None = None,
    token_budget: int | None = None,
    show_progress: bool | None = None,
) -> Attribution:
    """Split the activations along a direction into what each component has written.

    `Attribution` says how each part is taken.

    Args:
        model: A `HookedTransformer` with its tokenizer.
        prompts: Harmful and harmless prompts; they need not be those the direction was fitted to.
        direction: At a site of the stream, `attn_out` or `mlp_out`.
        system_prompt: What the system says before each prompt.
        token_budget: Most tokens in a batch, padding included; None finds what is fastest here.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

    Raises:
        RefusalLensError: The model runs on a bridge, the hook point is no sum of components, or
            a part that is not known here writes as well, so that the sum is another.

    Example:
        >>> direction = Direction(torch.arange(32.0), "blocks.1.hook_resid_post", "last")
        >>> whole = attribute(tiny_model, prompts, direction, show_progress=False)
        >>> abs(whole.difference().sum().item() / whole.total() - 1) < 1e-4
        True
    """
    hooked = only_hooked(model, "Attribution")
    writers = _writers(hooked, direction)
    columns = tuple(part for writer in writers for part in writer.components)
    position = normalise_position(direction.position)
    tokens = tokenise(tokenizer_of(model), prompts.prompts, system_prompt)
    check_control_tokens(tokenizer_of(model), prompts.prompts, tokens)
    check_positions(tokens, [position], hooked.cfg.n_ctx)
    projections = torch.empty(len(tokens), dtype=torch.float64)
    contributions = torch.empty(len(tokens), len(columns), dtype=torch.float64)

    with ClassProgress("Attributing", prompts.counts(), show_progress) as progress:

        def run(rows: list[int]) -> None:
            pooled = _read(hooked, tokens.select(rows), direction, writers)
            projections[rows] = pooled[direction.hook_point] @ direction.unit.double().cpu()
            contributions[rows] = torch.cat([writer.split(pooled) for writer in writers], dim=1)
            progress.advance(prompts.counts(rows))

        device, name_of = str(hooked.cfg.device), tokens.prompt_ids.__getitem__
        run_in_batches(
            tokens.lengths, run, token_budget=token_budget, device=device, name_of=name_of
        )
    _check_sums(contributions, projections, hooked, direction.hook_point)
    return Attribution(
        _bias_as_one(contributions, columns),
        projections,
        torch.tensor(prompts.is_harmful),
        tuple(prompt.category for prompt in prompts.prompts),
        tuple(dict.fromkeys(columns)),
        direction.hook_point,
        position,
    )


def only_hooked(model: Model, what: str) -> HookedTransformer:
    """Return the model as a `HookedTransformer`; refuse one that runs on a bridge."""
    if not is_hooked(model):
        raise RefusalLensError(
            f"{what} reads weights and norms as HookedTransformer lays them out; this model runs "
            "on TransformerBridge. Load it with model.backend: hooked."
        )
    return model


# --- who writes -------------------------------------------------------------------------------

Pooled = dict[str, Float[Tensor, "batch width"]]
"""What was read at the position, by hook point; float64 on the CPU."""


@dataclass(frozen=True, eq=False)
class _Writer:
    """Some components, the hook points they are read at, and their contributions from there."""

    components: tuple[Component, ...]
    hook_points: tuple[str, ...]
    split: Callable[[Pooled], Float[Tensor, "batch n_components"]]


def _writers(model: HookedTransformer, direction: Direction) -> list[_Writer]:
    """List what has written to a hook point, in the order in which it did."""
    unit = direction.unit.double().cpu()
    site, layer = site_of(direction.hook_point), direction.layer
    if layer is None or site not in (*REACH, "attn_out", "mlp_out"):
        raise RefusalLensError(
            f"{direction.hook_point} is no sum of what components write. Take a direction at "
            f"{', '.join(REACH)}, attn_out or mlp_out."
        )
    if direction.hook_point not in model.hook_dict or unit.numel() != model.cfg.d_model:
        raise RefusalLensError(
            f"{direction!r} does not fit this model: {model.cfg.model_name} has "
            f"{model.cfg.n_layers} layers and d_model {model.cfg.d_model}"
            + (" and no resid_mid." if model.cfg.parallel_attn_mlp else ".")
        )
    if site == "attn_out":
        return [_attention(model, layer, unit)]
    if site == "mlp_out":
        return [_whole(Component(f"blocks.{layer}.mlp", layer), direction.hook_point, unit)]
    n_attention, n_mlp = (layer + extra for extra in REACH[site])
    writers = [_whole(Component("embed"), "hook_embed", unit)]
    if model.cfg.positional_embedding_type == "standard":
        writers.append(_whole(Component("positional"), "hook_pos_embed", unit))
    for index in range(layer + 1):
        if index < n_attention:
            writers.append(_attention(model, index, unit))
        if index < n_mlp and not model.cfg.attn_only:
            part = Component(f"blocks.{index}.mlp", index)
            writers.append(_whole(part, f"blocks.{index}.hook_mlp_out", unit))
    return writers


def _whole(component: Component, hook_point: str, unit: Float[Tensor, " d_model"]) -> _Writer:
    """Read a component at the hook point of what it adds to the stream."""
    return _Writer((component,), (hook_point,), lambda pooled: pooled[hook_point] @ unit[:, None])


def _attention(model: HookedTransformer, layer: int, unit: Float[Tensor, " d_model"]) -> _Writer:
    """Read the heads of a layer at z, and its bias; through the norm behind them, if any."""
    attn: Any = model.blocks[layer].attn
    norm: Any = getattr(model.blocks[layer], "ln1_post", None)
    # An RMS norm whose output is projected on u projects its input on w * u, over the scale.
    inner = unit if norm is None else unit * norm.w.detach().cpu().double()
    by_head = attn.W_O.detach().cpu().double() @ inner
    bias = attn.b_O.detach().cpu().double() @ inner
    z_name = f"blocks.{layer}.attn.hook_z"
    scale_name = None if norm is None else f"blocks.{layer}.ln1_post.hook_scale"
    heads = tuple(
        Component(f"blocks.{layer}.attn", layer, head) for head in range(model.cfg.n_heads)
    )

    def split(pooled: Pooled) -> Tensor:
        z = pooled[z_name].unflatten(1, by_head.shape)
        over_scale = torch.ones(len(z), 1) if scale_name is None else pooled[scale_name]
        written = (z * by_head).sum(-1)
        return torch.cat([written, over_scale.double() * bias], dim=1)

    names = (z_name,) if scale_name is None else (z_name, scale_name)
    return _Writer((*heads, Component("bias")), names, split)


# --- reading ----------------------------------------------------------------------------------


def _read(
    model: HookedTransformer, tokens: Tokens, direction: Direction, writers: Sequence[_Writer]
) -> Pooled:
    """Run one batch and return what every writer needs at the position."""
    position = normalise_position(direction.position)
    is_sink = _sinks(model, tokens, direction) if position in MEANS else None
    pool_all = make_pool(tokens, [position], sinks="kept")
    names = dict.fromkeys(name for writer in writers for name in writer.hook_points)
    scaled = {name for name in names if name.endswith(".hook_scale")}
    waiting: dict[int | None, Tensor] = {}
    pooled: Pooled = {}

    def pool(activation: Tensor) -> Tensor:
        return pool_all(activation, None, is_sink).values

    def keep(activation: Tensor, hook: Any) -> None:
        if hook.name in scaled:
            # The norm comes after z: only now is each token's scale known.
            z_name = f"blocks.{layer_of(hook.name)}.attn.hook_z"
            pooled[z_name] = pool(waiting.pop(layer_of(hook.name)) / activation)
            pooled[hook.name] = pool(1 / activation)
        elif hook.name.endswith("hook_z") and scaled:
            waiting[layer_of(hook.name)] = activation.flatten(2).float()
        else:
            pooled[hook.name] = pool(activation.flatten(2))

    run_with_hooks(
        model, tokens, [(name, keep) for name in dict.fromkeys((*names, direction.hook_point))]
    )
    return {name: values[:, 0].cpu().double() for name, values in pooled.items()}


def _sinks(
    model: HookedTransformer, tokens: Tokens, direction: Direction
) -> Bool[Tensor, "batch pos"] | None:
    """Find the tokens that the direction's mean left out; None where it left out none.

    They are known at the direction's own hook point, behind all that write to it: so this is a
    forward of its own.
    """
    if direction.provenance.get("sinks", {}).get("are") == "kept":
        return None
    found = []

    def keep(activation: Tensor, hook: Any) -> None:  # noqa: ARG001
        found.append(find_sinks(activation, torch.tensor(tokens.lengths)))

    run_with_hooks(model, tokens, [(direction.hook_point, keep)])
    return found[0]


def run_with_hooks(model: HookedTransformer, tokens: Tokens, hooks: list[Any]) -> None:
    """Run one batch up to the last of the hooks."""
    ids = pad_right(tokens, 0).to(model.cfg.device)
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        # padding_side: a tokenizer that pads left would make TransformerLens mask real tokens.
        model(
            ids,
            return_type=None,
            stop_at_layer=stop_layer([name for name, _ in hooks]),
            padding_side="right",
        )


def _bias_as_one(
    contributions: Float[Tensor, "n_prompts n_columns"], columns: Sequence[Component]
) -> Float[Tensor, "n_prompts n_components"]:
    """Add up the columns of the same component: the biases of all layers."""
    places = {component: place for place, component in enumerate(dict.fromkeys(columns))}
    summed = torch.zeros(len(contributions), len(places), dtype=contributions.dtype)
    index = torch.tensor([places[component] for component in columns])
    return summed.index_add(1, index, contributions)


def _check_sums(
    contributions: Float[Tensor, "n_prompts n_columns"],
    projections: Float[Tensor, " n_prompts"],
    model: HookedTransformer,
    hook_point: str,
) -> None:
    """Refuse a model with a part that writes to the stream and is not known here."""
    missed = (contributions.sum(1) - projections).abs()
    size = contributions.abs().sum(1).clamp_min(1e-12)
    worst = (missed / size).max().item()
    if not worst <= TOLERANCE.get(model.cfg.dtype, HALF_TOLERANCE):
        raise RefusalLensError(
            f"The components do not add up to {hook_point} in {model.cfg.original_architecture}: "
            f"they miss {worst:.1e} of their absolute sum. This architecture writes to the "
            "residual stream in a way that is not known here, or its activations are not finite."
        )
