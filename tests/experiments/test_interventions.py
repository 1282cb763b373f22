"""Interventions in closed form, over both backends, with and without the KV cache."""

import pytest
import torch
from torch.nn.functional import normalize

from refusal_lens import load_model
from refusal_lens.directions.kernel import WeightKernel
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.interventions import (
    ablate,
    add,
    affine_ablate,
    clamp,
    prompt_mask,
    residual_writes,
)
from refusal_lens.models.generation import generate_greedily
from refusal_lens.models.hook_points import are_uniform
from refusal_lens.prompts.tokens import tokenise

POINT = "blocks.2.hook_resid_post"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unit() -> torch.Tensor:
    return normalize(random(32), dim=0)


@pytest.fixture(scope="module")
def basis() -> torch.Tensor:
    return torch.linalg.qr(random(32, 3)).Q.T.contiguous()


@pytest.fixture(scope="module")
def bridge(checkpoint):
    return load_model(checkpoint, device="cpu", backend="bridge")


@pytest.fixture(scope="module")
def ids(model, prompts) -> torch.Tensor:
    return torch.tensor([tokenise(model.tokenizer, prompts.prompts[:1]).ids[0]] * 2)


def apply(hooks: list, x: torch.Tensor) -> torch.Tensor:
    for _, function in hooks:
        x = function(x, hook=None)
    return x


def test_ablation_removes_the_projection_and_nothing_else(unit):
    x = random(2, 5, 32, seed=1)
    before = x.clone()
    y = apply(ablate([POINT], unit), x)
    torch.testing.assert_close(y, x - (x @ unit)[..., None] * unit)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    half = apply(ablate([POINT], unit, strength=0.5), x)
    torch.testing.assert_close(half @ unit, (x @ unit) / 2)


def test_subspace_ablation_projects_onto_the_complement(basis):
    x = random(2, 5, 32, seed=1)
    complement = torch.eye(32) - basis.T @ basis
    torch.testing.assert_close(apply(ablate([POINT], basis), x), x @ complement)


def test_affine_ablation_keeps_the_offset(unit, basis):
    x, mean = random(2, 5, 32, seed=1), random(32, seed=2)
    y = apply(affine_ablate([POINT], unit, mean), x)
    torch.testing.assert_close(y, x - ((x - mean) @ unit)[..., None] * unit)
    many = apply(affine_ablate([POINT], basis, {POINT: mean}), x)
    torch.testing.assert_close(many @ basis.T, (mean @ basis.T).expand(2, 5, 3))
    zero = apply(affine_ablate([POINT], unit, torch.zeros(32)), x)
    torch.testing.assert_close(zero, apply(ablate([POINT], unit), x))


def test_clamp_sets_coordinates(unit, basis):
    x = random(2, 5, 32, seed=1)
    torch.testing.assert_close(apply(clamp([POINT], unit, 3.0), x) @ unit, torch.full((2, 5), 3.0))
    values = torch.tensor([1.0, -2.0, 0.5])
    y = apply(clamp([POINT], basis, values), x)
    torch.testing.assert_close(y @ basis.T, values.expand(2, 5, 3))
    # Nothing else moves.
    torch.testing.assert_close(apply(ablate([POINT], basis), y), apply(ablate([POINT], basis), x))


def test_addition_counts_in_class_differences():
    x, vectors = random(2, 5, 32, seed=1), random(3, 32, seed=2)
    torch.testing.assert_close(apply(add([POINT], vectors[0], 1.5), x), x + 1.5 * vectors[0])
    factors = torch.tensor([1.0, -1.0, 2.0])
    torch.testing.assert_close(apply(add([POINT], vectors, factors), x), x + factors @ vectors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_of_the_activation_is_kept(unit, dtype):
    x = random(2, 5, 32, seed=1).to(dtype)
    for hooks in (ablate([POINT], unit), add([POINT], unit), clamp([POINT], unit, 1.0)):
        assert apply(hooks, x).dtype == dtype
    # Rounded once, at the end, and not at every step.
    expected = (x.float() - (x.float() @ unit)[..., None] * unit).to(dtype)
    torch.testing.assert_close(apply(ablate([POINT], unit), x), expected, rtol=0, atol=0)


def test_rows_of_a_batch_can_have_their_own_directions():
    x, units = random(2, 5, 32, seed=1), normalize(random(2, 1, 32), dim=-1)
    strength = torch.tensor([1.0, 0.25])
    together = apply(ablate([POINT], units, strength=strength), x)
    for row in range(2):
        alone = apply(ablate([POINT], units[row, 0], strength=strength[row].item()), x[row][None])
        torch.testing.assert_close(together[row], alone[0])


def test_kernel_scales_by_layer(unit):
    x = random(1, 3, 32, seed=1)
    kernel = WeightKernel(peak=1.0, position=2, floor=0.0, distance=2)
    hooks = ablate([f"blocks.{layer}.hook_resid_post" for layer in range(4)], unit, strength=kernel)
    left = [((function(x, hook=None) @ unit) / (x @ unit)).mean().item() for _, function in hooks]
    assert left == pytest.approx([1.0, 0.5, 0.0, 0.5], abs=1e-5)


def test_ablation_at_every_write_leaves_nothing_anywhere(model, ids, unit):
    writes = residual_writes(model)
    assert len(writes) == 3 * model.cfg.n_layers

    def largest(hooks: list) -> float:
        seen = []
        reads = [
            (f"blocks.{i}.hook_resid_post", lambda x, hook: seen.append((x @ unit).abs().max()))
            for i in range(model.cfg.n_layers)
        ]
        model.run_with_hooks(ids, fwd_hooks=[*hooks, *reads])
        return max(seen).item()

    assert largest([]) > 0.1
    assert largest(ablate(writes, unit)) < 1e-4


@pytest.mark.parametrize("name", ["ablate", "affine_ablate", "clamp", "add"])
def test_backends_agree(model, bridge, ids, unit, name):
    hooks = {
        "ablate": ablate(residual_writes(model), unit),
        "affine_ablate": affine_ablate([POINT], unit, random(32, seed=3)),
        "clamp": clamp(["blocks.1.hook_attn_out", "blocks.0.hook_mlp_out"], unit, 2.0),
        "add": add([POINT], random(32, seed=4)),
    }[name]
    plain = model(ids)
    hooked, bridged = (each.run_with_hooks(ids, fwd_hooks=hooks) for each in (model, bridge))
    torch.testing.assert_close(hooked, bridged, rtol=1e-3, atol=1e-3)
    assert (hooked - plain).abs().max() > 0.1


def test_order_is_that_of_the_list(model, ids, unit):
    shift, remove = add([POINT], 5 * unit), ablate([POINT], unit)

    def left(hooks: list) -> float:
        seen = []
        read = (POINT, lambda x, hook: seen.append((x @ unit).mean().item()))
        model.run_with_hooks(ids, fwd_hooks=[*hooks, read])
        return seen[0]

    assert left([*remove, *shift]) == pytest.approx(5, abs=1e-3)
    assert left([*shift, *remove]) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("where", ["all", "last"])
def test_answers_are_the_same_with_and_without_the_cache(model, bridge, prompts, unit, where):
    tokens = tokenise(model.tokenizer, prompts.prompts[:3])
    mask = None if where == "all" else prompt_mask(tokens, "last")
    hooks = add([POINT], 20 * unit, mask=mask)
    plain, _ = generate_greedily(model, tokens, 6)
    cached, _ = generate_greedily(model, tokens, 6, hooks)
    # The bridge reads everything again at each step: no cache.
    uncached, _ = generate_greedily(bridge, tokens, 6, hooks)
    assert cached == uncached
    assert cached != plain


def test_generate_of_the_model_itself_takes_them(model, ids, unit):
    def answer(use_past_kv_cache: bool) -> list:
        with model.hooks(fwd_hooks=add([POINT], 20 * unit)):
            return model.generate(
                ids[:1],
                max_new_tokens=4,
                do_sample=False,
                stop_at_eos=False,
                use_past_kv_cache=use_past_kv_cache,
                verbose=False,
                return_type="tokens",
            ).tolist()

    assert answer(True) == answer(False)


def test_mask_marks_what_a_position_means(model, prompts):
    tokens = tokenise(model.tokenizer, prompts.prompts)
    left, right = (prompt_mask(tokens, "-2", padding_side=side) for side in ("left", "right"))
    assert left.nonzero()[:, 1].tolist() == [max(tokens.lengths) - 2] * len(tokens)
    assert right.nonzero()[:, 1].tolist() == [length - 2 for length in tokens.lengths]
    spans = prompt_mask(tokens, "instruction_mean").sum(dim=1).tolist()
    assert spans == [stop - first for first, stop in tokens.instruction_spans]


def test_masked_hooks_leave_answer_tokens_alone(unit):
    mask = torch.tensor([[False, True, True]])
    hooks = add([POINT], unit, mask=mask)
    x = torch.zeros(1, 5, 32)
    assert apply(hooks, x).norm(dim=-1)[0].tolist() == pytest.approx([0, 1, 1, 0, 0])
    assert apply(hooks, x[:, :1]).norm() == 0


def test_hooks_are_gone_after_an_error_inside_generation(model, prompts, unit):
    tokens = tokenise(model.tokenizer, prompts.prompts[:2])
    calls = []

    def fail(x: torch.Tensor, hook: object) -> torch.Tensor:
        calls.append(x.shape[1])
        if len(calls) == 3:
            raise RuntimeError("in the middle")
        return x

    with pytest.raises(RuntimeError, match="in the middle"):
        generate_greedily(model, tokens, 6, [*ablate(residual_writes(model), unit), (POINT, fail)])
    assert calls[1:] == [1, 1]
    assert not [name for name, point in model.hook_dict.items() if point.fwd_hooks]


def test_what_is_no_basis_is_refused():
    with pytest.raises(RefusalLensError) as error:
        ablate([POINT], torch.full((32,), 0.5))
    assert str(error.value) == (
        "Ablation needs a unit vector or orthonormal rows; the products of these rows differ from "
        "those of an orthonormal basis by up to 7. Use direction.unit, or "
        "torch.linalg.qr(vectors.T).Q.T."
    )
    with pytest.raises(RefusalLensError, match="Ablation needs a unit vector"):
        ablate([POINT], torch.full((32,), torch.nan))


def test_missing_means_and_layers_are_named(unit):
    with pytest.raises(RefusalLensError, match=r"blocks\.3\.hook_mlp_out has none"):
        affine_ablate([POINT, "blocks.3.hook_mlp_out"], unit, {POINT: unit})
    with pytest.raises(RefusalLensError, match="hook_embed is in none"):
        ablate(["hook_embed"], unit, strength=WeightKernel(1.0, 1, 0.0, 1))
    with pytest.raises(RefusalLensError, match="single token"):
        ablate([POINT], unit, mask=torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(RefusalLensError, match=r"hook_z\.1 is one head of one"):
        ablate([POINT, "blocks.0.attn.hook_z.1"], unit)


@pytest.mark.parametrize("kind", ["ablate", "affine", "clamp", "add"])
def test_uniform_interventions_answer_as_those_that_share_nothing(model, prompts, kind):
    """They share the prompts' prefix and let rows go; a hook that is not marked does neither."""
    tokens = tokenise(model.tokenizer, prompts.prompts)
    unit = torch.nn.functional.normalize(torch.randn(model.cfg.d_model), dim=0)
    hooks = {
        "ablate": ablate(residual_writes(model), unit),
        "affine": affine_ablate([POINT], unit, torch.randn(model.cfg.d_model)),
        "clamp": clamp([POINT], unit, 3.0),
        "add": add([POINT], 4 * unit),
    }[kind]
    assert are_uniform(hooks)
    unmarked = [(name, lambda x, hook, act=act: act(x, hook)) for name, act in hooks]
    shared, first = generate_greedily(model, tokens, 6, hooks)
    alone, alone_first = generate_greedily(model, tokens, 6, unmarked)
    assert shared == alone
    torch.testing.assert_close(first, alone_first, rtol=1e-4, atol=1e-4)


def test_interventions_that_differ_by_row_are_not_uniform(model):
    unit = torch.nn.functional.normalize(torch.randn(model.cfg.d_model), dim=0)
    by_row = unit.expand(3, 1, -1)
    where = torch.ones(3, 4, dtype=torch.bool)
    for hooks in (
        ablate([POINT], by_row),
        ablate([POINT], unit, strength=torch.ones(3)),
        ablate([POINT], unit, mask=where),
        clamp([POINT], unit, torch.ones(3, 1)),
        add([POINT], by_row),
        [(POINT, lambda x, hook: x)],
    ):
        assert not are_uniform(hooks)
