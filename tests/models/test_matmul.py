"""oneDNN in place of MKL: as exact, only inside the context, only where it pays."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from refusal_lens import collect, load_model
from refusal_lens.activations import batch_reader
from refusal_lens.models import matmul
from refusal_lens.models.matmul import _OneDnn, fast_products, library_of_products

has_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch is built without oneDNN",
)


def sized(device: str = "cpu", d_model: int = 896, d_mlp: int | None = 4864) -> SimpleNamespace:
    return SimpleNamespace(device=device, d_model=d_model, d_mlp=d_mlp)


def operands(*, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 17, 96), (40, 96), (40,))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@pytest.fixture
def calls(monkeypatch):
    """Count what oneDNN multiplies."""
    seen = []
    real = matmul._linear
    monkeypatch.setattr(matmul, "_linear", lambda *args: seen.append(1) or real(*args))
    return seen


@has_onednn
@torch.no_grad()
def test_products_are_as_exact_as_torchs(calls):
    x, weight, bias = operands()
    truth = F.linear(x.double(), weight.double(), bias.double())
    with _OneDnn():
        got = (
            F.linear(x, weight, bias),
            F.linear(x, weight) + bias,
            torch.addmm(bias, x.flatten(0, 1), weight.t()).unflatten(0, (3, 17)),
        )
    assert len(calls) == 3
    of_torch = (F.linear(x, weight, bias) - truth).abs().max().item()
    for result in got:
        assert (result - truth).abs().max().item() <= 4 * of_torch  # another order of the sum


@has_onednn
def test_what_onednn_cannot_do_is_torchs(calls):
    x, weight, bias = operands(dtype=torch.bfloat16)
    full = operands()
    needs_gradient = full[1].clone().requires_grad_()
    with _OneDnn():
        assert torch.equal(F.linear(x, weight, bias), F.linear(x, weight, bias))
        assert F.linear(full[0], needs_gradient).requires_grad
        two_dimensional = torch.zeros(51, 40)
        torch.addmm(two_dimensional, full[0].flatten(0, 1), full[1].t())
        F.linear(full[0], weight=full[1])
    assert not calls
    F.linear(*full)
    assert not calls  # the context is left


def test_only_a_large_model_on_such_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None, raising=False)
    assert library_of_products(sized()) == "oneDNN"
    assert library_of_products(sized(d_mlp=None)) == "oneDNN"
    assert library_of_products(sized(device="cuda")) == "torch"
    assert library_of_products(sized(d_model=160, d_mlp=480)) == "torch"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert library_of_products(sized()) == "torch"
    assert not isinstance(fast_products(sized()), _OneDnn)


@has_onednn
@pytest.mark.parametrize("path", ["fast", "TransformerLens", "bridge"])
def test_activations_are_the_same_by_either_library(
    checkpoint, model, prompts, calls, monkeypatch, path
):
    if path == "bridge":
        model = load_model(checkpoint, backend="bridge", device="cpu")
    # A hook of the user's own sends the model through TransformerLens's forward.
    own_hooks = [("hook_embed", lambda activation, hook: None)] if path == "TransformerLens" else []
    options = {"positions": ["last", "mean"], "show_progress": False}
    with model.hooks(fwd_hooks=own_hooks):
        expected = collect(model, prompts, "resid_post", **options)
        assert not calls
        for module in (matmul, batch_reader):  # who multiplies, and who records it
            monkeypatch.setattr(module, "library_of_products", lambda *_: "oneDNN")
        got = collect(model, prompts, "resid_post", **options)
    record = got.provenance["collection"]
    assert (record["path"] == "fast") == (path == "fast")
    assert record["products"] == "oneDNN"
    assert calls
    scale = expected.values.abs().amax(dim=(0, 3), keepdim=True)
    torch.testing.assert_close(got.values / scale, expected.values / scale, atol=1e-5, rtol=0)
