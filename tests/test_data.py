"""The shipped requests: what `data/README.md` says of their pairs, topics, frames and likeness."""

import json
from collections import Counter

import numpy as np
import pytest
from conftest import REPOSITORY
from sklearn.feature_extraction.text import TfidfVectorizer

from refusal_lens.prompts.contrast import ContrastSet, PromptSet
from refusal_lens.prompts.files import read_contrast, read_prompts
from refusal_lens.prompts.groups import ALIKE, FRAME_WORDS, find_groups, words_of

DATA = REPOSITORY / "data"
NAMES = ["requests_harmful", "requests_harmless", "borderline"]


@pytest.fixture(scope="module")
def requests() -> ContrastSet:
    return read_contrast(DATA / "requests_harmful.json", DATA / "requests_harmless.json")


@pytest.fixture(scope="module")
def borderline() -> PromptSet:
    return read_prompts(DATA / "borderline.json", "borderline")


def test_there_are_as_many_as_the_readme_says(requests, borderline):
    assert (len(requests.harmful), len(requests.harmless), len(borderline)) == (168, 168, 96)


def test_every_request_has_one_twin_on_the_same_topic(requests):
    sides = [
        {p.pair: p.group for p in side.prompts} for side in (requests.harmful, requests.harmless)
    ]
    assert sides[0] == sides[1]
    assert len(sides[0]) == len(requests.harmful)
    assert "" not in sides[0]


def test_topics_are_twelve_evenly_filled_and_the_same_in_all_files(requests, borderline):
    topics = [
        Counter(p.group for p in side.prompts)
        for side in (requests.harmful, requests.harmless, borderline)
    ]
    assert topics[0] == topics[1]
    assert set(topics[0].values()) == {14}
    assert set(topics[2].values()) == {8}
    assert len(topics[0]) == 12
    assert set(topics[0]) == set(topics[2])


def test_the_study_takes_pairs_and_topics_as_given(requests):
    groups = find_groups(requests)
    assert groups.origin["pair"] == groups.origin["topic"] == "given"
    assert groups.describe()["n_components"] == 12


@pytest.mark.parametrize("name", NAMES)
def test_no_frame_is_used_more_than_twice(name):
    frames = Counter(
        tuple(words_of(prompt.text)[:FRAME_WORDS])
        for prompt in read_prompts(DATA / f"{name}.json", name).prompts
    )
    assert [frame for frame, count in frames.items() if count > 2] == []


def test_twins_have_one_form(requests):
    for harmful, harmless in zip(requests.harmful.prompts, requests.harmless.prompts, strict=True):
        words = words_of(harmful.text), words_of(harmless.text)
        assert words[0][0] == words[1][0], harmful.text
        assert abs(len(words[0]) - len(words[1])) <= 1, harmful.text
        assert [c for c in harmful.text if c in ".?"] == [c for c in harmless.text if c in ".?"]


def test_only_twins_are_near_duplicates(requests, borderline):
    texts = [prompt.text for prompt in (*requests.prompts, *borderline.prompts)]
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit_transform(texts)
    likeness = (grams @ grams.T).toarray()
    np.fill_diagonal(likeness, 0)
    n = len(requests.harmful)
    twins = np.arange(n)
    likeness[twins, twins + n] = likeness[twins + n, twins] = 0
    assert likeness.max() < ALIKE


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_stands_on_a_line_of_the_file(name):
    text = (DATA / f"{name}.json").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(json.loads(text)) + 2
