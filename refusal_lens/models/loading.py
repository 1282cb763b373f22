"""Loading chat models with their hooks.

Knows where checkpoints come from, on which device they run and what has to be recorded about them.
Does not know prompts, chat templates or activations.
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from refusal_lens.errors import RefusalLensError
from refusal_lens.files import file_sha256
from refusal_lens.models.backends import LoadRecord, Model
from refusal_lens.models.batching import is_out_of_memory
from refusal_lens.models.checkpoint import Checkpoint
from refusal_lens.models.conversion import convert, is_bridged
from refusal_lens.models.gguf_files import headers_read_once, read_gguf
from refusal_lens.models.hugging_face import (
    check_vocabulary,
    first_line,
    open_checkpoint,
    read_config,
    read_tokenizer,
    read_weights,
)
from refusal_lens.models.parity import check_parity, read_reference
from refusal_lens.models.placement import spread_weights
from refusal_lens.models.torch_defaults import plain_torch


def load_model(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    backend: Literal["hooked", "bridge"] = "hooked",
    processing: Literal["none", "folded"] = "none",
    n_devices: int = 1,
    gguf_file: str | None = None,
) -> Model:
    """Load a chat model with hooks: by hub name, from a local folder, or from a GGUF file.

    Weights are left as they are unless `processing="folded"`: only then does
    `blocks.i.hook_resid_post` equal Hugging Face's `hidden_states[i + 1]`. The conversion is
    compared with Hugging Face's own forward before the model is handed out, so that a checkpoint
    that TransformerLens reads wrongly fails here and not in somebody's figures.

    The tokenizer on the model is Hugging Face's own: TransformerLens would give it a BOS token
    that the model may never have seen.

    Args:
        name_or_path: Name on the hub (or TransformerLens's alias of it), a checkpoint folder, the
            folder of a PEFT adapter (merged into its base in memory), or a `.gguf` file (its
            weights are dequantised).
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: "float32", "bfloat16" or "float16"; "auto" is the checkpoint's own on CUDA and
            float32 elsewhere.
        revision: Branch, tag or commit on the hub.
        backend: "hooked" for `HookedTransformer`; "bridge" for `TransformerBridge`, which covers
            architectures that `HookedTransformer` lacks.
        processing: "none", or "folded" for TransformerLens's folding and centring of weights.
        n_devices: CUDA devices to spread the layers over ("hooked" only).
        gguf_file: Which GGUF file of a repository on the hub, or of a folder that holds several.

    Returns:
        The model in evaluation mode, with its tokenizer and `load_record`.

    Raises:
        RefusalLensError: The name is unknown, the checkpoint cannot be reached or converted, or
            the device or dtype does not exist here, or there is too little memory.
    """
    target = _pick_device(device)
    _check_processing(backend, processing)
    with plain_torch(), headers_read_once(), _enough_memory(str(name_or_path), target):
        checkpoint = open_checkpoint(str(name_or_path), gguf_file, revision)
        described = _describe_origin(checkpoint, gguf_file)
        config = read_config(checkpoint, revision)
        tokenizer = read_tokenizer(checkpoint, revision)
        placed = spread_weights(n_devices, target)
        hf_model = read_weights(checkpoint, revision, _pick_dtype(dtype, target), placed)
        check_vocabulary(tokenizer, hf_model, checkpoint.source)
        record = LoadRecord(
            name=str(name_or_path),
            architecture=type(hf_model).__name__,
            revision=getattr(config, "_commit_hash", None) or revision,
            dtype=str(hf_model.dtype).removeprefix("torch."),
            device=target,
            backend=backend,
            processing=processing,
            eos_token_ids=_eos_token_ids(hf_model, tokenizer),
            **described,
        )
        if backend == "bridge":
            model = _boot_bridge(hf_model, tokenizer, checkpoint.source, target)
        else:
            model = convert(hf_model, target, processing, n_devices)
    _set_tokenizer(model, tokenizer)
    model.load_record = record  # type: ignore[assignment]
    return model.eval()


@contextmanager
def _enough_memory(name: str, device: str) -> Iterator[None]:
    """Say in one sentence that a model does not fit, wherever in its load that was found."""
    try:
        yield
    except Exception as error:
        # Some step below may have taken it for a fault of the checkpoint.
        cause: BaseException = error
        while isinstance(cause, RefusalLensError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, RefusalLensError) or not is_out_of_memory(cause):
            raise
        raise RefusalLensError(
            f"{name} does not fit in memory on {device}. Load it in bfloat16 (model.dtype), spread "
            "it over several CUDA devices (model.n_devices), or give a smaller model; a GGUF file "
            "takes as much as the dtype it is loaded in."
        ) from error


def load_tokenizer(
    name_or_path: str | Path, *, revision: str | None = None, gguf_file: str | None = None
) -> Any:
    """Load the tokenizer alone, the one that `load_model` puts on the model.

    Raises:
        RefusalLensError: The name is unknown, or the checkpoint cannot be reached.
    """
    with plain_torch(), headers_read_once(), _enough_memory(str(name_or_path), "cpu"):
        checkpoint = open_checkpoint(str(name_or_path), gguf_file, revision)
        read_config(checkpoint, revision)
        return read_tokenizer(checkpoint, revision)


def _describe_origin(checkpoint: Checkpoint, gguf_file: str | None) -> dict[str, Any]:
    """Say which files a local model is made of, by hash; of a GGUF file, in what it stores."""
    described: dict[str, Any] = {"weights_sha256": None}
    if checkpoint.gguf is not None:
        content = read_gguf(checkpoint.gguf)
        described["weights_sha256"] = file_sha256(checkpoint.gguf)
        described["gguf"] = {
            "file": checkpoint.gguf.name,
            "asked": gguf_file,
            "quantisation": content.quantisation,
            "weights": "dequantised",
        }
    elif checkpoint.folder is not None:
        described["weights_sha256"] = _hash_weights(checkpoint.folder)
    if checkpoint.adapter is not None:
        hashed = _hash_weights(checkpoint.adapter)
        described["adapter"] = {"folder": str(checkpoint.adapter), "sha256": hashed}
    return described


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
    ids = [*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id]
    unsound = [i for i in ids if i is not None and type(i) is not int]
    if unsound:
        raise RefusalLensError(
            f"generation_config.json has the eos_token_id {unsound[0]!r:.60}, which is no token's "
            "number. Save the checkpoint again."
        )
    return tuple(sorted({i for i in ids if i is not None}))


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


def _check_processing(backend: str, processing: str) -> None:
    if backend not in ("hooked", "bridge"):
        raise RefusalLensError(f"There is no backend {backend!r}. Use hooked or bridge.")
    if backend == "bridge" and processing != "none":
        raise RefusalLensError(
            f"processing: {processing} needs backend: hooked; the bridge runs Hugging Face's own "
            "weights. Set model.processing to none, or model.backend to hooked."
        )


def _boot_bridge(
    hf_model: PreTrainedModel, tokenizer: Any, source: str, device: str
) -> TransformerBridge:
    architecture, reference = type(hf_model).__name__, read_reference(hf_model)
    if not is_bridged(hf_model):
        raise RefusalLensError(
            f"TransformerBridge has no adapter for {architecture}. Try backend: hooked; if that "
            "refuses it too, TransformerLens cannot read this architecture."
        )
    placed: Any = hf_model.to(device)  # pyright: ignore[reportArgumentType]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bridge = TransformerBridge.boot_transformers(
                source,
                hf_model=placed,
                tokenizer=tokenizer,
                device=device,
                trust_remote_code=False,
            )
    except Exception as error:
        raise RefusalLensError(
            f"TransformerBridge does not take {architecture} ({first_line(error)}). Try backend: "
            "hooked; if that refuses it too, TransformerLens cannot read this architecture."
        ) from error
    advice = "The bridge does not wrap something of this checkpoint rightly. Try backend: hooked."
    check_parity(bridge, reference, hf_model, advice)
    return bridge


def _set_tokenizer(model: Model, tokenizer: Any) -> None:
    """Put Hugging Face's tokenizer on the model unaltered, but for padding on the right."""
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    model.tokenizer = tokenizer
    model.cfg.default_prepend_bos = tokenizer.bos_token is not None
    model.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0
