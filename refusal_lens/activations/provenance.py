"""What a collection is made of, in plain values: what it depends on, and where it came from.

Knows what must be the same for shards to belong together. Does not know how they are read.
"""

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from refusal_lens.activations.batch_reader import Reader
from refusal_lens.activations.collection import Collection
from refusal_lens.activations.shard_reader import LeftOut
from refusal_lens.models.backends import Model, describe_model
from refusal_lens.models.batching import BatchRecord
from refusal_lens.prompts.positions import MEANS, SINK_RATIO

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
        "sinks": reader.sinks,
        "forward": reader.path,
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
    collection: Collection,
    reading: dict[str, Any],
    record: BatchRecord,
    n_read: int,
    n_left_out: LeftOut,
    **engine: Any,
) -> dict[str, Any]:
    """Say where activations came from: model, prompts, template, with one rendered example.

    `reading` is of `reading_key`; `n_read` are the prompts of `record`, where a resumed collection
    found the others done; `engine` is what else the engine says of itself.
    """
    return {
        "model": {key: value for key, value in reading["model"].items() if "sample" not in key},
        **collection.describe(),
        "hook_points": reading["hook_points"],
        "positions": reading["positions"],
        "sinks": {
            "are": reading["sinks"],
            "ratio": SINK_RATIO,
            "left_out_a_prompt": {
                position: dict(zip(reading["hook_points"], column, strict=True))
                for position, column in zip(
                    reading["positions"], (n_left_out.T / len(collection)).tolist(), strict=True
                )
                if position in MEANS
            },
        },
        "collection": {
            **reading["forward"],
            **asdict(record),
            "n_prompts_read": n_read,
            "prompts_per_second": n_read / record.seconds if record.seconds else None,
            "n_threads": torch.get_num_threads(),
            **engine,
        },
    }


def describe_machine() -> dict[str, Any]:
    """Say with what software and when this was made."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in VERSIONED},
        },
        "machine": {"processor": platform.machine(), "n_threads": torch.get_num_threads()},
        "code": describe_code(Path(__file__).parents[2]),
        "collected_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_code(root: Path) -> dict[str, Any] | None:
    """Say which commit of which repository runs.

    Args:
        root: The folder that the package lies in: a checkout, or site-packages.

    Returns:
        `repository` (an address, or the checkout's folder where it has none), `commit` and
        `is_changed`, whether files differ from it; None where nothing tells: of a wheel, or
        without git.

    Source:
        What pip writes of an installation from a repository: PEP 610.
    """
    written = importlib.metadata.distribution("refusal-lens").read_text("direct_url.json")
    origin = json.loads(written or "{}")
    if "vcs_info" in origin:
        commit = origin["vcs_info"]["commit_id"]
        return {**_repository(origin["url"]), "commit": commit, "is_changed": False}
    # An environment may lie in a repository of something else.
    if not (root / ".git").exists() or (commit := _git(root, "rev-parse", "HEAD")) is None:
        return None
    address = _git(root, "remote", "get-url", "origin") or str(root)
    return {
        **_repository(address),
        "commit": commit,
        "is_changed": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
    }


def _repository(address: str) -> dict[str, str]:
    """Name a repository without a password, which would stand in the report."""
    return {"repository": re.sub(r"(?<=://)[^/@]+@", "", address)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
