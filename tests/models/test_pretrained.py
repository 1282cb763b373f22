"""A pretrained model from its GGUF file: its tensors, and Hugging Face's numbers."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from conftest import REPOSITORY
from pretrained import Unavailable, fetch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from refusal_lens import ContrastSet, collect, load_model
from refusal_lens.cli import app
from refusal_lens.experiments.interventions import ablate, residual_writes
from refusal_lens.files import file_sha256
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.prompts.tokens import tokenise
from refusal_lens.runs.folder import RunFolder

pytestmark = pytest.mark.pretrained

N_PROMPTS = 16
"""Of each class."""


@pytest.fixture(scope="module", params=["smollm2", "qwen2.5-coder-0.5b"])
def file(request) -> Path:
    if "pretrained" not in request.config.option.markexpr:
        pytest.skip("fetches a model: asked for by -m pretrained")
    try:
        return fetch(request.param)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(file):
    return load_model(file, device="cpu")


@pytest.fixture(scope="module")
def hf_model(file):
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    """Some of the shipped plain requests."""
    read = {
        name: json.loads((REPOSITORY / "data" / f"requests_{name}.json").read_text())
        for name in ("harmful", "harmless")
    }
    return {name: [each["text"] for each in rows[:N_PROMPTS]] for name, rows in read.items()}


def unpermuted(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """llama.cpp stores the rows of rotated projections in pairs; put them back in halves."""
    return weight.reshape(n_heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def test_every_tensor_equals_an_independent_dequantisation(file, hf_model):
    config = hf_model.config
    state = hf_model.state_dict()
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[config.model_type]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    by_gguf = {names.get_name(key, (".weight", ".bias")): key for key in state}
    for tensor in gguf.GGUFReader(file).tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if config.model_type == "llama" and "attn_q." in tensor.name:
            values = unpermuted(values, config.num_attention_heads)
        if config.model_type == "llama" and "attn_k." in tensor.name:
            values = unpermuted(values, config.num_key_value_heads)
        assert torch.equal(state[by_gguf.pop(tensor.name)], values), tensor.name
    # A tied head is the embedding again; the file of Qwen holds a head of its own.
    assert by_gguf.keys() == ({"output.weight"} if config.tie_word_embeddings else set())


def test_loading_draws_no_bars(file, capfd):
    load_model(file, device="cpu")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_activations_equal_hugging_faces(model, hf_model, texts):
    prompts = ContrastSet.from_texts(texts["harmful"], texts["harmless"])
    got = collect(model, prompts, "resid_post", "last", show_progress=False).values[:, :, 0]
    for row, ids in enumerate(tokenise(model.tokenizer, prompts.prompts).ids):
        with torch.inference_mode():
            states = hf_model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        # The last of Hugging Face's is the vector after the final norm.
        expected = torch.stack([state[0, -1] for state in states[1:-1]])
        difference = (got[row, :-1] - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert difference.max() < 1e-5


def test_ablation_equals_hugging_face_hooks_that_do_the_same(model, hf_model, texts):
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(model.cfg.d_model, generator=generator), dim=0)
    (ids,) = tokenise(model.tokenizer, [Prompt("p", texts["harmful"][0], "")]).ids
    row = torch.tensor([ids])

    def remove(module, inputs, output):
        first = output[0] if isinstance(output, tuple) else output
        first = first - (first @ unit)[..., None] * unit
        return (first, *output[1:]) if isinstance(output, tuple) else first

    # Whatever writes to the residual stream: the embedding, attention and MLP of every layer.
    writers = [hf_model.model.embed_tokens]
    for layer in hf_model.model.layers:
        writers += [layer.self_attn, layer.mlp]
    handles = [writer.register_forward_hook(remove) for writer in writers]
    with torch.inference_mode():
        expected = hf_model(row).logits
        for handle in handles:
            handle.remove()
        plain = hf_model(row).logits
        with model.hooks(fwd_hooks=ablate(residual_writes(model), unit)):
            got = model(row)
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=0)


def test_whole_study_on_the_file_and_its_resume(file, texts, tmp_path):
    for name, some in texts.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(some))
    prompts = [f"--{name}={tmp_path / name}.txt" for name in texts]
    settings = ["--set=refusal.n_new_tokens=16", "--set=validation.n_permutations=20"]
    settings += ["--set=validation.n_resamples=20", "--set=validation.n_repeats=1"]
    run_folder = RunFolder(tmp_path / "run")
    command = ["run", f"--model={file}", *prompts, *settings, f"--output={run_folder.path}"]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    recorded = run_folder.read_provenance()["model"]
    assert recorded["weights_sha256"] == file_sha256(file)
    assert recorded["gguf"]["weights"] == "dequantised"
    assert len(run_folder.read_separation()) == 2 * recorded["n_layers"]
    refusal = run_folder.read_refusal()
    assert refusal is not None
    if "smollm2" in file.name:  # answers nearly everything, and is told to
        assert refusal.rate(is_harmful=True) <= 2 / N_PROMPTS
        assert "Of harm, not of refusal" in outcome.output
    else:
        assert refusal.rate(is_harmful=True) > refusal.rate(is_harmful=False)
    drawn = CliRunner().invoke(app, ["plot", str(run_folder.path), "--figure", "all"])
    assert drawn.exit_code == 0, drawn.output
    assert (run_folder.path / "place_heatmap.html").is_file()
    before = run_folder.read_directions().vectors
    (run_folder.path / "activations" / "shard-00000.safetensors").unlink()
    outcome = CliRunner().invoke(app, ["run", "--resume", f"--output={run_folder.path}"])
    assert outcome.exit_code == 0, outcome.output
    assert torch.equal(run_folder.read_directions().vectors, before)
