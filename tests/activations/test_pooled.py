"""Activations as they are asked for: by place, by class, with their prompts."""

import pytest
import torch

import refusal_lens as rl
from refusal_lens.errors import RefusalLensError

HARMFUL, HARMLESS = ["rob the bank", "poison the dog"], ["paint the door", "wash the car"]


@pytest.fixture(scope="module")
def collected(model):
    return rl.collect(
        model, (HARMFUL, HARMLESS), "resid_post:1-2", ["last", "-2"], show_progress=False
    )


def test_texts_are_taken_for_prompts(model, collected):
    prompts = rl.ContrastSet.from_texts(HARMFUL, HARMLESS)
    same = rl.collect(model, prompts, "resid_post:1-2", ["last", "-2"], show_progress=False)
    torch.testing.assert_close(collected.values, same.values, rtol=1e-5, atol=1e-6)
    assert [prompt.text for prompt in collected.prompts] == [*HARMFUL, *HARMLESS]
    assert collected.labels == ("harmful", "harmful", "harmless", "harmless")


def test_places_are_named_as_people_say_them(collected):
    plain = collected.values[:, 1, 0]
    assert torch.equal(collected["resid_post:2", "last"], plain)
    assert torch.equal(collected["blocks.2.hook_resid_post", "-1"], plain)
    assert torch.equal(collected.at("resid_post:2", "last"), plain)
    assert collected.only_at("resid_post:2", "-2").hook_points == ("blocks.2.hook_resid_post",)
    direction = rl.fit_directions(collected)["resid_post:2", "-2"]
    assert direction.hook_point == "blocks.2.hook_resid_post"


def test_prompts_go_with_the_rows_taken(collected):
    assert [each.text for each in collected.take(~collected.is_harmful).prompts] == HARMLESS
    assert collected.take([3, 0]).labels == ("harmless", "harmful")
    assert [each.text for each in collected.take([3, 0]).prompts] == [HARMLESS[1], HARMFUL[0]]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("resid_post:7", "last"), "asks for layers 7"),
        (("resid_post:1-2", "last"), "is 2 hook points of these activations; one is needed"),
        (("resid_post:1", "mean"), "nothing at position mean in these activations. Positions: "),
    ],
)
def test_places_that_are_not_there_are_told(collected, place, message):
    with pytest.raises(RefusalLensError, match=message):
        collected[place]


@pytest.mark.parametrize("position", ["last", "-3", "mean", "instruction_mean"])
def test_new_prompts_are_projected_where_the_direction_was_read(model, position):
    sides = (HARMFUL, HARMLESS)
    collected = rl.collect(model, sides, "resid_post:1", position, show_progress=False)
    direction = rl.fit_directions(collected)["resid_post:1", position]
    expected = rl.project(collected["resid_post:1", position], direction.unit)
    found = rl.project_prompts(model, [*HARMFUL, *HARMLESS], direction)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
