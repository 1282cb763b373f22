"""Answers by the fast forward: equal to TransformerLens's own, with hooks or without."""

import pytest
import torch
from conftest import ARCHITECTURES, HARMFUL, HARMLESS, save_checkpoint
from transformer_lens import HookedTransformer

from refusal_lens import ContrastSet, load_model, tokenise
from refusal_lens.models import generation
from refusal_lens.models.decoding import Decoder, can_decode, pad_left
from refusal_lens.models.fast_forward import embed, run_blocks
from refusal_lens.models.unembedding import unembed

N_NEW = 6


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_checkpoint(folder, request.param)
    return load_model(folder, device="cpu")


@pytest.fixture
def tokens(model):
    prompts = ContrastSet.from_texts(HARMFUL, HARMLESS).prompts
    tokens = tokenise(model.tokenizer, prompts)
    assert len(set(tokens.lengths)) > 1
    return tokens


def plainly(model, tokens, hooks=()):
    """Answer by TransformerLens's own forward and growing cache."""
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return generation._generate(model, tokens, N_NEW)


def double(activation, hook):
    return 1.1 * activation


@pytest.mark.parametrize("hooks", [[], [("blocks.1.hook_resid_post", double)]])
def test_answers_equal_those_of_the_plain_forward(model, tokens, hooks):
    assert can_decode(model, max(tokens.lengths) + N_NEW, hooks)
    answers, logits = generation.generate_greedily(model, tokens, N_NEW, hooks)
    plain_answers, plain_logits = plainly(model, tokens, hooks)
    assert answers == plain_answers
    torch.testing.assert_close(logits, plain_logits, rtol=1e-4, atol=1e-4)


def test_a_row_answers_alike_alone_and_in_a_batch(model, tokens):
    together, _ = generation.generate_greedily(model, tokens, N_NEW)
    for row in range(len(tokens)):
        alone, _ = generation.generate_greedily(model, tokens.select([row]), N_NEW)
        assert alone[0] == together[row]


@pytest.mark.parametrize("layer", [0, -1])
def test_prompts_asked_twice_run_once_through_the_blocks_below_the_hooks(
    model, tokens, layer, monkeypatch
):
    """Each row has its own hook; what comes in at the first block they change is the same."""
    layer %= model.cfg.n_layers
    rows = [0, 1, 0, 2, 1, 0]
    factors = torch.linspace(0.5, 1.5, len(rows))[:, None, None]
    hooks = [(f"blocks.{layer}.hook_resid_post", lambda x, hook: x * factors)]
    asked, n_read = tokens.select(rows), []
    answers, logits = generation.generate_greedily(model, asked, N_NEW, hooks)
    monkeypatch.setattr(
        "refusal_lens.models.decoding.embed", lambda *a: n_read.append(len(a[1])) or embed(*a)
    )
    again, first = generation.generate_greedily(model, asked, N_NEW, hooks, layer + 1)
    assert n_read[0] == 3, "distinct prompts"
    assert again == answers
    torch.testing.assert_close(first, logits, rtol=1e-5, atol=1e-5)


def test_rows_that_are_let_go_leave_the_others_as_they_were(model, tokens):
    with torch.no_grad():
        decoders = [Decoder(model, tokens, 3, shares_prefix=True) for _ in range(2)]
        first = [decoder.read_prompts().argmax(dim=-1) for decoder in decoders]
        kept = torch.tensor([0, 2])
        decoders[1].keep(kept)
        whole, part = decoders[0].read_token(first[0]), decoders[1].read_token(first[1][kept])
    torch.testing.assert_close(part, whole[kept], rtol=1e-5, atol=1e-5)


def test_hooks_inside_the_fused_attention_are_left_to_the_plain_forward(model):
    hooks = [("blocks.0.attn.hook_pattern", double)]
    assert not can_decode(model, 8, hooks)
    assert not can_decode(model, 10**9, [])


def test_blocks_from_the_middle_equal_the_models_own(model, tokens):
    assert isinstance(model, HookedTransformer)
    ids = torch.tensor([ids[: min(tokens.lengths)] for ids in tokens.ids])
    with torch.no_grad():
        middle = model(ids, stop_at_layer=1)
        ours, _ = run_blocks(model, middle, 1, model.cfg.n_layers)
        logits = model(ids)
    torch.testing.assert_close(unembed(model, ours), logits, rtol=1e-4, atol=1e-4)


def test_prompts_are_padded_on_the_left_from_the_token_asked_for(model, tokens):
    ids, mask = pad_left(tokens, 2)
    assert ids.shape[1] == max(tokens.lengths) - 2
    for row, prompt in enumerate(tokens.ids):
        assert ids[row][mask[row].bool()].tolist() == list(prompt[2:])


def test_steps_that_count_on_the_device_answer_alike(model, tokens):
    """A captured step looks at all slots, filled or not; CUDA's graphs need CUDA, this does not."""
    with torch.no_grad():
        plain, on_device = (
            Decoder(model, tokens, N_NEW, shares_prefix=True, counts_on_device=counts)
            for counts in (False, True)
        )
        first = plain.read_prompts()
        torch.testing.assert_close(on_device.read_prompts(), first, rtol=1e-5, atol=1e-5)
        latest = first.argmax(dim=-1)
        for _ in range(N_NEW - 1):
            logits = plain.read_token(latest)
            torch.testing.assert_close(on_device.read_token(latest), logits, rtol=1e-4, atol=1e-4)
            latest = logits.argmax(dim=-1)
