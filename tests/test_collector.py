"""Activations: pooled exactly, in order, whatever the batching, and the model left as it was."""

from dataclasses import replace

import pytest
import torch
from conftest import ARCHITECTURES, HARMFUL, HARMLESS, make_tokenizer, save_checkpoint

from refusal_lens.collector import collect, collect_moments
from refusal_lens.errors import RefusalLensError
from refusal_lens.models import load_model
from refusal_lens.positions import normalise_positions, positions_read
from refusal_lens.prompts import ContrastSet, Prompt
from refusal_lens.tokens import tokenise

NAMES = ("blocks.0.hook_resid_pre", "blocks.2.hook_attn_out", "blocks.3.hook_resid_post")
POSITIONS = ("last", "mean", "instruction_mean", "-3")


def collect_all(model, prompts, **options):
    return collect(model, prompts, NAMES, POSITIONS, show_progress=False, **options)


def test_each_value_is_what_the_plain_forward_has_there(model, prompts):
    got = collect_all(model, prompts).values
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


def test_positions_inside_the_shared_prefix_are_read_too(model):
    # All prompts are so short that -14 lies in what the template begins with.
    short = ContrastSet.from_texts(["car", "dog"], ["window", "money"])
    options = {"system_prompt": "You are kind.", "show_progress": False}
    got = collect(model, short, "resid_post:2", ["-14", "mean"], **options)
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


def test_bfloat16_model_gives_float32_and_sums_in_it(checkpoint, prompts):
    half = load_model(checkpoint, device="cpu", dtype="bfloat16")
    got = collect(half, prompts, "resid_pre:0", ["mean"], show_progress=False)
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
    length = len(tokenise(model.tokenizer, prompts.prompts).ids[0])
    with pytest.raises(RefusalLensError) as caught:
        collect(model, prompts, "resid_post", "-99", show_progress=False)
    assert str(caught.value) == (
        f"Position -99 is outside prompt harmful-001, which has {length} tokens. "
        f"Use positions -{length} to -1, or drop prompts shorter than 99 tokens."
    )


def test_prompt_longer_than_the_context_is_named(model, prompts):
    long = ContrastSet.from_texts(["car " * 200, *HARMFUL], HARMLESS)
    with pytest.raises(RefusalLensError, match="Prompt harmful-001 has .* context holds 128"):
        collect(model, long, show_progress=False)


@pytest.mark.parametrize("position", ["first", "0", "-0", "3", "--2"])
def test_positions_that_do_not_exist(position):
    with pytest.raises(RefusalLensError) as caught:
        normalise_positions([position])
    assert str(caught.value) == (
        f"There is no position {position!r}. Use last, mean, instruction_mean, or -k for the k-th "
        "token from the end (-2, -3, ...)."
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
