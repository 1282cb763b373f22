"""SIGKILL at random moments of every stage: run again, it ends as if nothing had happened.

`pytest -m fuzz -n 0 -s tests/test_kills.py` kills 56 times, in 4 pieces of which each may be asked
for alone (`-k 0`), and prints how many each stage survived.
Every moment at which a collection writes is killed in tests/activations/test_collector.py.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked_stages import REPOSITORY, write_commands
from safetensors.torch import load_file

from refusal_lens.files import SEAL
from refusal_lens.runs.checksums import check

TIMES = rf'"(seconds|prompts_per_second|collected_at|{SEAL})": .*'
N_KILLS, N_PIECES = 14, 4

KILLS = """
import json, random, shutil, signal, sys, time
from pathlib import Path
import forked_stages
forked_stages.import_all()
in_child = forked_stages.in_child

folder, stages = Path(sys.argv[1]), json.loads(sys.argv[2])
n_kills, piece = int(sys.argv[3]), int(sys.argv[4])
run = folder / "run"  # always the same path, which the report names
run.mkdir()  # --resume begins a run in a folder, but not where there is none

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
    stages = write_commands(tmp_path)
    begun = time.monotonic()
    script = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), json.dumps(stages), str(N_KILLS), str(piece)],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{Path(__file__).parent}"},
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


# --- a full disk ----------------------------------------------------------------------------------

FULL = """
import json, shutil, subprocess, sys
from pathlib import Path
import forked_stages
forked_stages.import_all()

folder, stages = Path(sys.argv[1]), json.loads(sys.argv[2])
run = folder / "run"
run.mkdir()

def n_bytes(path):
    files = (each for each in path.rglob("*") if each.is_file())
    return sum(-(-each.stat().st_size // 4096) * 4096 for each in files)

for stage, command in stages.items():
    shutil.copytree(run, folder / f"before-{stage}")
    assert forked_stages.in_child(command, folder / "log") == 0, (folder / "log").read_text()
    shutil.copytree(run, folder / f"after-{stage}")

outcomes = []
for stage, command in stages.items():
    before, after = folder / f"before-{stage}", folder / f"after-{stage}"
    for share in (0, 0.25, 0.5, 0.75):
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        size = n_bytes(before) + int(share * max(n_bytes(after) - n_bytes(before), 0)) + 4096
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", run], check=True)
        shutil.copytree(before, run, dirs_exist_ok=True)
        status = forked_stages.in_child(command, folder / "log")
        left = [str(path) for path in run.rglob(".*.partial")]
        outcomes.append([stage, share, status, left, (folder / "log").read_text()])
        subprocess.run(["umount", run], check=True)
print(json.dumps(outcomes))
"""


def can_mount() -> bool:
    """Whether a disk of our own can be mounted, without being root."""
    try:
        asked = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return asked.returncode == 0


@pytest.mark.fuzz
def test_a_disk_that_fills_up_is_told_by_every_stage_with_the_file(tmp_path, request):
    if "fuzz" not in request.config.option.markexpr or not can_mount():
        pytest.skip("fills disks for minutes: -m fuzz, where unshare -rm may mount one")
    stages = write_commands(tmp_path)
    script = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", FULL, str(tmp_path), json.dumps(stages)],
        env={
            **os.environ,
            "COLUMNS": "500",
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{Path(__file__).parent}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert script.returncode == 0, script.stderr
    told = {stage: 0 for stage in stages}
    for stage, share, status, left, log in json.loads(script.stdout):
        assert not left, (stage, share)
        assert "Traceback" not in log
        if status != 0:
            ways = r"could not be written: No space left on device|The disk is full: .*Free about"
            assert re.search(ways, log), (stage, share, log)
            assert str(tmp_path / "run") in log
            told[stage] += 1
    assert told["collect"] + told["fit"] + told["report"] >= 9
    for stage, n_told in told.items():
        sys.stdout.write(f"\n| full disk in {stage} | 4 | {n_told} |")
