"""A checkpoint as transformers opens it: config, weights and tokenizer, and nothing of its code.

Knows what transformers reports of a load, and what its errors mean. Does not know hooks.

Tested in tests/models/test_loading.py.
"""

import difflib
import pickle
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformer_lens import supported_models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    modeling_gguf_pytorch_utils,
)
from transformers import __version__ as transformers_version
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.models.checkpoint import (
    TOKENIZER_FILES,
    Checkpoint,
    check_adapter,
    check_config,
    check_folder,
    find_checkpoint,
)
from refusal_lens.models.parity import check_weights

WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "base_model.model.": "PEFT, unmerged",
}
"""What trainers wrap a model in, by the prefix that it leaves on the names of its tensors."""

LEFT_OVER = re.compile(
    r"(rotary_emb\.(inv_freq|(cos|sin)_cached)|position_ids|\.(attn|attention)\.(masked_)?bias"
    r"|self_attn\.(k|v|q|prob)_scale|\.[kvq]_proj\.(output_scale|[kv]_scale|output_zero_point)"
    r"|v_head\.(summary\.)?(weight|bias))$"
)
"""What may be left out of a checkpoint: tables that older versions saved and that are computed now,
scales for a quantised cache of keys and values, and the value head that reinforcement learning put
beside the language model's. None of them changes what the model computes. Scales of weights are not
among them: without them the weights are others."""


def open_checkpoint(name: str, gguf_file: str | None, revision: str | None) -> Checkpoint:
    """Find a checkpoint, and a GGUF file of the hub as the file on this machine that it becomes."""
    found = find_checkpoint(name, gguf_file)
    if found.gguf_file is not None and not found.is_local:
        with explained(found, revision), _quiet_hugging_face():
            path = Path(str(cached_file(found.source, found.gguf_file, revision=revision)))
        found = replace(found, source=str(path.parent), is_local=True)
    check_folder(found)
    return found


def read_config(checkpoint: Checkpoint, revision: str | None) -> Any:
    """Read a checkpoint's config, and refuse by it what no backend can take."""
    with explained(checkpoint, revision), _quiet_hugging_face():
        config = AutoConfig.from_pretrained(
            checkpoint.source,
            revision=revision,
            gguf_file=checkpoint.gguf_file,
            trust_remote_code=False,
        )
    check_config(config, checkpoint.source)
    return config


def read_weights(
    checkpoint: Checkpoint,
    revision: str | None,
    dtype: torch.dtype | str,
    placed: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Load the weights by transformers, and hold it to its own report of what it loaded.

    Args:
        checkpoint: Where they are.
        revision: Of a checkpoint on the hub.
        dtype: Theirs in memory; "auto" is the checkpoint's own.
        placed: What `from_pretrained` is told of where they go; by default the CPU.
    """
    with (
        _without_adapter(checkpoint) as source,
        explained(checkpoint, revision),
        _quiet_hugging_face(),
    ):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            gguf_file=checkpoint.gguf_file,
            dtype=dtype,
            attn_implementation="eager",
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are in the report
            output_loading_info=True,
            **(placed or {}),
        )
    hf_model, report = loaded
    check_report(report, checkpoint.source)
    if checkpoint.gguf_file is not None:
        _forget_quantisation(hf_model, checkpoint.gguf_file)
    if checkpoint.adapter is not None:
        hf_model = merge_adapter(hf_model, checkpoint.adapter, checkpoint.source)
    check_weights(hf_model)
    return hf_model.eval()


def check_report(report: dict[str, Any], name: str) -> None:
    """Refuse a load in which a tensor was made up, left out, or of another shape, and name it.

    Tensors that change nothing may be left out (`LEFT_OVER`): they are named in a warning. The
    report is transformers' `output_loading_info`.
    """
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        tensor, in_file, by_config = mismatched[0]
        raise RefusalLensError(
            f"{tensor} of {name} is {list(in_file)} in its file and {list(by_config)} by its "
            f"config.json ({len(mismatched)} such tensors). Give weights and config that belong "
            "together."
        )
    missing, extra = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    unexpected = [key for key in extra if not LEFT_OVER.search(key)]
    wrapper = next((w for w in WRAPPERS if unexpected and unexpected[0].startswith(w)), None)
    if wrapper is not None:
        raise RefusalLensError(
            f"The tensors of {name} are called {unexpected[0]} and so on: saved from inside "
            f"{WRAPPERS[wrapper]}. Save the model itself (without {wrapper!r})."
        )
    if missing or unexpected:
        lacks = f"lack {_few(missing)}" if missing else ""
        has = f"hold {_few(unexpected)}, which its architecture does not have" if unexpected else ""
        raise RefusalLensError(
            f"The weights of {name} {' and '.join(filter(None, (lacks, has)))}: transformers would "
            "make up what lacks at random, and leave out the rest. Give the whole checkpoint, with "
            "its own config.json."
        )
    if extra:
        warnings.warn(
            f"{name} holds {_few(extra)}, which a forward pass does not use: left out.",
            RefusalLensWarning,
            stacklevel=2,
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def merge_adapter(hf_model: PreTrainedModel, folder: Path, name: str) -> PreTrainedModel:
    """Merge a PEFT adapter into its base, in memory, and say so.

    Raises:
        RefusalLensError: peft is missing, or the adapter does not fit.
    """
    check_adapter(folder)
    try:
        from peft import PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError as error:
        raise RefusalLensError(
            f"{folder} holds a PEFT adapter, and merging it needs peft: pip install "
            "'refusal-lens[adapters]'. Or merge it once (merge_and_unload, save_pretrained), and "
            "give that folder."
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what peft warns of is looked at below
            adapted = PeftModel.from_pretrained(hf_model, str(folder))
            stored = set(load_peft_weights(str(folder), device="cpu"))
            expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
            lost = sorted(expected - stored) + sorted(stored - expected - set(adapted.state_dict()))
            merged = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise RefusalLensError(
            f"The adapter {folder} cannot be merged into {name}: {first_line(error)}. Give the "
            "base that it was trained on, or merge it where it was trained."
        ) from error
    if lost:
        raise RefusalLensError(
            f"The adapter {folder} does not fit {name}: {_few(lost)} has no counterpart. Give the "
            "base that it was trained on."
        )
    warnings.warn(
        f"The adapter {folder} was merged in memory into {name}.", RefusalLensWarning, stacklevel=2
    )
    return merged


def _forget_quantisation(hf_model: PreTrainedModel, name: str) -> None:
    """Take off what makes transformers treat dequantised weights as packed ones."""
    for owner in (hf_model, hf_model.config):
        for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
            vars(owner).pop(attribute, None)
        vars(owner).pop("quantization_config", None)
    hf_model.config.name_or_path = name.removesuffix(".gguf")


@contextmanager
def _without_adapter(checkpoint: Checkpoint) -> Iterator[str]:
    """Give what transformers is to open, where an adapter lies beside the weights in one folder.

    transformers would put the adapter on by itself, unmerged, but only where peft is installed.
    """
    if checkpoint.adapter is None or checkpoint.adapter != checkpoint.folder:
        yield checkpoint.source
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        for path in checkpoint.adapter.iterdir():
            if path.is_file() and not path.name.startswith("adapter_"):
                try:
                    (Path(folder) / path.name).symlink_to(path.absolute())
                except OSError:  # Windows lets few users make links
                    shutil.copyfile(path, Path(folder) / path.name)
        yield folder


def read_tokenizer(checkpoint: Checkpoint, revision: str | None) -> Any:
    """Read a checkpoint's tokenizer; an adapter's own, where it brings one, before its base's.

    Raises:
        RefusalLensError: It cannot be read, or is empty.
    """
    adapter = checkpoint.adapter
    has_one = adapter is not None and any((adapter / name).is_file() for name in TOKENIZER_FILES)
    try:
        with _quiet_hugging_face():
            tokenizer = AutoTokenizer.from_pretrained(
                adapter if has_one else checkpoint.source,
                revision=revision,
                gguf_file=None if has_one else checkpoint.gguf_file,
                trust_remote_code=False,
            )
            tokenizer("a")  # settings of a wrong kind are found out at use
    except Exception as error:
        raise RefusalLensError(
            f"The tokenizer of {checkpoint.source} could not be read: {first_line(error)}. "
            "A chat model's folder holds tokenizer.json and tokenizer_config.json."
        ) from error
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise RefusalLensError(
            f"The tokenizer of {checkpoint.source} is empty ({len(tokenizer)} tokens). Copy "
            "tokenizer.json and tokenizer_config.json there from the model that was trained on."
        )
    return tokenizer


def read_classifier(folder: Path) -> tuple[Any, Any]:
    """Read a sequence classifier and its tokenizer from a folder, by the rules of a checkpoint.

    Raises:
        RefusalLensError: It cannot be read, or tensors lack: transformers would make them up.
    """
    checkpoint = Checkpoint(str(folder), is_local=True)
    check_folder(checkpoint)
    tokenizer = read_tokenizer(checkpoint, None)
    with explained(checkpoint, None), _quiet_hugging_face():
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are in the report
            output_loading_info=True,
        )
    model, report = loaded
    # Heads of the first training that are left over change nothing.
    check_report({**report, "unexpected_keys": []}, checkpoint.source)
    check_weights(model)
    return tokenizer, model.eval()


def check_vocabulary(tokenizer: Any, hf_model: PreTrainedModel, name: str) -> None:
    """Refuse a tokenizer whose tokens the model has no embedding for.

    Special ones may lie beyond (Gemma-3's for images): no text becomes one by chance.
    """
    embedding: Any = hf_model.get_input_embeddings()
    n_rows = embedding.weight.shape[0]
    special = set(tokenizer.all_special_tokens) | set(
        map(str, tokenizer.added_tokens_decoder.values())
    )
    beyond = [t for t, i in tokenizer.get_vocab().items() if i >= n_rows and t not in special]
    if beyond:
        raise RefusalLensError(
            f"The tokenizer of {name} has {len(tokenizer):,} tokens, and the model embeds "
            f"{n_rows:,}: {beyond[0]!r} has no row. Give the tokenizer that the model was trained "
            "with, or resize the embedding (resize_token_embeddings) and save it."
        )


@contextmanager
def explained(checkpoint: Checkpoint, revision: str | None) -> Iterator[None]:
    """Turn whatever another library raises while it reads a checkpoint into one sentence."""
    try:
        yield
    except RefusalLensError:
        raise
    except Exception as error:
        raise RefusalLensError(_explain_load_failure(checkpoint, revision, error)) from error


def _explain_load_failure(checkpoint: Checkpoint, revision: str | None, error: Exception) -> str:
    """Turn Hugging Face's error into what is needed, what came and where to fix it."""
    source, reason = checkpoint.source, first_line(error)
    if "trust_remote_code" in str(error):
        return (
            f"{source} brings Python code of its own (auto_map in config.json), and that is never "
            "run here. Give a checkpoint whose architecture transformers has itself."
        )
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"The weights of {source} are a pickle with more in it than tensors, and that is never "
            "run here. Save them as safetensors (save_pretrained) where you trust them."
        )
    if checkpoint.gguf_file is not None and "not supported" in str(error):
        return (
            f"transformers {transformers_version} cannot read this GGUF file: {reason}. Give the "
            "original checkpoint folder."
        )
    if checkpoint.is_local:
        return f"The checkpoint {checkpoint.gguf or source} could not be loaded: {reason}"
    if "gated" in str(error):
        return (
            f"{source} is gated: accept its licence on its page on the hub, then log in with "
            "`hf auth login`, or give a local checkpoint folder."
        )
    if "is not a valid git identifier" in str(error):
        return f"{source} has no revision {revision!r}. Set model.revision to one that it has."
    return _explain_hub_failure(source, error)


def _explain_hub_failure(source: str, error: Exception) -> str:
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


def first_line(error: Exception) -> str:
    """Return what another library's error says first; where that is a heading, what follows too."""
    first, *others = (str(error).strip() or type(error).__name__).split("\n")
    rest = f" {others[0].strip()}" if others and first.endswith(":") else ""
    return f"{first}{rest}".rstrip(".")


@contextmanager
def _quiet_hugging_face() -> Iterator[None]:
    """Keep Hugging Face's load bars and notices off the terminal; put its settings back after."""
    verbosity, had_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    # The bar of GGUF tensors does not ask whether bars are wanted.
    gguf_module: Any = modeling_gguf_pytorch_utils
    gguf_bar = gguf_module.tqdm
    gguf_module.tqdm = partial(gguf_bar, disable=True)
    try:
        yield
    finally:
        gguf_module.tqdm = gguf_bar
        hf_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if had_bars:
            hf_logging.enable_progress_bar()
