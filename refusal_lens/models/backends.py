"""What a loaded model is: one of two backends, with its tokenizer and a record of its load.

Knows both backends by name. Does not load models, and does not import the libraries that do: what
reads a run starts without them.

Tested in tests/models/test_loading.py.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from refusal_lens.errors import RefusalLensError

if TYPE_CHECKING:
    from transformer_lens import ActivationCache as ActivationCache
    from transformer_lens import HookedTransformer as HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

    Model = HookedTransformer | TransformerBridge
else:
    ActivationCache = HookedTransformer = Model = Any


@dataclass(frozen=True)
class LoadRecord:
    """What was loaded, and how: kept on the model as `model.load_record`.

    `weights_sha256` identifies a local folder or GGUF file, `revision` a commit of the hub; the one
    that does not apply is None. `gguf` says what a GGUF file stores its tensors in, and that they
    were dequantised; `adapter` names the folder of an adapter that was merged in, and its hash.
    """

    name: str
    architecture: str
    revision: str | None
    weights_sha256: str | None
    dtype: str
    device: str
    backend: str
    processing: str
    eos_token_ids: tuple[int, ...]
    gguf: dict[str, Any] | None = None
    adapter: dict[str, str] | None = None


def is_hooked(model: Any) -> TypeGuard[HookedTransformer]:
    """Say whether a model is a `HookedTransformer`; of the two backends, the other is the bridge.

    Example:
        >>> is_hooked(tiny_model)
        True
    """
    # Whoever has a model has the library.
    from transformer_lens import HookedTransformer

    return isinstance(model, HookedTransformer)


def describe_model(model: Model) -> dict[str, Any]:
    """Say which model this is, as plain values for provenance.

    Works for models that `load_model` did not load: what is not known is left out.

    Example:
        >>> describe_model(tiny_model)["architecture"]
        'Qwen2ForCausalLM'
    """
    sizes = {"n_layers": model.cfg.n_layers, "d_model": model.cfg.d_model}
    record = getattr(model, "load_record", None)
    if isinstance(record, LoadRecord):
        return asdict(record) | sizes
    return sizes | {
        "name": model.cfg.model_name,
        "architecture": getattr(model.cfg, "original_architecture", None),
        "dtype": str(model.cfg.dtype).removeprefix("torch."),
        "device": str(model.cfg.device),
        "backend": "hooked" if is_hooked(model) else "bridge",
    }


def eos_token_ids(model: Model) -> tuple[int, ...]:
    """Return every token id that ends the model's turn."""
    record = getattr(model, "load_record", None)
    if isinstance(record, LoadRecord):
        return record.eos_token_ids
    eos = tokenizer_of(model).eos_token_id
    return () if eos is None else (eos,)


def tokenizer_of(model: Model) -> Any:
    """Return the model's tokenizer, and refuse a model without one."""
    if model.tokenizer is None:
        raise RefusalLensError(
            "Prompts need a tokenizer, and this model has none. Load it with load_model, or set "
            "model.tokenizer."
        )
    return model.tokenizer
