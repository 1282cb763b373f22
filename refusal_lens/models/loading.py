"""Loading chat models with their hooks.

Knows where checkpoints come from, on which device they run and what has to be recorded about them.
Does not know prompts, chat templates or activations.
"""

import difflib
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.utils import logging as hub_logging
from transformer_lens import HookedTransformer, loading_from_pretrained, supported_models
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from refusal_lens.config_files import find_resource
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.conversion import convert

Model = HookedTransformer | TransformerBridge


@dataclass(frozen=True)
class LoadRecord:
    """What was loaded, and how: kept on the model as `model.load_record`.

    `weights_sha256` identifies a local folder, `revision` a commit of the hub; the one that does
    not apply is None.
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


def load_model(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    backend: Literal["hooked", "bridge"] = "hooked",
    processing: Literal["none", "folded"] = "none",
    n_devices: int = 1,
) -> Model:
    """Load a chat model with hooks, by hub name or from a local folder.

    Weights are left as they are unless `processing="folded"`: only then does
    `blocks.i.hook_resid_post` equal Hugging Face's `hidden_states[i + 1]`. The conversion is
    compared with Hugging Face's own forward before the model is handed out, so that a checkpoint
    that TransformerLens reads wrongly fails here and not in somebody's figures.

    The tokenizer on the model is Hugging Face's own: TransformerLens would give it a BOS token
    that the model may never have seen.

    Args:
        name_or_path: Name on the hub (or TransformerLens's alias of it), or a checkpoint folder.
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: "float32", "bfloat16" or "float16"; "auto" is the checkpoint's own on CUDA and
            float32 elsewhere.
        revision: Branch, tag or commit on the hub.
        backend: "hooked" for `HookedTransformer`; "bridge" for `TransformerBridge`, which covers
            architectures that `HookedTransformer` lacks.
        processing: "none", or "folded" for TransformerLens's folding and centring of weights.
        n_devices: CUDA devices to spread the layers over ("hooked" only).

    Returns:
        The model in evaluation mode, with its tokenizer and `load_record`.

    Raises:
        RefusalLensError: The name is unknown, the checkpoint cannot be reached or converted, or
            the device or dtype does not exist here.
    """
    target = _pick_device(device)
    source, is_local = _find_checkpoint(str(name_or_path))
    hf_model = _load_hf_model(source, revision, _pick_dtype(dtype, target))
    tokenizer = _load_tokenizer(source, revision)
    record = LoadRecord(
        name=str(name_or_path),
        architecture=type(hf_model).__name__,
        revision=getattr(hf_model.config, "_commit_hash", None) or revision,
        weights_sha256=_hash_weights(Path(source)) if is_local else None,
        dtype=str(hf_model.dtype).removeprefix("torch."),
        device=target,
        backend=backend,
        processing=processing,
        eos_token_ids=_eos_token_ids(hf_model, tokenizer),
    )
    if backend == "bridge":
        model = _boot_bridge(hf_model, tokenizer, source, target, processing)
    else:
        model = convert(hf_model, target, processing, n_devices)
    _set_tokenizer(model, tokenizer)
    model.load_record = record  # type: ignore[assignment]
    return model.eval()


def load_tokenizer(name_or_path: str | Path, *, revision: str | None = None) -> Any:
    """Load the tokenizer alone, the one that `load_model` puts on the model.

    Raises:
        RefusalLensError: The name is unknown, or the checkpoint cannot be reached.
    """
    return _load_tokenizer(_find_checkpoint(str(name_or_path))[0], revision)


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
        "backend": "bridge" if isinstance(model, TransformerBridge) else "hooked",
    }


def eos_token_ids(model: Model) -> tuple[int, ...]:
    """Return every token id that ends the model's turn."""
    record = getattr(model, "load_record", None)
    if isinstance(record, LoadRecord):
        return record.eos_token_ids
    eos = tokenizer_of(model).eos_token_id
    return () if eos is None else (eos,)


def tokenizer_of(model: Model) -> Any:
    """Return the model's tokenizer.

    Raises:
        RefusalLensError: It has none.
    """
    if model.tokenizer is None:
        raise RefusalLensError(
            "Prompts need a tokenizer, and this model has none. Load it with load_model, or set "
            "model.tokenizer."
        )
    return model.tokenizer


# --- finding and reading a checkpoint ---------------------------------------------------------


def _find_checkpoint(name: str) -> tuple[str, bool]:
    """Return what Hugging Face is to open, and whether it is a folder on this machine."""
    folder = find_resource(str(Path(name).expanduser()))
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise RefusalLensError(
                f"A checkpoint folder holds config.json and safetensors weights, as Hugging Face "
                f"saves them; {folder} has no config.json. Give the folder that holds it."
            )
        return str(folder), True
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RefusalLensError(
            f"The model folder {name} does not exist (looked below {Path.cwd()}). "
            "Give an existing checkpoint folder, or a name on the Hugging Face hub."
        )
    aliases = loading_from_pretrained.make_model_alias_map()
    return aliases.get(name.lower(), name), False


def _load_hf_model(source: str, revision: str | None, dtype: torch.dtype | str) -> PreTrainedModel:
    try:
        with _quiet_hugging_face():
            return AutoModelForCausalLM.from_pretrained(
                source, revision=revision, dtype=dtype, attn_implementation="eager"
            ).eval()
    except (OSError, ValueError) as error:
        raise RefusalLensError(_explain_load_failure(source, revision, error)) from error


def _load_tokenizer(source: str, revision: str | None) -> Any:
    try:
        with _quiet_hugging_face():
            return AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise RefusalLensError(
            f"The tokenizer of {source} could not be read: {_first_line(error)}. "
            "A chat model's folder holds tokenizer.json and tokenizer_config.json."
        ) from error


def _explain_load_failure(source: str, revision: str | None, error: Exception) -> str:
    """Turn Hugging Face's error into what is needed, what came and where to fix it."""
    reason = _first_line(error)
    if Path(source).is_dir():
        return f"The checkpoint folder {source} could not be loaded: {reason}"
    if "gated" in str(error):
        return (
            f"{source} is gated: accept its licence on its page on the hub, then log in with "
            "`hf auth login`, or give a local checkpoint folder."
        )
    if "is not a valid git identifier" in str(error):
        return f"{source} has no revision {revision!r}. Set model.revision to one that it has."
    closest = difflib.get_close_matches(source, supported_models.OFFICIAL_MODEL_NAMES, 5, 0.4)
    names = f" Closest official names: {', '.join(closest)}." if closest else ""
    if "couldn't connect" in str(error) or "offline" in str(error).lower():
        known = source in supported_models.OFFICIAL_MODEL_NAMES
        return (
            f"{source} is not cached on this machine, and the Hugging Face hub cannot be reached. "
            "Download it where there is a network (`hf download " + source + "`) and give the "
            "folder: --model path/to/folder." + ("" if known else names)
        )
    return f"{source} is neither a folder on this machine nor a model on the hub.{names}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


@contextmanager
def _quiet_hugging_face() -> Iterator[None]:
    """Keep Hugging Face's load bars and notices off the terminal; put its settings back after."""
    verbosity, had_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if had_bars:
            hf_logging.enable_progress_bar()


def _hash_weights(folder: Path) -> str:
    """Hash the weight files of a local checkpoint, names included, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _eos_token_ids(hf_model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """Every id that ends the model's turn: the generation config's, and the tokenizer's own."""
    generation = getattr(hf_model, "generation_config", None)
    listed = getattr(generation, "eos_token_id", None)
    ids = listed if isinstance(listed, list) else [listed]
    return tuple(sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None}))


# --- device and dtype -------------------------------------------------------------------------


def _pick_device(device: str) -> str:
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise RefusalLensError(
            f"There is no device {device!r}. Use auto, cpu, cuda, cuda:1 or mps."
        ) from error
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(kind, True):
        raise RefusalLensError(
            f"Device {device} was asked for, but torch {torch.__version__} finds no {kind} device "
            "here. Use --device cpu, or install a torch build for this device."
        )
    return device


def _pick_dtype(dtype: str, device: str) -> torch.dtype | str:
    """Resolve "auto": CPUs compute bfloat16 more slowly than float32, so they get float32."""
    if dtype == "auto":
        return "auto" if device.startswith("cuda") else torch.float32
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in named:
        raise RefusalLensError(f"There is no dtype {dtype!r} here. Use auto, {', '.join(named)}.")
    return named[dtype]


# --- what the two backends share --------------------------------------------------------------


def _boot_bridge(
    hf_model: PreTrainedModel, tokenizer: Any, source: str, device: str, processing: str
) -> TransformerBridge:
    if processing != "none":
        raise RefusalLensError(
            f"processing: {processing} needs backend: hooked; the bridge runs Hugging Face's own "
            "weights. Set model.processing to none, or model.backend to hooked."
        )
    placed: Any = hf_model.to(device)  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TransformerBridge.boot_transformers(
            source, hf_model=placed, tokenizer=tokenizer, device=device
        )


def _set_tokenizer(model: Model, tokenizer: Any) -> None:
    """Put Hugging Face's tokenizer on the model unaltered, but for padding on the right."""
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    model.tokenizer = tokenizer
    model.cfg.default_prepend_bos = tokenizer.bos_token is not None
    model.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0
