"""What is collected: tokenised once, with a fingerprint of every token."""

import pytest
from conftest import HARMFUL, HARMLESS, make_tokenizer

from refusal_lens import collect
from refusal_lens.activations import collection as module
from refusal_lens.activations.collection import Collection, frame
from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.tokens import Tokens, tokenise


def test_frame_begins_with_what_all_prompts_begin_with(model, prompts):
    tokens = tokenise(model.tokenizer, prompts.prompts)
    few = frame(tokens)
    assert len(few) <= 4
    assert few.shared_prefix() == tokens.shared_prefix() != ()
    assert max(few.lengths) == max(tokens.lengths)
    # The shortest prompt decides where it is a beginning of the others.
    ids = ((1, 2, 3, 4), (1, 2, 3), (1, 2, 3, 5), (1, 2, 3, 4, 5))
    nested = Tokens.of(tuple("abcd"), ids, ((0, 1),) * 4)
    assert frame(nested).shared_prefix() == nested.shared_prefix() == (1, 2)
    # Prompts of one length: the one that parts first decides.
    alike = Tokens.of(tuple("abc"), ((1, 2, 3), (1, 9, 3), (1, 2, 4)), ((0, 1),) * 3)
    assert frame(alike).shared_prefix() == alike.shared_prefix() == (1,)


def test_prompts_are_tokenised_once(model, prompts, monkeypatch, tmp_path):
    # Before: once to show them, once to look at all of them, once to read, and once for provenance.
    seen = []

    def spy(tokenizer, some, system_prompt):
        seen.extend(prompt.id for prompt in some)
        return tokenise(tokenizer, some, system_prompt)

    monkeypatch.setattr(module, "tokenise", spy)
    collect(model, prompts, folder=tmp_path, show_progress=False)
    assert seen == [prompt.id for prompt in prompts.prompts]


def test_key_sees_every_token_and_where_prompts_end(prompts):
    tokenizer = make_tokenizer()
    sets = [
        prompts,
        ContrastSet.from_texts(HARMFUL, [*HARMLESS[:-1], "Save honey?"]),
        ContrastSet.from_texts(HARMFUL[::-1], HARMLESS),
    ]
    keys = [Collection.of(tokenizer, each).key()["token_ids_sha256"] for each in sets]
    assert len(set(keys)) == 3
    assert Collection.of(tokenizer, prompts).key()["token_ids_sha256"] == keys[0]


def test_position_that_a_prompt_lacks_is_refused_before_a_model_is_needed(prompts):
    with pytest.raises(
        RefusalLensError, match="Position -99 is outside 8 of 8 prompts; the shortest"
    ):
        Collection.of(make_tokenizer(), prompts, positions="-99")


def test_labels_are_those_of_the_prompts(prompts):
    collection = Collection.of(make_tokenizer(), prompts)
    assert collection.labels(range(2, 6)).tolist() == list(prompts.is_harmful)[2:6]
