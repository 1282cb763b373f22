"""Acting on the residual stream: hooks that remove, set or add directions while the model runs.

Knows how one activation is changed, and at which hook points. Does not fit directions and does not
run the model.

Every function returns `[(hook_name, function), ...]` for `model.hooks(fwd_hooks=...)` and
`model.run_with_hooks(fwd_hooks=...)`, of either backend. A function gives a new tensor of the
activation's own dtype, computed in float32, and keeps no state: with a KV cache a call sees only
the new tokens, and acts on those. Lists can be joined: hooks of one hook point act in the order of
the list, each on what the one before left.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.directions.kernel import WeightKernel
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import Hook, head_of, layer_of, resolve_hook_points, uniform
from refusal_lens.prompts.positions import check_positions, normalise_position, token_span
from refusal_lens.prompts.tokens import Tokens

Basis = Float[Tensor, "*k d_model"]
"""A unit vector `[d_model]`, orthonormal rows `[k, d_model]`, or such rows for every row of the
batch `[batch, k, d_model]`."""

Strength = float | WeightKernel | Float[Tensor, " batch"]
"""How far to go: one number, a kernel that gives it by layer, or a number for every row of the
batch."""

WRITES = ("resid_pre", "attn_out", "mlp_out")
"""Sites where the residual stream is written: what a layer begins with, and what its attention and
its MLP add to it."""

NOT_ORTHONORMAL = 1e-3
"""Most that the products of basis vectors may differ from those of an orthonormal basis."""


def residual_writes(model: Any, layers: Sequence[int] | None = None) -> tuple[str, ...]:
    """Name every hook point at which the residual stream is written.

    Args:
        model: Of either backend.
        layers: Block indices; None takes all.

    Returns:
        `resid_pre`, `attn_out` and `mlp_out` of each layer.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, section 2.4 and its code: directional ablation acts
        at these three sites of every layer.

    Example:
        >>> residual_writes(tiny_model, [1])
        ('blocks.1.hook_resid_pre', 'blocks.1.hook_attn_out', 'blocks.1.hook_mlp_out')
    """
    chosen = range(model.cfg.n_layers) if layers is None else layers
    return resolve_hook_points(model, [f"{site}:{layer}" for layer in chosen for site in WRITES])


def ablate(
    hook_points: Sequence[str],
    basis: Basis,
    *,
    strength: Strength = 1.0,
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> list[Hook]:
    """Remove what lies along a direction or in a subspace: x - s (x·u) u.

    At `residual_writes(model)` nothing along the direction can be written any more. Where harmless
    prompts do not project to zero, zero may be the refusing side: see `affine_ablate`.

    Args:
        hook_points: Full names; `residual_writes(model)` for the ablation of the paper.
        basis: Unit vector, or orthonormal rows.
        strength: Share to remove: 0 leaves the activation as it is, 1 removes all, 2 mirrors.
        mask: The tokens of the prompts to act on, as `prompt_mask` gives them; None acts on all
            tokens, those of the answer too.

    Raises:
        RefusalLensError: The basis is not orthonormal.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, equation 4.

    Example:
        >>> u = torch.nn.functional.one_hot(torch.tensor(0), 32).float()
        >>> hooks = ablate(residual_writes(tiny_model), u, strength=0.5)
        >>> len(hooks)
        12
    """
    rows = _as_rows(basis)
    change = _set_coordinates(rows, lambda _: 0.0)
    return _hooks(hook_points, change, strength, mask, is_uniform=rows.ndim == 2)


def affine_ablate(
    hook_points: Sequence[str],
    basis: Basis,
    mean: Float[Tensor, " d_model"] | Mapping[str, Float[Tensor, " d_model"]],
    *,
    strength: Strength = 1.0,
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> list[Hook]:
    """Set what lies along a direction to what it is on harmless prompts: x - s ((x - m)·u) u.

    Removes the difference between the classes and keeps the offset that both share. With a mean of
    zero this is `ablate`.

    Args:
        hook_points: Full names, most often the direction's own.
        basis: Unit vector, or orthonormal rows.
        mean: Mean activation of harmless prompts; at several hook points the mean of each, by name.
        strength: As in `ablate`.
        mask: As in `ablate`.

    Raises:
        RefusalLensError: The basis is not orthonormal, or a hook point has no mean.

    Source:
        Marshall et al. 2024, arXiv 2411.09003: affine concept editing, without its steering term.
    """
    means = dict(mean) if isinstance(mean, Mapping) else dict.fromkeys(hook_points, mean)
    missing = [name for name in hook_points if name not in means]
    if missing:
        raise RefusalLensError(
            f"Affine ablation needs the harmless mean at every hook point; {', '.join(missing)} "
            f"has none. Means were given for {', '.join(means) or 'no hook point'}."
        )
    rows = _as_rows(basis)
    targets = {name: _coordinates(means[name][None].float(), rows) for name in hook_points}
    change = _set_coordinates(rows, targets.__getitem__)
    return _hooks(hook_points, change, strength, mask, is_uniform=rows.ndim == 2)


def clamp(
    hook_points: Sequence[str],
    basis: Basis,
    value: float | Float[Tensor, "*batch k"],
    *,
    strength: Strength = 1.0,
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> list[Hook]:
    """Set the projection on a direction, or the coordinates in a subspace, to a value.

    Args:
        hook_points: Full names.
        basis: Unit vector, or orthonormal rows.
        value: In the activation's own units; one for all rows of the basis, one for each, or such
            a row of values for every row of the batch.
        strength: Share of the way to go from the projection to the value; as in `ablate`.
        mask: As in `ablate`.

    Raises:
        RefusalLensError: The basis is not orthonormal.

    Source:
        Marshall et al. 2024, arXiv 2411.09003: affine concept editing, with the value as the
        harmless mean's projection plus its steering term.
    """
    rows, target = _as_rows(basis), torch.as_tensor(value, dtype=torch.float32)
    is_uniform = rows.ndim == 2 and target.ndim < 2
    target = target if target.ndim < 2 else target[:, None]
    change = _set_coordinates(rows, lambda _: target)
    return _hooks(hook_points, change, strength, mask, is_uniform=is_uniform)


def add(
    hook_points: Sequence[str],
    vectors: Basis,
    coefficient: float | Float[Tensor, " k"] = 1.0,
    *,
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> list[Hook]:
    """Add a multiple of the class difference: x + c v.

    With `direction.vector`, the raw difference, the coefficient is in units of the difference: 1
    moves harmless activations as far as harmful ones lie.

    Args:
        hook_points: Full names, most often the direction's own alone: added at many, it piles up.
        vectors: The raw difference, or one a row; they need not be orthonormal.
        coefficient: Factor of all vectors, or one for each; negative ones subtract.
        mask: As in `ablate`.

    Source:
        Rimsky et al. 2024, arXiv 2312.06681, section 3; Arditi et al. 2024, arXiv 2406.11717,
        equation 3.
    """
    rows = vectors if vectors.ndim > 1 else vectors[None]

    factors = torch.as_tensor(coefficient, dtype=torch.float32).to(rows.device)
    total = _Near((rows.float() * factors[..., None]).sum(dim=-2)[..., None, :])

    def change(x: Tensor, name: str) -> Tensor:  # noqa: ARG001
        return total.to(x.device)

    return _hooks(hook_points, change, 1.0, mask, is_uniform=rows.ndim == 2)


def prompt_mask(
    tokens: Tokens, position: str, *, padding_side: str = "left"
) -> Bool[Tensor, "batch pos"]:
    """Mark the tokens that a position means in each prompt of one batch, for `mask`.

    The mask has the shape of the padded batch. Hooks that are given one act on the prompts only:
    tokens past its end are the answer's, and a call that sees a single token is a step of the
    answer over a KV cache. So they act alike with and without the cache.

    Args:
        tokens: The prompts of the batch.
        position: `last`, `-k`, `mean` (every token of the prompt) or `instruction_mean` (every
            token of the user's text).
        padding_side: `left` as in generation, or `right` as in `collect`.

    Raises:
        RefusalLensError: A prompt is shorter than the position needs.

    Example:
        >>> prompt_mask(Tokens.of(["a", "b"], [(1, 2, 3), (4, 5)], [(0, 2), (0, 1)]), "mean")
        tensor([[ True,  True,  True],
                [False,  True,  True]])
    """
    position, longest = normalise_position(position), max(tokens.lengths)
    mask = torch.zeros(len(tokens), longest, dtype=torch.bool)
    check_positions(tokens, [position], None)
    for row, length in enumerate(tokens.lengths):
        first, stop = token_span(position, length, tokens.instruction_spans[row])
        shift = longest - length if padding_side == "left" else 0
        mask[row, first + shift : stop + shift] = True
    return mask


# --- what a hook does --------------------------------------------------------------------------


def _hooks(
    hook_points: Sequence[str],
    change: Callable[[Tensor, str], Tensor],
    strength: Strength,
    mask: Bool[Tensor, "batch pos"] | None,
    *,
    is_uniform: bool,
) -> list[Hook]:
    """Make one hook for each hook point that adds the change, scaled, where it is wanted."""
    if mask is not None and mask.shape[1] < 2:
        raise RefusalLensError(
            "Prompts of a single token cannot be told from a step of an answer. Act on all tokens "
            "(mask=None)."
        )

    named = [hook_points] if isinstance(hook_points, str) else [n for n in hook_points if ":" in n]
    if named:
        raise RefusalLensError(
            f"Interventions need a list of full hook-point names, but {named[0]!r} came. "
            f"rl.resolve_hook_points(model, {named[0]!r}) gives it."
        )
    heads = [name for name in hook_points if head_of(name) is not None]
    if heads:
        raise RefusalLensError(
            f"Interventions act on whole activations, and {heads[0]} is one head of one. Act where "
            "the residual stream is written (residual_writes(model)), or at attn_out of its layer."
        )

    def hook_at(name: str) -> Hook:
        factor = _strength_at(strength, name)

        def act(activation: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            x = activation.float()
            moved = x + _spread(factor, x) * change(x, name)
            if mask is not None:
                moved = torch.where(_seen(mask, x)[..., None], moved, x)
            return moved.to(activation.dtype)

        is_alike = is_uniform and mask is None and not isinstance(factor, Tensor)
        return name, (uniform(act) if is_alike else act)

    return [hook_at(name) for name in hook_points]


def _set_coordinates(
    rows: Float[Tensor, "*batch k d_model"], target_at: Callable[[str], Any]
) -> Callable[[Tensor, str], Tensor]:
    """Return the change that brings an activation's coordinates in a subspace to a target."""
    near, targets = _Near(rows), dict[str, _Near]()

    def change(x: Tensor, name: str) -> Tensor:
        basis = near.to(x.device)
        if name not in targets:
            targets[name] = _Near(torch.as_tensor(target_at(name), dtype=torch.float32))
        return (targets[name].to(x.device) - _coordinates(x, basis)) @ basis

    return change


class _Near:
    """Numbers of an intervention on each device where it acts: brought there once, not a call."""

    def __init__(self, values: Float[Tensor, "..."]) -> None:
        self.copies = {values.device: values.float()}
        self.first = values.device

    def to(self, device: torch.device) -> Float[Tensor, "..."]:
        if device not in self.copies:
            self.copies[device] = self.copies[self.first].to(device)
        return self.copies[device]


def _coordinates(
    x: Float[Tensor, "*batch pos d_model"], rows: Float[Tensor, "*rows k d_model"]
) -> Float[Tensor, "*out pos k"]:
    return x @ rows.to(x.device, torch.float32).transpose(-1, -2)


def _as_rows(basis: Basis) -> Float[Tensor, "*batch k d_model"]:
    """Give a basis its rows, and make sure that they are orthonormal."""
    if not isinstance(basis, Tensor):
        raise RefusalLensError(
            f"An intervention needs a unit vector, but {type(basis).__name__} came. A Direction "
            "has one: direction.unit."
        )
    rows = (basis if basis.ndim > 1 else basis[None]).float()
    products = rows @ rows.transpose(-1, -2)
    off = (products - torch.eye(rows.shape[-2], device=rows.device)).abs().max().item()
    # A comparison with NaN is False, so that it is written the other way round.
    if not off <= NOT_ORTHONORMAL:
        raise RefusalLensError(
            "Ablation needs a unit vector or orthonormal rows; the products of these rows differ "
            f"from those of an orthonormal basis by up to {off:.3g}. Use direction.unit, or "
            "torch.linalg.qr(vectors.T).Q.T."
        )
    return rows


def _spread(factor: float | Tensor, x: Tensor) -> float | Tensor:
    """Line factors for every row up with the activation."""
    return factor.to(x.device)[:, None, None] if isinstance(factor, Tensor) else factor


def _strength_at(strength: Strength, name: str) -> float | Tensor:
    if not isinstance(strength, WeightKernel):
        return strength
    layer = layer_of(name)
    if layer is None:
        raise RefusalLensError(
            f"A weight kernel goes by layers, and {name} is in none. Give a number as strength."
        )
    return strength.weight(layer)


def _seen(
    mask: Bool[Tensor, "batch n_prompt"], x: Float[Tensor, "batch pos d_model"]
) -> Bool[Tensor, "batch pos"]:
    """Fit the mask of the prompts to the tokens that a call sees."""
    n_seen, n_prompt = x.shape[1], mask.shape[1]
    seen = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    if n_seen > 1:
        seen[:, :n_prompt] = mask.to(x.device)[:, :n_seen]
    return seen
