"""What a notebook has of both classes is taken as it is: texts, token ids, caches."""

import pytest
import torch
from conftest import HARMFUL, HARMLESS

import refusal_lens as rl
from refusal_lens.activations.sides import split_sides
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.loading import load_model
from refusal_lens.prompts.tokens import tokenise

PLACES = (["resid_post:1-2", "hook_result:2.1"], ["last", "-2", "mean"])
QUIET = {"show_progress": False}


@pytest.fixture(scope="module")
def expected(model):
    return rl.collect(model, (HARMFUL, HARMLESS), *PLACES, **QUIET)


@pytest.fixture(scope="module")
def ids(model):
    """The token ids of both classes, a tensor a prompt, as the template writes them out."""
    sides = rl.ContrastSet.from_texts(HARMFUL, HARMLESS)
    return tuple(
        [torch.tensor(row) for row in tokenise(model.tokenizer, side.prompts).ids]
        for side in (sides.harmful, sides.harmless)
    )


def assert_same(found, expected):
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-5)
    assert (found.hook_points, found.positions) == (expected.hook_points, expected.positions)
    assert torch.equal(found.is_harmful, expected.is_harmful)


def test_two_lists_of_texts_are_two_arguments(model, expected):
    assert_same(rl.collect(model, HARMFUL, HARMLESS, *PLACES, **QUIET), expected)
    hook_points, positions = PLACES
    named = {"hook_points": hook_points, "positions": positions}
    assert_same(rl.collect(model, HARMFUL, HARMLESS, **named, **QUIET), expected)
    contrast = rl.ContrastSet.from_texts(HARMFUL, HARMLESS)
    assert_same(rl.collect(model, contrast, **named, **QUIET), expected)
    sides = contrast.harmful, contrast.harmless
    found = rl.collect(model, *sides, hook_points, positions=positions, **QUIET)
    assert_same(found, expected)
    assert [prompt.text for prompt in found.prompts] == [*HARMFUL, *HARMLESS]


def test_token_ids_are_read_as_they_are(model, expected, ids):
    found = rl.collect(model, *ids, *PLACES, **QUIET)
    assert_same(found, expected)
    assert HARMFUL[0] in found.prompts[0].text
    plain = [row.tolist() for row in ids[0]], [row.tolist() for row in ids[1]]
    assert_same(rl.collect(model, *plain, *PLACES, **QUIET), expected)
    block = torch.arange(60).reshape(2, 5, 6)  # a tensor a class
    assert rl.collect(model, *block, **QUIET).values.shape == (10, 4, 1, 32)


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_caches_are_pooled_as_a_collection_is(checkpoint, expected, ids, backend):
    model = load_model(checkpoint, device="cpu", backend=backend)
    for row in range(4):
        caches = [model.run_with_cache(side[row][None])[1] for side in ids]
        found = rl.collect(model, *caches, *PLACES)
        torch.testing.assert_close(
            found.values, expected.values[[row, row + 4]], rtol=1e-4, atol=1e-5
        )
        assert found.labels == ("harmful", "harmless")
    assert rl.fit_directions(found)["hook_result:2.1", "mean"].vector.shape == (32,)


def test_prompts_come_back_from_a_store(model, tmp_path):
    stored = rl.collect(model, HARMFUL, HARMLESS, "resid_post:1", folder=tmp_path, **QUIET)
    loaded = rl.load_activations(tmp_path)
    assert loaded.prompts == stored.prompts
    assert [prompt.text for prompt in loaded.prompts] == [*HARMFUL, *HARMLESS]
    path = tmp_path / "prompts.json"
    path.write_text(path.read_text(encoding="utf-8").replace("steal", "paint"), encoding="utf-8")
    with pytest.raises(RefusalLensError, match=r"prompts\.json is not what was written"):
        rl.load_activations(tmp_path)


@pytest.mark.parametrize("prompts", [["a", "b"], ("a", "b"), None, [], "a"])
def test_one_class_alone_is_refused(model, prompts):
    for rest in ((), ("resid_post:3",)):
        with pytest.raises(RefusalLensError, match="collect needs both classes: a ContrastSet, or"):
            rl.collect(model, prompts, *rest)


def test_kinds_do_not_mix(model, ids):
    with pytest.raises(RefusalLensError, match="of one kind .* but list and Tensor came"):
        rl.collect(model, HARMFUL, torch.stack([row[-6:] for row in ids[1]]))


def test_places_are_said_once(model):
    for arguments, named in (
        (("last", "last", "last"), {}),
        (("resid_post",), {"hook_points": "resid_mid"}),
        (("resid_post", "last"), {"positions": "mean"}),
    ):
        with pytest.raises(RefusalLensError, match="each once"):
            rl.collect(model, HARMFUL, HARMLESS, *arguments, **named)


@pytest.mark.parametrize("row", [[0.5, 1.0], [], ["a"], 3])
def test_what_are_no_token_ids_is_said(model, row):
    with pytest.raises(RefusalLensError, match="rows of whole numbers"):
        rl.collect(model, [[1, 2, 3], row], [[1, 2], [3, 4]])


def test_what_ids_and_caches_do_not_say_is_refused(model, ids):
    cache = model.run_with_cache(ids[0][0], names_filter="blocks.1.hook_resid_post")[1]
    whole = model.run_with_cache(ids[0][0], remove_batch_dim=True)[1]
    for sides in (ids, (cache, cache)):
        with pytest.raises(RefusalLensError, match="Position instruction_mean is counted from"):
            rl.collect(model, *sides, "resid_post:1", "instruction_mean")
    with pytest.raises(RefusalLensError, match="no system prompt can be put before them"):
        rl.collect(model, *ids, system_prompt="Be kind.")
    with pytest.raises(RefusalLensError, match="only hook points, positions and sinks"):
        rl.collect(model, cache, cache, folder="here")
    with pytest.raises(RefusalLensError, match=r"does not hold blocks\.2\.hook_resid_post"):
        rl.collect(model, cache, cache, "resid_post:2")
    with pytest.raises(RefusalLensError, match=r"has no batch at blocks\.2\.hook_resid_post"):
        rl.collect(model, whole, whole, "resid_post:2")


def test_a_pair_of_texts_is_no_pair_of_sides():
    assert split_sides(("a", "b"), (["c"], "resid_post"))[1] == ("resid_post",)
