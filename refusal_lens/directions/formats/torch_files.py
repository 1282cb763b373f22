"""Files that torch.save wrote, opened without running anything in them.

Knows how to load tensors safely. Does not know what they mean.

Tested in tests/directions/test_formats.py.
"""

import io
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from refusal_lens.directions.guard import check_seal, check_tensors, refuse_bomb
from refusal_lens.errors import RefusalLensError
from refusal_lens.files import write_whole


def load_tensors(path: Path) -> Any:
    """Load a file of tensors in plain containers, on the CPU, and nothing else.

    Raises:
        RefusalLensError: It holds pickled objects, or is no file of torch.save.
    """
    refuse_bomb(path)
    try:
        with warnings.catch_warnings():
            # That the pickle protocol is unusual, just before it is refused.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"pickled objects ({named[1]})" if named else "pickled objects"
        raise RefusalLensError(
            f"{path} holds {what} and not only tensors. Unpickling runs code that the file brings "
            "along, so that it is never done here. Have its tensors saved alone, as a dict of "
            "names: torch.save({name: tensor}, file)."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise RefusalLensError(
            f"{path} is no file that torch.save wrote whole ({str(error).splitlines()[0]}). "
            "Give the right file, or name its --format."
        ) from error
    check_tensors(content, path)
    check_seal(content, path)
    return content


def save_tensors(content: Any, path: Path) -> None:
    """Write tensors in plain containers, whole or not at all."""
    with write_whole(path) as file:
        file.write_bytes(tensors_as_bytes(content))


def tensors_as_bytes(content: Any) -> bytes:
    """Return what torch.save writes, which by itself tells of a full disk without saying so."""
    written = io.BytesIO()
    torch.save(content, written)
    return written.getvalue()
