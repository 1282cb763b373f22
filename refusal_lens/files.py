"""Files that are written whole or not at all, and pointers that stand where a file should.

Knows nothing of what is in them.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refusal_lens.errors import RefusalLensError

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
"""First line of what git leaves where git-lfs has not fetched the file."""


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


def refuse_lfs_pointer(path: Path) -> None:
    """Make sure that a file is itself, and not git-lfs's note of where to fetch it.

    Raises:
        RefusalLensError: It is such a pointer.
    """
    with path.open("rb") as file:
        is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    if is_pointer:
        raise RefusalLensError(
            f"{path} is a git-LFS pointer and not the file: the repository was cloned without "
            "git-lfs. Fetch it there: git lfs pull."
        )
