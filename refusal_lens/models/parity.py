"""Does a model with hooks compute what Hugging Face's own forward computes?

Knows one fixed sequence, long enough to reach what acts only on far tokens, and how far two
forwards may lie apart. Does not know how a model was converted.
"""

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformers import PreTrainedModel

from refusal_lens.errors import RefusalLensError
from refusal_lens.models.unembedding import unembed

N_CHECK_TOKENS = 8
"""Least length of the sequence; beyond a boundary, how many tokens of it lie behind it."""

N_LOGITS = 4
"""Last positions whose log-probabilities are compared; of the residual stream, all are."""

ROTARY_TOLERANCE = 0.02
"""Of sines and cosines; bfloat16 rounds them by 0.004."""

MOST_PRODUCTS = 5e11
"""Most multiplications by weights that one check may take: seconds on two CPU cores."""

MOST_SCORES = 2**27
"""Most attention scores of one layer: half a gigabyte."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What Hugging Face's forward gives on the fixed sequence.

    `streams` are the residual stream behind every block but the last, where Hugging Face gives the
    vector after the final norm; None where the model does not give one for each block.
    """

    ids: Int[Tensor, "1 pos"]
    streams: Float[Tensor, "n_streams pos d_model"] | None
    log_probs: Float[Tensor, "n_last d_vocab"]


@torch.no_grad()
def read_reference(hf_model: PreTrainedModel) -> Reference:
    """Run Hugging Face's own forward, before anything is wrapped around its modules.

    Raises:
        RefusalLensError: What it computes is not finite, or a weight is not.
    """
    config = hf_model.config.get_text_config()
    n_tokens = _check_length(hf_model)
    ids = (torch.arange(1, n_tokens + 1) * 7919 % config.vocab_size)[None]
    options: dict[str, Any] = {"output_hidden_states": True, "use_cache": False}
    if "logits_to_keep" in inspect.signature(hf_model.forward).parameters:
        options["logits_to_keep"] = N_LOGITS
    output = hf_model(ids.to(hf_model.device), **options)
    states = output.hidden_states
    n_layers = config.num_hidden_layers
    # Of a model that is spread over several devices each is where its block is.
    between = [state.to(states[0].device) for state in states[1:-1]]
    streams = torch.cat(between) if len(states) == n_layers + 1 and n_layers > 1 else None
    logits = output.logits[0, -N_LOGITS:]
    if not (torch.isfinite(logits).all() and all(torch.isfinite(s).all() for s in states)):
        first = next((i for i, s in enumerate(states) if not torch.isfinite(s).all()), n_layers)
        part = "the embedding" if first == 0 else f"block {first - 1}"
        raise RefusalLensError(
            f"Hugging Face's own forward of this {type(hf_model).__name__} in "
            f"{_name(hf_model.dtype)} is not finite from {part} on: no activation there means "
            f"anything. {_other_dtype(hf_model.dtype)}"
        )
    return Reference(ids, streams, logits.double().log_softmax(-1))


def check_weights(hf_model: PreTrainedModel) -> None:
    """Refuse weights that are not finite numbers, and name the first."""
    for name, weight in hf_model.named_parameters():
        if not weight.is_floating_point() or weight.numel() == 0:
            continue
        low, high = torch.aminmax(weight.detach())  # NaN comes through; nothing is copied
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise RefusalLensError(
                f"The weight {name} holds values that are not finite in {_name(hf_model.dtype)}. "
                f"{_other_dtype(hf_model.dtype)}"
            )


@torch.no_grad()
def check_parity(model: Any, reference: Reference, hf_model: PreTrainedModel, advice: str) -> None:
    """Compare a model with hooks to the reference; refuse what differs by more than rounding.

    The reference is of the weights of `hf_model`; `advice` says what to do where they differ.
    """
    try:
        streams, log_probs = _read(model, reference)
    except Exception as error:
        raise RefusalLensError(
            f"TransformerLens cannot run this {type(hf_model).__name__} ({error!r:.200}). {advice}"
        ) from error
    # Half precision loses about three digits over a network's depth; a wrong conversion loses all.
    tolerance = 1e-3 if hf_model.dtype == torch.float32 else 0.1
    found = {
        "log-probabilities": (log_probs - reference.log_probs).abs().max()
        / reference.log_probs.abs().max()
    }
    wanted = [] if reference.streams is None else list(reference.streams)
    for layer, (got, expected) in enumerate(zip(streams, wanted, strict=True)):
        distance = (got.to(expected.device).float() - expected.float()).norm(dim=-1)
        far = distance / expected.float().norm(dim=-1).clamp(min=1e-12)
        found[f"the residual stream behind block {layer}"] = far.max()
    for what, difference in found.items():
        if not difference.item() <= tolerance:
            raise RefusalLensError(
                f"TransformerLens reads {type(hf_model).__name__} differently from Hugging Face: "
                f"on {reference.ids.shape[1]} tokens {what} differ by {difference.item():.1e} of "
                f"their size (allowed {tolerance:.0e}). {advice}"
            )


@torch.no_grad()
def check_rotary(model: HookedTransformer, hf_model: PreTrainedModel, advice: str) -> None:
    """Compare rotary angles far beyond the fixed sequence; refuse what differs, with this advice.

    A scaling of low frequencies alone (llama3, yarn) is lost in rounding on a few tokens, and
    changes the stream by a tenth of its size after some thousand.
    """
    config = hf_model.config.get_text_config()
    found = (m for m in hf_model.modules() if type(m).__name__.endswith("RotaryEmbedding"))
    rotary: Any = next(found, None)
    is_rotary = model.cfg.positional_embedding_type == "rotary"
    if rotary is None or not is_rotary or is_length_dependent(config):
        return
    parameters = inspect.signature(rotary.forward).parameters
    for layer, block in enumerate(model.blocks):
        attention: Any = block.attn
        table = torch.cat([attention.rotary_cos, attention.rotary_sin], dim=-1)
        rows = torch.tensor([min(10**power, len(table)) - 1 for power in range(5)])
        kind = {"layer_type": config.layer_types[layer]} if "layer_type" in parameters else {}
        turned = rotary(
            torch.zeros(1, device=hf_model.device), rows[None].to(hf_model.device), **kind
        )
        wanted = torch.cat([each[0].cpu() for each in turned], dim=-1)
        got = table.cpu()[rows].float()
        # Architectures lay pairs out in their own ways; some hold each angle once.
        wanted = wanted.repeat_interleave(got.shape[-1] // wanted.shape[-1], dim=-1)
        far = (got.sort(dim=-1).values - wanted.float().sort(dim=-1).values).abs().max().item()
        if far > ROTARY_TOLERANCE:
            scaling = rope_settings(config).get("rope_type", "default")
            raise RefusalLensError(
                f"TransformerLens turns {type(hf_model).__name__} differently from Hugging Face: "
                f"rotary angles of block {layer} (rope_type {scaling}) differ by {far:.1e} within "
                f"{len(table):,} tokens. {advice}"
            )


def _read(model: Any, reference: Reference) -> tuple[list[Tensor], Float[Tensor, "n_last d_vocab"]]:
    """Run the model on the reference's sequence; the stream only where there is one to compare."""
    n_streams = 0 if reference.streams is None else len(reference.streams)
    streams: dict[int, Tensor] = {}

    def keep(layer: int, activation: Tensor, hook: Any) -> None:  # noqa: ARG001
        streams[layer] = activation[0].detach().clone()

    hooks = [(f"blocks.{i}.hook_resid_post", partial(keep, i)) for i in range(n_streams)]
    ids = reference.ids.to(model.cfg.device)
    with model.hooks(fwd_hooks=hooks):
        if isinstance(model, HookedTransformer):
            residual = model(ids, stop_at_layer=model.cfg.n_layers)
            logits = unembed(model, residual[:, -N_LOGITS:])
        else:
            logits = model(ids)[:, -N_LOGITS:]
    found = [streams[layer] for layer in sorted(streams)]
    return found, logits[0].double().log_softmax(-1).to(reference.log_probs.device)


# --- how long the sequence has to be ----------------------------------------------------------


def far_boundary(config: Any) -> int | None:
    """Return the token from which on something acts that does not act before; None without one.

    That is a sliding window or chunk of the attention, or a rotary scaling that begins at the
    length the model was first trained at: the farthest within the context. The config is that of
    the text model.
    """
    n_ctx = getattr(config, "max_position_embeddings", None) or 10**9
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    found = [getattr(config, "attention_chunk_size", None)]
    if getattr(config, "use_sliding_window", True) and "sliding_attention" in kinds:
        found.append(getattr(config, "sliding_window", None))
    if is_length_dependent(config):
        rope = rope_settings(config)
        found.append(rope.get("original_max_position_embeddings"))
    within = [edge for edge in found if isinstance(edge, int) and 0 < edge < n_ctx]
    return max(within, default=None)


def rope_settings(config: Any) -> dict[str, Any]:
    """Return the rotary settings of a config; of several kinds of layers, those of full attention.

    Example:
        >>> from types import SimpleNamespace
        >>> rope_settings(SimpleNamespace(rope_parameters={"rope_type": "yarn"}))
        {'rope_type': 'yarn'}
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return rope.get("full_attention", rope)


def is_length_dependent(config: Any) -> bool:
    """Say whether rotary angles change where a text gets longer than the first training's."""
    return rope_settings(config).get("rope_type") == "longrope"


def is_affordable(hf_model: PreTrainedModel, n_tokens: int) -> bool:
    """Say whether a check on so many tokens takes seconds and not minutes."""
    n_heads = getattr(hf_model.config.get_text_config(), "num_attention_heads", 1)
    n_weights = sum(weight.numel() for weight in hf_model.parameters())
    is_quick = n_weights * n_tokens <= MOST_PRODUCTS
    return is_quick and n_heads * n_tokens**2 <= MOST_SCORES


def _check_length(hf_model: PreTrainedModel) -> int:
    config = hf_model.config.get_text_config()
    n_ctx = getattr(config, "max_position_embeddings", None) or N_CHECK_TOKENS
    beyond = (far_boundary(config) or 0) + N_CHECK_TOKENS
    wanted = beyond if is_affordable(hf_model, beyond) else N_CHECK_TOKENS
    return max(1, min(wanted, n_ctx))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _other_dtype(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return (
            "float16 ends at 65,504: use bfloat16 or float32 (model.dtype). If that is not finite "
            "either, the checkpoint itself is broken."
        )
    return "The checkpoint itself is broken: download or merge it again."
