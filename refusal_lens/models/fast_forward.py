"""A forward pass over TransformerLens's own blocks at the speed of the bare model.

Knows which parts of a `HookedTransformer` it can run exactly, and calls the model's own hook points
on the way. Changes nothing on the model; does not know what hooks do with what they are given.

Tested in tests/activations/test_collector.py.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import CausalBias, causal_lower_right

from refusal_lens.models.backends import HookedTransformer, is_hooked
from refusal_lens.models.packed import Packed

Queries = Float[Tensor, "batch n_query n_heads d_head"]
Keys = Float[Tensor, "batch n_keys n_kv_heads d_head"]
Mask = Bool[Tensor, "*rows n_query n_keys"] | Float[Tensor, "*rows n_query n_keys"]

FLAGS_THAT_CHANGE_THE_BLOCK = (
    *("use_attn_in", "use_split_qkv_input", "use_attn_result", "use_hook_mlp_in"),
    *("ungroup_grouped_query_attention", "use_attention_sinks", "use_logn_attn", "attn_only"),
    *("use_dynamic_ntk_rope", "load_in_4bit", "scale_attn_by_inverse_layer_idx"),
)

KERNELS_WITH_MASKS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's, which reads some masks at misaligned addresses (bfloat16, torch 2.11, H200)."""

POST_NORM = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys (rotated) and values of one layer."""

    keys: Keys
    values: Keys


@dataclass(eq=False)
class Slots:
    """Keys and values of one layer, kept in place: room for all that will come, filled from left.

    Nothing is copied when a token is added, as it would be by joining tensors. With `at`, a place
    that the device itself counts on, all slots are given back, filled or not: shapes and addresses
    are then those of every step, and the mask hides what is not filled.
    """

    keys: Float[Tensor, "batch n_kv_heads n_slots d_head"]
    values: Float[Tensor, "batch n_kv_heads n_slots d_head"]
    n_filled: int = 0
    at: Int[Tensor, " n_new"] | None = None

    def grow(self, n_slots: int) -> None:
        """Make room for more: zeros, since what a mask hides is still multiplied, by zero."""
        more = n_slots - self.keys.shape[2]
        self.keys = F.pad(self.keys, (0, 0, 0, more))
        self.values = F.pad(self.values, (0, 0, 0, more))

    def append(
        self,
        keys: Float[Tensor, "batch n_new n_kv_heads d_head"],
        values: Float[Tensor, "batch n_new n_kv_heads d_head"],
    ) -> tuple[
        Float[Tensor, "batch n_kept n_kv_heads d_head"],
        Float[Tensor, "batch n_kept n_kv_heads d_head"],
    ]:
        """Put new positions behind those kept, and return all of them."""
        if self.at is not None:
            self.keys.index_copy_(2, self.at, keys.transpose(1, 2))
            self.values.index_copy_(2, self.at, values.transpose(1, 2))
            return self.keys.transpose(1, 2), self.values.transpose(1, 2)
        stop = self.n_filled + keys.shape[1]
        kept = []
        for place, new in ((self.keys, keys), (self.values, values)):
            place[:, :, self.n_filled : stop] = new.transpose(1, 2)
            kept.append(place[:, :, :stop].transpose(1, 2))
        self.n_filled = stop
        return kept[0], kept[1]


@dataclass(frozen=True)
class Stop:
    """Where the forward ends: after a site of one layer, or before any block.

    `n_blocks` counts the blocks that run; `site` is the last hook point needed in the last of them.
    """

    n_blocks: int
    site: str = "resid_post"


def why_not_fast(model: Any) -> str | None:
    """Say why this model needs TransformerLens's own forward; None where the fast one is exact."""
    if not is_hooked(model):
        return "the model runs on TransformerBridge"
    cfg = model.cfg
    if cfg.positional_embedding_type not in ("rotary", "standard"):
        return f"positional embedding {cfg.positional_embedding_type}"
    if cfg.original_architecture in POST_NORM:
        return f"{cfg.original_architecture} normalises after its sublayers"
    if cfg.attention_dir != "causal":
        return "attention is not causal"
    on = [flag for flag in FLAGS_THAT_CHANGE_THE_BLOCK if getattr(cfg, flag, False)]
    if on or getattr(cfg, "clip_qkv", None) is not None:
        return f"cfg.{', cfg.'.join(on or ['clip_qkv'])} is on"
    hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]
    return f"hooks are set on {', '.join(hooked[:3])}" if hooked else None


def forward(
    model: HookedTransformer,
    ids: Int[Tensor, "batch pos"],
    stop: Stop,
    *,
    past: list[KeyValues] | None = None,
    needed: Int[Tensor, "batch n_needed"] | None = None,
) -> list[KeyValues]:
    """Run token ids, padded on the right, through `run_blocks` up to `stop`.

    Returns:
        Keys and values of every block that ran, for use as `past`.
    """
    offset = past[0].keys.shape[1] if past else 0
    residual = embed(model, ids, offset)
    _, kept = run_blocks(
        model, residual, 0, stop.n_blocks, past=past, needed=needed, stop_site=stop.site
    )
    return kept


def embed(
    model: HookedTransformer, ids: Int[Tensor, "batch pos"], offset: int | Tensor = 0
) -> Float[Tensor, "batch pos d_model"]:
    """Embed tokens that stand `offset` places after the first.

    Args:
        model: The model.
        ids: Token ids.
        offset: Places before the first of `ids`; or the place of every one, `[batch, pos]`.
    """
    embedded = model.hook_embed(model.embed(ids))
    if isinstance(offset, int):
        residual: Any = model.get_residual(
            embedded, offset, tokens=ids, return_shortformer_pos_embed=False
        )
        return residual
    if model.cfg.positional_embedding_type != "standard":
        return embedded
    return embedded + model.hook_pos_embed(model.pos_embed.W_pos[offset])


def run_blocks(
    model: HookedTransformer,
    residual: Float[Tensor, "batch pos d_model"],
    start: int,
    stop: int,
    *,
    past: Sequence[KeyValues] | None = None,
    needed: Int[Tensor, "n_rows n_needed"] | None = None,
    packed: Packed | None = None,
    stop_site: str = "resid_post",
) -> tuple[Float[Tensor, "batch n_left d_model"], list[KeyValues]]:
    """Run the blocks from `start` up to, and without, `stop`, calling every hook point on the way.

    Args:
        model: A model for which `why_not_fast` is None.
        residual: What goes into the first of the blocks, of prompts padded on the right; or of
            copies of `packed` ones.
        start: The first block.
        stop: The one behind the last.
        past: Keys and values, block after block, of tokens before those of `residual`: of one row
            that all share, of each row its own, or of each copy.
        needed: Positions of `residual` that are needed of the last block; the others get no query
            there, and its hook points from the attention on see these only. None needs all.
        packed: Where the tokens of the prompts stand, if they lie end to end.
        stop_site: The last hook point needed of the last block.

    Returns:
        What comes out of the last block, and the keys and values of each.
    """
    offset = past[0].keys.shape[1] if past else 0
    n_query = residual.shape[1] if packed is None else packed.longest
    masks, is_biased = _Masks(model, offset, n_query), has_mlp_bias(model)
    kept = []
    for index, layer in enumerate(range(start, stop)):
        block: Any = model.blocks[layer]
        is_last = layer == stop - 1
        residual = to_block(model, block, residual)
        given = BlockInput(
            mask=masks.of(block, residual.device),
            offset=offset,
            packed=packed,
            past=past[index] if past else None,
            needed=needed.to(residual.device) if needed is not None and is_last else None,
            stop_site=stop_site if is_last else "resid_post",
            has_mlp_bias=is_biased,
        )
        residual, key_values = run_block(block, residual, given)
        if key_values is not None:
            kept.append(key_values)
    return residual, kept


def to_block(
    model: HookedTransformer, block: Any, residual: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """Bring the residual stream to the device of a block, where layers are spread over several."""
    return residual.to(block.attn.W_O.device) if model.cfg.n_devices > 1 else residual


@dataclass(frozen=True, eq=False)
class BlockInput:
    """What a block needs besides the residual stream.

    Args:
        mask: Which keys each query sees, or what is added to their scores; None where plain causal
            attention says it all.
        offset: Positions before the first of the residual's; or the position of every one.
        packed: Where the residual's tokens stand in their rows, if they lie end to end.
        past: Keys and values of a prefix that all rows share, or all rows of one copy.
        slots: Where keys and values are kept; instead of `past`.
        needed: The positions that get a query; None gives every one.
        stop_site: The last hook point needed.
        has_mlp_bias: Whether a gated MLP adds more than zero to what it makes wide, see
            `has_mlp_bias`.
    """

    mask: Mask | CausalBias | None
    offset: int | Int[Tensor, "batch n_new"] = 0
    packed: Packed | None = None
    past: KeyValues | None = None
    slots: Slots | None = None
    needed: Int[Tensor, "n_rows n_needed"] | None = None
    stop_site: str = "resid_post"
    has_mlp_bias: bool = True


def has_mlp_bias(model: HookedTransformer) -> bool:
    """Whether any MLP has an inner bias that is not zero, as TransformerLens gives to all of them.

    Adding zeros is a pass over the widest tensor: 5 % of a forward at 7 B parameters on a GPU.
    Looking waits for the device, so once a batch and not at every block.
    """
    biases = [getattr(getattr(block, "mlp", None), "b_in", None) for block in model.blocks]
    found = [bias.any() for bias in biases if bias is not None]
    if any(each.is_meta for each in found):
        return True
    return bool(found) and bool(torch.stack([each.to(found[0].device) for each in found]).any())


def run_block(
    block: Any, resid_pre: Float[Tensor, "batch pos d_model"], given: BlockInput
) -> tuple[Tensor, KeyValues | None]:
    """Run one block as TransformerLens does, with one normalisation where it does three."""
    resid_pre = block.hook_resid_pre(resid_pre)
    if given.stop_site == "resid_pre":
        return resid_pre, None
    attn_out, key_values = _attend(block.attn, _normalise(block.ln1, resid_pre), given)
    if given.needed is not None:
        resid_pre = at_positions(resid_pre, given.needed, given.packed)
    if block.cfg.use_normalization_before_and_after:
        attn_out = block.ln1_post(attn_out)
    attn_out = block.hook_attn_out(attn_out)
    if given.stop_site == "attn_out":
        return attn_out, key_values
    if block.cfg.parallel_attn_mlp:
        mlp_out = _feed_forward(block, _normalise(block.ln2, resid_pre), given)
        return block.hook_resid_post(resid_pre + attn_out + mlp_out), key_values
    resid_mid = block.hook_resid_mid(resid_pre + attn_out)
    if given.stop_site == "resid_mid":
        return resid_mid, key_values
    mlp_out = _feed_forward(block, _normalise(block.ln2, resid_mid), given)
    return block.hook_resid_post(resid_mid + mlp_out), key_values


def _normalise(
    norm: Any, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """Normalise in one kernel where nobody looks at the steps in between."""
    is_rms = type(norm).__name__ == "RMSNorm"
    if not is_rms or norm.hook_scale.fwd_hooks or norm.hook_normalized.fwd_hooks:
        return norm(x)
    return F.rms_norm(x, (norm.length,), norm.w, norm.eps)


def _feed_forward(
    block: Any, x: Float[Tensor, "batch pos d_model"], given: BlockInput
) -> Float[Tensor, "batch pos d_model"]:
    """Run a gated MLP with two wide tensors where TransformerLens holds five, one pass each.

    What is wide is several times the residual stream: it decides how large a batch can be.
    """
    mlp = block.mlp
    inside = [getattr(mlp, name, None) for name in ("hook_pre", "hook_pre_linear", "hook_post")]
    is_seen = any(point is None or point.fwd_hooks for point in inside)
    if is_seen or torch.is_grad_enabled() or block.cfg.is_layer_norm_activation():
        return block.apply_mlp(x)
    wide = mlp.act_fn(F.linear(x, mlp.W_gate.T))
    linear = F.linear(x, mlp.W_in.T)
    if given.has_mlp_bias:
        torch.addcmul(mlp.b_in, wide, linear, out=wide)
    else:
        wide *= linear
    del linear
    mlp_out = F.linear(wide, mlp.W_out.T, mlp.b_out)
    if block.cfg.use_normalization_before_and_after:
        mlp_out = block.ln2_post(mlp_out)
    return block.hook_mlp_out(mlp_out)


def _attend(
    attn: Any, x: Float[Tensor, "batch pos d_model"], given: BlockInput
) -> tuple[Float[Tensor, "batch n_query d_model"], KeyValues]:
    """Attend with torch's fused kernel; scores and patterns are never written out."""
    q, k, v = attn.calculate_qkv_matrices(x, x, x)
    rows = given.packed
    offset = given.offset if rows is None else rows.position[None].to(x.device) + given.offset
    if attn.cfg.positional_embedding_type == "rotary":
        if rows is not None and given.offset + rows.longest > len(attn.rotary_cos):
            attn.apply_rotary(q[:1, :1], given.offset + rows.longest - 1)  # makes its tables longer
        q = attn.hook_rot_q(_rotate(attn, q, offset))
        k = attn.hook_rot_k(_rotate(attn, k, offset))
    key_values, mask, needed = KeyValues(k, v), given.mask, given.needed
    if rows is not None:
        q, k, v = (rows.pad(heads) for heads in (q, k, v))
    if given.slots is not None:
        k, v = given.slots.append(k, v)
    if given.past is not None:
        k, v = (_behind(past, new) for past, new in ((given.past.keys, k), (given.past.values, v)))
    if needed is not None:
        needed = needed.repeat(len(q) // len(needed), 1)
        q = at_positions(q, needed)
    if needed is not None and not isinstance(given.offset, Tensor):
        # Every row reads its own positions, so that every row needs its own mask.
        mask = _visible(attn, needed + given.offset, k.shape[1])[:, None]
    with sdpa_kernel(KERNELS_WITH_MASKS) if _is_mask_on_cuda(mask) else nullcontext():
        z = _fused(attn, q, k, v, mask)
    if rows is not None:
        z = rows.pack(z) if needed is None else z.unflatten(0, (len(x), -1)).flatten(1, 2)
    z = attn.hook_z(z)
    weight = attn.W_O.permute(2, 0, 1).flatten(1)
    return F.linear(z.flatten(2), weight, attn.b_O), key_values


def _rotate(attn: Any, heads: Queries, offset: int | Tensor) -> Queries:
    """Turn queries or keys by their positions, of which every row may have its own.

    Half of the passes over memory that TransformerLens takes, and the same bits.
    """
    at = offset
    if isinstance(offset, int):
        if offset + heads.shape[1] > attn.rotary_cos.shape[0]:
            return attn.apply_rotary(heads, offset)  # which makes its tables longer
        at = slice(offset, offset + heads.shape[1])
    cosines, sines = (table[at].unsqueeze(-2) for table in (attn.rotary_cos, attn.rotary_sin))
    n_turned = attn.cfg.rotary_dim
    before, rest = heads[..., :n_turned], heads[..., n_turned:]
    turned = before * cosines
    if attn.cfg.rotary_adjacent_pairs:
        turned += attn.rotate_every_two(before) * sines
    else:
        n = before.shape[-1] // 2
        turned[..., :n] -= before[..., n:] * sines[..., :n]
        turned[..., n:] += before[..., :n] * sines[..., n:]
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _fused(
    attn: Any, q: Queries, k: Keys, v: Keys, mask: Tensor | None
) -> Float[Tensor, "batch n_query n_heads d_head"]:
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    cap = attn.cfg.attn_scores_soft_cap or -1.0
    if cap > 0:
        return _soft_capped(q, k, v, mask, attn.attn_scale, cap).transpose(1, 2)
    if q.shape[2] == 1 and mask is not None and mask.ndim == 4:
        # One query a head: the heads of a group are so many queries of one head, and no key is
        # read or repeated for each of them.
        grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        scale = 1 / float(attn.attn_scale)
        z = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale)
        return z.reshape(q.shape).transpose(1, 2)
    if _is_mask_on_cuda(mask):
        # With a mask, CUDA's fused kernels take no grouped heads, and torch falls back to the one
        # that writes the scores out.
        k, v = (_repeat_groups(heads, q.shape[1]) for heads in (k, v))
    z = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        scale=1 / float(attn.attn_scale),
        enable_gqa=k.shape[1] != q.shape[1],
    )
    return z.transpose(1, 2)


def _is_mask_on_cuda(mask: Tensor | None) -> bool:
    """Whether CUDA's kernels get a mask as a tensor; a `CausalBias` says it in words."""
    return mask is not None and mask.is_cuda and not isinstance(mask, CausalBias)


def _soft_capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attn_scale: float, cap: float
) -> Float[Tensor, "batch n_heads n_query d_head"]:
    """Attend with Gemma-2's cap on the scores, which the fused kernel does not know."""
    k, v = (_repeat_groups(heads, q.shape[1]) for heads in (k, v))
    scores = cap * torch.tanh(q @ k.transpose(-1, -2) / attn_scale / cap)
    n_query, n_keys = scores.shape[-2:]
    if mask is None:
        mask = torch.ones(n_query, n_keys, dtype=torch.bool, device=q.device).tril()
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1).to(v.dtype) @ v


def _repeat_groups(
    heads: Float[Tensor, "batch n_kv_heads n_keys d_head"], n_heads: int
) -> Float[Tensor, "batch n_heads n_keys d_head"]:
    return heads.repeat_interleave(n_heads // heads.shape[1], dim=1)


@dataclass(eq=False)
class _Masks:
    """The masks of one forward: one a kind of attention and device."""

    model: HookedTransformer
    offset: int
    n_query: int
    made: dict[tuple[str, torch.device], Mask | CausalBias | None] = field(default_factory=dict)

    def of(self, block: Any, device: torch.device) -> Mask | CausalBias | None:
        """Return the mask of a block, made at first use."""
        key = block.attn.attn_type, device
        if key not in self.made:
            self.made[key] = _mask(block.attn, self.n_query, device, self.offset)
        return self.made[key]


def _mask(
    attn: Any, n_query: int, device: torch.device, offset: int
) -> Bool[Tensor, "pos key_pos"] | CausalBias | None:
    """Say which keys each query sees; None where plain causal attention says it all.

    Padding on the right needs no mask: no real token comes after it.
    """
    n_keys = offset + n_query
    is_windowed = attn.attn_type == "local" and n_keys > (attn.cfg.window_size or n_keys)
    if offset == 0 and not is_windowed:
        return None
    if device.type == "cuda" and not is_windowed and not attn.cfg.attn_scores_soft_cap > 0:
        # Said in words, not as a tensor, so that CUDA's flash kernel takes it.
        return causal_lower_right(n_query, n_keys)
    return _visible(attn, torch.arange(offset, n_keys, device=device), n_keys)


def _visible(
    attn: Any, query_positions: Int[Tensor, "*rows n_query"], n_keys: int
) -> Bool[Tensor, "*rows n_query n_keys"]:
    keys = torch.arange(n_keys, device=query_positions.device)
    queries = query_positions[..., None]
    visible = keys <= queries
    return (
        visible & (keys > queries - attn.cfg.window_size) if attn.attn_type == "local" else visible
    )


def _behind(
    past: Float[Tensor, "rows n_past n_kv_heads d_head"],
    new: Float[Tensor, "batch n_new n_kv_heads d_head"],
) -> Keys:
    """Put new positions behind those of the prefix that so many rows each share."""
    n_sharing = new.shape[0] // past.shape[0]
    shared = past[:, None].expand(-1, n_sharing, -1, -1, -1).flatten(0, 1)
    return torch.cat([shared, new], dim=1)


def at_positions(
    values: Tensor, positions: Int[Tensor, "batch n_needed"], packed: Packed | None = None
) -> Tensor:
    """Take some positions of each row; of copies of packed rows, all of them end to end."""
    if packed is not None:
        return values[:, packed.at(positions).to(values.device)]
    rows = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[rows, positions]
