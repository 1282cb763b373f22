"""Logits of some positions.

Knows the last norm, the unembedding and its cap. Does not know where the residual stream came from.

Tested in tests/experiments/test_token_readout.py.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_lens.models.backends import HookedTransformer


def unembed(
    model: HookedTransformer, residual: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Return the logits of some positions only.

    With a vocabulary of 150,000 the logits of all positions would be the largest tensor of a run.
    """
    logits = model.unembed(model.ln_final(residual))
    cap = model.cfg.output_logits_soft_cap or -1.0
    return cap * torch.tanh(logits / cap) if cap > 0 else logits
