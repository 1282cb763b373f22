"""What a checkpoint is, told before or while it is read: nothing run, nothing made up."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, make_tokenizer, save_checkpoint
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Qwen2ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.models.checkpoint import find_checkpoint
from refusal_lens.models.gguf_files import headers_read_once, read_gguf
from refusal_lens.models.loading import load_model, load_tokenizer


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of the random Qwen2 checkpoint, to damage."""
    shutil.copytree(checkpoint, tmp_path / "copy")
    return tmp_path / "copy"


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rename(folder, change):
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder, **options):
    with pytest.raises(RefusalLensError) as caught:
        load_model(folder, device="cpu", **options)
    return str(caught.value)


# --- nothing of it is run ---------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("model_type", ["mymodel", "qwen2"])
def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(folder, load, model_type, monkeypatch):
    # Before: transformers asked on stdin, and a "y" ran the checkpoint's Python.
    marker = folder / "ran"
    for name in ("configuration_my", "modeling_my", "tokenization_my"):
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass My: pass\n")
    code = {"AutoConfig": "configuration_my.My", "AutoModelForCausalLM": "modeling_my.My"}
    edit(folder, model_type=model_type, auto_map=code)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "tokenization_my.My"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody is asked"))
    if model_type == "mymodel":
        with pytest.raises(RefusalLensError, match="code of its own .auto_map.* never run here"):
            load(folder)
    else:
        load(folder)
    assert not marker.exists()


@pytest.mark.slow
def test_yes_on_the_pipe_does_not_run_a_checkpoints_code(tmp_path):
    # The scenario: yes | head -20 | refusal-lens collect --model evil
    evil, marker = tmp_path / "evil", tmp_path / "ran"
    shutil.copytree(REPOSITORY / "data/tiny-refuser", evil)
    for file in ("configuration_my.py", "modeling_my.py"):
        (evil / file).write_text(f"open({str(marker)!r}, 'w').close()\nclass MyConfig: pass\n")
    config = json.loads((evil / "config.json").read_text())
    code = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "modeling_my.My"}
    config |= {"model_type": "mymodel", "auto_map": code}
    (evil / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [*(sys.executable, "-m", "refusal_lens", "collect", "--model"), str(evil)]
        + ["--output", str(tmp_path / "run")],
        input="y\n" * 20,
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
    )
    assert not marker.exists()
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert len(told) == 1
    assert "brings Python code of its own (auto_map in config.json)" in told[0]
    # The code is what would leave the mark, were it run.
    subprocess.run([sys.executable, str(evil / "modeling_my.py")], check=True)
    assert marker.exists()


def test_pickle_with_more_than_tensors_is_not_run(folder):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "ran"),))

    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    assert "a pickle with more in it than tensors" in refusal(folder)
    assert not (folder / "ran").exists()


# --- nothing of it is made up -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, "saved from inside torch.compile"),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, "DistributedDataParallel"),
        (
            lambda w: {k: v for k, v in w.items() if ".layers.2." not in k},
            r"lack model\.layers\.2\.input_layernorm\.weight, .* and 9 more: transformers would",
        ),
        (
            lambda w: w | {"model.layers.4.mlp.up_proj.weight": torch.ones(2)},
            r"hold model\.layers\.4\.mlp\.up_proj\.weight, which its architecture does not have",
        ),
    ],
)
def test_weights_that_were_not_loaded_are_named(folder, change, expected):
    rename(folder, change)
    assert re.search(expected, refusal(folder))


@pytest.mark.parametrize(
    "extra",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.cos_cached",
        "model.embeddings.position_ids",
        "model.layers.1.self_attn.k_proj.output_scale",
        "model.layers.1.self_attn.k_scale",
        "v_head.summary.weight",
    ],
)
def test_tensors_that_change_nothing_are_named_and_left_out(folder, checkpoint, extra):
    rename(folder, lambda w: w | {extra: torch.ones(2)})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RefusalLensWarning)
        model = load_model(folder, device="cpu")
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(
        model(ids), load_model(checkpoint, device="cpu")(ids), rtol=0, atol=0
    )
    # transformers itself leaves some out without a word.
    expected = f"{folder} holds {extra}, which a forward pass does not use: left out."
    assert [str(each.message) for each in told] in ([expected], [])
    assert told or "inv_freq" in extra


@pytest.mark.parametrize("name", ["q_proj.weight_scale", "q_proj.bias_correction", "k_norm.weight"])
def test_tensors_that_would_change_the_numbers_are_refused(folder, name):
    rename(folder, lambda w: w | {f"model.layers.1.self_attn.{name}": torch.ones(32)})
    assert f"hold model.layers.1.self_attn.{name}, which" in refusal(folder)


def test_missing_head_is_named(folder):
    rename(folder, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
    edit(folder, tie_word_embeddings=False)
    assert "lack lm_head.weight" in refusal(folder)


def test_shape_that_differs_from_the_config_is_named(folder):
    edit(folder, vocab_size=400)
    assert re.search(
        r"lm_head\.weight .* is \[\d+, 32\] in its file and \[400, 32\] by "
        r"its config\.json",
        refusal(folder),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_named(folder, value):
    def break_one(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        return weights

    rename(folder, break_one)
    expected = "The weight model.layers.1.mlp.up_proj.weight holds values that are not finite"
    for backend in ("hooked", "bridge"):
        assert expected in refusal(folder, backend=backend)


# --- what it is -------------------------------------------------------------------------------


def test_lfs_pointer_in_place_of_weights(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / "model.safetensors").write_text(pointer)
    assert "is a git-LFS pointer" in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_download_that_broke_off(folder, share):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "is no whole safetensors file" in refusal(folder)


def test_shard_that_lacks(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-00001-of-00002.safetensors" in refusal(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "holds no weights" in refusal(folder)


def test_sharded_weights_load_like_whole_ones(folder, checkpoint):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(weights), {}
    for part, some in enumerate((names[::2], names[1::2])):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({n: weights[n] for n in some}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(some, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )
    ids = torch.arange(3, 20)[None]
    expected, got = (load_model(f, device="cpu")(ids) for f in (checkpoint, folder))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8"])
def test_packed_weights_are_refused_by_their_method(folder, method):
    edit(folder, quantization_config={"quant_method": method, "bits": 4, "group_size": 128})
    assert re.search(
        rf"is quantised \({method}\).* Give an unquantised checkpoint", refusal(folder)
    )


def save(model, folder):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def test_packed_weights_without_a_word_in_the_config_are_refused_by_their_type(folder):
    # Before: the whole numbers were taken for the weights.
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("up_proj.weight"))
    save_file(weights | {name: weights[name].to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(RefusalLensError, match=rf"in whole numbers \({re.escape(name)}, 1 in all"):
        load_model(folder, device="cpu")


def test_models_that_write_no_text_are_refused_by_what_they_are(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    save(BertForMaskedLM(BertConfig(vocab_size=340, intermediate_size=16, **small)), tmp_path / "b")
    assert "BertForMaskedLM writes no text (an encoder" in refusal(tmp_path / "b")
    t5 = T5Config(vocab_size=340, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    save(T5ForConditionalGeneration(t5), tmp_path / "t5")
    assert "is an encoder with a decoder" in refusal(tmp_path / "t5")


def test_classifier_is_refused(folder):
    edit(folder, architectures=[Qwen2ForSequenceClassification.__name__])
    assert "Qwen2ForSequenceClassification writes no text" in refusal(folder)


def test_multimodal_model_is_refused(folder):
    edit(folder, architectures=["LlavaForConditionalGeneration"])
    assert "LlavaForConditionalGeneration is multimodal" in refusal(folder)


def test_more_layers_than_can_be_built_are_refused_at_once(folder):
    # Before: transformers built them one by one.
    edit(folder, num_hidden_layers=10**6, layer_types=None)
    begun = time.monotonic()
    assert "is to have 1,000,000 layers by its config.json" in refusal(folder)
    assert time.monotonic() - begun < 20


def test_setting_of_a_tokenizer_that_is_of_a_wrong_kind_is_told(folder):
    # Before: a TypeError at the first text.
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    changed = json.dumps(settings | {"model_max_length": "many"})
    (folder / "tokenizer_config.json").write_text(changed)
    assert "The tokenizer of" in refusal(folder)


def test_end_of_a_turn_that_is_no_token_is_told(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": "x"}')
    assert "the eos_token_id 'x', which is no token's number" in refusal(folder)


def test_index_that_lists_no_names_is_told(folder):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": ["b"]}}))
    assert "lacks ['b']" in refusal(folder)


@pytest.mark.parametrize("others", [[], ["second"]])
def test_adapters_that_name_each_other_are_told(tmp_path, others):
    # Before: a RecursionError.
    names = ["first", *others]
    for name, base in zip(names, [*names[1:], names[0]], strict=True):
        (tmp_path / name).mkdir()
        settings = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / base)}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(settings))
    assert "is an adapter itself" in refusal(tmp_path / "first")


def test_config_that_is_no_config(folder):
    for text in ("[" * 100_000, "{", "[]", '{"model_type": ' + '{"a":' * 50_000 + "1"):
        (folder / "config.json").write_text(text)
        assert "config.json" in refusal(folder)


def test_checkpoint_without_tokenizer_files(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    # Before: transformers made an empty tokenizer, and each prompt was blamed.
    assert "has no tokenizer.json: trainers often leave the tokenizer out" in refusal(folder)


def test_empty_tokenizer(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"] |= {"vocab": {}, "merges": []}
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:1]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert re.search(r"The tokenizer of .* is empty \(\d tokens\)", refusal(folder))


def test_vocabulary_larger_than_the_embedding(folder):
    rows = {"model.embed_tokens.weight", "lm_head.weight"}
    rename(folder, lambda w: {k: v[:300].clone() if k in rows else v for k, v in w.items()})
    edit(folder, vocab_size=300)
    assert re.search(r"has 330 tokens, and the model embeds 300: '.*' has no row", refusal(folder))


# --- adapters ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(checkpoint, tmp_path_factory):
    """A LoRA adapter of the random checkpoint, and the same merged by peft."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapters")
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=32,
        target_modules=["q_proj", "up_proj"],
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(checkpoint),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
        model = peft.get_peft_model(base, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "merged")
    make_tokenizer().save_pretrained(folder / "merged")
    return folder


@pytest.mark.parametrize("place", ["alone", "beside its base", "beside its base, without links"])
def test_adapter_is_merged_and_said_so(adapted, checkpoint, tmp_path, place, monkeypatch):
    folder = tmp_path / "tuned"
    if place.endswith("links"):  # as on Windows
        monkeypatch.setattr(Path, "symlink_to", lambda *_: os.readlink("not a link"))
    shutil.copytree(adapted / "adapter", folder)
    if place != "alone":
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    with pytest.warns(RefusalLensWarning, match="The adapter .*tuned was merged in memory into"):
        model = load_model(folder, device="cpu")
    ids = torch.arange(3, 20)[None]
    expected = load_model(adapted / "merged", device="cpu")(ids)
    torch.testing.assert_close(model(ids), expected)
    # Before: the base alone was measured, without a word.
    assert not torch.allclose(load_model(checkpoint, device="cpu")(ids), expected, atol=1e-2)
    assert model.load_record.adapter["folder"] == str(folder)


def test_adapter_of_another_model_is_refused(adapted, tmp_path):
    save_checkpoint(tmp_path / "gpt2", "gpt2")
    shutil.copytree(adapted / "adapter", tmp_path / "gpt2", dirs_exist_ok=True)
    assert "cannot be merged into" in refusal(tmp_path / "gpt2")


def test_adapter_whose_tensors_lack_is_refused(adapted, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(adapted / "adapter", folder)
    path = folder / "adapter_model.safetensors"
    weights = {k: v for k, v in load_file(path).items() if "layers.3" not in k}
    save_file(weights, path, metadata={"format": "pt"})
    assert re.search(r"does not fit .*layers\.3\..* has no counterpart", refusal(folder))
    path.unlink()
    assert "no adapter_model.safetensors" in refusal(folder)


# --- GGUF files that are none -----------------------------------------------------------------


def test_part_of_a_split_gguf_file(tmp_path):
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(b"GGUF")
    message = refusal(tmp_path)
    assert "one of 3 parts" in message
    assert "llama-gguf-split --merge m-00001-of-00003.gguf whole.gguf" in message


def gguf_header(value):
    """A file of one tensor and one field, which is to have this value."""
    return b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1) + b"a" + value + bytes(200)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2),
        b"GGUF" + struct.pack("<IQQ", 3, 2, 2**40),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"\0" * 500,
        # A text of 2^60 bytes; lists of 2^40 numbers, of 2^40 texts, and of lists, 5,000 deep.
        gguf_header(struct.pack("<IQ", 8, 2**60)),
        gguf_header(struct.pack("<IIQ", 9, 4, 2**40)),
        gguf_header(struct.pack("<IIQ", 9, 8, 2**40)),
        gguf_header(struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5_000),
    ],
)
def test_broken_gguf_file(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(RefusalLensError, match="is no whole GGUF file"):
        read_gguf(tmp_path / "m.gguf")
    assert time.monotonic() - begun < 5


def test_gguf_header_is_read_once_a_load(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    read = []

    class Counted(gguf.GGUFReader):
        def __init__(self, path):
            read.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("token_embd.weight", np.ones((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with headers_read_once():
        for _ in range(2):
            assert read_gguf(tmp_path / "m.gguf").quantisation == {"F32": 1}
        gguf.GGUFReader(str(tmp_path / "m.gguf"))  # as transformers calls it
    assert len(read) == 1
    # What is loaded next is another file, perhaps of the same name.
    with headers_read_once():
        read_gguf(tmp_path / "m.gguf")
    assert len(read) == 2
    assert gguf.GGUFReader is Counted


def test_folder_of_several_gguf_files_asks_which(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert "holds 2 GGUF files: a.gguf, b.gguf. Name one" in refusal(tmp_path)
    assert find_checkpoint(str(tmp_path), "b.gguf").gguf == tmp_path / "b.gguf"
    assert find_checkpoint(str(tmp_path / "a.gguf")).gguf == tmp_path / "a.gguf"
    with pytest.raises(RefusalLensError, match="holds no c.gguf"):
        find_checkpoint(str(tmp_path), "c.gguf")


def test_file_of_another_kind(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    assert "is a file of another kind" in refusal(tmp_path / "model.pt")
