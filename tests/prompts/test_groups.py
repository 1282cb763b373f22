"""Pairs, topics and frames: given, found, or left alone."""

from dataclasses import replace

import pytest
import torch
from conftest import REPOSITORY

from refusal_lens import ContrastSet, RefusalLensError, read_contrast
from refusal_lens.prompts.contrast import Prompt, PromptSet
from refusal_lens.prompts.groups import FACTORS, Groups, find_groups, join, n_groups, take_whole


def shipped(harmful: str, harmless: str, **options) -> ContrastSet:
    data = REPOSITORY / "data"
    return read_contrast(data / f"{harmful}.json", data / f"{harmless}.json", **options)


def bare(prompts: ContrastSet) -> ContrastSet:
    """The same texts, without a word on what belongs together."""
    return ContrastSet.from_texts(prompts.harmful.texts, prompts.harmless.texts)


SHIPPED = ("harmful_prompts", "harmless_prompts")
TOPICS = ("censored_topics", "neutral_topics")


def test_shipped_prompts_say_their_pairs_and_topics():
    groups = find_groups(shipped(*SHIPPED, grouping="given"))
    assert torch.equal(groups.pair, torch.arange(384) % 192)
    assert groups.describe() == {
        "pair": {"origin": "given", "n": 192},
        "topic": {"origin": "category", "n": 32},
        "frame": {"origin": "none", "n": 384},
        "n_components": 16,
    }


def test_a_limit_takes_pairs_and_topics_whole():
    whole = shipped(*SHIPPED, grouping="given")
    some = take_whole(whole, 60)
    assert len(some.harmful) == len(some.harmless) == 60
    assert len(take_whole(whole, 71).harmful) <= 71
    component = find_groups(whole).component.tolist()
    taken = {prompt.id for prompt in some.prompts}
    inside = {c for c, prompt in zip(component, whole.prompts, strict=True) if prompt.id in taken}
    assert all(
        (c in inside) == (p.id in taken) for c, p in zip(component, whole.prompts, strict=True)
    )


def test_a_limit_below_every_topic_says_how_many_the_smallest_has():
    with pytest.raises(RefusalLensError, match="the smallest has 12 of a class. Raise it"):
        take_whole(shipped(*SHIPPED, grouping="given"), 11)


@pytest.mark.parametrize("files", [SHIPPED, TOPICS])
def test_twins_of_aligned_files_are_found_in_their_texts(files):
    prompts = shipped(*files)
    found, given = find_groups(bare(prompts)), find_groups(replace(prompts, grouping="given"))
    # Near-duplicates may join pairs; no pair is ever torn apart.
    assert torch.equal(join(found.pair, given.pair), found.pair)
    assert n_groups(found.pair) >= 0.95 * n_groups(given.pair)
    assert found.origin["pair"] == "found"


@pytest.mark.parametrize("files", [SHIPPED, TOPICS])
def test_files_that_are_not_aligned_have_no_pairs(files):
    prompts = shipped(*files)
    texts = prompts.harmless.texts
    groups = find_groups(ContrastSet.from_texts(prompts.harmful.texts, texts[7:] + texts[:7]))
    assert n_groups(groups.pair) >= 0.97 * len(prompts)


def test_texts_of_one_frame_in_any_order_are_no_pairs():
    acts = [
        f"{verb} a {thing}"
        for verb in ("paint", "lift", "draw")
        for thing in ("house", "boat", "tree", "lamp", "wheel", "garden")
    ]
    sides = (
        [f"How do I {act} today?" for act in acts],
        [f"How do I {act} now?" for act in reversed(acts)],
    )
    assert find_groups(ContrastSet.from_texts(*sides)).origin["topic"] == "none"


def test_near_duplicates_are_joined_within_and_across_classes():
    text = "Please explain how the old clock on the tower works number {}"
    harmful = [text.format(1), text.format(2), "Sell a stolen bicycle to a stranger"]
    harmless = [text.format(3), "Where do swallows spend the winter?"]
    groups = find_groups(ContrastSet.from_texts(harmful, harmless))
    assert groups.pair.tolist() == [0, 0, 1, 0, 2]


def test_frames_are_topics_where_nothing_is_said():
    frames = ("Write a short poem on", "Tell me something of", "List five facts about")
    harmful = [f"{frame} {word}" for frame in frames for word in ("knives", "poison", "bombs")]
    harmless = [
        f"What is the price of {word} in {town}?"
        for word in ("bread", "rice", "wine")
        for town in ("Lima", "Oslo")
    ]
    groups = find_groups(ContrastSet.from_texts(harmful, harmless))
    assert groups.origin["topic"] == "found"
    assert groups.topic[:9].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_groups_go_before_categories():
    sides = [
        PromptSet(
            name,
            tuple(
                Prompt(f"{name}-{i}", f"{name} {word}", "c", "", group)
                for i, (word, group) in enumerate(rows)
            ),
        )
        for name, rows in (
            ("harmful", (("x", "a"), ("y", "a"), ("z", ""))),
            ("harmless", (("u", "b"), ("v", "a"))),
        )
    ]
    groups = find_groups(ContrastSet(*sides, "given"))
    assert groups.topic.tolist() == [0, 0, 1, 2, 0]
    assert groups.origin["topic"] == "given"


def test_one_category_a_class_is_no_topic():
    sides = [
        PromptSet(name, tuple(Prompt(f"{name}-{i}", f"{name} {i}", name) for i in range(3)))
        for name in ("harmful", "harmless")
    ]
    assert find_groups(ContrastSet(*sides, "given")).origin["topic"] == "none"


def test_off_takes_all_prompts_as_independent():
    groups = find_groups(shipped(*SHIPPED, grouping="off"))
    assert all(n_groups(getattr(groups, name)) == 384 for name in FACTORS)
    assert n_groups(groups.component) == 384


def test_components_join_what_pairs_and_topics_join():
    groups = Groups(torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 1, 2]), torch.arange(4))
    assert groups.component.tolist() == [0, 1, 1, 0]
    assert groups.take([0, 3]).component.tolist() == [0, 0]
