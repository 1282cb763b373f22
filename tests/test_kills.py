"""SIGKILL at random moments of every stage: run again, it ends as if nothing had happened.

`pytest -m fuzz -n 0 -s tests/test_kills.py` kills 56 times, in 4 pieces of which each may be asked
for alone (`-k 0`), and prints how many each stage survived.
Every moment at which a collection writes is killed in tests/activations/test_collector.py.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

from refusal_lens.files import SEAL
from refusal_lens.runs.checksums import check

TIMES = rf'"(seconds|prompts_per_second|collected_at|{SEAL})": .*'
N_KILLS, N_PIECES = 14, 4

KILLS = """
import json, os, random, shutil, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)  # the children are forks, and OpenMP's threads do not survive one
import transformer_lens
from refusal_lens.activations import store
from refusal_lens.cli import main
from refusal_lens.models import loading
from refusal_lens.stages import fit, study

folder, stages = Path(sys.argv[1]), json.loads(sys.argv[2])
n_kills, piece = int(sys.argv[3]), int(sys.argv[4])
run = folder / "run"  # always the same path, which the report names
run.mkdir()  # --resume begins a run in a folder, but not where there is none
store.SHARD_PROMPTS = 3

def in_child(arguments, log, seconds=None):
    child = os.fork()
    if child == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.argv = ["refusal-lens", *arguments]
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

lasts = {}
for stage, command in stages.items():
    begun = time.monotonic()
    log = folder / f"{stage}.log"
    assert in_child(command, log) == 0, log.read_text()
    lasts[stage] = time.monotonic() - begun
    shutil.copytree(run, folder / f"after-{stage}")

draw, outcomes = random.Random(piece), []
while len(outcomes) < n_kills:
    # Each stage in turn, so that none is left to chance.
    stage = list(stages)[(len(outcomes) + piece) % len(stages)]
    log = folder / "kill.log"
    shutil.rmtree(run)
    before = [f"after-{name}" for name in stages][: list(stages).index(stage)]
    shutil.copytree(folder / before[-1], run) if before else run.mkdir()
    if in_child(stages[stage], log, draw.uniform(0, lasts[stage])) == -signal.SIGKILL:
        is_left = any(run.rglob(".*.partial"))
        status = in_child(stages[stage], log)
        outcomes.append([stage, status, is_left, log.read_text()])
        shutil.copytree(run, folder / f"kill-{len(outcomes) - 1}")
print(json.dumps(outcomes))
"""


def bits(folder: Path) -> dict[str, object]:
    """Return what every file of a run holds, but for when it was collected and how fast."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            # The order of the keys in its header is any.
            tensors = load_file(path)
            found[name] = {key: each.view(torch.uint8).tolist() for key, each in tensors.items()}
        elif path.name in ("provenance.json", "manifest.json"):
            found[name] = re.sub(TIMES, "", path.read_text())
        elif path.is_file():
            found[name] = path.read_bytes()
    # Of the files that are there, and no others; and they are what it says.
    recorded = json.loads((folder / "checksums.json").read_text())["files"]
    for name in recorded:
        check(folder, name)
    return found | {"checksums.json": recorded.keys()}


@pytest.mark.fuzz
@pytest.mark.parametrize("piece", range(N_PIECES))
def test_killed_at_random_moments_every_stage_ends_with_the_same_bits(tmp_path, request, piece):
    if "fuzz" not in request.config.option.markexpr:
        pytest.skip("kills and runs for minutes: -m fuzz")
    paths = []
    for side in ("harmful", "harmless"):
        whole = json.loads((REPOSITORY / f"data/{side}_prompts.json").read_text())
        paths.append(tmp_path / f"{side}.json")
        paths[-1].write_text(json.dumps(whole[:6]))
    run = str(tmp_path / "run")
    options = ["--harmful", str(paths[0]), "--harmless", str(paths[1]), "--output", run]
    settings = ["--hook-point", "resid_post:4", "--set", "collect.token_budget=128"]
    numbers = ("refusal.n_new_tokens=4", "dose.n_controls=1", "validation.n_permutations=19")
    quick = [part for each in numbers for part in ("--set", each)]
    stages = {
        "collect": ["collect", "--resume", *options, *settings, *quick],
        "refusal-rate": ["refusal-rate", run],
        "fit": ["fit", run],
        "select": ["select", run],
        "ablate": ["ablate", run, "--intervention", "add", "--coefficient", "1"],
        "attribute": ["attribute", run],
        "judge": ["judge", run, "--against", "phrases"],
        "plot": ["plot", run, "--figure", "all"],
        "report": ["report", run],
    }
    begun = time.monotonic()
    script = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), json.dumps(stages), str(N_KILLS), str(piece)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert script.returncode == 0, script.stderr
    outcomes = json.loads(script.stdout)
    assert len(outcomes) == N_KILLS
    for index, (stage, status, _, log) in enumerate(outcomes):
        killed = tmp_path / f"kill-{index}"
        assert status == 0, (stage, log)
        assert not list(killed.rglob(".*.partial")), (stage, log)
        found, expected = bits(killed), bits(tmp_path / f"after-{stage}")
        assert found.keys() == expected.keys(), stage
        assert not [name for name in found if found[name] != expected[name]], stage
    for stage in stages:
        n_killed = sum(outcome[0] == stage for outcome in outcomes)
        sys.stdout.write(f"\n| kills in {stage} | {n_killed} | {n_killed} |")
    n_left = sum(outcome[2] for outcome in outcomes)
    sys.stdout.write(f"\n{n_left} left a .partial, all in {time.monotonic() - begun:.0f} s\n")
