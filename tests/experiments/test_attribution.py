"""What components write sums to what stands in the stream, and a planted writer is found."""

import pandas as pd
import pytest
import torch
from conftest import ARCHITECTURES, HARMFUL, HARMLESS, save_checkpoint

from refusal_lens import ContrastSet, Prompt, PromptSet, collect, fit_directions, load_model
from refusal_lens.directions.direction import Direction, normalise, project
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.attribution import Component, attribute
from refusal_lens.prompts.tokens import tokenise

N_LAYERS, N_HEADS, D_MODEL = 4, 4, 32
PLACES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
POSITIONS = ("last", "-2", "mean", "instruction_mean")

pytestmark = pytest.mark.filterwarnings("ignore:No direction where:UserWarning")


def in_categories() -> ContrastSet:
    names = ("theft", "harm", "harm", "fraud")
    return ContrastSet(
        PromptSet("harmful", tuple(map(Prompt, "abcd", HARMFUL, names))),
        PromptSet("harmless", tuple(map(Prompt, "efgh", HARMLESS, ("care",) * 4))),
    )


def random_direction(hook_point: str, position: str = "last") -> Direction:
    vector = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5))
    return Direction(vector, hook_point, position, clip_quantile=None)


def attributed(model, direction, prompts=None):
    return attribute(model, prompts or in_categories(), direction, show_progress=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_components_sum_to_the_class_difference(tmp_path, architecture):
    save_checkpoint(tmp_path, architecture)
    model = load_model(tmp_path, device="cpu")
    # Norm weights and biases as trained models have them: at 1 and 0 they would hide mistakes.
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".w", ".b", "b_O", "b_out", "b_V")):
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 3)
    sites = [site for site in PLACES if f"blocks.2.hook_{site}" in model.hook_dict]
    prompts = in_categories()
    activations = collect(model, prompts, [f"{site}:2" for site in sites], POSITIONS)
    directions = fit_directions(activations)
    for direction in directions:
        found = attributed(model, direction, prompts)
        values = activations.at(direction.hook_point, direction.position)
        expected = project(values, direction.unit)
        torch.testing.assert_close(found.projections, expected, rtol=1e-4, atol=1e-4)
        size = found.contributions.abs().sum(1)
        missed = (found.contributions.sum(1) - found.projections).abs()
        assert (missed <= 1e-5 * size).all(), direction
        total = (expected[:4].mean() - expected[4:].mean()).item()
        assert found.difference().sum().item() == pytest.approx(total, rel=1e-4), direction
    assert len(list(directions)) == len(sites) * len(POSITIONS)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gptneox"])
def test_heads_are_those_of_transformer_lenss_own_results(tmp_path, architecture):
    save_checkpoint(tmp_path, architecture)
    model = load_model(tmp_path, device="cpu")
    direction = random_direction("blocks.2.hook_resid_post")
    found = attributed(model, direction)
    # The slow way: the vector that each head adds, at every position of one prompt.
    model.set_use_attn_result(True)
    prompts = in_categories()
    ids = tokenise(model.tokenizer, prompts.prompts).ids[1]
    _, cache = model.run_with_cache(torch.tensor([ids]))
    for layer in range(3):
        heads = cache[f"blocks.{layer}.attn.hook_result"][0, -1]
        if architecture == "gemma2":
            norm = model.blocks[layer].ln1_post
            heads = heads / cache[f"blocks.{layer}.ln1_post.hook_scale"][0, -1] * norm.w
        for head in range(N_HEADS):
            column = found.components.index(Component(f"blocks.{layer}.attn", layer, head))
            expected = (heads[head].detach() @ direction.unit).item()
            assert found.contributions[1, column].item() == pytest.approx(expected, rel=1e-4)


def test_planted_head_writes_everything(checkpoint):
    direction = random_direction("blocks.3.hook_resid_post")
    model = load_model(checkpoint, device="cpu")
    before = attributed(model, direction).to_frame().set_index(["component", "head"]).share
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            block.mlp.W_out.zero_()
            kept = block.attn.W_O[3].clone()
            block.attn.W_O.zero_()
            if layer == 2:
                block.attn.W_O[3] = kept
    frame = attributed(model, direction).to_frame()
    shares = frame[frame.category == ""].set_index(["component", "head"]).share
    # At the last position all prompts hold the same token: its embedding cancels.
    assert shares["blocks.2.attn", 3] == pytest.approx(1.0, abs=1e-5)
    assert shares.drop(("blocks.2.attn", 3)).abs().max() < 1e-6
    assert abs(before["blocks.2.attn", 3].iloc[0]) < 0.9


def test_embedding_writes_the_mean_position_of_the_first_layer(model):
    found = attributed(model, random_direction("blocks.0.hook_resid_pre", "mean"))
    assert found.components == (Component("embed"),)
    assert found.difference().item() == pytest.approx(found.total(), rel=1e-6)
    assert abs(found.total()) > 1e-3


def test_categories_are_set_against_all_harmless_prompts(model):
    found = attributed(model, random_direction("blocks.3.hook_resid_post"))
    assert found.harmful_categories == ("theft", "harm", "fraud")
    harmless = found.contributions[4:].mean(0)
    torch.testing.assert_close(
        found.difference("harm"), found.contributions[1:3].mean(0) - harmless
    )
    parts = [found.difference(name) for name in found.harmful_categories]
    # Categories of 1, 2 and 1 prompts make up the whole.
    torch.testing.assert_close((parts[0] + 2 * parts[1] + parts[2]) / 4, found.difference())
    with pytest.raises(RefusalLensError) as caught:
        found.total("care")
    assert str(caught.value) == (
        "No harmful prompt has the category 'care'. There are: theft, harm, fraud."
    )


def test_table_is_tidy_and_its_shares_sum_to_one(model):
    frame = attributed(model, random_direction("blocks.1.hook_resid_mid")).to_frame()
    assert list(frame.columns) == [
        *("hook_point", "position", "category", "component", "layer", "head"),
        *("contribution", "share"),
    ]
    # embed, bias, two layers of heads, one MLP; for all prompts and each of three categories.
    assert len(frame) == 4 * (2 + 2 * N_HEADS + 1)
    assert frame.groupby("category").share.sum().to_numpy() == pytest.approx(1.0, rel=1e-4)
    assert set(frame[frame["head"].isna()].component) == {"embed", "bias", "blocks.0.mlp"}
    pd.testing.assert_series_equal(
        frame[frame.component == "bias"].contribution * 0,
        frame[frame.component == "bias"].contribution,
    )


def test_batches_do_not_matter_and_the_model_is_left_as_it_was(model):
    direction = random_direction("blocks.3.hook_resid_post", "instruction_mean")
    prompts = in_categories()
    one = attribute(model, prompts, direction, token_budget=1, show_progress=False)
    many = attribute(model, prompts, direction, token_budget=4096, show_progress=False)
    torch.testing.assert_close(one.contributions, many.contributions, rtol=1e-4, atol=1e-4)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_half_precision_says_its_rounding_and_no_more(checkpoint):
    model = load_model(checkpoint, device="cpu", dtype="bfloat16")
    found = attributed(model, random_direction("blocks.3.hook_resid_post"))
    missed = (found.contributions.sum(1) - found.projections).abs()
    assert 0 < (missed / found.contributions.abs().sum(1)).max() < 0.02


def test_part_that_is_not_known_is_refused(model):
    direction = random_direction("blocks.3.hook_resid_post")
    add = ("blocks.1.hook_resid_post", lambda x, hook: x + 1000.0 * direction.unit)
    with (
        model.hooks(fwd_hooks=[add]),
        pytest.raises(RefusalLensError, match="do not add up to blocks.3.hook_resid_post in Qwen2"),
    ):
        attributed(model, direction)


@pytest.mark.parametrize(
    ("hook_point", "expected"),
    [
        (
            "blocks.1.ln1.hook_normalized",
            "blocks.1.ln1.hook_normalized is no sum of what components write. Take a direction at "
            "resid_pre, resid_mid, resid_post, attn_out or mlp_out.",
        ),
        (
            "blocks.9.hook_resid_post",
            "Direction(blocks.9.hook_resid_post, last, difference_of_means, d_model 32, length "
            "5.657) does not fit this model: {name} has 4 layers and d_model 32.",
        ),
    ],
)
def test_places_that_cannot_be_split(model, hook_point, expected):
    direction = Direction(normalise(torch.ones(D_MODEL)) * 32**0.5, hook_point, "last")
    with pytest.raises(RefusalLensError) as caught:
        attributed(model, direction)
    assert str(caught.value) == expected.format(name=model.cfg.model_name)


def test_bridge_is_refused(checkpoint):
    bridge = load_model(checkpoint, device="cpu", backend="bridge")
    with pytest.raises(RefusalLensError) as caught:
        attributed(bridge, random_direction("blocks.1.hook_resid_post"))
    assert str(caught.value) == (
        "Attribution reads weights and norms as HookedTransformer lays them out; this model runs "
        "on TransformerBridge. Load it with model.backend: hooked."
    )
