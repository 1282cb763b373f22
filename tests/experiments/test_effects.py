"""Effects of many interventions at once equal those of one prompt and intervention at a time."""

import pytest
import torch
from torch.nn.functional import normalize

from refusal_lens import load_model
from refusal_lens.experiments.arms import Arm
from refusal_lens.experiments.effects import continue_prompts, join_effects, measure_effects
from refusal_lens.experiments.forked import Forked
from refusal_lens.experiments.interventions import ablate, add, affine_ablate, residual_writes
from refusal_lens.experiments.refusal import refusal_score
from refusal_lens.journal import Journal
from refusal_lens.prompts.tokens import tokenise

REFUSAL_IDS = [5, 9]
ANSWERS = [(7, 8, 9), (), (11, 12, 13, 14), (3,)]
N_ANSWER = 3


def make_arms() -> list[Arm]:
    generator = torch.Generator().manual_seed(0)
    arms = []
    for intervention in ("add", "affine_ablate", "ablate"):
        for layer, strength in ((3, 1.0), (1, 0.5), (1, 1.5)):
            vector, mean = torch.randn(2, 32, generator=generator)
            point = f"blocks.{layer}.hook_{'mlp_out' if strength == 0.5 else 'resid_post'}"
            arms.append(
                Arm(intervention, point, normalize(vector, dim=0), 4 * vector, mean, strength)
            )
    return arms


def hooks_of(model, arm: Arm) -> list:
    if arm.intervention == "ablate":
        return ablate(residual_writes(model), arm.unit, strength=arm.strength)
    if arm.intervention == "affine_ablate":
        return affine_ablate([arm.hook_point], arm.unit, arm.mean, strength=arm.strength)
    return add([arm.hook_point], arm.vector, arm.strength)


@pytest.fixture(scope="module")
def continued(model, prompts):
    tokens = tokenise(model.tokenizer, prompts.prompts[2:6])
    return continue_prompts(tokens, ANSWERS, N_ANSWER)


@pytest.fixture(scope="module")
def effects(model, continued):
    return measure_effects(
        model, continued, make_arms(), REFUSAL_IDS, has_text_loss=True, token_budget=150
    )


def test_everything_equals_one_at_a_time(model, continued, effects):
    for row, ids in enumerate(continued.tokens.ids):
        last, n = continued.prompt_lengths[row] - 1, min(len(ANSWERS[row]) + 1, N_ANSWER)
        batch = torch.tensor([ids])
        plain = model(batch)[0].log_softmax(-1)
        score = refusal_score(plain[[last]], REFUSAL_IDS)[0]
        torch.testing.assert_close(effects.plain_score[row], score, rtol=1e-3, atol=1e-3)
        for index, arm in enumerate(make_arms()):
            log_p = model.run_with_hooks(batch, fwd_hooks=hooks_of(model, arm))[0].log_softmax(-1)
            kl = (plain.exp() * (plain - log_p)).sum(-1)[last : last + n]
            first, stop = continued.tokens.instruction_spans[row]
            loss = -log_p[torch.arange(first - 1, stop - 1), batch[0, first:stop]].mean()
            expected = (refusal_score(log_p[[last]], REFUSAL_IDS)[0], kl[0], kl.mean(), loss)
            came = (
                effects.refusal_score[index, row],
                effects.kl[index, row],
                effects.kl_answer[index, row],
                effects.text_loss[index, row],
            )
            for one, other in zip(came, expected, strict=True):
                torch.testing.assert_close(one, other.double(), rtol=1e-3, atol=2e-3)
    assert effects.kl.median() > 0.05, "the arms must do something for this to say anything"


def test_a_bridge_gives_the_same(checkpoint, continued, effects):
    bridge = load_model(checkpoint, device="cpu", backend="bridge")
    bridged = measure_effects(bridge, continued, make_arms(), REFUSAL_IDS)
    for name in ("refusal_score", "kl", "kl_answer"):
        torch.testing.assert_close(
            getattr(bridged, name), getattr(effects, name), rtol=1e-3, atol=2e-3
        )
    assert bridged.n_passes == 4 * 10


def test_cost_counts_the_layers_that_run(effects):
    # Of 4 layers: ablation runs all; what is changed behind layer 3 needs none, behind layer 1 two,
    # and at the MLP of layer 1 three.
    assert effects.n_passes == 4 * (1 + 3 + 2 * (0 + 0.5 + 0.75))


def test_no_hook_stays(model, effects):
    assert not [name for name, point in model.hook_dict.items() if point.fwd_hooks]


def test_what_an_interrupted_run_scored_is_not_scored_again(
    model, continued, effects, tmp_path, monkeypatch
):
    path, began = tmp_path / "scores.jsonl", []
    under = Forked.under

    def note(self, arms):
        began.append(len(arms))
        return under(self, arms)

    def measure(advance=None):
        return measure_effects(
            model,
            continued,
            make_arms(),
            REFUSAL_IDS,
            has_text_loss=True,
            token_budget=150,
            advance=advance,
            journal=Journal(path),
        )

    def interrupt(n_done):
        raise KeyboardInterrupt

    monkeypatch.setattr(Forked, "under", note)
    monkeypatch.setattr("refusal_lens.experiments.effects.CHUNKS_KEPT", 2)
    measure()
    n_whole = len(began)
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        measure(interrupt)
    assert len(began) == n_whole + 2
    again = measure()
    assert len(began) == 2 * n_whole, "what was kept is not run again"
    for name in ("refusal_score", "kl", "kl_answer", "text_loss", "plain_score", "plain_loss"):
        assert getattr(again, name).equal(getattr(effects, name)), name
    assert again.n_passes == effects.n_passes


def test_effects_of_some_arms_and_of_others_are_those_of_all(model, continued, effects):
    arms, rows = make_arms(), ([4, 0, 8], [1, 2, 3, 5, 6, 7])
    parts = [
        (
            some,
            measure_effects(
                model, continued, [arms[i] for i in some], REFUSAL_IDS, has_text_loss=True
            ),
        )
        for some in rows
    ]
    joined = join_effects(parts)
    for name in ("refusal_score", "kl", "kl_answer", "text_loss"):
        torch.testing.assert_close(
            getattr(joined, name), getattr(effects, name), rtol=1e-3, atol=2e-3
        )
    # The plain model ran for both.
    assert joined.n_passes == effects.n_passes + len(continued.tokens)
