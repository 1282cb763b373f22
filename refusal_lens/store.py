"""Activations on disk: safetensors shards and a manifest.

Knows how files are written whole or not at all, and how activations are laid out in them. Does not
know where a run keeps its files.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from refusal_lens.collector import Activations
from refusal_lens.errors import RefusalLensError

SHARD_PROMPTS = 4096
"""Prompts in one shard: large enough that reading is fast, small enough to lose little."""

FORMAT = "refusal-lens activations 1"


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; put it in its place when the block ends well.

    A reader sees the old file or the new one, never half of one, also after a crash.

    Example:
        >>> with write_whole(tmp_path / "a.txt") as file:
        ...     _ = file.write_text("whole")
        >>> (tmp_path / "a.txt").read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_activations(folder: Path, activations: Activations) -> None:
    """Write activations as shards of prompts, then the manifest that makes them readable.

    Each shard holds one tensor a hook point, `[prompt, position, d_model]`, so that one hook point
    can be read without the rest.
    """
    manifest_path = folder / "manifest.json"
    manifest_path.unlink(missing_ok=True)
    shards = []
    for start in range(0, len(activations.is_harmful), SHARD_PROMPTS):
        rows = slice(start, start + SHARD_PROMPTS)
        path = folder / f"shard-{len(shards):05d}.safetensors"
        tensors = {
            name: activations.values[rows, index].contiguous()
            for index, name in enumerate(activations.hook_points)
        }
        with write_whole(path) as temporary:
            save_file({**tensors, "is_harmful": activations.is_harmful[rows].clone()}, temporary)
        shards.append({"file": path.name, "sha256": file_sha256(path)})
    manifest = {
        "format": FORMAT,
        "n_prompts": len(activations.is_harmful),
        "hook_points": list(activations.hook_points),
        "positions": list(activations.positions),
        "provenance": activations.provenance,
        "shards": shards,
    }
    with write_whole(manifest_path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")


def load_activations(folder: Path) -> Activations:
    """Read activations back, in the order they were collected in.

    Raises:
        RefusalLensError: There is no manifest, or a shard is missing or is not what was written.
    """
    manifest = _read_manifest(folder)
    names = manifest["hook_points"]
    values, labels = [], []
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.is_file() or file_sha256(path) != shard["sha256"]:
            raise RefusalLensError(
                f"{path} is missing or is not the file that was written (its checksum differs). "
                "Collect again: refusal-lens collect."
            )
        with _open_shard(path) as tensors:
            values.append(torch.stack([tensors.get_tensor(name) for name in names], dim=1))
            labels.append(tensors.get_tensor("is_harmful"))
    return Activations(
        torch.cat(values),
        torch.cat(labels),
        tuple(names),
        tuple(manifest["positions"]),
        manifest["provenance"],
    )


def file_sha256(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise RefusalLensError(
            f"{folder} holds no finished activations (no manifest.json). "
            "Collect them first: refusal-lens collect."
        )
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise RefusalLensError(
            f"{path} has format {manifest.get('format')!r}; this version reads {FORMAT!r}. "
            "Collect again: refusal-lens collect."
        )
    return manifest


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise RefusalLensError(f"{path} is not a safetensors file: {error}.") from error
