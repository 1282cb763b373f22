"""Refusal: the judge, the score in closed form, and greedy answers as Hugging Face gives them."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.special import logit

from refusal_lens.config import FIRST_WORDS, RefusalConfig
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.judges import agree
from refusal_lens.experiments.refusal import (
    Answer,
    RefusalReport,
    discover_refusal_tokens,
    find_refusal_tokens,
    measure_refusal,
    refusal_score,
)
from refusal_lens.experiments.refusal_states import describe_state
from refusal_lens.models.loading import load_model
from refusal_lens.prompts.files import read_contrast
from refusal_lens.prompts.tokens import tokenise
from refusal_lens.validation.shares import wilson_interval


def test_score_equals_the_logit_of_the_summed_probability():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(-1)[:, [3, 7]].sum(-1)
    torch.testing.assert_close(refusal_score(logits, [3, 7]), torch.from_numpy(logit(p.numpy())))


def test_score_keeps_its_digits_where_the_probability_is_all_but_one():
    logits = torch.tensor([[60.0, 0.0]])
    assert refusal_score(logits, [0]).item() == pytest.approx(60.0)
    # Before: 1 - p is zero in double precision, and the log-odds infinite.
    p = logits.double().softmax(-1)[0, 0]
    assert math.isinf((p.log() - (1 - p).log()).item())


def test_report_keeps_the_order_of_the_prompts(model, prompts, monkeypatch):
    monkeypatch.setattr("refusal_lens.experiments.answers.ANSWER_BUDGET", 60)
    settings = RefusalConfig(n_new_tokens=2, first_words=["I"])
    report = measure_refusal(model, prompts, settings, show_progress=False)
    assert [a.prompt_id for a in report.answers] == [p.id for p in prompts.prompts]
    assert [a.is_harmful for a in report.answers] == list(prompts.is_harmful)
    assert report.state == "unclear"


def make_report(n_harmful_refused: int, n_harmless_refused: int, n: int = 10) -> RefusalReport:
    """So many of the first prompts of each class refused, and the others answered."""
    refused = {True: n_harmful_refused, False: n_harmless_refused}
    return RefusalReport(
        tuple(
            Answer(
                "p",
                "c",
                is_harmful,
                "q",
                "a",
                "refused" if i < refused[is_harmful] else "answered",
                float(i),
            )
            for is_harmful in (True, False)
            for i in range(n)
        ),
        ("I",),
    )


def test_rates_and_scores_are_by_class():
    report = make_report(8, 1)
    assert (report.rate(True), report.rate(False)) == (0.8, 0.1)
    assert report.mean_score(True) == 4.5


def test_refusal_tokens_are_the_first_of_each_word(model):
    ids = find_refusal_tokens(model, ["How", "How do", "Tell"])
    assert len(ids) == len(set(ids))
    first = model.tokenizer("How", add_special_tokens=False)["input_ids"][0]
    assert ids[0] == first


def test_no_first_words_is_an_error(model):
    with pytest.raises(RefusalLensError, match="refusal.first_words is empty"):
        find_refusal_tokens(model, [])


# --- intervals, agreement, judges, found tokens -------------------------------------------------


def test_intervals_of_rates_go_by_topic_and_say_where_they_cannot():
    of_topics = [Answer("p", "c", True, "q", "a", "refused", 0.0, topic=f"{i}") for i in range(5)]
    answered = [replace(each, outcome="answered") for each in of_topics]
    harmless = [replace(each, is_harmful=False) for each in answered]
    twice = RefusalReport((*of_topics, *answered, *harmless), ("I",))
    # Each topic has one of either: nothing is known to differ between topics, but there are 5.
    assert twice.interval(True)[1] > wilson_interval(5, 10)[1]
    two = tuple(replace(each, topic=str(i % 2)) for i, each in enumerate(twice.answers))
    few = replace(twice, answers=two)
    assert few.interval(True) == wilson_interval(5, 10)
    assert "fewer than 5 topics are too few to go by" in describe_state(few).sentence
    assert "too few to go by" not in describe_state(twice).sentence


@pytest.mark.parametrize(
    ("refused", "of", "state", "is_told_apart"),
    [
        ((0, 0), 100, "none", False),
        ((2, 0), 100, "none", False),
        ((100, 100), 100, "all", False),
        # Of these three a gap of 0.5 made "no refusal to find".
        ((49, 0), 100, "partial", True),
        ((85, 40), 100, "partial", True),
        ((98, 50), 100, "partial", True),
        ((50, 50), 100, "partial", False),
        ((100, 2), 100, "contrast", True),
        ((80, 5), 100, "contrast", True),
        ((0, 0), 10, "unclear", False),
        ((1, 0), 10, "unclear", False),
        # Before: "partial", although nothing speaks against a whole contrast.
        ((2, 0), 2, "unclear", True),
        ((10, 1), 11, "unclear", True),
        ((10, 0), 10, "contrast", True),
    ],
)
def test_states_go_by_intervals(refused, of, state, is_told_apart):
    report = make_report(*refused, of)
    assert (report.state, report.is_told_apart) == (state, is_told_apart)


def test_what_a_judge_failed_on_is_in_no_rate():
    answers = [
        Answer(str(i), "c", is_harmful, "q", "a", outcome, 0.0)
        for is_harmful in (True, False)
        for i, outcome in enumerate(["refused", "broken", "evaded", "unjudged"])
    ]
    report = RefusalReport(tuple(answers), ("I",))
    assert report.n_judged(True) == 3
    assert report.rate(True) == report.rate(True, "broken") == pytest.approx(1 / 3)
    nothing = RefusalReport((replace(answers[0], outcome="unjudged"),), ("I",))
    assert math.isnan(nothing.rate(True))
    assert nothing.interval(True) == (0, 1)


def test_threshold_of_the_score_lies_between_refused_and_answered():
    def report(scores: list[float], refused: list[bool]) -> RefusalReport:
        pairs = zip(scores, refused, strict=True)
        answers = [
            Answer("p", "c", True, "q", "a", "refused" if r else "answered", s) for s, r in pairs
        ]
        return RefusalReport(tuple(answers), ("I",))

    # All scores are negative, and yet they tell refusals from answers.
    assert report([-1.0, -2.0, -4.0, -5.0], [True, True, False, False]).score_threshold == (-3, 1)
    threshold, youden = report([2.0, 1.0, 0.0, -1.0], [True, False, True, False]).score_threshold
    assert youden == pytest.approx(0.5)
    assert threshold in (1.5, -0.5)
    assert report([1.0, 2.0], [False, False]).score_threshold == (0, 0)


def test_agreement_of_score_and_judge():
    full = agree([1.0, 2.0, -1.0, -3.0], [True, True, False, False])
    assert (full.share, full.kappa) == (1.0, 1.0)
    chance = agree([1.0, -2.0, 1.0, -3.0], [True, True, False, False])
    assert (chance.share, chance.kappa) == (0.5, 0.0)
    assert math.isnan(agree([1.0, 2.0], [True, False]).kappa)


def test_any_callable_can_judge(model, prompts):
    report = measure_refusal(
        model,
        prompts,
        RefusalConfig(n_new_tokens=2),
        judge=lambda prompt, answer: prompt in {p.text for p in prompts.harmful},
        show_progress=False,
    )
    assert (report.rate(True), report.rate(False)) == (1.0, 0.0)


def test_refusal_tokens_are_found_where_answers_begin_otherwise(model, prompts, monkeypatch):
    tokens = tokenise(model.tokenizer, prompts.prompts)
    # Planted: harmful answers begin with 5 or 9, harmless ones with 7, and both with 3.
    p_harmful, p_harmless = torch.full((2, len(model.tokenizer)), 1e-6)
    p_harmful[[5, 9, 3]] = torch.tensor([0.5, 0.1, 0.3])
    p_harmless[[7, 9, 3]] = torch.tensor([0.5, 0.01, 0.3])

    def answer(_, some, n_new_tokens, hooks=()):
        is_harmful = [prompt_id.startswith("harmful") for prompt_id in some.prompt_ids]
        rows = [(p_harmful if h else p_harmless).log() for h in is_harmful]
        return [[]] * len(rows), torch.stack(rows)

    monkeypatch.setattr("refusal_lens.experiments.answers.generate_greedily", answer)
    assert discover_refusal_tokens(model, tokens, prompts.is_harmful) == (5, 9)
    shuffled = [i % 2 == 0 for i in range(len(tokens))]
    assert discover_refusal_tokens(model, tokens, shuffled) == ()


def test_found_tokens_are_not_used_where_nothing_is_refused(model, prompts, monkeypatch):
    monkeypatch.setattr("refusal_lens.experiments.refusal.discover_refusal_tokens", lambda *_: (5,))
    unused = measure_refusal(model, prompts, RefusalConfig(n_new_tokens=2), show_progress=False)
    assert unused.refusal_ids == find_refusal_tokens(model, FIRST_WORDS)


def test_answers_can_be_given_under_hooks(model, prompts):
    shift = [("blocks.2.hook_resid_post", lambda x, hook: x + 30 * x.new_ones(32))]

    def first_answers(hooks):
        settings = RefusalConfig(n_new_tokens=3, first_words=["I"])
        report = measure_refusal(model, prompts, settings, hooks=hooks, show_progress=False)
        return [answer.answer for answer in report.answers]

    before = first_answers([])
    assert first_answers(shift) != before
    assert first_answers([]) == before


def test_topics_are_counted_with_intervals_harmful_and_most_refused_first():
    outcomes = {
        ("kind", False): ["answered"] * 3 + ["refused"],
        ("mild", True): ["refused"] * 2 + ["answered"] * 2 + ["unjudged"],
        ("grave", True): ["refused"] * 4,
    }
    answers = [
        Answer(f"{topic}{i}", topic, is_harmful, "q", "a", outcome, 0.0, topic=topic)
        for (topic, is_harmful), each in outcomes.items()
        for i, outcome in enumerate(each)
    ]
    table = RefusalReport(tuple(answers), ("I",)).by_topic()
    assert table["name"].tolist() == ["grave", "mild", "kind"]
    assert table["refusal_rate"].tolist() == [1, 0.5, 0.25]
    assert table["n_prompts"].tolist() == [4, 4, 4]
    ends = table[["refusal_rate_low", "refusal_rate_high"]].to_numpy().tolist()
    assert ends == [list(wilson_interval(n, 4)) for n in (4, 2, 1)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_bfloat16_refuses_as_float32_does():
    # cuDNN's attention ended here with a misaligned address.
    contrast = read_contrast("data/harmful_prompts.json", "data/harmless_prompts.json")
    wide, narrow = (
        measure_refusal(load_model("data/tiny-refuser", device="cuda", dtype=dtype), contrast)
        for dtype in ("float32", "bfloat16")
    )
    # Of 192 one is a near tie: .932 and .938 on an H200.
    assert abs(wide.rate(is_harmful=True) - narrow.rate(is_harmful=True)) < 2 / 192
