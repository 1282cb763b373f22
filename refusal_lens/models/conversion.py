"""From a Hugging Face model to a `HookedTransformer` that computes the same.

Knows how TransformerLens converts configs and weights, where it goes wrong, and how to tell. Does
not know where the model came from.

Tested in tests/models/test_loading.py.
"""

import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer, loading_from_pretrained
from transformer_lens.components.rms_norm import RMSNorm
from transformer_lens.model_bridge.sources.transformers import (
    determine_architecture_from_hf_config,
)
from transformers import PreTrainedModel

from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hugging_face import first_line
from refusal_lens.models.layout import lay_out
from refusal_lens.models.parity import (
    check_parity,
    check_rotary,
    far_boundary,
    is_affordable,
    is_length_dependent,
    read_reference,
    rope_settings,
)
from refusal_lens.models.placement import join_parts

GEMMA_LISTED = {
    "GemmaForCausalLM": "google/gemma-2b",
    "Gemma2ForCausalLM": "google/gemma-2-2b",
    "Gemma3ForCausalLM": "google/gemma-3-1b-pt",
}
"""Official checkpoints whose TransformerLens config carries the architecture's fixed choices."""


def is_bridged(hf_model: PreTrainedModel) -> bool:
    """Say whether `TransformerBridge` has an adapter for a model."""
    try:
        determine_architecture_from_hf_config(hf_model.config)
    except ValueError:
        return False
    return True


def way_on(hf_model: PreTrainedModel) -> str:
    """Say what reads a checkpoint that `HookedTransformer` does not."""
    if is_bridged(hf_model):
        return "Load it with backend: bridge."
    return "backend: bridge lacks this architecture too: give a checkpoint of another one."


def convert(
    hf_model: PreTrainedModel, device: str, processing: str, n_devices: int
) -> HookedTransformer:
    """Convert to a `HookedTransformer` that takes over the very tensors of `hf_model`.

    Assigning the state dict, in place of copying it, keeps one copy of the weights in memory, and
    leaves them laid out so that TransformerLens's transposes at every forward are views.

    Raises:
        RefusalLensError: TransformerLens cannot convert it, or what it makes computes something
            else than Hugging Face's own forward.
    """
    reference = read_reference(hf_model)
    cfg, state_dict = _convert_weights(hf_model)
    _copy_windows(cfg, hf_model.config.get_text_config())
    _check_unseen(cfg, hf_model)
    cfg.n_devices = n_devices
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        model = HookedTransformer(cfg, None, move_to_device=False)
    try:
        _load_weights(model, state_dict, processing)
    except RuntimeError as error:
        raise RefusalLensError(
            f"HookedTransformer has other weight shapes than this {type(hf_model).__name__} "
            f"({str(error).splitlines()[-1].strip()}). {way_on(hf_model)}"
        ) from error
    # Biases that the architecture lacks are made on the CPU, wherever the weights are.
    if n_devices > 1:
        join_parts(model)
    else:
        model.move_model_modules_to_device()
    advice = f"HookedTransformer does not convert something of this checkpoint. {way_on(hf_model)}"
    # Centring moves the residual stream on purpose.
    kept = reference if processing == "none" else replace(reference, streams=None)
    check_parity(model, kept, hf_model, advice)
    check_rotary(model, hf_model, advice)
    if n_devices == 1:
        cfg.device = device
        model.move_model_modules_to_device()
    lay_out(model)
    return model


def _load_weights(model: HookedTransformer, state_dict: dict[str, Tensor], processing: str) -> None:
    if processing == "folded":
        # A soft cap on the logits sees a constant added to all of them: no centring there.
        is_capped = (model.cfg.output_logits_soft_cap or -1.0) > 0
        model.load_and_process_state_dict(state_dict, center_unembed=not is_capped)
    else:
        model.load_state_dict(model.fill_missing_keys(state_dict), assign=True, strict=False)
        for module in model.modules():
            if isinstance(module, RMSNorm) and module.w.dtype != model.cfg.dtype:
                module.__class__ = _WideRMSNorm


class _WideRMSNorm(RMSNorm):
    """A norm whose weights are float32 in a model of less: Gemma's, which are one and a bit.

    TransformerLens rounds them, which costs a third of the accuracy that bfloat16 has on Gemma-2.
    Hugging Face multiplies before it rounds, and so does this.
    """

    def forward(self, x: Float[Tensor, "*batch length"]) -> Float[Tensor, "*batch length"]:
        wide = x.float()
        scale = self.hook_scale((wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        return (self.hook_normalized(wide / scale) * self.w).to(self.cfg.dtype)


def _convert_weights(hf_model: PreTrainedModel) -> tuple[Any, dict[str, Tensor]]:
    """Let TransformerLens convert config and weights, by architecture alone.

    TransformerLens picks the architecture from the *name* when a path contains "llama" or
    "gemma", whatever config.json says. A folder with a neutral name takes that choice away.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        hf_config = _complete_config(hf_model)
        (Path(folder) / "config.json").write_text(json.dumps(hf_config), encoding="utf-8")
        try:
            cfg = _convert_config(hf_model, folder)
            state_dict = loading_from_pretrained.get_pretrained_state_dict(
                folder, cfg, hf_model, dtype=hf_model.dtype
            )
        except Exception as error:  # whatever its code for an architecture stumbles over
            raise RefusalLensError(
                f"HookedTransformer cannot convert {type(hf_model).__name__} "
                f"({first_line(error)}). {way_on(hf_model)}"
            ) from error
    cfg.model_name = Path(str(hf_model.config.name_or_path)).name or type(hf_model).__name__
    # The tokenizer is set by us; a name here would make TransformerLens load a second one.
    cfg.tokenizer_name = None
    return cfg, state_dict


def _complete_config(hf_model: PreTrainedModel) -> dict[str, Any]:
    """Return config.json's content with the fields under the names TransformerLens asks for."""
    config = hf_model.config.to_dict()
    config["architectures"] = [type(hf_model).__name__]
    if type(hf_model).__name__ == "GPT2LMHeadModel":
        config.setdefault("n_ctx", config["n_positions"])
    return {key: value for key, value in config.items() if not isinstance(value, torch.dtype)}


def _convert_config(hf_model: PreTrainedModel, folder: str) -> Any:
    hf_config = hf_model.config.to_dict()
    listed = GEMMA_LISTED.get(type(hf_model).__name__)
    cfg = loading_from_pretrained.get_pretrained_model_config(
        listed or folder,
        hf_cfg=None if listed else hf_config,
        device=str(hf_model.device),
        dtype=hf_model.dtype,
    )
    if listed:
        _resize_gemma(cfg, hf_config)
    if cfg.positional_embedding_type == "rotary":
        # TransformerLens caps some architectures at 2,048 tokens; its rotary tables grow as needed.
        cfg.n_ctx = hf_config.get("max_position_embeddings", cfg.n_ctx)
    return cfg


def _copy_windows(cfg: Any, config: Any) -> None:
    """Give each layer the sliding window that Hugging Face's config gives it.

    TransformerLens does so for some architectures only.
    """
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if not window or kinds is None or not set(kinds) <= {"sliding_attention", "full_attention"}:
        return
    cfg.attn_types = ["local" if kind == "sliding_attention" else "global" for kind in kinds]
    cfg.use_local_attn, cfg.window_size = "local" in cfg.attn_types, window


def _check_unseen(cfg: Any, hf_model: PreTrainedModel) -> None:
    """Refuse what acts on far tokens only, beyond the reach of the check, and was not kept."""
    config = hf_model.config.get_text_config()
    if rope_settings(config).get("rope_type") == "dynamic":
        raise RefusalLensError(
            f"{type(hf_model).__name__} scales its rotary angles by the length of the text "
            f"(dynamic), which HookedTransformer does not. {way_on(hf_model)}"
        )
    boundary = far_boundary(config)
    if boundary is None or is_affordable(hf_model, boundary + 1):
        return
    is_windowed = getattr(config, "sliding_window", None) == boundary
    if is_windowed and cfg.use_local_attn and cfg.window_size == boundary:
        return
    what = "a rotary scaling" if is_length_dependent(config) else "an attention window"
    raise RefusalLensError(
        f"{type(hf_model).__name__} has {what} that acts from token {boundary:,} on, which "
        f"HookedTransformer did not take over. {way_on(hf_model)}"
    )


def _resize_gemma(cfg: Any, hf_config: dict[str, Any]) -> None:
    """Give an official Gemma config the sizes of another checkpoint of the same architecture.

    TransformerLens knows Gemma by name only; a local folder or a fine-tune needs its own sizes.
    """
    rope = hf_config.get("rope_parameters") or {}
    layer_types = hf_config.get("layer_types")
    sizes = {
        "d_model": hf_config["hidden_size"],
        "d_head": hf_config["head_dim"],
        "n_heads": hf_config["num_attention_heads"],
        "n_key_value_heads": hf_config["num_key_value_heads"],
        "d_mlp": hf_config["intermediate_size"],
        "n_layers": hf_config["num_hidden_layers"],
        "d_vocab": hf_config["vocab_size"],
        "d_vocab_out": hf_config["vocab_size"],
        "rotary_dim": hf_config["head_dim"],
        "attn_scale": hf_config.get("query_pre_attn_scalar", hf_config["head_dim"]) ** 0.5,
        "eps": hf_config["rms_norm_eps"],
        "act_fn": hf_config.get("hidden_activation") or "gelu_pytorch_tanh",
        "window_size": hf_config.get("sliding_window"),
        "attn_types": [
            kind.removesuffix("_attention").replace("sliding", "local").replace("full", "global")
            for kind in layer_types or []
        ]
        or None,
        "attn_scores_soft_cap": hf_config.get("attn_logit_softcapping") or -1.0,
        "output_logits_soft_cap": hf_config.get("final_logit_softcapping") or -1.0,
        "rotary_base": rope.get("full_attention", rope).get("rope_theta", cfg.rotary_base),
    }
    if "sliding_attention" in rope:
        sizes["rotary_base_local"] = rope["sliding_attention"]["rope_theta"]
    for name, value in sizes.items():
        setattr(cfg, name, value)
    cfg.__post_init__()
