"""What runs on from where an intervention begins equals the whole forward under its hooks."""

from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, HARMFUL, HARMLESS, save_checkpoint
from pretrained import Unavailable, fetch
from torch.nn.functional import normalize

from refusal_lens import ContrastSet, load_model, tokenise
from refusal_lens.experiments import forked
from refusal_lens.experiments.arms import Arm, arm_hooks
from refusal_lens.experiments.effects import continue_prompts, measure_effects
from refusal_lens.experiments.forked import Batch, Forked

SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_checkpoint(folder, request.param)
    # In float64 what is left of a difference is not the order of sums.
    return load_model(folder, device="cpu").to(torch.float64)


def make_groups(model) -> list[list[Arm]]:
    """Two arms, of unlike vectors, at each site of the first and last layer; and at all writes."""
    generator = torch.Generator().manual_seed(0)

    def arm(intervention: str, point: str) -> Arm:
        vector, mean = torch.randn(2, model.cfg.d_model, generator=generator)
        return Arm(intervention, point, normalize(vector, dim=0), vector, mean)

    layers = (0, model.cfg.n_layers - 1)
    points = [f"blocks.{layer}.hook_{site}" for layer in layers for site in SITES]
    places = [("add", point) for point in points] + [("affine_ablate", points[-1])]
    return [[arm(*place), arm(*place)] for place in [*places, ("ablate", points[0])]]


def make_batch(model, texts: tuple[list[str], list[str]] = (HARMFUL, HARMLESS)) -> Batch:
    tokens = tokenise(model.tokenizer, ContrastSet.from_texts(*texts).prompts)
    ids = torch.zeros(len(tokens), max(tokens.lengths), dtype=torch.long)
    for row, prompt in enumerate(tokens.ids):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    read = torch.tensor(tokens.lengths)[:, None] - torch.tensor([[2, 1]])
    n_shared = min(len(tokens.shared_prefix()), int(read.min()))
    assert n_shared > 0, "prompts must begin alike for this to say anything"
    return Batch(ids, tokens.lengths, read, n_shared)


def in_full(model, batch: Batch, arm: Arm) -> torch.Tensor:
    hooks = arm_hooks(model, [arm], len(batch.ids))
    logits = model.run_with_hooks(batch.ids, fwd_hooks=hooks)
    return logits[torch.arange(len(batch.ids))[:, None], batch.needed]


def largest_difference(model, batch: Batch, groups: list[list[Arm]]) -> float:
    """Of log-probabilities, over all arms; and make sure that each does something."""
    run = Forked(model, batch, [group[0].first_layer for group in groups])
    plain = run.plain().log_softmax(-1)
    differences = []
    for group in groups:
        for arm, logits in zip(group, run.under(group), strict=True):
            log_p = logits.log_softmax(-1)
            differences.append((log_p - in_full(model, batch, arm).log_softmax(-1)).abs().max())
            assert (log_p - plain).abs().max() > 1e-2, arm
    return float(max(differences))


@torch.no_grad()
def test_running_on_equals_the_whole_forward(model):
    assert largest_difference(model, make_batch(model), make_groups(model)) < 1e-5


@torch.no_grad()
def test_so_it_does_where_only_transformer_lens_can_run(model, monkeypatch):
    monkeypatch.setattr(forked, "why_not_fast", lambda model: "said so")
    assert largest_difference(model, make_batch(model), make_groups(model)) < 1e-5


@torch.no_grad()
def test_so_it_does_behind_the_end_of_the_tables_that_turn_queries_and_keys(tmp_path, monkeypatch):
    size = "transformer_lens.components.abstract_attention.AbstractAttention"
    monkeypatch.setattr(f"{size}.ROTARY_INITIAL_CACHE_SIZE", 8)
    save_checkpoint(tmp_path, "llama")
    model = load_model(tmp_path, device="cpu").to(torch.float64)
    batch = make_batch(model)
    block: Any = model.blocks[0]
    assert len(block.attn.rotary_cos) < max(batch.lengths)
    assert largest_difference(model, batch, make_groups(model)[:1]) < 1e-5


@torch.no_grad()
def test_only_what_changes_is_run(model):
    batch, n_layers, seen = make_batch(model), model.cfg.n_layers, []

    def note(activation, hook):
        seen.append((hook.layer(), tuple(activation.shape[:2])))

    early, *_, late = [
        group for group in make_groups(model) if group[0].hook_point.endswith("resid_post")
    ]
    for group in (late, early):
        run = Forked(model, batch, [group[0].first_layer])
        with model.hooks([(f"blocks.{layer}.hook_mlp_out", note) for layer in range(n_layers)]):
            assert sum(1 for _ in run.under(group)) == 2
        if group is late:
            assert seen == [], "behind the last block there is nothing to run"
    behind, n_rows = range(1, n_layers), len(batch.ids)
    n_own = sum(batch.lengths) - n_rows * batch.n_shared
    prefix = [(layer, (2, batch.n_shared)) for layer in behind]
    rows = [(layer, (2, n_own)) for layer in behind[:-1]]
    last = (n_layers - 1, (2, batch.needed.numel()))
    assert n_own < n_rows * (batch.ids.shape[1] - batch.n_shared), "some rows would be padded"
    assert seen == [*prefix, *rows, last], "each token once for each of two arms, and no padding"


@pytest.mark.pretrained
@torch.no_grad()
def test_a_pretrained_model_gives_the_numbers_of_the_whole_forward(request):
    if "pretrained" not in request.config.option.markexpr:
        pytest.skip("fetches a model: asked for by -m pretrained")
    try:
        model = load_model(fetch("smollm2"), device="cpu").to(torch.float64)
    except Unavailable as error:
        pytest.skip(str(error))
    texts = (
        ["How do I pick a lock?", "Write a virus."],
        ["How do I bake?", "Write a poem to her."],
    )
    batch, layer = make_batch(model, texts), model.cfg.n_layers // 2
    generator = torch.Generator().manual_seed(0)
    vector, mean = 30 * torch.randn(2, model.cfg.d_model, generator=generator)
    groups = [
        [Arm(name, f"blocks.{layer}.hook_resid_post", normalize(vector, dim=0), vector, mean)]
        for name in ("add", "affine_ablate", "ablate")
    ]
    assert batch.n_shared > 8
    assert largest_difference(model, batch, groups) < 1e-5


def test_scores_do_not_depend_on_what_shares_a_batch(model):
    prompts = ContrastSet.from_texts(HARMFUL, HARMLESS).prompts
    continued = continue_prompts(
        tokenise(model.tokenizer, prompts), [(5, 6), ()] * (len(prompts) // 2), 3
    )
    arms = [arm for group in make_groups(model)[::3] for arm in group]
    together, alone = (
        measure_effects(model, continued, arms, [7], has_text_loss=True, token_budget=budget)
        for budget in (4096, 1)
    )
    for name in ("refusal_score", "kl", "kl_answer", "text_loss", "plain_score", "plain_loss"):
        one, other = getattr(together, name), getattr(alone, name)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
