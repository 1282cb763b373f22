"""Collecting on two hosts, one of which dies: each has a network, a raylet and a name of its own.

The hosts are network namespaces of this machine joined by a cable; they share its files, as a
cluster shares a folder. Making them takes root, which containers have.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import HARMFUL, HARMLESS

from refusal_lens import collect
from refusal_lens.activations.store import load_activations

HOSTS = {"here": "10.77.0.1", "there": "10.77.0.2"}
BUDGET = 16
PATIENCE = 240.0

COLLECT = """
import json, os, sys, time
from pathlib import Path
import ray
from refusal_lens import ContrastSet, collect
from refusal_lens.activations import ray_driver, store
from refusal_lens.config import EngineConfig, ModelConfig

def stay_there() -> None:
    # The worker on the other host reads a shard, and never comes to write it; this host's waits
    # until then, or it would have read all before the other's model is loaded.
    from refusal_lens.activations.store import Store

    write_shard = Store.write_shard

    def write(self, *rest):
        if os.environ["HOST"] == "there":
            (self.folder / "is-read-there").touch()
            time.sleep(3600)
        begun = time.monotonic()
        while not (self.folder / "is-read-there").exists() and time.monotonic() - begun < 120:
            time.sleep(0.1)
        write_shard(self, *rest)

    Store.write_shard = write

folder, checkpoint, address, budget, prompts = sys.argv[1:]
ray_driver.shard_rows = lambda n: store.shard_rows(n, 2)
store.SHARD_PROMPTS = 2
ray.init(address=address, log_to_driver=False, logging_level="ERROR",
         runtime_env={"worker_process_setup_hook": stay_there})
engine = EngineConfig(name="ray", n_actors=2, cpus_per_actor=1)
collect(ModelConfig(name=checkpoint, device="cpu"), ContrastSet.from_texts(*json.loads(prompts)),
        "resid_post", ["last", "mean"], folder=folder, engine=engine, token_budget=int(budget),
        show_progress=False)
"""


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def on(host: str, *command: str) -> list[str]:
    """Make a command run on a host."""
    return ["ip", "netns", "exec", name_of(host), "env", f"HOST={host}", *command]


def name_of(host: str) -> str:
    return f"{host}-{os.getpid()}"


def switch_off(host: str) -> None:
    """Kill all that runs on a host, at once."""
    for process in run("ip", "netns", "pids", name_of(host)).split():
        os.kill(int(process), signal.SIGKILL)


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < PATIENCE, f"It took too long until {what}."
        time.sleep(0.2)


@pytest.fixture
def cluster(monkeypatch) -> Iterator[str]:
    """A Ray cluster of two hosts; gives its address."""
    pytest.importorskip("ray")
    if not can_make_hosts():
        pytest.skip("network namespaces need `ip` of iproute2, and the right to make them")
    folder = tempfile.mkdtemp(dir="/tmp")  # Ray's sockets are in it, whose paths must be short
    for variable, value in (
        ("RAY_worker_niceness", "0"),
        ("RAY_health_check_period_ms", "500"),
        ("RAY_health_check_failure_threshold", "4"),
        ("OMP_NUM_THREADS", "1"),
        # A token that some other cluster left in this user's home would be asked for.
        ("RAY_AUTH_MODE", "disabled"),
    ):
        monkeypatch.setenv(variable, value)
    ray = str(Path(sys.executable).with_name("ray"))
    shares = ["--object-store-memory=100000000", "--disable-usage-stats"]
    address = f"{HOSTS['here']}:6379"
    try:
        lay_a_cable()
        head = [f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
        for host, how, n_cpus in (
            ("here", ["--head", f"--temp-dir={folder}", *head], 2),
            ("there", [f"--address={address}"], 1),
        ):
            where = [f"--node-ip-address={HOSTS[host]}", f"--num-cpus={n_cpus}"]
            run(*on(host, ray, "start", *how, *where, *shares))
        yield address
    finally:
        for host in HOSTS:
            if name_of(host) in run("ip", "netns", "list"):
                switch_off(host)
                run("ip", "netns", "delete", name_of(host))
        shutil.rmtree(folder, ignore_errors=True)


def can_make_hosts() -> bool:
    if shutil.which("ip") is None or shutil.which("unshare") is None or os.geteuid():
        return False
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], check=False)
    return tried.returncode == 0


def lay_a_cable() -> None:
    """Make two network namespaces and join them."""
    for host in HOSTS:
        run("ip", "netns", "add", name_of(host))
        run(*on(host, "ip", "link", "set", "lo", "up"))
    ends = ["eth9", "netns", name_of("here"), "type", "veth", "peer", "name", "eth9"]
    run("ip", "link", "add", *ends, "netns", name_of("there"))
    for host, address in HOSTS.items():
        run(*on(host, "ip", "address", "add", f"{address}/24", "dev", "eth9"))
        run(*on(host, "ip", "link", "set", "eth9", "up"))


@pytest.mark.ray
def test_a_host_that_dies_while_it_collects_costs_no_bit(
    cluster, checkpoint, model, prompts, tmp_path
):
    folder = tmp_path / "far"
    texts = json.dumps([HARMFUL, HARMLESS])
    arguments = [str(folder), str(checkpoint), cluster, str(BUDGET), texts]
    with subprocess.Popen(
        on("here", sys.executable, "-c", COLLECT, *arguments), stderr=subprocess.PIPE, text=True
    ) as driver:
        is_dead = lambda: driver.poll() is not None  # noqa: E731
        wait_for(lambda: (folder / "is-read-there").exists() or is_dead(), "a shard is read there")
        switch_off("there")
        wait_for(is_dead, "the other host has read all")
        assert driver.stderr is not None
        assert driver.returncode == 0, driver.stderr.read()[-2000:]
    assert (folder / "is-read-there").exists()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    places = ("resid_post", ["last", "mean"])
    near = collect(model, prompts, *places, token_budget=BUDGET, folder=tmp_path / "near")
    torch.set_num_threads(n_threads)
    far = load_activations(folder)
    assert torch.equal(far.values, near.values)
    assert far.provenance["collection"]["n_actors"] == 2
