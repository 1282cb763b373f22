"""Greedy answers are Hugging Face's, of either backend, and end where a turn ends."""

import pytest
import torch
from conftest import ARCHITECTURES, save_checkpoint

from refusal_lens.models.generation import generate_greedily
from refusal_lens.models.loading import load_model
from refusal_lens.prompts.tokens import tokenise


@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
def test_greedy_answers_equal_hugging_faces(tmp_path, architecture, prompts):
    hf_model = save_checkpoint(tmp_path, architecture)
    model = load_model(tmp_path, device="cpu")
    tokens = tokenise(model.tokenizer, prompts.prompts)
    assert len(set(tokens.lengths)) > 1  # so that there is padding to get wrong
    got, first_logits = generate_greedily(model, tokens, 8)
    eos = model.tokenizer.eos_token_id
    for row, ids in enumerate(tokens.ids):
        expected = hf_model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=eos,
        )[0, len(ids) :].tolist()
        assert got[row] == expected[: expected.index(eos)] if eos in expected else expected
        with torch.no_grad():
            logits = hf_model(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(first_logits[row], logits, rtol=1e-3, atol=1e-3)


def test_bridge_answers_like_the_hooked_model(checkpoint, prompts):
    answers = []
    for backend in ("hooked", "bridge"):
        model = load_model(checkpoint, device="cpu", backend=backend)
        answers.append(generate_greedily(model, tokenise(model.tokenizer, prompts.prompts), 4)[0])
    assert answers[0] == answers[1]


def test_answers_stop_before_every_end_of_turn_id(model, prompts):
    tokens = tokenise(model.tokenizer, prompts.prompts)
    free, _ = generate_greedily(model, tokens, 6)
    third = free[0][2]
    record = model.load_record
    try:
        model.load_record = type(record)(
            **{**vars(record), "eos_token_ids": (third, model.tokenizer.eos_token_id)}
        )
        stopped, _ = generate_greedily(model, tokens, 6)
    finally:
        model.load_record = record
    assert stopped[0] == free[0][: free[0].index(third)]
