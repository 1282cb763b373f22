"""The one loop that answers prompts: any batches, any order, under an arm as under its hooks."""

import pytest
import torch

from refusal_lens.experiments.answers import (
    ANSWER_BUDGET,
    CUDA_ANSWER_BUDGET,
    answer_arms,
    answer_budget,
    answer_ids,
    write_out,
)
from refusal_lens.experiments.arms import Arm, arm_hooks
from refusal_lens.journal import Journal
from refusal_lens.models.generation import generate_greedily
from refusal_lens.prompts.tokens import tokenise

POINT = "blocks.1.hook_resid_post"


@pytest.fixture
def tokens(model, prompts):
    return tokenise(model.tokenizer, prompts.prompts)


def test_batches_answer_as_each_prompt_alone(model, tokens, monkeypatch):
    monkeypatch.setattr("refusal_lens.experiments.answers.ANSWER_BUDGET", 60)
    told = {}

    def keep(rows, first):
        told.update(zip(rows, first, strict=True))

    answers = answer_ids(model, tokens, 3, on_batch=keep)
    assert sorted(told) == list(range(len(tokens)))
    for row, answer in enumerate(answers):
        alone, first = generate_greedily(model, tokens.select([row]), 3)
        assert alone == [answer]
        torch.testing.assert_close(told[row], first[0], atol=1e-4, rtol=1e-4)


def test_an_arm_acts_as_its_hooks(model, tokens):
    vector = 30 * torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    arm = Arm("add", POINT, vector / vector.norm(), vector, torch.zeros_like(vector))
    answers = answer_ids(model, tokens, 3, arm)
    assert answers == answer_ids(model, tokens, 3, arm_hooks(model, [arm], 1))
    assert answers != answer_ids(model, tokens, 3)


def test_arms_that_share_a_batch_answer_as_each_alone(model, tokens, monkeypatch):
    monkeypatch.setattr("refusal_lens.experiments.answers.ANSWER_BUDGET", 90)
    generator = torch.Generator().manual_seed(0)

    def arm(intervention: str) -> Arm:
        vector, mean = 30 * torch.randn(2, model.cfg.d_model, generator=generator)
        return Arm(intervention, POINT, vector / vector.norm(), vector, mean)

    arms = [arm(name) for name in ("add", "add", "affine_ablate", "ablate")]
    asked = [(arm, row) for arm in arms for row in range(len(tokens)) if row != 1]
    done = []
    answers = answer_arms(model, tokens, asked, 3, done.append)
    assert sum(done) == len(asked)
    assert answers == [answer_ids(model, tokens.select([row]), 3, arm)[0] for arm, row in asked]
    assert len({tuple(answer) for answer in answers}) > 4, "the arms must do something"


def test_special_tokens_and_blanks_are_not_written(model):
    ids = model.tokenizer("  Sorry ", add_special_tokens=False)["input_ids"]
    assert write_out(model, [[*ids, model.tokenizer.eos_token_id]]) == ["Sorry"]


def largest(first):
    return first.max(dim=-1).values.tolist()


@pytest.mark.parametrize("is_under_arm", [False, True])
def test_an_interrupted_answering_goes_on_and_ends_with_the_same_bits(
    model, tokens, tmp_path, monkeypatch, is_under_arm
):
    monkeypatch.setattr("refusal_lens.experiments.answers.ANSWER_BUDGET", 60)
    vector = torch.ones(model.cfg.d_model)
    arm = Arm("add", POINT, vector, vector, vector) if is_under_arm else ()

    def ask(journal=None, stop_after=99):
        told = []

        def keep(rows, values):
            told.append((rows, values))
            if len(told) == stop_after:
                raise KeyboardInterrupt

        ids = answer_ids(model, tokens, 3, arm, score_first=largest, on_batch=keep, journal=journal)
        return ids, told

    whole = ask()
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(Journal(path), stop_after=2)
    asked = []

    def counted(model, tokens, *rest):
        asked.append(len(tokens))
        return generate_greedily(model, tokens, *rest)

    monkeypatch.setattr("refusal_lens.experiments.answers.generate_greedily", counted)
    assert ask(Journal(path)) == whole
    assert len(whole[1]) > 2
    assert len(asked) == len(whole[1]) - 2


def test_what_was_kept_is_not_taken_for_another_question(model, tokens, tmp_path):
    journal = Journal(tmp_path / "answers.jsonl")
    vector = torch.ones(model.cfg.d_model)
    some = tokens.select([0, 1])
    for arm in ((), Arm("add", POINT, vector, vector, vector)):
        for asked, n, score_key in (
            (some, 2, None),
            (some, 3, None),
            (some, 3, [1]),
            (tokens, 3, [1]),
        ):
            n_before = len(journal)
            answer_ids(
                model, asked, n, arm, score_first=largest, journal=journal, score_key=score_key
            )
            assert len(journal) > n_before
    # Any other hook may be anything.
    answer_ids(model, tokens, 4, [(POINT, lambda x, hook: x)], score_first=largest, journal=journal)
    assert len(journal) == 8


def test_batches_of_answers_are_as_large_as_the_memory_of_a_gpu_allows(model, monkeypatch):
    assert answer_budget(model) == ANSWER_BUDGET
    monkeypatch.setattr(model.cfg, "device", "cuda")
    cfg = model.cfg
    # Keys and values of 10,000 tokens are a quarter of what is free.
    n_heads = cfg.n_key_value_heads or cfg.n_heads
    free = 4 * 10_000 * 2 * cfg.n_layers * n_heads * cfg.d_head * 4
    for given, expected in [(free, 10_000), (100 * free, CUDA_ANSWER_BUDGET), (1, ANSWER_BUDGET)]:
        monkeypatch.setattr(
            "torch.cuda.mem_get_info", lambda device, given=given: (given, 2 * given)
        )
        assert answer_budget(model) == expected
