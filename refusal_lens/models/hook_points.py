"""From selectors to full hook-point names.

Knows which hook points of a model carry one vector a token, how wide it is, and how people write
them down: every head is a hook point of its own, `blocks.8.attn.hook_z.3`. Does not run the model.
"""

import difflib
import fnmatch
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.models.backends import Model, is_hooked
from refusal_lens.prompts.positions import normalise_position

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_in")
"""Sites inside a block whose activation is `[batch, position, d_model]`."""

OUTSIDE_BLOCKS = ("hook_embed", "hook_pos_embed", "ln_final.hook_normalized")
"""Hook points outside the blocks with an activation of that shape."""

NORMALISED = ("ln1.hook_normalized", "ln2.hook_normalized")

HEADS = ("attn.hook_z", "attn.hook_result")
"""Hook points with a vector for each head: what it reads, `d_head` wide, and what it writes."""

SITES = {
    **{site: f"hook_{site}" for site in RESIDUAL_SITES},
    **{inner.partition(".")[2]: inner for inner in (*HEADS, "mlp.hook_post")},
    **{inner: inner for inner in (*HEADS, "mlp.hook_post", *NORMALISED)},
}
"""The words that may stand before the layers of a selector, and what they mean in a block."""

GATES = {
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_attn_in": "use_attn_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
}
"""Hook points that fire only while a flag of the config is on."""


def resolve_hook_points(model: Any, selectors: str | Sequence[str]) -> tuple[str, ...]:
    """Turn selectors into full hook-point names that exist and fire in this model.

    Args:
        model: A `HookedTransformer` or `TransformerBridge`.
        selectors: Each a full name (`blocks.12.hook_resid_post`), a glob
            (`blocks.*.hook_resid_mid`), a site (`resid_post`: all layers), or a site with layers
            (`resid_post:8-15`, `attn_out:3`); `hook_z:8` is all heads of layer 8, `hook_z:8.3` one.

    Returns:
        Names in the order asked for, layers ascending within a selector, none twice.

    Raises:
        RefusalLensError: A selector names nothing, or something that cannot be collected: it says
            why, and what exists instead.

    Example:
        >>> resolve_hook_points(tiny_model, "resid_post:1-2")
        ('blocks.1.hook_resid_post', 'blocks.2.hook_resid_post')
    """
    listed = [selectors] if isinstance(selectors, str) else list(selectors)
    if not listed:
        raise RefusalLensError("At least one hook point is needed, for example resid_post.")
    # Of each name without its head; a single name of most.
    heads: dict[str, list[str]] = {}
    for name in _names(model):
        heads.setdefault(_without_head(name), []).append(name)
    names = [name for selector in listed for name in _resolve(model, selector, heads)]
    return tuple(dict.fromkeys(names))


def resolve_of_one_width(model: Any, selectors: str | Sequence[str]) -> tuple[str, ...]:
    """Resolve selectors of what is collected together: in one grid, so of one width.

    Raises:
        RefusalLensError: As `resolve_hook_points`, or two of them differ in width.
    """
    names = resolve_hook_points(model, selectors)
    widths: dict[int, str] = {}
    for name in names:
        widths.setdefault(width_of(model, name), name)
    if len(widths) > 1:
        found = ", ".join(f"{name} has {width} components" for width, name in widths.items())
        raise RefusalLensError(
            f"One run holds hook points of one width, and {found}. Collect each width in a run of "
            "its own."
        )
    return names


def width_of(model: Any, hook_point: str) -> int:
    """Return how many components an activation has at a hook point."""
    site = site_of(hook_point)
    if site == "mlp.hook_post":
        return model.cfg.d_mlp
    return model.cfg.d_head if site.startswith(HEADS[0]) else model.cfg.d_model


def read_at(model: Any, hook_point: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Say where the model is hooked for a hook point, and how it is read off what is there.

    What a head writes is made of what it reads: TransformerLens's own `hook_result` fires only with
    a flag on, and is `n_heads` times the residual stream.

    Args:
        model: Of either backend.
        hook_point: A full name.

    Returns:
        The name of the hook, and what makes `[batch, position, width]` of its activation.
    """
    head, layer = head_of(hook_point), layer_of(hook_point)
    if head is None or layer is None:
        return hook_point, lambda activation: activation
    n_heads = model.cfg.n_heads
    written = None if HEADS[0] in hook_point else model.blocks[layer].attn.W_O.detach()[head]

    def read(
        z: Float[Tensor, "batch pos *heads d"],
    ) -> Float[Tensor, "batch pos width"]:
        mine = z.flatten(2).unflatten(2, (n_heads, -1))[:, :, head]
        return mine if written is None else mine @ written

    return f"blocks.{layer}.{HEADS[0]}", read


def select_hook_points(
    names: Sequence[str], selectors: str | Sequence[str], holder: str
) -> tuple[str, ...]:
    """Resolve selectors as in a model that has these hook points, and no others.

    Messages call what has them `holder`.

    Example:
        >>> select_hook_points(["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"], "mlp_out:1", "")
        ('blocks.1.hook_mlp_out',)
    """
    n_layers = 1 + max((layer_of(name) or 0 for name in names), default=0)
    n_heads = 1 + max((head_of(name) or 0 for name in names), default=0)
    flags = dict.fromkeys(GATES.values(), True)
    cfg = SimpleNamespace(model_name=holder, n_layers=n_layers, n_heads=n_heads, **flags)
    return resolve_hook_points(SimpleNamespace(hook_dict=names, cfg=cfg), selectors)


def place_index(
    hook_points: Sequence[str], positions: Sequence[str], place: tuple[str, str], holder: str
) -> tuple[int, int]:
    """Return row and column of a place, the hook point written in full or as `resid_post:3`.

    Refused is a place that `holder` does not have, and a hook point that names several.

    Example:
        >>> place_index(["blocks.0.hook_resid_post"], ["last"], ("resid_post:0", "-1"), "this")
        (0, 0)
    """
    if isinstance(place, str) or len(place) != 2:
        raise RefusalLensError(
            f"A place is a hook point and a position, such as [{hook_points[0]!r}, "
            f"{positions[0]!r}], but {place!r} came."
        )
    hook_point, position = place
    if position not in positions:
        position = normalise_position(position)
    if hook_point not in hook_points:
        names = select_hook_points(hook_points, hook_point, holder)
        if len(names) != 1:
            raise RefusalLensError(
                f"{hook_point} is {len(names)} hook points of {holder}; one is needed, such as "
                f"{names[0]}."
            )
        hook_point = names[0]
    if position not in positions:
        raise RefusalLensError(
            f"There is nothing at position {position} in {holder}. Positions: "
            f"{', '.join(positions)}."
        )
    return hook_points.index(hook_point), positions.index(position)


def collectable_hook_points(model: Any) -> tuple[str, ...]:
    """List every hook point of the model that holds one vector a token, head by head."""
    return tuple(name for name in _names(model) if _why_not(model, name) is None)


def layer_of(hook_point: str) -> int | None:
    """Return the block index in a full name; None for a hook point outside the blocks.

    Example:
        >>> layer_of("blocks.12.hook_resid_post")
        12
    """
    match = re.match(r"blocks\.(\d+)\.", hook_point)
    return int(match[1]) if match else None


def reading_block(hook_point: str) -> int:
    """Return the paper's layer of a place: the first block whose input holds what is there.

    The paper's layer k is the input of block k, `resid_pre`. What comes later in block k
    (`resid_post`, but its parts too) enters block k + 1; what comes after all of them, none.

    Example:
        >>> reading_block("blocks.3.hook_resid_pre"), reading_block("blocks.3.hook_resid_post")
        (3, 4)
    """
    layer = layer_of(hook_point)
    if layer is None:
        return sys.maxsize if hook_point.startswith("ln_final") else 0
    return layer if site_of(hook_point) == "resid_pre" else layer + 1


def first_late_block(max_layer_share: float, n_layers: int) -> int:
    """Return the first block whose input is too late in the model to take a direction from.

    Source:
        The code of Arditi et al. 2024, arXiv 2406.11717, keeps layers below int(0.8 n).
    """
    return int(max_layer_share * n_layers)


def head_of(hook_point: str) -> int | None:
    """Return the index of the head whose hook point this is; None for all others.

    Example:
        >>> head_of("blocks.12.attn.hook_z.3")
        3
    """
    match = re.search(r"\battn\.hook_(?:z|result)\.(\d+)$", hook_point)
    return int(match[1]) if match else None


def is_residual(hook_point: str) -> bool:
    """Say whether the residual stream, or what is added to it, is there: what can be acted on.

    Example:
        >>> is_residual("blocks.12.hook_attn_out"), is_residual("blocks.12.attn.hook_z.3")
        (True, False)
    """
    return site_of(hook_point) in (*RESIDUAL_SITES, "embed", "pos_embed")


def site_of(hook_point: str) -> str:
    """Return the kind of hook point without its layer; each head is a kind.

    Example:
        >>> site_of("blocks.12.hook_resid_post"), site_of("blocks.12.attn.hook_z.3")
        ('resid_post', 'attn.hook_z.3')
    """
    return re.sub(r"^blocks\.\d+\.", "", hook_point).removeprefix("hook_")


def selector_of(hook_point: str) -> str:
    """Write a hook point as the selector that names it alone.

    Example:
        >>> selector_of("blocks.12.hook_resid_post"), selector_of("blocks.12.attn.hook_z.3")
        ('resid_post:12', 'hook_z:12.3')
    """
    layer, head = layer_of(hook_point), head_of(hook_point)
    if layer is None:
        return hook_point
    if head is None:
        return f"{site_of(hook_point)}:{layer}"
    return f"{hook_point.split('.')[-2]}:{layer}.{head}"


def short_name(hook_point: str) -> str:
    """Write a hook point as people say it.

    Example:
        >>> short_name("blocks.12.hook_resid_post"), short_name("blocks.12.attn.hook_z.3")
        ('resid_post 12', 'hook_z 12.3')
    """
    if layer_of(hook_point) is None:
        return site_of(hook_point)
    return selector_of(hook_point).replace(":", " ")


def stop_layer(hook_points: Iterable[str]) -> int | None:
    """Return how many blocks must run for all of these to fire; None for the whole model."""
    last = 0
    for name in hook_points:
        layer = layer_of(name)
        if layer is not None:
            last = max(last, layer + 1)
        elif name.startswith("ln_final"):
            return None
    return last


def _resolve(model: Any, selector: str, heads: Mapping[str, Sequence[str]]) -> list[str]:
    site, _, layers = selector.partition(":")
    if site in SITES:
        names = _parse_layers(selector, SITES[site], layers, model.cfg)
    elif "*" in selector or "?" in selector or "[" in selector:
        matching = [
            name
            for whole, each in heads.items()
            for name in each
            if fnmatch.fnmatchcase(name, selector) or fnmatch.fnmatchcase(whole, selector)
        ]
        names = [name for name in matching if _why_not(model, name) is None]
        if matching and not names:
            raise RefusalLensError(_refusal(model, matching[0]))
        names.sort(key=lambda name: (layer_of(name) is not None, layer_of(name) or 0))
    else:
        names = [selector]
    names = [each for name in names for each in heads.get(name, [name])]
    if not names:
        raise RefusalLensError(
            f"Hook-point selector {selector!r} matches nothing in {model.cfg.model_name}. "
            f"{_what_exists(model, selector)}"
        )
    for name in names:
        if _why_not(model, name) is not None:
            raise RefusalLensError(_refusal(model, name))
    return names


def _names(model: Any) -> list[str]:
    """List the hook points of a model, with every head in place of all of them."""
    return [
        each
        for name in model.hook_dict
        for each in (
            [f"{name}.{head}" for head in range(model.cfg.n_heads)]
            if site_of(name) in HEADS
            else [name]
        )
    ]


def _without_head(name: str) -> str:
    return name if head_of(name) is None else name.rpartition(".")[0]


def _parse_layers(selector: str, inner: str, layers: str, cfg: Any) -> list[str]:
    """Read `8-15`, `3` or `1,4-6`, of heads `8.3` too; no layers means all of them."""
    names: list[str] = []
    for part in layers.split(",") if layers else [f"0-{cfg.n_layers - 1}"]:
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)|\.(\d+))?\s*", part)
        if match is None or (match[3] and inner not in HEADS):
            raise RefusalLensError(
                f"Hook-point selector {selector!r} has layers that cannot be read. "
                "Write one layer (resid_post:3), a range (resid_post:8-15) or a list "
                "(resid_post:1,4-6); a single head is hook_z:8.3."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= cfg.n_layers:
            raise RefusalLensError(
                f"Hook-point selector {selector!r} asks for layers {part.strip()}, but this model "
                f"has layers 0 to {cfg.n_layers - 1}."
            )
        if match[3] and int(match[3]) >= cfg.n_heads:
            raise RefusalLensError(
                f"Hook-point selector {selector!r} asks for head {match[3]}, but this model has "
                f"heads 0 to {cfg.n_heads - 1}."
            )
        head = f".{match[3]}" if match[3] else ""
        names.extend(f"blocks.{layer}.{inner}{head}" for layer in range(first, last + 1))
    return names


def _why_not(model: Any, name: str) -> str | None:
    """Say why this hook point cannot be collected; None where it can."""
    inner = re.sub(r"^blocks\.\d+\.", "", name)
    head = head_of(name)
    is_head = head is not None and head < model.cfg.n_heads
    if name not in model.hook_dict and not (is_head and _without_head(name) in model.hook_dict):
        parallel = getattr(model.cfg, "parallel_attn_mlp", False)
        if inner == "hook_resid_mid" and parallel:
            return "attention and MLP run in parallel in this architecture, so it has no resid_mid"
        return _no_such(model, name)
    flag = GATES.get(inner)
    if flag is not None and not getattr(model.cfg, flag, False):
        return f"it fires only with cfg.{flag} on (model.set_{flag}(True))"
    is_site = layer_of(name) is not None and _without_head(inner) in SITES.values()
    return None if is_site or name in OUTSIDE_BLOCKS else "it does not hold one vector a token"


def _no_such(model: Any, name: str) -> str:
    """Say that there is no such hook point; of one that is named without its layer, where it is."""
    site = name.partition(":")[0].removeprefix("hook_")
    for full in model.hook_dict:
        inner = re.sub(r"^blocks\.\d+\.", "", full)
        if site in (inner, site_of(full).rpartition("hook_")[2]):
            every = full if inner == full else f"blocks.*.{inner}"
            why = _why_not(model, full)
            return f"it is written {every}" if why is None else f"it is {every} here, and {why}"
    return "this model has no such hook point"


def _refusal(model: Any, name: str) -> str:
    return (
        f"Hook point {name} cannot be collected: {_why_not(model, name)}. "
        f"{_what_exists(model, name)}"
    )


def _what_exists(model: Any, name: str) -> str:
    collectable = collectable_hook_points(model)
    beside = [known for known in collectable if layer_of(known) == layer_of(name)]
    sites = [site for site in RESIDUAL_SITES if f"blocks.0.hook_{site}" in collectable]
    if layer_of(name) is None:
        beside = [*sites, *beside]  # it may have been meant as a site
    nearest = difflib.get_close_matches(name, beside or collectable, 3, 0.0)
    return (
        f"Nearest that can: {', '.join(nearest)}. Sites: {', '.join(sites)} "
        f"(layers 0 to {model.cfg.n_layers - 1})."
    )


Hook = tuple[str, Callable[..., Tensor]]


@contextmanager
def hooks_at(model: Model, hooks: Sequence[Hook]) -> Iterator[None]:
    """Set hooks by full names, and take these off again.

    TransformerLens looks for them at each of its hook points, two hundred in a small model, which
    takes a sixth of a short forward. A bridge, whose points go by other names, does it its own way.
    """
    if not is_hooked(model):
        with model.hooks(fwd_hooks=list(hooks)):
            yield
        return
    points = [model.hook_dict[name] for name, _ in hooks]
    model.context_level += 1
    try:
        for point, (_, function) in zip(points, hooks, strict=True):
            point.add_hook(function, level=model.context_level)
        yield
    finally:
        for point in points:
            point.remove_hooks(level=model.context_level)
        model.context_level -= 1


def uniform(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark a hook's function that does the same to every token of every row, call after call.

    What such hooks leave is the same for what all prompts share, rows can leave a batch, and a step
    can be captured.
    """
    function.is_uniform = True  # type: ignore[attr-defined]
    return function


def are_uniform(hooks: Sequence[Hook]) -> bool:
    """Say whether all hooks are marked `uniform`; a user's own are not.

    Example:
        >>> are_uniform([("blocks.0.hook_resid_post", uniform(lambda x, hook: 2 * x))])
        True
    """
    return all(getattr(function, "is_uniform", False) for _, function in hooks)
