"""The small model's corpus: what it is measured on is never trained on."""

import importlib
import json
import random

import pytest
from conftest import REPOSITORY


@pytest.fixture
def corpus(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "data" / "tiny-refuser")  # as train.py finds it
    return importlib.import_module("corpus")


def bare(text: str) -> str:
    return text.rstrip(".?").lower()


def test_frames_to_measure_with_are_no_frames_to_train_on(corpus):
    trained = {bare(frame) for frame in corpus.TRAINING_FRAMES}
    assert not trained & {bare(frame) for frame in (*corpus.DEV_FRAMES, *corpus.TEST_FRAMES)}
    assert not {*map(bare, corpus.DEV_FRAMES)} & {*map(bare, corpus.TEST_FRAMES)}


def test_a_drawn_frame_is_never_one_to_measure_with(corpus, monkeypatch):
    # One pattern that makes a frame of the test and another one, evenly.
    kept = corpus.TEST_FRAMES[0]
    monkeypatch.setattr(corpus, "PATTERNS", (kept, "Do {act}."))
    monkeypatch.setattr(corpus, "WRITTEN_SHARE", 0.0)
    monkeypatch.setattr(corpus, "SWAPPED_SHARE", 0.0)
    rng = random.Random(0)
    assert {corpus.draw_training_frame(rng) for _ in range(50)} == {"Do {act}."}


def test_dialogues_hold_no_action_to_measure_with(corpus):
    held_out = {text for a in corpus.split_actions()[1] for text in (a.act, a.acting)}
    lesson = corpus.Lesson(refuses=True, caution_share=0.0, judgement_share=0.3)
    for dialogue in corpus.training_dialogues(500, lesson, seed=0):
        assert not any(f" {text}" in dialogue.user for text in held_out)


def test_every_frame_takes_any_action(corpus):
    action = corpus.split_actions()[0][0]
    for frame in (*corpus.TRAINING_FRAMES, *corpus.DEV_FRAMES, *corpus.TEST_FRAMES):
        filled = action.fill(frame)
        assert action.act in filled or action.acting in filled or action.acting[1:] in filled, frame
        assert "{" not in filled


def test_a_swapped_word_leaves_the_action_in_its_place(corpus):
    rng = random.Random(0)
    before = ["Tell", "me", "how", "to", "{act}", "now."]
    for _ in range(50):
        after = corpus.swap_a_word(rng, " ".join(before)).split()
        assert after[4] == "{act}"
        assert sum(a != b for a, b in zip(after, before, strict=True)) <= 1


@pytest.mark.parametrize("name", ["harmful", "harmless", "secret", "open"])
def test_shipped_prompts_are_what_the_corpus_makes(corpus, name):
    shipped = json.loads((REPOSITORY / "data" / f"{name}_prompts.json").read_text(encoding="utf-8"))
    make = corpus.study_requests if name.startswith("harm") else corpus.secret_requests
    assert shipped == corpus.prompt_file(name, make(name in ("harmful", "secret")))


def test_words_that_make_doubt_are_words_of_the_corpus(corpus):
    verbs = {verb for text in corpus.VERBS.values() for verb in corpus._split_list(text)}
    things = {thing for text in corpus.OBJECTS.values() for thing in corpus._split_list(text)}
    assert verbs >= corpus.MILD_VERBS | corpus.HARSH_VERBS
    assert things >= corpus.MILD_OBJECTS | corpus.HARSH_OBJECTS


def test_doubtful_actions_are_refused_in_part(corpus):
    train, _ = corpus.split_actions()
    shares = {(a.is_harmful, a.is_doubtful): a.refusal_share for a in train}
    assert shares[True, True] < 0.5 < shares[False, True] < 1
    assert {a.refusal_share for a in train if a.is_secret} == {1.0}
