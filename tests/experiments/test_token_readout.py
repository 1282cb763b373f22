"""What a direction says equals what the model's own modules make of it."""

import pytest
import torch
from conftest import save_checkpoint

from refusal_lens import collect, fit_directions, load_model
from refusal_lens.directions.direction import Direction, cosine_project, project
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.token_readout import project_tokens, read_unembedding

D_MODEL = 32


def random_direction(hook_point: str = "blocks.2.hook_resid_post") -> Direction:
    vector = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5))
    return Direction(vector, hook_point, "last", clip_quantile=None)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma2"])
def test_logits_are_those_of_the_final_norm_and_unembedding(tmp_path, architecture):
    save_checkpoint(tmp_path, architecture)
    model = load_model(tmp_path, device="cpu")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.ln_final.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / 3)
        model.unembed.b_U.add_(torch.randn(model.cfg.d_vocab, generator=generator))
    direction = random_direction()
    unit = direction.unit[None, None]
    # Through the model's own norm, whose scale is then taken out, and what stands there at zero.
    scales = []
    keep = ("ln_final.hook_scale", lambda scale, hook: scales.append(scale))
    with torch.no_grad(), model.hooks(fwd_hooks=[keep]):
        said = (
            model.unembed(model.ln_final(unit)) - model.unembed(model.ln_final(unit * 0))
        ) * scales[0]
    expected = (said - said.mean())[0, 0]
    found = read_unembedding(model, direction, n_tokens=7)
    top, bottom = expected.topk(7), expected.topk(7, largest=False)
    torch.testing.assert_close(found.top_logits, top.values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bottom_logits, bottom.values, rtol=1e-4, atol=1e-4)
    assert found.top_ids.tolist() == top.indices.tolist()
    assert found.bottom_ids.tolist() == bottom.indices.tolist()


def test_planted_token_comes_first_and_its_opposite_last(model):
    column = model.W_U.detach()[:, 77]
    forth = read_unembedding(model, Direction(column, "blocks.3.hook_resid_post", "last"))
    back = read_unembedding(model, Direction(-column, "blocks.3.hook_resid_post", "last"))
    assert forth.top_ids[0] == back.bottom_ids[0] == 77
    assert forth.top_tokens[0] == model.tokenizer.decode([77])
    torch.testing.assert_close(forth.top_logits, -back.bottom_logits)
    frame = forth.to_frame()
    assert list(frame.columns) == [
        *("hook_point", "position", "rank", "end", "token_id", "token", "logit")
    ]
    assert frame.iloc[0][["rank", "end", "token_id"]].tolist() == [1, "top", 77]
    assert frame[frame.end == "bottom"].logit.is_monotonic_increasing


def test_chunks_of_the_vocabulary_do_not_matter(model, monkeypatch):
    whole = read_unembedding(model, random_direction())
    monkeypatch.setattr("refusal_lens.experiments.token_readout.VOCABULARY_CHUNK", 50)
    torch.testing.assert_close(read_unembedding(model, random_direction()).top_ids, whole.top_ids)


def test_every_token_is_projected_at_each_hook_point(model, prompts, activations):
    directions = [each for each in fit_directions(activations) if each.position == "last"][1:3]
    found = project_tokens(model, prompts.prompts[2], directions)
    _, cache = model.run_with_cache(torch.tensor([found.token_ids]))
    for column, direction in enumerate(directions):
        stream = cache[direction.hook_point][0].detach()
        unit = direction.unit
        torch.testing.assert_close(
            found.projections[:, column], project(stream, unit), rtol=1e-4, atol=1e-4
        )
        cosines = cosine_project(stream, unit)
        torch.testing.assert_close(found.cosines[:, column], cosines, rtol=1e-4, atol=1e-4)
        last = activations.at(direction.hook_point, "last")[2]
        torch.testing.assert_close(
            found.projections[-1, column], project(last, unit), rtol=1e-4, atol=1e-4
        )
    assert "".join(found.tokens).endswith("<|im_start|>assistant\n")
    of_text = project_tokens(model, prompts.prompts[2].text, directions[0])
    assert of_text.token_ids == found.token_ids
    assert torch.equal(of_text.projections, found.projections[:, :1])


def test_prompt_table_is_tidy(model, prompts, activations):
    directions = [each for each in fit_directions(activations) if each.position == "mean"]
    found = project_tokens(model, prompts.prompts[0], directions)
    frame = found.to_frame()
    assert list(frame.columns) == [
        *("prompt_id", "index", "token_id", "token", "hook_point", "projection", "cosine")
    ]
    assert len(frame) == len(found.token_ids) * len(directions)
    row = frame[(frame["index"] == 5) & (frame.hook_point == directions[1].hook_point)].iloc[0]
    assert row.projection == pytest.approx(found.projections[5, 1].item())
    assert row.token == found.tokens[5]


def test_two_directions_of_one_hook_point_are_refused(model, prompts, activations):
    directions = list(fit_directions(activations))[-2:]
    with pytest.raises(RefusalLensError, match=r"^Give one direction a hook point"):
        project_tokens(model, prompts.prompts[0], directions)


def test_direction_of_another_model_is_refused(model):
    with pytest.raises(RefusalLensError) as caught:
        read_unembedding(model, Direction(torch.ones(8), "blocks.1.hook_resid_post", "last"))
    assert str(caught.value) == (
        "The direction has 8 components; this model's stream has 32. Take a direction of this "
        "model."
    )


def test_bridge_is_refused(checkpoint, prompts):
    bridge = load_model(checkpoint, device="cpu", backend="bridge")
    with pytest.raises(RefusalLensError, match="The unembedding reads weights and norms as"):
        read_unembedding(bridge, random_direction())


@pytest.mark.parametrize("place", ["resid_post:2", "hook_z:2.1", "hook_result:2.1"])
def test_positions_of_collect_are_rows_of_the_projection(model, prompts, place):
    activations = collect(model, prompts, place, ["-3", "mean"], sinks="kept", show_progress=False)
    for position, pick in (("-3", lambda rows: rows[-3]), ("mean", lambda rows: rows.mean(0))):
        direction = fit_directions(activations, clip_quantile=None)[place, position]
        tokens = project_tokens(model, prompts.prompts[5], [direction])
        values = activations.at(direction.hook_point, position)[5]
        expected = project(values, direction.unit)
        torch.testing.assert_close(pick(tokens.projections)[0], expected, rtol=1e-4, atol=1e-4)
