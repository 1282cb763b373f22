"""Weights laid out in place: as fast as ours, with the same shapes, values and parameters."""

import copy

import pytest
import torch
from conftest import ARCHITECTURES, make_hf_model, make_tokenizer
from transformer_lens import HookedTransformer

from refusal_lens import ContrastSet, collect
from refusal_lens.models.conversion import convert
from refusal_lens.models.layout import lay_out


@pytest.fixture(params=ARCHITECTURES)
def model(request) -> HookedTransformer:
    """A model as TransformerLens leaves it: every parameter contiguous."""
    converted = convert(make_hf_model(request.param, 340), "cpu", "none", 1).eval()
    for parameter in converted.parameters():
        parameter.data = parameter.data.contiguous()
    return converted


def test_values_shapes_and_parameters_stay(model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    same = dict(model.named_parameters())
    assert lay_out(model) > 0
    for name, parameter in model.named_parameters():
        assert parameter is same[name]
        assert torch.equal(parameter, before[name])
    assert lay_out(model) == 0


def test_a_forward_copies_no_weight_afterwards(model, monkeypatch):
    """TransformerLens says `.contiguous()` to each turned matrix; it must have nothing to do."""
    lay_out(model)
    copied = []
    contiguous = torch.Tensor.contiguous

    def watch(tensor, *args, **kwargs):
        if isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and not tensor.is_contiguous():
            copied.append(tensor.shape)
        return contiguous(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "contiguous", watch)
    with torch.no_grad():
        model(torch.arange(5)[None])
    assert not copied


def test_logits_stay_the_same(model):
    plain = copy.deepcopy(model)
    lay_out(model)
    ids = torch.arange(3, 10)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids), plain(ids), rtol=1e-5, atol=1e-5)


def test_collecting_lays_out_a_model_that_came_from_elsewhere(model):
    model.tokenizer = make_tokenizer()
    prompts = ContrastSet.from_texts(["Make a bomb."], ["Make a cake."])
    got = collect(model, prompts, "resid_post", show_progress=False)
    assert lay_out(model) == 0
    assert "unchanged" in got.provenance["collection"]["weights"]
