"""What a collection is made of, in plain values: what it depends on, and where it came from.

Knows what must be the same for shards to belong together. Does not know how they are read.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from refusal_lens.activations.batch_reader import Reader
from refusal_lens.activations.first_pass import Survey
from refusal_lens.models.batching import BatchRecord
from refusal_lens.models.loading import Model, describe_model, tokenizer_of
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.groups import find_groups
from refusal_lens.prompts.positions import positions_read
from refusal_lens.prompts.tokens import render, tokenise

VERSIONED = ("refusal-lens", "torch", "transformer-lens", "transformers", "plotly")


def reading_key(model: Model, reader: Reader) -> dict[str, Any]:
    """Say what activations depend on of the model and how it is read, as plain values."""
    described = describe_model(model)
    # Two devices of a kind agree; two kinds round differently.
    described["device"] = described["device"].split(":")[0]
    described["weights_sample_sha256"] = sample_weights(model)
    return {
        "model": described,
        "hook_points": list(reader.hook_points),
        "positions": list(reader.positions),
        "forward": reader.path,
    }


def prompts_key(surveyed: Survey) -> dict[str, Any]:
    """Say what they depend on of the prompts and how these are written out.

    The token ids count too: some templates write the day's date.
    """
    return {
        "prompts": _describe_prompts(surveyed.prompts),
        "chat_template": {
            "sha256": _hash_template(surveyed.tokenizer),
            "system_prompt": surveyed.system_prompt,
        },
        "token_ids_sha256": surveyed.ids_sha256,
    }


def sample_weights(model: Model) -> str:
    """Hash some values of each parameter: weights may have been edited since they were loaded."""
    checksum = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // 64)].float().cpu()
        checksum.update(name.encode() + sample.numpy().tobytes())
    return checksum.hexdigest()


def describe_collection(
    model: Model,
    prompts: ContrastSet,
    reader: Reader,
    record: BatchRecord,
    system_prompt: str | None,
    n_read: int | None = None,
) -> dict[str, Any]:
    """Say where activations came from: model, prompts, template, with one rendered example.

    `n_read` counts the prompts of `record`, where a resumed collection found the others done.
    """
    n_read = len(prompts) if n_read is None else n_read
    return {
        "model": describe_model(model),
        **describe_prompts(tokenizer_of(model), prompts, system_prompt),
        **describe_tokens(tokenizer_of(model), prompts, reader.positions, system_prompt),
        "hook_points": list(reader.hook_points),
        "positions": list(reader.positions),
        "collection": {
            **reader.path,
            **asdict(record),
            "n_prompts_read": n_read,
            "prompts_per_second": n_read / record.seconds if record.seconds else None,
            "n_threads": torch.get_num_threads(),
        },
    }


def describe_prompts(
    tokenizer: Any, prompts: ContrastSet, system_prompt: str | None
) -> dict[str, Any]:
    """Say which prompts, and how they are written out, with one example."""
    return {
        "prompts": _describe_prompts(prompts),
        "groups": find_groups(prompts).describe(),
        "chat_template": {
            "has_template": tokenizer.chat_template is not None,
            "sha256": _hash_template(tokenizer),
            "system_prompt": system_prompt,
            "example": render(tokenizer, prompts.harmful.prompts[0].text, system_prompt),
        },
    }


def describe_tokens(
    tokenizer: Any, prompts: ContrastSet, positions: Sequence[str], system_prompt: str | None
) -> dict[str, Any]:
    """Say which token each position reads in the first prompt."""
    first = tokenise(tokenizer, prompts.harmful.prompts[:1], system_prompt)
    read = positions_read(tokenizer, first, positions)
    return {"tokens_read": {row.position: asdict(row) for row in read}}


def _hash_template(tokenizer: Any) -> str:
    return hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest()


def _describe_prompts(prompts: ContrastSet) -> dict[str, Any]:
    return {
        "harmful": {"n": len(prompts.harmful), "sha256": prompts.harmful.sha256},
        "harmless": {"n": len(prompts.harmless), "sha256": prompts.harmless.sha256},
    }


def describe_machine() -> dict[str, Any]:
    """Say with what software and when this was made."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in VERSIONED},
        },
        "machine": {"processor": platform.machine(), "n_threads": torch.get_num_threads()},
        "collected_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
