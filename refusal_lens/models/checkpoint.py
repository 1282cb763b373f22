"""Where a checkpoint is and what it is, found out before its weights are read.

Knows folders, adapters and configs, and which of them no backend can take. Does not load weights.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformer_lens import loading_from_pretrained, supported_models
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from refusal_lens.config_files import find_resource, resource_places
from refusal_lens.errors import RefusalLensError
from refusal_lens.files import nearest_sibling, refuse_lfs_pointer
from refusal_lens.models.gguf_files import SPLIT_NAME

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In one file; in several, a file of this name and `.index.json` lists them."""

ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

NEAR = 0.8
"""Likeness of a name with that of a folder from which on it is one written wrongly."""

MOST_CONFIG_BYTES = 2**24
"""A config.json is a few kilobytes; far beyond that it is none."""


MOST_LAYERS = 1_000
"""A model is built layer by layer before its weights are looked for: a million take an hour."""


@dataclass(frozen=True)
class Checkpoint:
    """What Hugging Face is to open.

    Attributes:
        source: A folder, or a name on the hub.
        is_local: Whether `source` is a folder on this machine.
        gguf_file: Name of the GGUF file in it; None for a checkpoint of Hugging Face's kind.
        adapter: Folder of a PEFT adapter to merge into these weights.
    """

    source: str
    is_local: bool
    gguf_file: str | None = None
    adapter: Path | None = None

    @property
    def folder(self) -> Path | None:
        """Return the folder on this machine; None on the hub."""
        return Path(self.source) if self.is_local else None

    @property
    def gguf(self) -> Path | None:
        """Return the GGUF file on this machine."""
        return Path(self.source) / self.gguf_file if self.is_local and self.gguf_file else None


def find_checkpoint(name: str, gguf_file: str | None = None) -> Checkpoint:
    """Find what a model's name stands for.

    Args:
        name: A checkpoint folder, a GGUF file, the folder of a PEFT adapter, or a name on the hub
            (or TransformerLens's alias of it).
        gguf_file: Which GGUF file, where a folder or a repository holds several.

    Raises:
        RefusalLensError: There is nothing of this name, or it is not one checkpoint.
    """
    found = find_resource(str(Path(name).expanduser()))
    if found is not None and found.is_file():
        return _from_file(found)
    if found is not None:
        return _from_folder(found, gguf_file)
    aliases = loading_from_pretrained.make_model_alias_map()
    on_hub = aliases.get(name.lower(), name)
    near = _near_folder(name, on_hub)
    if near or not _is_hub_name(on_hub):
        kind = "file" if name.endswith(".gguf") else "folder"
        raise RefusalLensError(
            f"The model {kind} {name} does not exist (looked below {Path.cwd()}){near}. Give an "
            "existing checkpoint folder, or a name on the Hugging Face hub"
            + (f" (is {name} one? Then first: hf download {name})." if near else ".")
        )
    return Checkpoint(on_hub, False, gguf_file)


def _is_hub_name(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith(".gguf")


def _near_folder(name: str, on_hub: str) -> str:
    """Name what a path may have meant that is not there; "" for a model known to be on the hub.

    The hub is asked over the network, which takes most of a minute to find out where there is none.
    """
    if on_hub in supported_models.OFFICIAL_MODEL_NAMES or (
        _is_hub_name(on_hub) and isinstance(try_to_load_from_cache(on_hub, "config.json"), str)
    ):
        return ""
    places = resource_places(str(Path(name).expanduser()))
    # A fine-tune in a folder may begin with the name of the model on the hub that is wanted.
    may_go_on = not _is_hub_name(on_hub) or on_hub.startswith("data/")
    near = (nearest_sibling(place, NEAR, may_go_on=may_go_on) for place in places)
    return next(filter(None, near), "")


def _from_file(path: Path) -> Checkpoint:
    if path.suffix.lower() != ".gguf":
        raise RefusalLensError(
            f"A model is a checkpoint folder, a .gguf file or a name on the hub; {path} is a file "
            "of another kind. Give the folder that holds its config.json."
        )
    return Checkpoint(str(path.parent), True, path.name)


def _from_folder(folder: Path, gguf_file: str | None) -> Checkpoint:
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise RefusalLensError(f"{folder} holds no {gguf_file} (model.gguf_file).")
        return Checkpoint(str(folder), True, gguf_file)
    adapter = folder if (folder / ADAPTER_CONFIG).is_file() else None
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if (folder / "config.json").is_file() and weight_files(folder):
        return Checkpoint(str(folder), True, adapter=adapter)
    if adapter is not None:
        return _from_adapter(folder)
    if (folder / "config.json").is_file() and not files:
        return Checkpoint(str(folder), True)
    if len(files) > 1 and not all(SPLIT_NAME.search(name) for name in files):
        raise RefusalLensError(
            f"{folder} holds {len(files)} GGUF files: {', '.join(files[:6])}. Name one: give its "
            "path as the model, or set model.gguf_file."
        )
    if files:
        return Checkpoint(str(folder), True, files[0])
    raise RefusalLensError(
        f"A checkpoint folder holds config.json and safetensors weights, as Hugging Face saves "
        f"them, or a .gguf file; {folder} has no config.json. Give the folder that holds it."
    )


def _from_adapter(folder: Path) -> Checkpoint:
    """Find the base of an adapter that lies alone in its folder."""
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise RefusalLensError(
            f"{folder / ADAPTER_CONFIG} names no base (base_model_name_or_path). Write there which "
            "model the adapter was trained on."
        )
    place = str(folder / base) if (folder / base).is_dir() else base
    if (Path(place).expanduser() / ADAPTER_CONFIG).is_file():
        raise RefusalLensError(f"The base of the adapter {folder} is an adapter itself: {base}.")
    found = find_checkpoint(place)
    return Checkpoint(found.source, found.is_local, found.gguf_file, adapter=folder)


def weight_files(folder: Path) -> list[Path]:
    """List the files that a model's weights are read from, as transformers does; some may lack."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = read_json(index).get("weight_map")
            names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
            return [folder / shard for shard in sorted(names)]
    return []


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint, of a sensible size and depth; refuse all else."""
    refuse_lfs_pointer(path)
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RefusalLensError(
            f"{path} cannot be read as JSON ({error or type(error).__name__}). Download or save "
            "the checkpoint again."
        ) from error
    if not isinstance(content, dict):
        raise RefusalLensError(f"{path} holds no JSON object. Save the checkpoint again.")
    return content


QUANTISED = "Give an unquantised checkpoint (bfloat16 or float32), or a GGUF file of it"


# --- what its files are -----------------------------------------------------------------------


def check_folder(checkpoint: Checkpoint) -> None:
    """Look at the files of a local checkpoint of Hugging Face's kind, before they are opened.

    Raises:
        RefusalLensError: One is a git-LFS pointer or was cut off; weights or tokenizer are missing.
    """
    folder = checkpoint.folder
    if folder is None or checkpoint.gguf_file is not None:
        return
    read_json(folder / "config.json")
    check_weight_files(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise RefusalLensError(
            f"{folder} has no tokenizer.json: trainers often leave the tokenizer out. Copy "
            "tokenizer.json and tokenizer_config.json there from the model that was trained on."
        )


def check_weight_files(folder: Path) -> None:
    """Refuse a folder whose weights are not there, or not whole; the file is named."""
    files = weight_files(folder)
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        what = f"lacks {', '.join(missing[:3])}" if missing else "holds no weights"
        raise RefusalLensError(f"{folder} {what}. Download the checkpoint again, whole.")
    for path in files:
        refuse_lfs_pointer(path)
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def check_adapter(folder: Path) -> None:
    """Refuse an adapter whose weights are not there, or not whole."""
    safe, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    found = next((path for path in (safe, pickled) if path.is_file()), None)
    if found is None:
        raise RefusalLensError(
            f"{folder} has an {ADAPTER_CONFIG} and no adapter_model.safetensors. Copy it there, or "
            f"take {ADAPTER_CONFIG} away if the weights are merged already."
        )
    refuse_lfs_pointer(found)
    if found == safe:
        _check_safetensors(safe)


def _check_safetensors(path: Path) -> None:
    """Compare the size that a safetensors header promises with the file's, and look at its types.

    Weights in whole numbers are packed ones, whose config.json lost the quantisation: transformers
    takes them for what they are not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        header = file.read(length) if 2 <= length <= size - 8 else b""
    packed: list[str] = []
    try:
        entries = {k: e for k, e in json.loads(header).items() if k != "__metadata__"}
        expected = 8 + length + max((e["data_offsets"][1] for e in entries.values()), default=0)
        packed = [k for k, e in entries.items() if k.endswith("weight") and e["dtype"][0] in "IU"]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError):
        expected = None
    if expected != size:
        asked = "" if expected is None else f", its header speaks of {expected:,}"
        raise RefusalLensError(
            f"{path} is no whole safetensors file ({size:,} bytes{asked}): the download broke off. "
            "Download it again."
        )
    if packed:
        raise RefusalLensError(
            f"{path} holds weights in whole numbers ({packed[0]}, {len(packed)} in all): they are "
            f"packed, and its config does not say how. {QUANTISED}."
        )


# --- what its config says ---------------------------------------------------------------------


def check_config(config: Any, name: str) -> None:
    """Refuse what no backend can take, by what it is.

    That is what is quantised, an encoder, a classifier or a multimodal model, or has more layers
    than can be built. `name` is what the user calls the checkpoint.
    """
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        described = quantised if isinstance(quantised, dict) else quantised.to_dict()
        method = str(described.get("quant_method", "an unknown method"))
        if method != "gguf":
            raise RefusalLensError(
                f"{name} is quantised ({method}): its weights are packed, and neither backend "
                f"unpacks them. {QUANTISED}."
            )
    n_layers = getattr(config, "num_hidden_layers", None) or 0
    if n_layers > MOST_LAYERS:
        raise RefusalLensError(
            f"{name} is to have {n_layers:,} layers by its config.json, which no model has. "
            "Download or save the checkpoint again."
        )
    architectures = getattr(config, "architectures", None) or []
    can_answer = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if architectures and not can_answer & set(architectures):
        raise RefusalLensError(f"{name} is no chat model: {_kind(config, architectures[0])}")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise RefusalLensError(
            f"{name} is no chat model: transformers knows no language model of type "
            f"{config.model_type!r}. Give a decoder such as Llama or Qwen."
        )


def _kind(config: Any, architecture: str) -> str:
    if architecture in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
        return (
            f"{architecture} is multimodal, with its language model inside. Give that alone (a "
            "checkpoint whose architecture ends in ForCausalLM)."
        )
    if getattr(config, "is_encoder_decoder", False):
        return (
            f"{architecture} is an encoder with a decoder, and has no one residual stream. Give a "
            "decoder such as Llama or Qwen."
        )
    return (
        f"{architecture} writes no text (an encoder, a classifier, or a model without its head). "
        "Give a checkpoint whose architecture ends in ForCausalLM."
    )
