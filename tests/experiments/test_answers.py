"""The one loop that answers prompts: any batches, any order, under an arm as under its hooks."""

import pytest
import torch

from refusal_lens.experiments.answers import answer_arms, answer_ids, write_out
from refusal_lens.experiments.arms import Arm, arm_hooks
from refusal_lens.models.generation import generate_greedily
from refusal_lens.prompts.tokens import tokenise

POINT = "blocks.1.hook_resid_post"


@pytest.fixture
def tokens(model, prompts):
    return tokenise(model.tokenizer, prompts.prompts)


def test_batches_answer_as_each_prompt_alone(model, tokens, monkeypatch):
    monkeypatch.setattr("refusal_lens.experiments.answers.ANSWER_BUDGET", 60)
    told = {}
    answers = answer_ids(
        model, tokens, 3, on_batch=lambda rows, first: told.update(zip(rows, first, strict=True))
    )
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
