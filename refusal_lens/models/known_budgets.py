"""Token budgets that were fastest before, in the user's cache folder: short runs do not search.

Knows what decides a model's speed: its sizes, its numbers, the machine. Does not search.
"""

import hashlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from refusal_lens.files import WriteError, write_whole

SIZES = ("n_layers", "d_model", "d_mlp", "n_heads", "d_vocab", "dtype")

SECONDS_KEPT = 30 * 24 * 3600.0
"""What is older is measured anew: the machine may have been busy then, or has changed."""


@dataclass(frozen=True)
class Found:
    """How far a search came: the budget to go on with, and the tokens a second of the one below."""

    token_budget: int
    is_final: bool
    rate: float


@dataclass(frozen=True)
class KnownBudget:
    """What is known of the budget for one model, machine and length of prompts.

    A file that is damaged, old or cannot be written is as if it were not there.
    """

    file: Path

    @classmethod
    def of(cls, cfg: Any, forward: str, n_tokens: int) -> "KnownBudget":
        """Look a case up.

        Args:
            cfg: The model's.
            forward: Which way through the model it is.
            n_tokens: Of a typical prompt; those up to the next power of two are one case.
        """
        case = [str(getattr(cfg, name, None)) for name in SIZES]
        case += [forward, str(n_tokens.bit_length()), _machine(str(cfg.device)), torch.__version__]
        name = hashlib.sha256("|".join(case).encode()).hexdigest()[:16]
        return cls(_cache_folder() / "token_budgets" / f"{name}.json")

    def recall(self) -> Found | None:
        """Return what was found last time."""
        try:
            if time.time() - self.file.stat().st_mtime > SECONDS_KEPT:
                return None
            known = Found(**json.loads(self.file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        is_budget = type(known.token_budget) is int and known.token_budget > 0
        is_sound = is_budget and type(known.is_final) is bool and type(known.rate) is float
        return known if is_sound else None

    def keep(self, found: Found) -> None:
        """Remember this, unless the folder cannot be written to."""
        if not self.file.is_absolute():
            return  # nobody's home
        try:
            with write_whole(self.file) as file:
                file.write_text(json.dumps(asdict(found)), encoding="utf-8")
        except WriteError:
            return


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.node()} {device} {platform.machine()} {threads} {os.cpu_count()}"


def _cache_folder() -> Path:
    """Return the folder of this package among the user's caches."""
    root = os.environ.get("XDG_CACHE_HOME") or ""
    # By the standard a path that is not absolute is to be ignored.
    caches = Path(root) if Path(root).is_absolute() else Path("~/.cache")
    return Path(os.path.expanduser(caches)) / "refusal_lens"
