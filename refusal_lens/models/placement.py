"""Layers spread over several cards of one machine.

Knows how much memory each card has, and brings what a part of the model reads to its card. Does not
know what the parts compute.
"""

from typing import Any

import torch
from torch import nn

from refusal_lens.errors import RefusalLensError
from refusal_lens.models.backends import HookedTransformer


def spread_weights(n_devices: int, device: str) -> dict[str, Any]:
    """Say to transformers which card each weight goes to from its file: layer by layer, by memory.

    No card, and not the machine's memory, ever holds all of them. Nothing is said where one device
    takes all; else the cards are `n_devices`, from `device` on.

    Raises:
        RefusalLensError: There are not so many cards.
    """
    if n_devices == 1:
        return {}
    n_found = torch.cuda.device_count() if device.startswith("cuda") else 0
    first = torch.device(device).index or 0
    if n_found < first + n_devices:
        raise RefusalLensError(
            f"model.n_devices: {n_devices} needs {n_devices} CUDA devices from {device} on; there "
            f"are {n_found} for it here. Set model.n_devices to 1, or to what there is."
        )
    cards = range(first, first + n_devices)
    free = {card: torch.cuda.mem_get_info(card)[0] for card in cards}
    return {"device_map": "balanced", "max_memory": free}


def join_parts(model: HookedTransformer) -> None:
    """Let each part of a spread model have all of itself, and its input, on its own card.

    TransformerLens's own forward brings the residual stream to a card by the number of the layer,
    wherever the layer lies; a hook of torch's then brings it to the right one.
    """
    blocks: list[Any] = list(model.blocks)
    parts: list[tuple[nn.Module, torch.Tensor]] = [(b, b.attn.W_O) for b in blocks]
    parts += [(part, model.unembed.W_U) for part in (model.ln_final, model.unembed)]
    for part, weight in parts:
        part.to(weight.device)
        part.register_forward_pre_hook(_bring(weight), with_kwargs=True)
    first = model.embed.W_E.device
    if model.cfg.positional_embedding_type != "rotary":
        model.pos_embed.to(first)
    model.cfg.device = str(first)


def _bring(weight: torch.Tensor) -> Any:
    """Return a hook that moves what a part is called with to where its weights are."""

    def moved(value: Any) -> Any:
        return value.to(weight.device) if isinstance(value, torch.Tensor) else value

    def bring(_part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(moved, args)), {name: moved(value) for name, value in kwargs.items()}

    return bring
