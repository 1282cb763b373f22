"""One pass over the prompts: what it keeps stands for all of them."""

import pytest
from conftest import CHATML, HARMFUL, HARMLESS, make_tokenizer

from refusal_lens.activations import first_pass as module
from refusal_lens.activations.first_pass import frame, survey
from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.tokens import Tokens, tokenise


def keep(tokens: Tokens) -> None:
    """Refuse nothing."""


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


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_chunks_change_nothing(monkeypatch, prompts, chunk):
    tokenizer = make_tokenizer()
    whole = tokenise(tokenizer, prompts.prompts)
    expected = survey(tokenizer, prompts, None, keep)
    monkeypatch.setattr(module, "CHUNK_PROMPTS", chunk)
    seen: list[str] = []
    got = survey(tokenizer, prompts, None, lambda tokens: seen.extend(tokens.prompt_ids))
    assert tuple(seen) == whole.prompt_ids
    assert got.ids_sha256 == expected.ids_sha256
    assert got.checksums.tolist() == expected.checksums.tolist()
    assert got.frame.shared_prefix() == whole.shared_prefix() != ()
    assert max(got.frame.lengths) == max(whole.lengths)


def test_tokens_are_those_of_all_prompts_at_once(prompts):
    tokenizer = make_tokenizer()
    whole = tokenise(tokenizer, prompts.prompts, "Be kind.")
    got = survey(tokenizer, prompts, "Be kind.", keep).tokens(range(2, 7))
    assert list(got.ids) == list(whole.ids)[2:7]
    assert list(got.instruction_spans) == list(whole.instruction_spans)[2:7]
    assert got.prompt_ids == whole.prompt_ids[2:7]


def test_fingerprint_sees_every_token_and_where_prompts_end(prompts):
    tokenizer = make_tokenizer()
    first = survey(tokenizer, prompts, None, keep)
    others = [
        ContrastSet.from_texts(HARMFUL, [*HARMLESS[:-1], "Save honey?"]),
        ContrastSet.from_texts(HARMFUL[::-1], HARMLESS),
    ]
    hashes = {survey(tokenizer, other, None, keep).ids_sha256 for other in others}
    assert len(hashes | {first.ids_sha256}) == 3


def test_prompts_that_tokenise_otherwise_later_are_named(prompts):
    surveyed = survey(make_tokenizer(), prompts, None, keep)
    surveyed.tokenizer.chat_template = CHATML.replace("assistant", "system")
    with pytest.raises(RefusalLensError) as caught:
        surveyed.tokens(range(2, 4))
    assert str(caught.value) == (
        "Prompt harmful-003 has other token ids than when the collection began. Templates that "
        "write the date do so at midnight, and other machines may have another version of the "
        "tokenizer. Run again, with the same versions everywhere."
    )


def test_check_refuses_before_anything_is_read(prompts):
    def refuse(tokens: Tokens) -> None:
        raise RefusalLensError("planted")

    with pytest.raises(RefusalLensError, match="planted"):
        survey(make_tokenizer(), prompts, None, refuse)
