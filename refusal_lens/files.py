"""Files that are written whole or not at all, and found to be what was written.

Knows checksums, and the pointers that git-lfs leaves in a file's place. Does not know what files
mean.
"""

import difflib
import glob
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refusal_lens.errors import RefusalLensError

LFS_POINTER = re.compile(rb"(\xef\xbb\xbf)?version https?://(git-lfs|hawser|git-media)\b")
"""What git leaves where git-lfs has not fetched the file, in all its versions, begins so."""

RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?$", re.IGNORECASE
)
"""Names that are devices on Windows, whatever their ending."""


class WriteError(RefusalLensError):
    """A file could not be written; `errno` is the system's reason."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; put it in its place when the block ends well.

    A reader sees the old file or the new one, never half of one, also after a crash.

    Raises:
        WriteError: The system refuses: no space, no permission, no such folder.

    Example:
        >>> with write_whole(tmp_path / "a.txt") as file:
        ...     _ = file.write_text("whole")
        >>> (tmp_path / "a.txt").read_text()
        'whole'
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        kept = "The file that was there is kept." if path.exists() else "Nothing was left there."
        raise WriteError(
            f"{path} could not be written: {error.strerror or error}. {kept} Free space or mend "
            "the permissions, and run the same command again.",
            error.errno,
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what `write_whole` had begun in a folder, and below it, when it was killed."""
    for left_over in folder.rglob(".*.partial"):
        left_over.unlink(missing_ok=True)


def remove_partial_of(folder: Path, stems: Iterable[str]) -> None:
    """Remove what `write_whole` had begun of some files, in a folder that holds others' too.

    `stems` are their names up to the ending; nothing below the folder is looked at.
    """
    for stem in stems:
        for left_over in folder.glob(f".{glob.escape(stem)}.*.partial"):
            left_over.unlink(missing_ok=True)


def portable_name(name: str) -> str:
    r"""Turn any text into a file's name that Windows takes too.

    Example:
        >>> portable_name("qwen:7b?"), portable_name("aux.yaml"), portable_name("v1.")
        ('qwen_7b_', '_aux.yaml', 'v1')
    """
    plain = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name).rstrip(". ")
    return f"_{plain}" if not plain or RESERVED.match(plain) else plain


def nearest_sibling(path: Path, cutoff: float = 0.6, *, may_go_on: bool = True) -> str:
    """Name what is there and written most like a missing path; "" where nothing is.

    Its last part is written wrongly, or the one before it. Where nothing is as like it as `cutoff`
    says, what begins as it does is named, if it `may_go_on`.
    """
    base, beside = path.parent, path.name
    if base.is_dir():
        names = [each.name for each in base.iterdir()]
    else:
        base, beside = base.parent, f"{base.name}/{path.name}"
        folders = base.iterdir() if base.is_dir() else ()
        names = [f"{each.name}/{path.name}" for each in folders if (each / path.name).exists()]
    longer = sorted((name for name in names if name.startswith(beside)), key=len)
    found = difflib.get_close_matches(beside, names, 1, cutoff) or longer[: 3 * may_go_on]
    near = " or ".join(str(base / each) for each in found)
    return f"; the nearest there is {near}" if found else ""


def refuse_lfs_pointer(path: Path) -> None:
    """Refuse a file that is only git-lfs's note of where to fetch it."""
    with path.open("rb") as file:
        is_pointer = LFS_POINTER.match(file.read(64))
    if is_pointer:
        raise RefusalLensError(
            f"{path} is a git-LFS pointer and not the file: the repository was cloned without "
            "git-lfs. Fetch it there: git lfs pull."
        )


def file_sha256(path: Path) -> str:
    """Hash a file's content, anew each time.

    Nothing that the system tells of a file says that its bytes are the same: one that is rewritten
    in place within a tick of its clock has the same size, time and inode.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SEAL = "sha256_of_the_rest"


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write plain values as JSON that carries its own checksum."""
    # As it is read back: with lists for tuples, and texts for the keys that are numbers.
    plain = json.loads(json.dumps(content))
    sealed = {**plain, SEAL: _sha256_of_json(plain)}
    with write_whole(path) as file:
        file.write_text(json.dumps(sealed, indent=2, ensure_ascii=False), encoding="utf-8")


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, and refuse anything else.

    Example:
        >>> write_sealed(tmp_path / "a.json", {"count": 3})
        >>> read_sealed(tmp_path / "a.json")
        {'count': 3}
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        seal = content.pop(SEAL)
        if seal != _sha256_of_json(content):
            raise ValueError("its checksum differs")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusalLensError(f"{path} is not what was written ({error!r:.200}).") from error
    return content


def _sha256_of_json(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
