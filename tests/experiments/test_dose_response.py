"""Controls and trials: as long as the class difference, and fitted to nothing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from refusal_lens.activations.pooled import Activations
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.candidates import FIT, SELECT, TEST, deal_parts, fit_candidates
from refusal_lens.experiments.causal_scores import held_out_auroc
from refusal_lens.experiments.dose_response import Plan, dose_response, plan_trials
from refusal_lens.experiments.first_tokens import FirstTokens
from refusal_lens.experiments.verdicts import summarise

POINT = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def planted() -> Activations:
    """60 prompts a side, apart by 4 along the first axis."""
    is_harmful = torch.arange(120) < 60
    values = torch.randn(120, 1, 1, 32, generator=torch.Generator().manual_seed(0))
    values[is_harmful, ..., 0] += 4
    return Activations(values, is_harmful, (POINT,), ("last",))


def test_parts_are_thirds_of_each_class(planted):
    parts = deal_parts(planted, 3)
    for part in (FIT, SELECT, TEST):
        assert int((parts[:60] == part).sum()) == int((parts[60:] == part).sum()) == 20
    torch.testing.assert_close(deal_parts(planted, 3), parts)
    assert (deal_parts(planted, 4) != parts).any()


def test_directions_come_from_the_fitting_part_alone(planted):
    parts = deal_parts(planted)
    (fitted,) = fit_candidates(planted, parts, clip_quantile=None)
    values, here = planted.values[:, 0, 0].double(), parts == FIT
    harmful = values[here & planted.is_harmful].mean(0)
    harmless = values[here & ~planted.is_harmful].mean(0)
    torch.testing.assert_close(fitted.vector.double(), harmful - harmless, atol=1e-5, rtol=0)
    torch.testing.assert_close(fitted.mean.double(), harmless, atol=1e-5, rtol=0)
    auroc, p_value = held_out_auroc(fitted, planted, parts)
    assert auroc > 0.95
    assert p_value < 1e-4


def test_only_directions_of_the_residual_stream_are_candidates(planted):
    names = ("blocks.0.hook_resid_post", "blocks.0.attn.hook_result.1")
    mixed = replace(planted, values=planted.values[:, :1].expand(-1, 2, -1, -1), hook_points=names)
    parts = deal_parts(mixed)
    with pytest.raises(RefusalLensError) as caught:
        fit_candidates(mixed, parts)
    assert str(caught.value) == (
        "Interventions act on the residual stream (resid_pre, resid_mid, resid_post, attn_out, "
        "mlp_out), and blocks.0.attn.hook_result.1 is not in it. Take those that are: "
        "directions.hook_points=[resid_post]."
    )
    head = mixed.only_at("hook_result:0.1", "last")
    with pytest.raises(RefusalLensError, match="Run them on a collection at one of these sites"):
        fit_candidates(head, parts)
    assert len(fit_candidates(mixed.only_at("resid_post:0", "last"), parts)) == 1


def test_controls_are_as_long_and_point_elsewhere(planted):
    parts = deal_parts(planted)
    (fitted,) = fit_candidates(planted, parts)
    plan = Plan(("affine_ablate", "add"), (1.0,), (0.5, 1.0), n_controls=3)
    trials = plan_trials(fitted, planted, parts, plan)
    # Of each kind two are tried at every strength, the third random one at full strength only.
    assert len(trials) == (1 + 2) * (1 + 2 + 2) + 2
    ranked_only = [trial for trial in trials if trial.is_ranked_only]
    assert [(t.arm.intervention, t.arm.strength, t.kind) for t in ranked_only] == [
        ("affine_ablate", 1.0, "random"),
        ("add", 1.0, "random"),
    ]
    assert [t.is_tried_on(True) for t in ranked_only] == [True, False]
    kinds = {kind: [t for t in trials if t.kind == kind] for kind in ("random", "permuted")}
    length = fitted.vector.norm().item()
    for kind, some in kinds.items():
        for trial in some:
            # The planted difference is 4 long; that of permuted labels is chance alone.
            own = trial.arm.vector.norm().item()
            assert own == pytest.approx(length, rel=1e-4) if kind == "random" else own < length / 2
            assert abs((trial.arm.unit @ fitted.unit).item()) < 0.75, kind
            assert trial.arm.unit.norm().item() == pytest.approx(1.0, abs=1e-5)
    assert len({tuple(t.arm.unit.tolist()) for some in kinds.values() for t in some}) == 3 + 2


def test_response_at_strength_zero_is_the_plain_model(model, prompts, activations):
    parts = torch.tensor([FIT, FIT, TEST, TEST] * 2)
    fitted = fit_candidates(activations, parts)[4]
    plan = Plan(("affine_ablate", "add"), (0.0, 1.0), (0.0, 8.0), n_controls=1, n_new_tokens=3)
    labelled = [(p, h) for p, h in zip(prompts.prompts, prompts.is_harmful, strict=True)]
    response = dose_response(
        model,
        labelled,
        plan_trials(fitted, activations, parts, plan),
        refusal_ids=[5],
        judge=lambda prompt, answer: "a" in answer,
        plan=plan,
    )
    table = response.table
    zero = table[table["strength"] == 0]
    for is_harmful in (True, False):
        rows = zero[zero["is_harmful"] == is_harmful]
        assert len(rows) == 2 + 2 * 3
        for name in ("refusal_score", "refusal_rate", "text_loss"):
            assert rows[name].std() == pytest.approx(0, abs=1e-5), name
        assert rows["kl"].abs().max() < 1e-5
    moved = table[(table["strength"] == 8) & (table["direction"] == "fitted")]
    assert (moved["kl"] > 0.01).all()
    assert (table["refusal_score_low"] <= table["refusal_score"]).all()
    # Of the direction and of one random one.
    assert len(response.completions) == 2 * 4 * len(prompts.prompts)
    same = [c for c in response.completions if c.strength == 0]
    assert all(c.plain == c.intervened for c in same)
    assert len(summarise(table[table["direction"] == "fitted"])) == 4
    # A side effect of the direction that is judged, and not of its controls.
    assert (table["text_loss"].notna() == (table["direction"] == "fitted")).all()


def test_controls_are_read_only_where_the_first_token_decides_nothing(model, prompts, activations):
    parts = torch.tensor([FIT, FIT, TEST, TEST] * 2)
    fitted = fit_candidates(activations, parts)[4]
    plan = Plan(("affine_ablate", "add"), (0.5, 1.0), (4.0,), n_controls=3, n_new_tokens=3)
    labelled = list(zip(prompts.prompts, prompts.is_harmful, strict=True))
    asked = []

    def respond(first_tokens: FirstTokens, n_settled_tokens: int | None = None):
        return dose_response(
            model,
            labelled,
            plan_trials(fitted, activations, parts, plan),
            refusal_ids=[5],
            judge=lambda prompt, answer: asked.append(answer) or "a" in answer,
            plan=replace(plan, first_tokens=first_tokens, n_settled_tokens=n_settled_tokens),
        )

    def fitted_ones(response):
        return [vars(each) for each in response.completions if each.direction == "fitted"]

    whole = respond(FirstTokens())
    middle = float(whole.table["refusal_score"].median())
    n_whole = len(asked)
    half = respond(FirstTokens(-np.inf, middle))
    n_first = int(half.table["n_by_first_token"].sum())
    assert 0 < n_first == n_whole - (len(asked) - n_whole)
    assert whole.table["n_by_first_token"].sum() == 0
    controls = half.table["direction"] != "fitted"
    assert n_first == half.table.loc[controls, "n_by_first_token"].sum()
    # What was read is as it was; what was not is refused.
    for (_, before), (_, after) in zip(
        whole.by_prompt.iterrows(), half.by_prompt.iterrows(), strict=True
    ):
        assert after["outcome"] in (before["outcome"], "refused")
    assert fitted_ones(half) == fitted_ones(whole)
    nothing_read = half.table["n_by_first_token"] == half.table["n_prompts"]
    assert half.table.loc[nothing_read, "broken_rate"].isna().all()
    del asked[n_whole:]
    short = respond(FirstTokens(), n_settled_tokens=1)
    n_ended = 0
    for ends, goes_on in zip(fitted_ones(short), fitted_ones(whole), strict=True):
        if ends != goes_on:
            # It refuses by then though the direction is removed, and ends there.
            assert (ends["outcome"], ends["intervention"]) == ("refused", "affine_ablate")
            assert goes_on["intervened"].startswith(ends["intervened"])
            n_ended += 1
    assert 0 < n_ended < len(fitted_ones(whole))
    assert sum(map(len, asked[n_whole:])) < sum(map(len, asked[:n_whole]))


def test_plain_answers_that_are_known_are_not_asked_for_again(
    model, prompts, activations, monkeypatch
):
    parts = torch.tensor([FIT, FIT, TEST, TEST] * 2)
    fitted = fit_candidates(activations, parts)[4]
    plan = Plan(("add",), coefficients=(4.0,), n_controls=0, n_new_tokens=3)

    def respond(plain: dict[str, str] | None = None):
        return dose_response(
            model,
            list(zip(prompts.prompts, prompts.is_harmful, strict=True)),
            plan_trials(fitted, activations, parts, plan),
            refusal_ids=[5],
            judge=lambda prompt, answer: "a" in answer,
            plan=replace(plan, plain_answers=plain),
        )

    asked = respond()
    known = {each.prompt: each.plain for each in asked.completions}
    monkeypatch.setattr("refusal_lens.experiments.dose_response.answer_ids", None)
    again = respond(known)
    pd.testing.assert_frame_equal(again.table, asked.table, check_exact=True)
    assert [vars(each) for each in again.completions] == [vars(each) for each in asked.completions]
