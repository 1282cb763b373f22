"""Activations: pooled exactly, in order, whatever the batching, and the model left as it was."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import (
    ARCHITECTURES,
    HARMFUL,
    HARMLESS,
    REPOSITORY,
    make_tokenizer,
    save_checkpoint,
)

from refusal_lens.activations import collector, shard_reader, store
from refusal_lens.activations.batch_reader import make_reader
from refusal_lens.activations.engines import collect, collect_moments
from refusal_lens.directions.direction import fit_directions
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.models import batching
from refusal_lens.models.fast_forward import _rotate
from refusal_lens.models.hook_points import head_of
from refusal_lens.models.loading import load_model
from refusal_lens.prompts.contrast import ContrastSet, Prompt
from refusal_lens.prompts.positions import MEANS, normalise_positions, positions_read
from refusal_lens.prompts.tokens import tokenise

NAMES = ("blocks.0.hook_resid_pre", "blocks.2.hook_attn_out", "blocks.3.hook_resid_post")
POSITIONS = ("last", "mean", "instruction_mean", "-3")


def collect_all(model, prompts, **options):
    return collect(model, prompts, NAMES, POSITIONS, show_progress=False, **options)


def test_each_value_is_what_the_plain_forward_has_there(model, prompts):
    got = collect_all(model, prompts, sinks="kept").values
    tokens = tokenise(model.tokenizer, prompts.prompts)
    for row, ids in enumerate(tokens.ids):
        _, cache = model.run_with_cache(torch.tensor([ids]))
        first, stop = tokens.instruction_spans[row]
        for column, name in enumerate(NAMES):
            activation = cache[name][0]
            expected = [
                activation[-1],
                activation.mean(dim=0),
                activation[first:stop].mean(dim=0),
                activation[-3],
            ]
            torch.testing.assert_close(
                got[row, column], torch.stack(expected), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("token_budget", [1, 40, 10_000])
def test_batch_size_and_padding_change_nothing(model, prompts, token_budget):
    one_by_one = collect_all(model, prompts, token_budget=1).values
    got = collect_all(model, prompts, token_budget=token_budget).values
    torch.testing.assert_close(got, one_by_one, rtol=1e-5, atol=1e-5)


def test_order_of_prompts_changes_nothing_but_the_order(model, prompts):
    backwards = ContrastSet.from_texts(HARMFUL[::-1], HARMLESS[::-1])
    got = collect_all(model, backwards)
    expected = collect_all(model, prompts)
    order = [3, 2, 1, 0, 7, 6, 5, 4]
    torch.testing.assert_close(got.values[order], expected.values, rtol=1e-5, atol=1e-5)
    assert got.is_harmful.tolist() == [True] * 4 + [False] * 4


def test_tokenizer_that_pads_left_does_not_change_the_activations(checkpoint, prompts):
    # Right-padded ids under a left-padding tokenizer get a mask that hides real tokens.
    model = load_model(checkpoint, device="cpu")
    expected = collect_all(model, prompts).values
    model.tokenizer.padding_side = "left"
    torch.testing.assert_close(collect_all(model, prompts).values, expected)
    assert model.tokenizer.padding_side == "left"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", [POSITIONS, ("last", "-2")])
def test_fast_path_equals_the_plain_one(tmp_path, prompts, architecture, positions):
    save_checkpoint(tmp_path, architecture)
    model = load_model(tmp_path, device="cpu")
    names = [name for name in NAMES if name in model.hook_dict]
    fast = collect(model, prompts, names, positions, show_progress=False)
    with model.hooks(fwd_hooks=[("hook_embed", lambda activation, hook: None)]):
        plain = collect(model, prompts, names, positions, show_progress=False)
    assert fast.provenance["collection"]["path"] == "fast"
    assert fast.provenance["collection"]["n_prefix"] >= 3
    assert plain.provenance["collection"]["why"] == "hooks are set on hook_embed"
    scale = plain.values.abs().amax(dim=(0, 3), keepdim=True)
    torch.testing.assert_close(fast.values / scale, plain.values / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["qwen2", "gptneox"])  # all of a head; a part of it
def test_turning_by_position_has_the_bits_of_transformerlens(tmp_path, architecture):
    save_checkpoint(tmp_path, architecture)
    attn = load_model(tmp_path, device="cpu").blocks[0].attn
    heads = torch.randn(2, 5, 4, attn.cfg.d_head, generator=torch.Generator().manual_seed(0))
    expected = attn.apply_rotary(heads, 3)
    assert not torch.equal(expected, heads)
    assert torch.equal(_rotate(attn, heads, 3), expected)
    positions = torch.arange(3, 8).expand(2, 5)
    assert torch.equal(_rotate(attn, heads, positions), expected)


def test_inner_bias_of_a_gated_mlp_is_added_where_there_is_one(checkpoint, prompts):
    model = load_model(checkpoint, device="cpu")
    model.blocks[1].mlp.b_in.data.normal_(generator=torch.Generator().manual_seed(0))
    fast = collect_all(model, prompts)
    with model.hooks(fwd_hooks=[("hook_embed", lambda activation, hook: None)]):
        plain = collect_all(model, prompts)
    assert fast.provenance["collection"]["path"] == "fast"
    torch.testing.assert_close(fast.values, plain.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "names",
    [
        ["blocks.2.hook_resid_pre"],
        ["blocks.2.hook_attn_out"],
        ["blocks.2.hook_resid_mid"],
        ["blocks.2.hook_mlp_out"],
        ["blocks.2.ln1.hook_normalized"],
        ["blocks.2.ln2.hook_normalized"],
        ["hook_embed"],
        ["ln_final.hook_normalized", "blocks.0.hook_resid_post"],
    ],
)
def test_every_place_where_a_forward_can_end(model, prompts, names):
    got = collect(model, prompts, names, ["last", "-3"], show_progress=False)
    tokens = tokenise(model.tokenizer, prompts.prompts)
    for row, ids in enumerate(tokens.ids):
        _, cache = model.run_with_cache(torch.tensor([ids]))
        for column, name in enumerate(names):
            expected = cache[name][0][[-1, -3]]
            torch.testing.assert_close(got.values[row, column], expected, rtol=1e-4, atol=1e-4)


BEYOND_THE_STREAM = {
    "hook_z": ["hook_z:0.1", "hook_z:2"],
    "hook_result": ["hook_result:0", "hook_result:2.3"],
    "mlp.hook_post": ["mlp.hook_post:0", "mlp.hook_post:2"],
    "outside the blocks": ["hook_embed", "ln_final.hook_normalized"],
}


@pytest.fixture(scope="module", params=["hooked", "bridge"])
def with_results(request, checkpoint):
    """A model that writes `hook_result` too, whose cache says what is right."""
    model = load_model(checkpoint, device="cpu", backend=request.param)
    model.set_use_attn_result(True)
    yield model
    model.set_use_attn_result(False)


@pytest.mark.parametrize("selectors", BEYOND_THE_STREAM.values(), ids=BEYOND_THE_STREAM)
@pytest.mark.parametrize("positions", [("last", "-3"), ("mean", "last")])
@pytest.mark.parametrize("is_flag_on", [False, True])
def test_what_is_not_the_stream_is_what_the_cache_has_there(
    with_results, prompts, selectors, positions, is_flag_on
):
    tokens = tokenise(with_results.tokenizer, prompts.prompts)
    caches = [with_results.run_with_cache(torch.tensor([ids]))[1] for ids in tokens.ids]
    with_results.set_use_attn_result(is_flag_on)
    got = collect(with_results, prompts, selectors, positions, sinks="kept", show_progress=False)
    with_results.set_use_attn_result(True)
    for row, cache in enumerate(caches):
        for column, name in enumerate(got.hook_points):
            head = head_of(name)
            whole = cache[name if head is None else name.rpartition(".")[0]][0]
            activation = whole if head is None else whole[:, head]
            at = {"last": activation[-1], "-3": activation[-3], "mean": activation.mean(0)}
            expected = torch.stack([at[position] for position in positions])
            torch.testing.assert_close(got.values[row, column], expected, rtol=1e-4, atol=1e-4)


def test_the_head_that_writes_the_label_is_found(tmp_path, prompts):
    # No head writes anything but the third of layer 1: harmless prompts end as harmful ones do,
    # and all that differs at their last token came over that head.
    save_checkpoint(tmp_path, "gpt2")
    model = load_model(tmp_path, device="cpu")
    for layer, block in enumerate(model.blocks):
        for head in range(model.cfg.n_heads):
            if (layer, head) != (1, 2):
                block.attn.W_O.data[head] = 0
    with pytest.warns(RefusalLensWarning, match="the classes have the same mean"):
        found = fit_directions(collect(model, prompts, "hook_result", show_progress=False))
    assert [each.hook_point for each in found] == ["blocks.1.attn.hook_result.2"]


def test_heads_are_stored_and_mended_like_all_else(tmp_path, model, prompts, two_prompts_a_shard):
    options = {"folder": tmp_path, "token_budget": 40, "show_progress": False}
    first = collect(model, prompts, "hook_z:1-2", ["last", "mean"], **options)
    next(tmp_path.glob("shard-00001.safetensors")).unlink()
    again = collect(model, prompts, "hook_z:1-2", ["last", "mean"], resume=True, **options)
    assert torch.equal(again.values, first.values)
    assert first.values.shape == (8, 8, 2, 8)
    one = store.load_activations(tmp_path, "hook_z:2.3")
    assert torch.equal(one.values[:, 0], first.values[:, -1])


def test_positions_inside_the_shared_prefix_are_read_too(model):
    # All prompts are so short that -14 lies in what the template begins with.
    short = ContrastSet.from_texts(["car", "dog"], ["window", "money"])
    options = {"system_prompt": "You are kind.", "show_progress": False}
    got = collect(model, short, "resid_post:2", ["-14", "mean"], sinks="kept", **options)
    tokens = tokenise(model.tokenizer, short.prompts, "You are kind.")
    prefix = got.provenance["collection"]["n_prefix"]
    assert any(length - 14 < prefix for length in tokens.lengths)
    for row, ids in enumerate(tokens.ids):
        _, cache = model.run_with_cache(torch.tensor([ids]))
        activation = cache["blocks.2.hook_resid_post"][0]
        expected = torch.stack([activation[-14], activation.mean(dim=0)])
        torch.testing.assert_close(got.values[row, 0], expected, rtol=1e-4, atol=1e-4)


def test_moments_give_the_directions_of_the_activations(model, prompts, activations):
    moments = collect_moments(
        model, prompts, "resid_post", ["last", "mean"], token_budget=40, show_progress=False
    )
    whole = collect(
        model, prompts, "resid_post", ["last", "mean"], token_budget=40, show_progress=False
    )
    for label, mine in ((True, moments.harmful), (False, moments.harmless)):
        values = whole.values[whole.is_harmful == label].double()
        assert mine.count == 4
        torch.testing.assert_close(mine.mean, values.mean(dim=0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine.m2 / 3, values.var(dim=0), rtol=1e-9, atol=1e-12)


def test_shards_of_prompts_change_no_moments(model, prompts, monkeypatch):
    options = {"token_budget": 1, "show_progress": False}
    whole = collect_moments(model, prompts, **options)
    monkeypatch.setattr(collector, "shard_rows", lambda n: store.shard_rows(n, 3))
    parts = collect_moments(model, prompts, **options)
    for one, other in ((whole.harmful, parts.harmful), (whole.harmless, parts.harmless)):
        assert one.count == other.count == 4
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(one.m2, other.m2, rtol=1e-12, atol=1e-14)
    described = [each.provenance["collection"] for each in (whole, parts)]
    assert described[0]["n_tokens"] == described[1]["n_tokens"]


def test_bfloat16_model_gives_float32_and_sums_in_it(checkpoint, prompts):
    half = load_model(checkpoint, device="cpu", dtype="bfloat16")
    got = collect(half, prompts, "resid_pre:0", ["mean"], sinks="kept", show_progress=False)
    assert got.values.dtype == torch.float32
    tokens = tokenise(half.tokenizer, prompts.prompts)
    exact = [half.W_E[list(ids)].double().mean(dim=0) for ids in tokens.ids]
    torch.testing.assert_close(
        got.at("blocks.0.hook_resid_pre", "mean").double(), torch.stack(exact), rtol=1e-6, atol=1e-6
    )


def test_hooks_are_gone_afterwards_and_the_users_own_stay(model, prompts):
    seen = []
    model.add_hook(NAMES[0], lambda activation, hook: seen.append(hook.name))
    try:
        collect_all(model, prompts)
        assert seen
        assert len(model.hook_dict[NAMES[0]].fwd_hooks) == 1
        assert not model.hook_dict[NAMES[1]].fwd_hooks
    finally:
        model.reset_hooks()


def test_hooks_are_gone_after_an_error(model, prompts):
    def fail(activation, hook):
        raise RuntimeError("planted")

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", fail)]):
        with pytest.raises(RuntimeError, match="planted"):
            collect_all(model, prompts)
        assert not model.hook_dict[NAMES[0]].fwd_hooks
        assert len(model.hook_dict["blocks.1.hook_resid_pre"].fwd_hooks) == 1


def test_fast_path_leaves_the_model_as_it_was_after_an_error(model, prompts, monkeypatch):
    from refusal_lens.models import fast_forward

    def fail(*arguments):
        raise RuntimeError("planted")

    before = {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()}
    monkeypatch.setattr(fast_forward, "_fused", fail)
    with pytest.raises(RuntimeError, match="planted"):
        collect_all(model, prompts)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()} == before
    assert torch.is_grad_enabled()


def test_users_hooks_are_seen_in_the_activations(model, prompts):
    plain = collect_all(model, prompts).values
    with model.hooks(fwd_hooks=[("hook_embed", lambda activation, hook: activation * 2)]):
        doubled = collect_all(model, prompts).values
    torch.testing.assert_close(doubled[:, 0], 2 * plain[:, 0])


def test_the_forward_stops_at_the_last_layer_needed(model, prompts):
    def must_not_run(activation, hook):
        raise AssertionError(hook.name)

    later = ["blocks.2.hook_resid_pre", "ln_final.hook_normalized"]
    with model.hooks(fwd_hooks=[(name, must_not_run) for name in later]):
        got = collect(model, prompts, "resid_post:0-1", show_progress=False)
    assert got.values.shape == (8, 2, 1, 32)


def test_values_do_not_keep_the_whole_activation_alive(model, prompts):
    values = collect_all(model, prompts).values
    assert values.untyped_storage().nbytes() == values.numel() * 4
    assert not values.requires_grad


def test_position_outside_a_prompt_is_named(model, prompts):
    # The shortest is named at once: any other would lead to it step by step.
    tokens = tokenise(model.tokenizer, prompts.prompts)
    length, name = min(zip(map(len, tokens.ids), tokens.prompt_ids, strict=True))
    with pytest.raises(RefusalLensError) as caught:
        collect(model, prompts, "resid_post", "-99", show_progress=False)
    assert str(caught.value) == (
        f"Position -99 is outside 8 of 8 prompts; the shortest, {name}, has {length} tokens. "
        f"Use positions -{length} to -1, or drop prompts shorter than 99 tokens."
    )


def test_prompt_longer_than_the_context_is_named(model, prompts):
    long = ContrastSet.from_texts(["car " * 200, *HARMFUL], HARMLESS)
    with pytest.raises(RefusalLensError, match="Prompt harmful-001 has .* context holds 128"):
        collect(model, long, show_progress=False)


@pytest.mark.parametrize("position", ["first", "-0", "--2", "03", "+1"])
def test_positions_that_do_not_exist(position):
    with pytest.raises(RefusalLensError) as caught:
        normalise_positions([position])
    assert str(caught.value) == (
        f"There is no position {position!r}. Use last, mean, instruction_mean, instruction_last, "
        "-k for the k-th token from the end (-2, -3, ...), or k for a token of the template's tail "
        "(0 is the first one behind the user's text)."
    )


def test_minus_one_is_last():
    assert normalise_positions(["-1", "last", "-2"]) == ("last", "-2")


def test_positions_read_shows_the_tokens():
    tokenizer = make_tokenizer()
    tokens = tokenise(tokenizer, [Prompt("p-1", "wash", "")])
    last, mean, own = positions_read(tokenizer, tokens, ["last", "mean", "instruction_mean"])
    assert (last.tokens, last.token_indices) == ("\n", str(tokens.lengths[0] - 1))
    assert last.token_ids == str(tokens.ids[0][-1])
    assert mean.tokens == "<|im_start|>user\nwash<|im_end|>\n<|im_start|>assistant\n"
    assert own.tokens == "wash"


def test_provenance_says_where_values_came_from(activations, prompts):
    assert activations.provenance["prompts"]["harmful"] == {
        "n": 4,
        "sha256": prompts.harmful.sha256,
    }
    assert activations.provenance["chat_template"]["example"].endswith("<|im_start|>assistant\n")
    assert activations.provenance["model"]["architecture"] == "Qwen2ForCausalLM"


def test_activation_of_another_shape_is_refused(model, prompts):
    with (
        model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: x[:, :1])]),
        pytest.raises(RefusalLensError, match="gave an activation of shape"),
    ):
        collect(model, prompts, "resid_post:1", show_progress=False)


def test_bos_reaches_the_model_once(tmp_path, prompts):
    tokenizer = make_tokenizer(bos="<s>", adds_bos=True)
    save_checkpoint(tmp_path, "llama", tokenizer)
    model = load_model(tmp_path, device="cpu")
    read = []
    with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: read.append(x[:, :2].clone()))]):
        collect(model, prompts, "resid_post:0", show_progress=False)
    embedded = model.W_E[tokenizer.bos_token_id]
    for first, second in (row for batch in read for row in batch):
        assert torch.equal(first, embedded)
        assert not torch.equal(second, embedded)


def test_at_returns_one_place(activations):
    place = activations.at("blocks.1.hook_resid_post", "-1")
    assert torch.equal(place, activations.values[:, 1, 0])
    assert "8 prompts (4 harmful)" in repr(replace(activations))


# --- attention sinks --------------------------------------------------------------------------

SINK = 5_000.0
"""Far above ten times the norms of the tiny model's tokens."""


@contextmanager
def planted_sinks(model, token):
    """Make the embedding of one token outsize."""
    with torch.no_grad():
        before = model.W_E[token].clone()
        model.W_E[token] *= SINK / before.norm()
    try:
        yield
    finally:
        with torch.no_grad():
            model.W_E[token] = before


def a_token_of(model, prompts):
    """A token inside some prompts' own text and not in all prompts."""
    tokens = tokenise(model.tokenizer, prompts.prompts)
    first = tokens.instruction_spans[0][0]
    return tokens.ids[0][first + 1]


@pytest.fixture
def sinking(checkpoint):
    return load_model(checkpoint, device="cpu")


def expected_means(model, prompts, name, *, ratio=10):
    """Means in closed form, prompt by prompt, and how many tokens each left out."""
    tokens = tokenise(model.tokenizer, prompts.prompts)
    means, counts = [], []
    for ids, (first, stop) in zip(tokens.ids, tokens.instruction_spans, strict=True):
        _, cache = model.run_with_cache(torch.tensor([ids]))
        activation = cache[name][0]
        norms = activation.norm(dim=-1)
        is_kept = norms <= ratio * norms.median()
        is_kept[0] = False
        means.append(
            torch.stack(
                [activation[is_kept].mean(0), activation[first:stop][is_kept[first:stop]].mean(0)]
            )
        )
        counts.append([(~is_kept).sum(), (~is_kept[first:stop]).sum()])
    return torch.stack(means), torch.tensor(counts)


@pytest.mark.parametrize("is_fast", [True, False])
def test_sinks_are_left_out_of_means(sinking, prompts, is_fast):
    name = "blocks.0.hook_resid_pre"
    hooks = [] if is_fast else [("hook_embed", lambda activation, hook: None)]
    with planted_sinks(sinking, a_token_of(sinking, prompts)):
        expected, counts = expected_means(sinking, prompts, name)
        with sinking.hooks(fwd_hooks=hooks):
            got = collect(sinking, prompts, name, MEANS, show_progress=False)
            one = collect(sinking, prompts, name, MEANS, token_budget=1, show_progress=False)
    assert got.provenance["collection"]["path"] == ("fast" if is_fast else "TransformerLens")
    assert (counts[:, 0] > 1).any()
    torch.testing.assert_close(got.values[:, 0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.values, one.values, rtol=1e-5, atol=1e-5)
    told = got.provenance["sinks"]
    assert (told["are"], told["ratio"]) == ("left_out", 10)
    for column, position in enumerate(MEANS):
        count = counts[:, column].float().mean().item()
        assert told["left_out_a_prompt"][position] == pytest.approx({name: count})
    assert told == one.provenance["sinks"]


def test_bridge_leaves_out_the_same_sinks(checkpoint, prompts):
    hooked, bridge = (
        load_model(checkpoint, device="cpu", backend=backend) for backend in ("hooked", "bridge")
    )
    got = [
        collect(model, prompts, "resid_post:1", MEANS, show_progress=False)
        for model in (hooked, bridge)
    ]
    torch.testing.assert_close(got[0].values, got[1].values, rtol=1e-4, atol=1e-4)
    assert got[0].provenance["sinks"] == got[1].provenance["sinks"]


def test_store_and_moments_count_what_was_left_out_as_memory_does(
    sinking, prompts, tmp_path, two_prompts_a_shard
):
    options = {"hook_points": "resid_pre:0-1", "positions": ["last", *MEANS], "token_budget": 40}
    with planted_sinks(sinking, a_token_of(sinking, prompts)):
        inside = collect(sinking, prompts, **options)
        stored = collect(sinking, prompts, **options, folder=tmp_path)
        moments = collect_moments(sinking, prompts, **options)
    assert set(inside.provenance["sinks"]["left_out_a_prompt"]) == set(MEANS)
    assert stored.provenance["sinks"] == inside.provenance["sinks"]
    assert moments.provenance["sinks"] == inside.provenance["sinks"]


# --- out of memory ----------------------------------------------------------------------------


EXHAUST = """
import json, resource, sys
import torch
from conftest import make_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM
from refusal_lens import RefusalLensError, collect
from refusal_lens.activations.engines import collect_moments
from refusal_lens.models import batching
from refusal_lens.models.conversion import convert
from refusal_lens.prompts.contrast import ContrastSet

torch.manual_seed(0)
tokenizer = make_tokenizer()
sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
config = Qwen2Config(
    vocab_size=len(tokenizer), intermediate_size=8192, num_hidden_layers=2, **sizes
)
model = convert(Qwen2ForCausalLM(config).eval(), "cpu", "none", 1)
model.tokenizer = tokenizer

def contrast(write):
    texts = [write(number) for number in range(32)]
    return ContrastSet.from_texts(texts[:16], texts[16:])

def limit(mebibytes):
    # What the process may map beyond what it has: the allocator itself says no.
    line = next(line for line in open("/proc/self/status") if line.startswith("VmSize"))
    now = 1024 * int(line.split()[1])
    resource.setrlimit(resource.RLIMIT_AS, (now + mebibytes * 2**20, resource.RLIM_INFINITY))

def read(prompts, budget):
    return collect(model, prompts, "resid_post", ["last", "mean"], token_budget=budget,
                   show_progress=False)

def told(prompts):
    try:
        read(prompts, 100_000)
    except RefusalLensError as error:
        return str(error)

short = contrast(lambda number: f"{number} {'car ' * 60}")
long = contrast(lambda number: f"{number} {'car ' * 4000}")
alike = contrast(lambda number: f"{'car ' * 4000} {number}")
expected = read(short, 128)
limit(60)
got = read(short, 100_000)
moments = collect_moments(model, short, token_budget=100_000, show_progress=False)
# A search that begins where a GPU's does has too large a first batch.
batching.CPU_BUDGETS = batching.CUDA_BUDGETS
limit(60)
searched = read(short, None)
budget = searched.provenance["collection"]["token_budget"]
limit(60)
too_long, too_much_alike = told(long), told(alike)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
again = read(short, 128)
unlimited = read(short, budget)
print(json.dumps({
    "difference": float((got.values - expected.values).abs().max()),
    "budget": got.provenance["collection"]["token_budget"],
    "moments_budget": moments.provenance["collection"]["token_budget"],
    "searched_budget": budget,
    "searched_is_as_unlimited": torch.equal(searched.values, unlimited.values),
    "too_long": too_long,
    "too_much_alike": too_much_alike,
    "hooked": hooked,
    "is_as_before": torch.equal(again.values, expected.values),
}))
"""


def test_memory_that_really_runs_out_costs_a_smaller_batch_and_no_crash():
    # 32 prompts of 75 tokens want 75 MiB for one layer's hidden units, and may have 60 in all.
    script = subprocess.run(
        [sys.executable, "-c", EXHAUST],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY / "tests",
        # Every thread that allocates reserves an arena, which would count against the limit.
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MALLOC_ARENA_MAX": "1",
        },
    )
    assert script.returncode == 0, script.stderr
    told = json.loads(script.stdout.splitlines()[-1])
    assert told["difference"] < 1e-5
    assert 75 < told["budget"] < 2400
    assert 75 < told["moments_budget"] < 2400
    assert 75 < told["searched_budget"] < 2400
    assert told["searched_is_as_unlimited"]
    # Not even one prompt of thousands of tokens fits in 60 MiB, and it has a name.
    assert re.fullmatch(
        r"Prompt harmful-0\d\d with \d{4} tokens does not fit in memory on cpu, even alone. Take "
        "it out, or use a smaller dtype or a larger device.",
        told["too_long"],
    )
    assert re.fullmatch(
        r"The first \d{4} tokens, which all prompts share, do not fit in memory on cpu, even "
        "alone. Shorten them, or use a smaller dtype or a larger device.",
        told["too_much_alike"],
    )
    assert told["hooked"] == []
    assert told["is_as_before"]


# --- to disk ----------------------------------------------------------------------------------


def collect_to(folder, model, prompts, **options):
    options = {"token_budget": 40, "resume": True, **options}
    return collect_all(model, prompts, folder=folder, **options)


@pytest.fixture
def two_prompts_a_shard(monkeypatch):
    monkeypatch.setattr(store, "SHARD_PROMPTS", 2)


def files_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("token_budget", [40, None])
def test_activations_on_disk_are_those_in_memory(
    tmp_path, model, prompts, two_prompts_a_shard, token_budget
):
    whole = collect_all(model, prompts, token_budget=token_budget)
    stored = collect_to(tmp_path, model, prompts, token_budget=token_budget, resume=False)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 4
    torch.testing.assert_close(stored.values, whole.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(stored.is_harmful, whole.is_harmful)
    assert (stored.hook_points, stored.positions) == (whole.hook_points, whole.positions)
    assert stored.provenance["prompts"] == whole.provenance["prompts"]
    assert stored.provenance["collection"]["n_prompts_read"] == 8


def read_behind(model, prompts, advance=None):
    """Read as on a GPU: each batch is kept while the next one runs."""
    tokens = tokenise(model.tokenizer, prompts.prompts)
    reader = make_reader(model, tokens, NAMES, POSITIONS)
    return shard_reader.read_shard(reader, tokens, "cuda", token_budget=40, advance=advance)


@pytest.mark.parametrize("is_inference", [False, True])
def test_batches_kept_behind_the_next_are_those_kept_at_once(model, prompts, is_inference):
    n_done = []
    with torch.inference_mode(is_inference):
        shard = read_behind(model, prompts, lambda rows: n_done.append(len(rows)))
    assert len(n_done) > 2
    assert sum(n_done) == len(prompts.prompts)
    assert torch.equal(shard.values, collect_all(model, prompts, token_budget=40).values)


def test_batch_that_cannot_be_kept_is_not_lost_in_splitting_the_next(model, prompts):
    def fail(rows):
        raise MemoryError

    with pytest.raises(RefusalLensError, match="does not hold the activations that were read"):
        read_behind(model, prompts, fail)


def test_finished_activations_need_no_forward_pass(tmp_path, model, prompts, monkeypatch):
    first = collect_to(tmp_path, model, prompts)
    before = files_of(tmp_path)
    monkeypatch.setattr(shard_reader, "run_in_batches", None)
    again = collect_to(tmp_path, model, prompts)
    assert torch.equal(again.values, first.values)
    assert files_of(tmp_path) == before
    assert again.provenance == first.provenance


@pytest.mark.parametrize("token_budget", [40, None])
def test_damaged_shard_is_collected_again_bit_for_bit(
    tmp_path, model, prompts, two_prompts_a_shard, token_budget
):
    first = collect_to(tmp_path, model, prompts, token_budget=token_budget).values.clone()
    path = tmp_path / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    before = files_of(tmp_path)
    with pytest.warns(RefusalLensWarning, match="shard-00000.safetensors is not what was written"):
        again = collect_to(tmp_path, model, prompts, token_budget=token_budget)
    assert torch.equal(again.values, first)
    changed = {name for name, time in files_of(tmp_path).items() if before[name] != time}
    assert changed == {"shard-00000.safetensors", "shard-00000.json"}


def test_damaged_shard_is_batched_as_it_was_while_the_budget_was_searched(
    tmp_path, model, prompts, monkeypatch
):
    # Searching, the first shard has batches that no later collection would choose.
    monkeypatch.setattr(batching, "CPU_BUDGETS", (16, 64))
    collect_to(tmp_path, model, prompts, token_budget=None)
    batches = json.loads((tmp_path / "shard-00000.json").read_text())["batches"]
    assert len({len(rows) for rows in batches}) > 1
    (tmp_path / "shard-00000.safetensors").unlink()
    monkeypatch.setattr(shard_reader, "run_in_batches", None)
    collect_to(tmp_path, model, prompts, token_budget=None)
    assert json.loads((tmp_path / "shard-00000.json").read_text())["batches"] == batches


def test_token_budget_of_the_first_shard_serves_them_all(
    tmp_path, model, prompts, two_prompts_a_shard, monkeypatch
):
    asked = []
    run_in_batches = shard_reader.run_in_batches

    def spy(lengths, run, **options):
        asked.append(options["token_budget"])
        return run_in_batches(lengths, run, **options)

    monkeypatch.setattr(shard_reader, "run_in_batches", spy)
    monkeypatch.setattr(batching, "CPU_BUDGETS", (64, 64))
    collect_to(tmp_path, model, prompts, token_budget=None)
    assert asked == [None, 64, 64, 64]
    (tmp_path / "shard-00003.safetensors").unlink()
    (tmp_path / "shard-00003.json").unlink()
    collect_to(tmp_path, model, prompts, token_budget=None)
    assert asked == [None, 64, 64, 64, 64]


def test_only_one_shard_is_in_memory_at_a_time(
    tmp_path, model, prompts, two_prompts_a_shard, monkeypatch
):
    alive = []
    read_shard = collector.read_shard

    def spy(*arguments, **options):
        gc.collect()
        alive.append(sum(reference() is not None for reference in references))
        shard = read_shard(*arguments, **options)
        references.append(weakref.ref(shard.values))
        return shard

    references = []
    monkeypatch.setattr(collector, "read_shard", spy)
    collect_to(tmp_path, model, prompts)
    assert alive == [0, 0, 0, 0]
    assert len(references) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_budget": 50}, "  token_budget: 40 there, 50 here\n"),
        ({"dtype": "bfloat16"}, "  dtype: float32 there, bfloat16 here\n"),
        ({"sinks": "kept"}, "  sinks: left_out there, kept here\n"),
        ({"system_prompt": "Be kind."}, "  chat_template.system_prompt: None there, Be kind. here"),
    ],
)
def test_other_settings_are_refused(tmp_path, model, prompts, change, said):
    collect_to(tmp_path, model, prompts)
    with pytest.raises(RefusalLensError) as caught:
        collect_to(tmp_path, model, prompts, **change)
    assert said in str(caught.value)


def test_other_prompts_are_refused_with_both_hashes(tmp_path, model, prompts):
    collect_to(tmp_path, model, prompts)
    other = ContrastSet.from_texts(HARMFUL, [*HARMLESS[:-1], "Lend money?"])
    before = files_of(tmp_path)
    with pytest.raises(RefusalLensError) as caught:
        collect_to(tmp_path, model, other)
    assert (
        f"  prompts.harmless.sha256: {prompts.harmless.sha256} there, {other.harmless.sha256} here"
    ) in str(caught.value)
    assert files_of(tmp_path) == before


def test_another_model_is_refused_with_both_names(tmp_path, model, prompts):
    collect_to(tmp_path / "store", model, prompts)
    save_checkpoint(tmp_path / "other-model", "llama")
    other = load_model(tmp_path / "other-model", device="cpu")
    with pytest.raises(RefusalLensError) as caught:
        collect_to(tmp_path / "store", other, prompts)
    names = (model.load_record.name, other.load_record.name)
    assert f"  model.name: {names[0]} there, {names[1]} here\n" in str(caught.value)
    assert "other-model" in names[1]


def test_weights_edited_in_memory_are_another_model(tmp_path, checkpoint, prompts):
    edited = load_model(checkpoint, device="cpu")
    collect_to(tmp_path, edited, prompts)
    with torch.no_grad():
        edited.blocks[1].mlp.W_out.mul_(1.01)
    with pytest.raises(RefusalLensError, match=r"model.weights_sample_sha256: \w+ there, \w+ here"):
        collect_to(tmp_path, edited, prompts)


def test_progress_counts_what_is_there_as_done(
    tmp_path, model, prompts, two_prompts_a_shard, monkeypatch
):
    collect_to(tmp_path, model, prompts)
    for name in ("shard-00001", "shard-00002"):
        (tmp_path / f"{name}.json").unlink()
    told = []
    monkeypatch.setattr(
        collector.ClassProgress, "advance", lambda self, done: told.append(dict(done))
    )
    collect_to(tmp_path, model, prompts, token_budget=40)
    assert told[:2] == [{"harmful": 2, "harmless": 0}, {"harmful": 0, "harmless": 2}]
    totals = {name: sum(done[name] for done in told) for name in ("harmful", "harmless")}
    assert totals == {"harmful": 4, "harmless": 4}


KILLS = """
import json, os, signal, sys, traceback
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)  # the children are forks, and OpenMP's threads do not survive one
from refusal_lens.activations import batch_reader as reader, store
from refusal_lens.activations.engines import collect
from refusal_lens.models import batching
from refusal_lens.models.loading import load_model
from refusal_lens.prompts.contrast import ContrastSet

checkpoint, folder, harmful, harmless, hook_points, shard_prompts, token_budget, moments = (
    json.loads(sys.argv[1])
)
store.SHARD_PROMPTS = shard_prompts
batching.CPU_BUDGETS = (256, 256)  # a search that ends where another one does
model = load_model(checkpoint, device="cpu")
# Which of them are alike is not what is tried, and takes most of the time of so many.
prompts = replace(ContrastSet.from_texts(harmful, harmless), grouping="off")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at(owner, name, moment, *, is_before):
    original, seen = getattr(owner, name), [0]
    def wrapped(*arguments, **options):
        seen[0] += 1
        if seen[0] == moment and is_before:
            die()
        result = original(*arguments, **options)
        if seen[0] == moment:
            die()
        return result
    setattr(owner, name, wrapped)

def tear(moment):
    # The kill finds a file half written.
    original, seen = os.fsync, [0]
    def wrapped(handle):
        seen[0] += 1
        if seen[0] == moment:
            os.truncate(handle, os.fstat(handle).st_size // 2)
            die()
        original(handle)
    os.fsync = wrapped

KINDS = {
    "in the middle of a file": tear,
    "before a file is in place": lambda n: kill_at(Path, "replace", n, is_before=True),
    "after a file is in place": lambda n: kill_at(Path, "replace", n, is_before=False),
    "between batches": lambda n: kill_at(reader, "make_pool", n, is_before=False),
}

def in_child(prepare, place):
    child = os.fork()
    if child == 0:
        try:
            prepare()
            collect(model, prompts, hook_points, ["last", "mean"],
                    token_budget=token_budget, folder=place,
                    resume=True, show_progress=False)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

outcomes = {"uninterrupted": in_child(lambda: None, Path(folder, "uninterrupted"))}
for kind, prepare in KINDS.items():
    for moment in moments:
        name = f"{kind} {moment}"
        status = in_child(lambda: prepare(moment), Path(folder, name))
        if status == 0:
            break  # it ended before that moment came
        outcomes[name] = [status, in_child(lambda: None, Path(folder, name))]
print(json.dumps(outcomes))
"""


def killed(folder, *settings):
    """Kill collections, let each go on, and compare it with one that was let be; by kill."""
    arguments = json.dumps([*map(str, settings[:1]), str(folder), *settings[1:]])
    script = subprocess.run(
        [sys.executable, "-c", KILLS, arguments], capture_output=True, text=True, check=False
    )
    assert script.returncode == 0, script.stderr
    outcomes = json.loads(script.stdout)
    assert outcomes.pop("uninterrupted") == 0
    expected = store.load_activations(folder / "uninterrupted")
    for name, statuses in outcomes.items():
        assert statuses == [-signal.SIGKILL, 0], (name, script.stderr)
        resumed = store.load_activations(folder / name)
        assert torch.equal(resumed.values, expected.values), name
        assert torch.equal(resumed.is_harmful, expected.is_harmful), name
        assert {path.name for path in (folder / name).iterdir()} == {
            path.name for path in (folder / "uninterrupted").iterdir()
        }, name
    return outcomes


def test_killed_at_any_moment_it_resumes_to_the_same_bits(tmp_path, checkpoint):
    moments = list(range(1, 100))
    outcomes = killed(tmp_path, checkpoint, HARMFUL, HARMLESS, "resid_post", 3, 40, moments)
    # Three shards and the groups with their records, prompts, and the manifest at both ends.
    for kind in ("in the middle of a", "before a", "after a"):
        assert sum(name.startswith(kind) for name in outcomes) == 11
    assert sum(name.startswith("between batches") for name in outcomes) >= 4


@pytest.mark.slow
def test_killed_at_the_size_that_shards_have_and_before_a_budget_is_found(tmp_path, checkpoint):
    sides = [[f"{verb} {n}?" for n in range(2_500)] for verb in ("Steal", "Paint")]
    outcomes = killed(
        tmp_path, checkpoint, *sides, "resid_post:0", store.SHARD_PROMPTS, None, [2, 300]
    )
    assert store.SHARD_PROMPTS == 4096
    manifest = json.loads((tmp_path / "uninterrupted" / "manifest.json").read_text())
    assert manifest["token_budget"] == 256
    # The second file is the manifest with the budget, and the third batch finds it; the other kill
    # comes in the second shard.
    record = json.loads((tmp_path / "uninterrupted" / "shard-00000.json").read_text())
    assert 2 < len(record["batches"]) < 300
    files = ("in the middle of a file", "before a file is in place", "after a file is in place")
    assert list(outcomes) == [
        *(f"{kind} 2" for kind in files),
        "between batches 2",
        "between batches 300",
    ]


@pytest.fixture
def broken(checkpoint):
    """Load a model by a backend, and break what block 2 writes."""

    def load(backend):
        model = load_model(checkpoint, device="cpu", backend=backend)
        weight = dict(model.named_parameters())[
            "blocks.2.mlp.W_out"
            if backend == "hooked"
            else next(n for n, _ in model.named_parameters() if ".2." in n and "down_proj" in n)
        ]
        with torch.no_grad():
            weight[0, 0] = float("nan")
        return model

    return load


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
@pytest.mark.parametrize("read", [collect, collect_moments])
def test_activations_that_are_not_finite_are_refused_at_the_first_hook_point(
    broken, prompts, backend, read
):
    model, options = broken(backend), {"show_progress": False}
    read(model, prompts, "resid_post:0-1", **options)
    with pytest.raises(RefusalLensError) as caught:
        read(model, prompts, "resid_post", ["last", "mean"], token_budget=10_000, **options)
    assert str(caught.value) == (
        "Activations at blocks.2.hook_resid_post are not finite in float32, in 8 of 8 prompts of a "
        "batch, such as harmful-001. The checkpoint may be broken, or an intervention: look at its "
        "weights."
    )


def test_activations_that_are_not_finite_are_not_stored(broken, prompts, tmp_path):
    with pytest.raises(RefusalLensError, match=r"blocks\.2\.hook_resid_post are not finite"):
        collect(broken("hooked"), prompts, "resid_post", folder=tmp_path, show_progress=False)
    assert not list(tmp_path.glob("*.safetensors"))
