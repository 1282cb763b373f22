"""The files of a store: safetensors shards, the records that make them count, the manifest.

Knows how files are written whole or not at all, and how each is laid out. Does not know which
shards belong together.

Tested in tests/activations/test_store.py.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.files import file_sha256, read_sealed, write_sealed, write_whole
from refusal_lens.prompts.contrast import PROMPT_FIELDS, Prompt
from refusal_lens.prompts.groups import FACTORS, Groups

FORMAT = "refusal-lens activations 2"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES_IN_FILE = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.bool: "BOOL",
}

GROUPS, PROMPTS, MANIFEST = "groups.safetensors", "prompts.json", "manifest.json"
"""In a store's folder: which prompts depend on each other, the prompts, what it says of itself."""

HEADER = "header"
"""Among the names of tensors in a record: what stands before them in the file."""


def shard_path(folder: Path, index: int) -> Path:
    """Return where a shard is kept."""
    return folder / f"shard-{index:05d}.safetensors"


def record_path(shard: Path) -> Path:
    """Return where a shard's record is kept: its size and checksum, and how it was batched."""
    return shard.with_suffix(".json")


def write_shard_file(path: Path, tensors: Mapping[str, Tensor], how: Mapping[str, Any]) -> None:
    """Write a shard, then its record, with `how`: what is written last makes the shard count."""
    with write_whole(path) as temporary:
        record = write_safetensors(temporary, tensors)
    write_sealed(record_path(path), {**record, **how})


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file, and return its size and the checksums of its parts.

    The safetensors library reads these files, but does not write them. It sorts tensors by name
    (layer 10 before layer 2), and twelve of them with a checksum behind took it 1.1 s for 0.21 GiB
    where this takes 0.4; as one tensor they would be as quick, and lose their names. Here they keep
    names and order, so that other programs find a hook point by its name and all of one shard can
    be mapped into memory as one tensor. Checksums are of what goes out, not of what came to lie on
    the disk, one a tensor, so that a hook point is checked without reading the rest.

    Source:
        https://github.com/huggingface/safetensors#format
    """
    header, start = {}, 0
    for name, tensor in tensors.items():
        place = [start, start + tensor.nbytes]
        dtype, shape = NAMES_IN_FILE[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": place}
        start += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    head = len(encoded).to_bytes(8, "little") + encoded
    checksums = {HEADER: hashlib.sha256(head).hexdigest()}
    with path.open("wb") as file:
        file.write(head)
        for name, tensor in tensors.items():
            data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
            file.write(data)
            checksums[name] = hashlib.sha256(data).hexdigest()
    return {"n_bytes": len(head) + start, "sha256": checksums}


def read_record(shard: Path) -> dict[str, Any] | None:
    """Read a shard's record; None where there is none that can be read."""
    try:
        record = read_sealed(record_path(shard))
    except (OSError, RefusalLensError):
        return None
    return record if isinstance(record, dict) and {"n_bytes", "sha256"} <= set(record) else None


def find_fault(shard: Path, tensors: Sequence[str] | None = None) -> str | None:
    """Say what is wrong with a shard; None if it is what was written.

    Checksums are compared of these tensors; of all for None, and of none for an empty list, which
    leaves the file's size.
    """
    record = read_record(shard)
    if not shard.is_file():
        return "is missing"
    if record is None:
        return "has no readable record of its checksum"
    n_bytes = shard.stat().st_size
    if n_bytes != record["n_bytes"]:
        return f"has {n_bytes} bytes instead of {record['n_bytes']}"
    if tensors != [] and not _is_as_recorded(shard, record["sha256"], tensors):
        return "is not what was written (its checksum differs)"
    return None


def _is_as_recorded(
    shard: Path, checksums: Mapping[str, str], tensors: Sequence[str] | None
) -> bool:
    """Compare the header's checksum, then those of some tensors or of all."""
    with shard.open("rb") as file:
        # The header of a file whose size is right is no longer than the file.
        length = file.read(8)
        head = length + file.read(min(int.from_bytes(length, "little"), shard.stat().st_size))
        if hashlib.sha256(head).hexdigest() != checksums[HEADER]:
            return False
        places = json.loads(head[8:])
        for name in places if tensors is None else tensors:
            start, stop = places[name]["data_offsets"]
            file.seek(len(head) + start)
            if _hash_next(file, stop - start) != checksums[name]:
                return False
    return True


def _hash_next(file: BinaryIO, n_bytes: int) -> str:
    """Hash the next bytes of a file, a few at a time."""
    checksum = hashlib.sha256()
    while n_bytes > 0:
        part = file.read(min(n_bytes, 2**20))
        checksum.update(part)
        n_bytes -= len(part) or n_bytes
    return checksum.hexdigest()


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """Open a shard for reading; its tensors are mapped, and read when they are touched."""
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise RefusalLensError(f"{path} is not a safetensors file: {error}.") from error
    with file as opened:
        yield opened


def map_values(path: Path) -> Float[Tensor, "n_prompts n_hook_points n_positions d_model"]:
    """Map all hook points of a float32 shard as one tensor, without reading or copying them."""
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(n_header))
    shapes = [entry["shape"] for name, entry in header.items() if name != "is_harmful"]
    n_prompts, n_positions, d_model = shapes[0]
    storage: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    row = n_positions * d_model
    return torch.empty(0).set_(
        storage,
        (8 + n_header) // 4,
        (n_prompts, len(shapes), n_positions, d_model),
        (row, n_prompts * row, d_model, 1),
    )


def to_dtype(
    values: Float[Tensor, "n_prompts n_positions d_model"], dtype: str, hook_point: str
) -> Tensor:
    """Convert a hook point's activations to the stored dtype; refuse what float16 cannot hold."""
    stored = values.to(DTYPES[dtype])
    if dtype == "float16" and not torch.equal(stored.isfinite(), values.isfinite()):
        raise RefusalLensError(
            f"float16 ends at 65504, but {hook_point} has activations up to "
            f"{values.abs().max():.0f}. Store them with collect.dtype bfloat16 or float32."
        )
    return stored


def write_groups(folder: Path, groups: Groups) -> None:
    """Write which prompts depend on each other."""
    path = folder / GROUPS
    labels = {name: getattr(groups, name).clone() for name in FACTORS}
    with write_whole(path) as temporary:
        temporary.write_bytes(save(labels, metadata=groups.origin))
        write_sealed(record_path(path), {"sha256": file_sha256(temporary)})


def read_groups(folder: Path, n_prompts: int) -> Groups:
    """Read which prompts depend on each other, none where nothing is kept; refuse damage."""
    path = folder / GROUPS
    if not path.is_file():
        return Groups.independent(n_prompts)
    if read_sealed(record_path(path))["sha256"] != file_sha256(path):
        raise RefusalLensError(
            f"{path} is not what was written (its checksum differs). Remove {folder} and collect "
            "again."
        )
    with open_shard(path) as file:
        labels = {name: file.get_tensor(name) for name in FACTORS}
        return Groups(**labels, origin=dict(file.metadata() or {}))


def write_prompts(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Write the prompts, in the order of the activations."""
    rows = [[getattr(prompt, name) for name in PROMPT_FIELDS] for prompt in prompts]
    write_sealed(folder / PROMPTS, {"fields": PROMPT_FIELDS, "prompts": rows})


def read_prompts(folder: Path) -> tuple[Prompt, ...]:
    """Read the prompts, none where none are kept; refuse what is damaged."""
    if not (folder / PROMPTS).is_file():
        return ()
    content = read_sealed(folder / PROMPTS)
    return tuple(
        Prompt(**dict(zip(content["fields"], row, strict=True))) for row in content["prompts"]
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what a store says of itself; refuse what this version cannot read."""
    path = folder / MANIFEST
    if not path.is_file():
        raise RefusalLensError(
            f"{folder} holds no activations (no manifest.json). "
            "Collect them first: refusal-lens collect."
        )
    try:
        manifest = read_sealed(path)
    except RefusalLensError as error:
        raise RefusalLensError(f"{error} Remove {folder} and collect again.") from error
    if manifest.get("format") != FORMAT:
        raise RefusalLensError(
            f"{path} has format {manifest.get('format')!r}; this version reads {FORMAT!r}. "
            f"Remove {folder} and collect again."
        )
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write what a store says of itself."""
    write_sealed(folder / MANIFEST, {"format": FORMAT, **manifest})
