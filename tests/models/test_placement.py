"""Layers over several devices: what moves where. Real cards are needed to see that values agree.

The meta device stands in for the second card: it has shapes and no values, and torch refuses to
mix it with the CPU, so that a missing hop fails here. That ids go to the card of the embedding, and
what cards share, it cannot show.
"""

import pytest
import torch
from conftest import ARCHITECTURES, HARMFUL, HARMLESS, make_hf_model, make_tokenizer

from refusal_lens import ContrastSet, RefusalLensError, load_model, tokenise
from refusal_lens.models.conversion import convert
from refusal_lens.models.decoding import Decoder
from refusal_lens.models.fast_forward import Stop, forward, run_blocks, why_not_fast
from refusal_lens.models.placement import join_parts, spread_weights

N_HERE = 2
"""Blocks that stay on the CPU."""


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    model = convert(make_hf_model(request.param, 340), "cpu", "none", 1).eval()
    for block in list(model.blocks)[N_HERE:]:
        block.to("meta")
    model.unembed.to("meta")
    model.cfg.n_devices = 2
    join_parts(model)
    model.tokenizer = make_tokenizer()
    return model


def test_activations_hop_and_keys_stay_with_their_layers(model):
    assert why_not_fast(model) is None
    ids, n_layers = torch.arange(8)[None], model.cfg.n_layers
    with torch.no_grad():
        past = forward(model, ids, Stop(n_layers))
        kept = forward(model, ids.repeat(3, 1), Stop(n_layers), past=past, needed=ids.repeat(3, 1))
    expected = ["cpu"] * N_HERE + ["meta"] * (n_layers - N_HERE)
    for key_values in (past, kept):
        assert [layer.keys.device.type for layer in key_values] == expected


def test_blocks_from_the_middle_hop(model):
    residual = torch.randn(2, 5, model.cfg.d_model)
    with torch.no_grad():
        assert run_blocks(model, residual, 1, model.cfg.n_layers)[0].is_meta


def test_answers_grow_over_both_devices(model):
    tokens = tokenise(model.tokenizer, ContrastSet.from_texts(HARMFUL, HARMLESS).prompts)
    with torch.no_grad():
        decoder = Decoder(model, tokens, 2, shares_prefix=True)
        assert decoder.read_prompts().is_meta
        logits = decoder.read_token(torch.zeros(len(tokens), dtype=torch.long))
    assert logits.shape == (len(tokens), model.cfg.d_vocab_out)
    assert model.cfg.device == "cpu"


def test_too_few_cards_are_told(checkpoint, monkeypatch):
    with pytest.raises(RefusalLensError, match=r"needs 2 CUDA devices from cpu on; there are 0"):
        load_model(checkpoint, device="cpu", n_devices=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RefusalLensError, match=r"from cuda:1 on; there are 2"):
        spread_weights(2, "cuda:1")


def test_weights_are_spread_by_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (10 * card, 100))
    assert spread_weights(1, "cuda") == {}
    assert spread_weights(2, "cuda:1")["max_memory"] == {1: 10, 2: 20}
