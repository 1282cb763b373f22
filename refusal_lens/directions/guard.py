"""What a file of directions has to keep before its numbers are believed.

Knows bounds, checksums of content, and what a sound vector is. Knows no format.

Tested in tests/directions/test_formats.py.
"""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.files import refuse_lfs_pointer

MAX_LAYERS = 10_000
MAX_BYTES = 2**28
"""Of a file unpacked: raw directions of 80 layers, five sites and d_model 8,192 have a tenth."""

SEAL = "sha256"
"""Key under which a file of this project holds the checksum of all else in it."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Let nothing but RefusalLensError out while a file of directions is looked for and read.

    Files come from anywhere, and the libraries that read them fail in a hundred ways.
    """
    if not path.is_file():
        raise RefusalLensError(f"There is no file {path} to read directions from.")
    try:
        refuse_lfs_pointer(path)
        yield
    except RefusalLensError:
        raise
    except Exception as error:
        raise RefusalLensError(
            f"{path} holds no directions that can be read: it is damaged, or of another kind than "
            f"its name or --format says ({error!r:.200})."
        ) from error


def refuse_bomb(path: Path) -> None:
    """Refuse a zip file (.pt, .npz) that unpacks to much more than directions are."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as zipped:
        n_bytes = sum(entry.file_size for entry in zipped.infolist())
    if n_bytes > max(MAX_BYTES, path.stat().st_size):
        raise RefusalLensError(
            f"{path} has {path.stat().st_size:,} bytes and unpacks to {n_bytes:,}: it is no file "
            "of directions."
        )


def check_tensors(content: object, path: Path) -> None:
    """Refuse a tensor in plain containers that is larger than what its file holds of it.

    A view can repeat one number a million million times; the first copy would fill the memory.
    """
    if isinstance(content, Tensor):
        if content.numel() * content.element_size() > max(content.untyped_storage().nbytes(), 1):
            raise RefusalLensError(
                f"{path} holds a tensor of shape {list(content.shape)} that repeats fewer numbers. "
                "Save it whole: tensor.contiguous()."
            )
    elif isinstance(content, Mapping):
        for each in content.values():
            check_tensors(each, path)
    elif isinstance(content, (list, tuple)):
        for each in content:
            check_tensors(each, path)


def check_n_layers(n_layers: object, path: Path) -> int:
    """Return a count of layers that a file tells; refuse one that no model can have."""
    if isinstance(n_layers, int) and not isinstance(n_layers, bool) and 0 < n_layers <= MAX_LAYERS:
        return n_layers
    raise RefusalLensError(f"{path} tells of {n_layers!r:.60} layers, which no model has.")


def check_vector(vector: Tensor, place: str) -> None:
    """Refuse what is no vector; all NaN says that there is no direction."""
    fault = None
    if vector.numel() == 0:
        fault = "is empty"
    elif vector.is_complex():
        fault = "holds complex numbers"
    elif not bool(torch.isfinite(vector).all()) and not bool(torch.isnan(vector).all()):
        fault = "holds numbers that are not finite"
    if fault is not None:
        raise RefusalLensError(f"The vector at {place} {fault}: the file is damaged, or no use.")


def check_units(units: Mapping[Any, Tensor], path: Path) -> None:
    """Refuse vectors that are to have length one and have another."""
    for layer, vector in units.items():
        length = vector.double().norm().item()
        if not abs(length - 1) < 0.01:
            raise RefusalLensError(
                f"{path} holds unit vectors, but that of layer {layer} has length {length:.4g}: "
                "the file is damaged. Write or fetch it again."
            )


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a file's content with its checksum in it, so that a copy can be checked too."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return {**rest, SEAL: _hash_content(rest)}


def check_seal(content: object, path: Path) -> None:
    """Refuse content that carries its checksum and is not what was written."""
    if not isinstance(content, Mapping) or SEAL not in content:
        return
    rest = {key: value for key, value in content.items() if key != SEAL}
    if content[SEAL] != _hash_content(rest):
        raise RefusalLensError(
            f"{path} is not what was written (the checksum in it differs): it was damaged or "
            "edited. Copy it again, or write it again: refusal-lens fit RUN."
        )


def _hash_content(content: object) -> str:
    checksum = hashlib.sha256()
    for part in _parts(content):
        # Lengths keep borders apart.
        checksum.update(len(part).to_bytes(8, "little"))
        checksum.update(part)
    return checksum.hexdigest()


def _parts(content: object) -> Iterator[bytes]:
    """Give what content consists of, in an order that reading and writing do not change."""
    if isinstance(content, Tensor):
        yield f"{content.dtype} {list(content.shape)}".encode()
        yield content.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(content, Mapping):
        yield f"mapping {len(content)}".encode()
        for key in sorted(content, key=repr):
            yield repr(key).encode()
            yield from _parts(content[key])
    elif isinstance(content, (list, tuple)):
        yield f"list {len(content)}".encode()
        for each in content:
            yield from _parts(each)
    else:
        yield repr(content).encode()
