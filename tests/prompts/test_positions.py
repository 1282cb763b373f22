"""Where positions lie, and means without attention sinks, in closed form."""

import pytest
import torch
from conftest import make_tokenizer

from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.prompts.positions import (
    check_positions,
    find_sinks,
    make_pool,
    positions_read,
    token_span,
)
from refusal_lens.prompts.tokens import Tokens, tokenise

# Three prompts of 5, 3 and 1 tokens, one value a token; what is padding may be anything.
TOKENS = Tokens.of(["a", "b", "c"], [(1, 2, 3, 4, 5), (1, 6, 7), (1,)], [(1, 4), (1, 2), (0, 1)])
VALUES = torch.tensor(
    [
        [900.0, 2.0, 100.0, 4.0, 3.0],
        [5.0, 1.0, 3.0, 1e9, torch.inf],
        [7.0, torch.nan, 0.0, 0.0, 0.0],
    ]
)[..., None]


def test_mean_leaves_out_the_first_token_and_outsize_ones():
    # Medians of the prompts: 4, 3 and 7; 100 lies above ten times 4.
    read = make_pool(TOKENS, ["mean", "instruction_mean", "last"])(VALUES)
    assert read.values[..., 0].tolist() == [[3.0, 3.0, 3.0], [2.0, 1.0, 3.0], [7.0, 7.0, 7.0]]
    assert read.n_left_out.tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_kept_sinks_give_the_plain_mean():
    read = make_pool(TOKENS, ["mean"], sinks="kept")(VALUES)
    assert read.values[:2, 0, 0].tolist() == pytest.approx([1009 / 5, 3.0])
    assert read.n_left_out.sum() == 0


@pytest.mark.parametrize("n_before", [0, 1, 2])
def test_shared_beginning_is_part_of_the_prompt(n_before):
    tokens = Tokens.of(["a", "b"], [(1, 2, 3, 4), (1, 2, 5, 6)], [(2, 4)] * 2)
    values = torch.tensor([[80.0, 1.0, 2.0, 3.0], [80.0, 1.0, 90.0, 5.0]])[..., None]
    pool = make_pool(tokens, ["mean"], n_before)
    read = pool(values[:, n_before:], values[0, :n_before] if n_before else None)
    # Medians: 2 and 5 of the whole prompts.
    assert read.values.flatten().tolist() == [2.0, 3.0]
    assert read.n_left_out.flatten().tolist() == [1, 2]


def test_batch_does_not_change_what_is_a_sink():
    alone = [
        find_sinks(VALUES[row : row + 1, :n], torch.tensor([n])) for row, n in enumerate((5, 3, 1))
    ]
    together = find_sinks(VALUES, torch.tensor([5, 3, 1]))
    for row, expected in enumerate(alone):
        assert torch.equal(together[row, : expected.shape[1]], expected[0])


def test_norm_that_is_not_finite_shows_in_the_mean():
    values = torch.tensor([[1.0, 2.0, torch.inf]])[..., None]
    tokens = Tokens.of(["a"], [(1, 2, 3)], [(0, 3)])
    assert make_pool(tokens, ["mean"])(values).values.isinf().all()


def test_the_last_token_of_the_request_and_the_templates_tail_by_name():
    tokenizer = make_tokenizer()
    tokens = tokenise(tokenizer, [Prompt("p-1", "wash a car", "")])
    read = positions_read(tokenizer, tokens, ["instruction_last", "0", "1"])
    assert [row.tokens for row in read] == [" car", "<|im_end|>", "\n"]
    length, span = tokens.lengths[0], tokens.instruction_spans[0]
    # The tail's last token is the prompt's.
    assert token_span(str(length - span[1] - 1), length, span) == (length - 1, length)


@pytest.mark.parametrize(
    ("position", "span", "message"),
    [
        ("1", (1, 2), "its template's tail has 1 tokens"),
        ("instruction_last", (0, 0), "Position instruction_last has no tokens in prompt a"),
    ],
)
def test_a_position_that_a_prompt_has_not_is_refused_by_name(position, span, message):
    with pytest.raises(RefusalLensError, match=message):
        check_positions(Tokens.of(["a"], [(1, 2, 3)], [span]), [position], None)
