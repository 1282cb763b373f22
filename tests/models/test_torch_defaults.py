"""A caller's own torch defaults change nothing."""

import pytest
import torch

from refusal_lens import collect
from refusal_lens.models.generation import generate_greedily
from refusal_lens.models.loading import load_model
from refusal_lens.models.torch_defaults import plain_torch
from refusal_lens.prompts.tokens import tokenise


def study(checkpoint, prompts):
    model = load_model(checkpoint, device="cpu")
    activations = collect(model, prompts, "resid_post", ["last", "mean"], show_progress=False)
    tokens = tokenise(model.tokenizer, prompts.harmful.prompts)
    answers, logits = generate_greedily(model, tokens, 3)
    assert all(p.dtype == torch.float32 and not p.is_inference() for p in model.parameters())
    return activations.values, answers, logits


@pytest.fixture
def defaults():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize("default", ["float64", "bfloat16", "meta", "inference", "deterministic"])
def test_callers_defaults_change_nothing(checkpoint, prompts, default):
    values, answers, logits = study(checkpoint, prompts)
    if default in ("float64", "bfloat16"):
        torch.set_default_dtype(getattr(torch, default))
    if default == "meta":
        torch.set_default_device("meta")
    torch.use_deterministic_algorithms(default == "deterministic")
    with torch.inference_mode(default == "inference"):
        got = study(checkpoint, prompts)
    assert torch.equal(got[0], values)
    assert got[1] == answers
    assert torch.equal(got[2], logits)


@plain_torch()
def fail():
    raise ValueError(str(torch.zeros(1).device))


@pytest.mark.usefixtures("defaults")
def test_defaults_are_put_back_after_an_error():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.raises(ValueError, match="cpu"):
        fail()
    assert torch.get_default_dtype() == torch.float64
    assert torch.zeros(1).device.type == "meta"
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
