"""Every conversion is compared with Hugging Face's forward, beyond what acts on far tokens only."""

import re
from types import SimpleNamespace

import pytest
import torch
from conftest import SIZES, make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PersimmonConfig,
    Qwen2Config,
    Qwen3Config,
)

from refusal_lens.activations.batch_reader import make_reader
from refusal_lens.errors import RefusalLensError
from refusal_lens.models import parity
from refusal_lens.models.loading import load_model
from refusal_lens.models.parity import far_boundary
from refusal_lens.prompts.tokens import Tokens

N_LAYERS = SIZES["num_hidden_layers"]
WINDOW = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}


def save(folder, config, scale=8):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model


LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 64}


@pytest.mark.parametrize("length", [12, 40])
@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config])
def test_stream_is_hugging_faces_beyond_a_sliding_window_of_some_layers(tmp_path, config, length):
    # Before: Qwen's windows were not taken over; the stream was off by 0.25 from token 17 on.
    hf_model = save(tmp_path, config(vocab_size=340, **SIZES, **WINDOW))
    model = load_model(tmp_path, device="cpu")
    ids = tuple((torch.arange(length) * 37 % 330 + 5).tolist())
    tokens = Tokens.of(["p"], [ids], [(0, 1)])
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(N_LAYERS - 1)]
    got = make_reader(model, tokens, names, ["last"]).read(tokens).values
    with torch.no_grad():
        states = hf_model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in range(N_LAYERS - 1):
        expected = states[layer + 1][0, -1]
        torch.testing.assert_close(got[0, layer, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [CohereConfig, Cohere2Config])
def test_bridge_that_computes_something_else_is_refused(tmp_path, config):
    # Before: handed out without a comparison, with a stream that was off by 0.23.
    save(tmp_path, config(vocab_size=340, pad_token_id=0, eos_token_id=2, **SIZES))
    with pytest.raises(
        RefusalLensError, match="differently from Hugging Face.*Try backend: hooked"
    ):
        load_model(tmp_path, device="cpu", backend="bridge")


def test_scaling_that_begins_at_a_length_is_compared_beyond_it(tmp_path):
    # Before: eight tokens are read with the short factors, which are those of no scaling.
    half = SIZES["hidden_size"] // SIZES["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [4.0] * half, "factor": 1.0}
    rope = LONGROPE | factors | {"rope_theta": 10000.0}
    save(tmp_path, LlamaConfig(vocab_size=340, rope_parameters=rope, **SIZES))
    with pytest.raises(RefusalLensError, match="on 72 tokens .* backend: bridge"):
        load_model(tmp_path, device="cpu")
    load_model(tmp_path, device="cpu", backend="bridge")


LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "attention_factor": 1.0}
FAR = {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_theta": 5e5}


@pytest.mark.parametrize("rope", [LLAMA3, YARN])
@pytest.mark.parametrize("config", [MistralConfig, Qwen2Config])
def test_scaling_of_low_frequencies_is_compared_far_beyond_a_few_tokens(tmp_path, config, rope):
    # Before: handed out, 2e-5 off on 8 tokens and 0.14 on 3,000 (weights of a third of this size).
    sizes = {**SIZES, "max_position_embeddings": 65536}
    settings = config(vocab_size=340, rope_parameters=rope | FAR, **sizes, sliding_window=None)
    save(tmp_path, settings, scale=1)
    with pytest.raises(RefusalLensError, match=r"rotary angles of block 0 .* backend: bridge"):
        load_model(tmp_path, device="cpu")
    load_model(tmp_path, device="cpu", backend="bridge")


def test_scaling_that_was_taken_over_is_no_fault(tmp_path):
    sizes = {**SIZES, "max_position_embeddings": 65536}
    save(tmp_path, LlamaConfig(vocab_size=340, rope_parameters=LLAMA3 | FAR, **sizes), scale=1)
    load_model(tmp_path, device="cpu", dtype="bfloat16")


def test_advice_names_the_bridge_only_where_it_reads_the_architecture(tmp_path):
    # Before: each backend sent on to the other, and the second named all that it takes.
    sizes = {name: size for name, size in SIZES.items() if "key_value" not in name}
    save(tmp_path, PersimmonConfig(vocab_size=340, **sizes))
    with pytest.raises(RefusalLensError, match="lacks this architecture too"):
        load_model(tmp_path, device="cpu")
    with pytest.raises(RefusalLensError, match="has no adapter for PersimmonForCausalLM"):
        load_model(tmp_path, device="cpu", backend="bridge")


def test_what_a_backend_fails_at_while_it_runs_is_one_sentence(tmp_path):
    # Before: a RuntimeError of the bridge, over a norm that this architecture lacks.
    sizes = {"ffn_dim": 48, "hidden_size": 32, "word_embed_proj_dim": 32, "num_attention_heads": 4}
    save(tmp_path, OPTConfig(vocab_size=340, do_layer_norm_before=False, **sizes))
    with pytest.raises(RefusalLensError, match="cannot run this OPTForCausalLM"):
        load_model(tmp_path, device="cpu", backend="bridge")


def test_scaling_by_the_length_of_the_text_is_refused(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    save(tmp_path, LlamaConfig(vocab_size=340, rope_parameters=rope, **SIZES))
    with pytest.raises(RefusalLensError, match=r"length of the text \(dynamic\).* backend: bridge"):
        load_model(tmp_path, device="cpu")
    load_model(tmp_path, device="cpu", backend="bridge")


def test_window_too_far_to_compare_must_have_been_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "MOST_SCORES", 100)
    save(tmp_path, Qwen2Config(vocab_size=340, **SIZES, **WINDOW))
    load_model(tmp_path, device="cpu")
    monkeypatch.setattr("refusal_lens.models.conversion._copy_windows", lambda *_: None)
    with pytest.raises(RefusalLensError, match="an attention window that acts from token 16 on"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sliding_window": 16}, 16),
        ({"sliding_window": 500}, None),  # beyond the context: it never acts
        ({"sliding_window": 16, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 16, "use_sliding_window": False}, None),
        ({"attention_chunk_size": 24, "sliding_window": 16}, 24),
        (
            {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64}},
            64,
        ),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 64}}, None),
        ({}, None),
    ],
)
def test_far_boundary(fields, expected):
    config = SimpleNamespace(max_position_embeddings=128, **fields)
    assert far_boundary(config) == expected


def test_overflow_of_float16_is_not_blamed_on_the_conversion(checkpoint, tmp_path):
    config = MistralConfig(vocab_size=340, sliding_window=6, **SIZES)
    save(tmp_path, config)
    weights = load_file(tmp_path / "model.safetensors")
    large = weights["model.layers.2.mlp.down_proj.weight"] * 3e5
    weights["model.layers.2.mlp.down_proj.weight"] = large.clamp(-6e4, 6e4)  # the sums are not
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_model(tmp_path, device="cpu", dtype="bfloat16")
    for backend in ("hooked", "bridge"):
        with pytest.raises(RefusalLensError) as caught:
            load_model(tmp_path, device="cpu", dtype="float16", backend=backend)
        assert re.search(
            r"forward of this MistralForCausalLM in float16 is not finite from block 2 on.* use "
            r"bfloat16 or float32",
            str(caught.value),
        )
