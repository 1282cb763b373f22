"""Pieces of long work, kept as they come, so that what was interrupted goes on from there.

Knows lines with checksums. Does not know what the work is.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refusal_lens.files import WriteError, write_whole


class Journal:
    """Plain values by a key, a line of a file each, written and flushed as soon as they are known.

    A key says everything that a value depends on: what is asked otherwise, or of another model, is
    not found. A line that was cut off by a kill, or damaged, is passed over; its work is done
    again.

    Example:
        >>> journal = Journal(tmp_path / "answers.jsonl")
        >>> journal.once("a", lambda: [1, 2])
        [1, 2]
        >>> Journal(tmp_path / "answers.jsonl").once("a", lambda: 1 / 0)
        [1, 2]
    """

    def __init__(self, path: Path) -> None:
        """Read what an earlier process kept in this file, if there is one."""
        self._path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        entries = {line: entry for line in lines if (entry := _read(line)) is not None}
        self._kept: dict[str, Any] = dict(entries.values())
        if len(entries) < len(lines):
            # The next line would be glued to one that was cut off.
            with write_whole(path) as file:
                file.write_bytes(b"".join(entries))

    def __len__(self) -> int:
        """Return how many pieces are kept."""
        return len(self._kept)

    def once(self, key: str, work: Callable[[], Any]) -> Any:
        """Return what was kept under a key (of `fingerprint`), or do the work and keep its result.

        The work returns plain values, as JSON has them.

        Raises:
            WriteError: The result cannot be written.
        """
        if key not in self._kept:
            value = work()
            self._append(json.dumps([key, value]).encode())
            self._kept[key] = value
        return self._kept[key]

    def remove(self) -> None:
        """Remove the file: the work is done, and its result stands elsewhere."""
        self._path.unlink(missing_ok=True)

    def _append(self, content: bytes) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(_checksum(content) + b" " + content + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise WriteError(
                f"{self._path} could not be written: {error.strerror or error}. What it holds is "
                "kept. Free space or mend the permissions, and run the same command again.",
                error.errno,
            ) from error


def _read(line: bytes) -> tuple[str, Any] | None:
    checksum, _, content = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != _checksum(content):
        return None
    key, value = json.loads(content)
    return key, value


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:16].encode()


def fingerprint(*parts: Any) -> str:
    """Return one text that tells these plain values and tensors from all others.

    Example:
        >>> fingerprint("a", 1) == fingerprint("a", 1) != fingerprint("a", 2)
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(array: Any) -> Any:
    """Take a tensor apart; the ground does not import torch."""
    return [str(array.dtype), list(array.shape), array.tolist()]
