"""All stages of a small run as commands, each done in a fork of one process that has imported all.

Forks begin at once: killed or starved of disk, a stage is hit while it works and not while it
imports.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def write_commands(folder: Path) -> dict[str, list[str]]:
    """Write six prompts a side, and return what each stage is called by, in its order."""
    paths = []
    for side in ("harmful", "harmless"):
        whole = json.loads((REPOSITORY / f"data/{side}_prompts.json").read_text(encoding="utf-8"))
        paths.append(folder / f"{side}.json")
        paths[-1].write_text(json.dumps(whole[:6]), encoding="utf-8")
    run = str(folder / "run")
    options = ["--harmful", str(paths[0]), "--harmless", str(paths[1]), "--output", run]
    numbers = ("collect.token_budget=128", "refusal.n_new_tokens=4", "dose.n_controls=1")
    settings = [part for each in numbers for part in ("--set", each)]
    return {
        "collect": ["collect", "--resume", *options, "--hook-point", "resid_post:4", *settings],
        "refusal-rate": ["refusal-rate", run],
        "fit": ["fit", run],
        "select": ["select", run],
        "ablate": ["ablate", run, "--intervention", "add", "--coefficient", "1"],
        "attribute": ["attribute", run],
        "judge": ["judge", run, "--against", "phrases"],
        "plot": ["plot", run],
        "report": ["report", run],
    }


def import_all() -> None:
    """Import what the stages need, and have shards of three prompts."""
    import torch

    torch.set_num_threads(1)  # the children are forks, and OpenMP's threads do not survive one
    import transformer_lens  # noqa: F401

    from refusal_lens.activations import store
    from refusal_lens.models import loading  # noqa: F401
    from refusal_lens.stages import fit, study  # noqa: F401

    store.SHARD_PROMPTS = 3


def in_child(arguments: list[str], log: Path, seconds: float | None = None) -> int:
    """Do a command in a fork, killed after so many seconds; return its exit code, or the signal."""
    from refusal_lens.cli import main

    child = os.fork()
    if child == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.argv = ["refusal-lens", *arguments]
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(int(end.code or 0))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
