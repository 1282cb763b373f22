"""GGUF files: what one says of itself, found out without believing its counts.

Knows the header. Does not know how weights are dequantised.

Tested in tests/models/test_checkpoint.py.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from refusal_lens.errors import RefusalLensError
from refusal_lens.files import refuse_lfs_pointer

SPLIT_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufContent:
    """What a GGUF file says of itself.

    Attributes:
        architecture: llama.cpp's name, such as `qwen2`.
        quantisation: How many tensors are stored in which type.
    """

    architecture: str
    quantisation: dict[str, int]


def read_gguf(path: Path) -> GgufContent:
    """Read a GGUF file's header, and refuse what cannot become a chat model.

    Raises:
        RefusalLensError: The file is a part of several, broken, or without its tokenizer; or the
            package gguf is missing.
    """
    refuse_lfs_pointer(path)
    _refuse_part(path)
    gguf = gguf_library()
    check_gguf_header(path)
    try:
        reader = gguf.GGUFReader(path)
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
        architecture = str(reader.fields["general.architecture"].contents())
        has_tokenizer = "tokenizer.ggml.tokens" in reader.fields
    except Exception as error:
        raise RefusalLensError(
            f"{path} is no whole GGUF file ({type(error).__name__}: {error}). Download it again."
        ) from error
    if not has_tokenizer:
        raise RefusalLensError(
            f"{path} holds no tokenizer (tokenizer.ggml.tokens), and prompts need one. Give a GGUF "
            "file converted with its tokenizer, or the original checkpoint folder."
        )
    return GgufContent(architecture, dict(sorted(types.items())))


@contextmanager
def headers_read_once() -> Iterator[None]:
    """Let a GGUF header be read once, however many times transformers opens the file.

    It does so for the config, the tokenizer and the weights, each time over every token of the
    vocabulary: at 49,152 tokens five readings were 16 of the 29 s of a load.
    """
    try:
        gguf: Any = gguf_library()
    except RefusalLensError:
        yield
        return
    reader = gguf.GGUFReader
    read_once = cache(reader)
    gguf.GGUFReader = lambda path: read_once(str(path))
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _refuse_part(path: Path) -> None:
    part = SPLIT_NAME.search(path.name)
    if part and int(part[2]) > 1:
        first = SPLIT_NAME.sub(rf"-00001-of-{part[2]}.gguf", path.name)
        raise RefusalLensError(
            f"{path.name} is one of {int(part[2])} parts of a split GGUF file. Join them with "
            f"llama.cpp's tool, and give the whole: llama-gguf-split --merge {first} whole.gguf"
        )


_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number of each GGUF type; 8 is a text and 9 a list."""


def check_gguf_header(path: Path) -> None:
    """Refuse a header whose counts are not those of things that the file holds.

    The library believes them, and would count to 2^40.

    Source:
        https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    size = path.stat().st_size

    def refuse(what: str) -> None:
        raise RefusalLensError(
            f"{path} is no whole GGUF file ({size:,} bytes): {what}. Download it again."
        )

    with path.open("rb") as file:

        def number(width: int = 8) -> int:
            return int.from_bytes(file.read(width), "little")

        def skip(n_bytes: int) -> None:
            if file.tell() + n_bytes > size:
                refuse("it ends too early")
            file.seek(n_bytes, 1)

        def skip_values(kind: int, count: int) -> None:
            if kind in _WIDTHS:
                skip(_WIDTHS[kind] * count)
                return
            # A text has 8 bytes at least: more of them than fit are refused at once. Lists of
            # lists are allowed, and nobody writes them.
            if kind != 8 or file.tell() + 8 * count > size:
                refuse("its header is damaged")
            for _ in range(count):
                skip(number())

        if file.read(4) != b"GGUF":
            refuse("it begins otherwise")
        skip(4)
        n_tensors, n_fields = number(), number()
        if 24 + 12 * n_fields + 24 * n_tensors > size:
            refuse("its counts are none that it could hold")
        for _ in range(n_fields):
            skip(number())
            kind = number(4)
            skip_values(*((number(4), number()) if kind == 9 else (kind, 1)))


def gguf_library() -> Any:
    """Return the library, an extra; refuse to go on without it."""
    try:
        import gguf
    except ImportError as error:
        raise RefusalLensError(
            "GGUF files need the library gguf: pip install 'refusal-lens[gguf]'."
        ) from error
    return gguf
