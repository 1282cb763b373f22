"""Collecting over Ray: real workers, one of which is really killed."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from conftest import HARMFUL, HARMLESS
from typer.testing import CliRunner

from refusal_lens import Activations, RefusalLensError, collect, collect_moments
from refusal_lens.activations import collector, ray_driver, ray_worker, store
from refusal_lens.activations.collection import Collection
from refusal_lens.activations.ray_cluster import Workers, join_ray, plan_workers, quiet_ray
from refusal_lens.activations.ray_driver import RayEngine
from refusal_lens.activations.store import load_activations, open_store
from refusal_lens.cli import app
from refusal_lens.config import EngineConfig, ModelConfig
from refusal_lens.models.loading import load_model, load_tokenizer

PLACES = ("resid_post", ["last", "mean"])
ONE = EngineConfig(name="ray", n_actors=1, cpus_per_actor=1)
TWO = EngineConfig(name="ray", n_actors=2, cpus_per_actor=1)
# So small that a shard takes several batches.
BUDGET = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Workers have one CPU each; with other threads sums have other last bits."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Two prompts a shard: the eight prompts make four."""
    monkeypatch.setattr(store, "SHARD_PROMPTS", 2)
    for module in (collector, ray_driver):
        monkeypatch.setattr(module, "shard_rows", lambda n: store.shard_rows(n, 2))


@pytest.fixture(scope="module")
def ray():
    """A local Ray with two CPUs, whose workers die or fail where a marker file asks for it."""
    with quiet_ray():
        ray = pytest.importorskip("ray")
        pytest.importorskip("ray.data")

    def obey_markers() -> None:
        from refusal_lens.activations.store import Store
        from refusal_lens.errors import RefusalLensError

        write_shard = Store.write_shard

        def write(self, index, *rest):
            if index == 1 and (self.folder / "kill").exists():
                (self.folder / "kill").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if index == 2 and (self.folder / "fail").exists():
                raise RefusalLensError("The disk is full, says the marker.")
            write_shard(self, index, *rest)

        Store.write_shard = write

    start = ray.init
    options = {
        "num_cpus": 2,
        "object_store_memory": 200_000_000,
        "runtime_env": {"worker_process_setup_hook": obey_markers},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # Ray makes its workers give way to all else; on a busy machine the tests would never end.
        patch.setenv("RAY_worker_niceness", "0")
        patch.setattr(ray, "init", lambda **given: start(**given, **options))
        with join_ray(EngineConfig(), ModelConfig(device="cpu")):
            assert ray.is_initialized()
            yield ray
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def settings(checkpoint) -> ModelConfig:
    return ModelConfig(name=str(checkpoint), device="cpu")


@pytest.fixture
def local(model, prompts, tmp_path) -> Activations:
    """What this process collects, in shards."""
    return collect(model, prompts, *PLACES, folder=tmp_path / "local", token_budget=BUDGET)


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def records(folder: Path) -> dict[str, str]:
    """What each shard holds, by its checksum, and how it was batched."""
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("shard-*.json")}


# --- with Ray ---------------------------------------------------------------------------------


@pytest.mark.ray
def test_two_workers_one_of_them_killed_give_what_this_process_gives(
    ray, model, prompts, local, tmp_path
):
    folder = tmp_path / "far"
    folder.mkdir()
    (folder / "kill").touch()
    far = collect(model, prompts, *PLACES, folder=folder, engine=TWO, token_budget=BUDGET)
    assert not (folder / "kill").exists()
    assert torch.equal(far.values, local.values)
    assert torch.equal(far.is_harmful, local.is_harmful)
    assert records(folder) == records(tmp_path / "local")
    assert len(json.loads(records(folder)["shard-00000.json"])["batches"]) > 1
    # The stores belong together too: either engine can go on with what the other began.
    assert manifest(folder)["key"] == manifest(tmp_path / "local")["key"]
    described = far.provenance["collection"]
    assert (described["engine"], described["n_actors"]) == ("ray", 2)
    assert described["n_tokens"] == local.provenance["collection"]["n_tokens"]
    assert {**far.provenance, "collection": 0} == {**local.provenance, "collection": 0}


@pytest.mark.ray
def test_workers_read_heads_as_this_process_does(ray, model, prompts, tmp_path):
    places = ("hook_result:1-2", ["last", "mean"])
    options = {"token_budget": BUDGET}
    near = collect(model, prompts, *places, folder=tmp_path / "near", **options)
    far = collect(model, prompts, *places, folder=tmp_path / "far", engine=TWO, **options)
    assert torch.equal(far.values, near.values)
    assert far.hook_points == near.hook_points


@pytest.mark.ray
def test_fault_in_a_worker_is_one_sentence_and_what_is_finished_is_kept(
    ray, settings, prompts, local, tmp_path
):
    folder = tmp_path / "far"
    folder.mkdir()
    (folder / "fail").touch()
    work = {"folder": folder, "engine": ONE, "token_budget": BUDGET}
    with pytest.raises(RefusalLensError) as caught:
        collect(settings, prompts, *PLACES, **work)
    assert str(caught.value) == "The disk is full, says the marker."
    finished = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert {"shard-00000.json", "shard-00001.json"} <= set(finished)
    assert "shard-00002.json" not in finished
    with pytest.raises(RefusalLensError, match="is not finished"):
        load_activations(folder)

    (folder / "fail").unlink()
    resumed = collect(settings, prompts, *PLACES, **work, resume=True)
    assert torch.equal(resumed.values, local.values)
    assert finished.items() <= {p.name: p.stat().st_mtime_ns for p in folder.glob("*")}.items()


@pytest.mark.ray
def test_moments_are_those_of_this_process_to_the_last_bit(ray, model, prompts):
    options = {"token_budget": BUDGET, "show_progress": False}
    far = collect_moments(model, prompts, *PLACES, engine=TWO, **options)
    near = collect_moments(model, prompts, *PLACES, **options)
    for one, other in ((far.harmful, near.harmful), (far.harmless, near.harmless)):
        assert one.count == other.count == 4
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.m2, other.m2)
    assert (far.hook_points, far.positions) == (near.hook_points, near.positions)


@pytest.mark.ray
def test_command_line_over_ray_collects_what_it_does_without(ray, checkpoint, tmp_path):
    for name, texts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts), encoding="utf-8")

    def run(folder: Path, *options: str) -> Activations:
        files = [f"--{side}={tmp_path / side}.txt" for side in ("harmful", "harmless")]
        chosen = ["--model", str(checkpoint), "--device", "cpu", "--set", "collect.token_budget=64"]
        outcome = CliRunner(env={"COLUMNS": "160"}).invoke(
            app, ["collect", *files, *chosen, "--output", str(folder), *options]
        )
        assert outcome.exit_code == 0, outcome.output
        assert "reads " in outcome.output
        return load_activations(folder / "activations")

    near = run(tmp_path / "near")
    shares = ("--set", "engine.n_actors=1", "--set", "engine.cpus_per_actor=1")
    far = run(tmp_path / "far", "--engine", "ray", *shares)
    assert torch.equal(far.values, near.values)
    provenance = json.loads((tmp_path / "far/provenance.json").read_text(encoding="utf-8"))
    assert provenance["collection"]["engine"] == "ray"


@pytest.mark.ray
def test_mistake_shows_before_there_are_workers_and_leaves_nothing(
    ray, settings, model, prompts, tmp_path
):
    with pytest.raises(RefusalLensError) as here:
        collect(model, prompts, "resid_past")
    with pytest.raises(RefusalLensError) as there:
        collect(
            settings, prompts, "resid_past", folder=tmp_path / "far", engine=ONE, token_budget=1
        )
    assert str(there.value) == str(here.value)
    assert not (tmp_path / "far").exists()


@pytest.mark.ray
def test_weights_edited_in_this_process_are_not_those_of_workers(
    ray, checkpoint, prompts, tmp_path
):
    edited = load_model(checkpoint, device="cpu")
    with torch.no_grad():
        edited.blocks[1].mlp.W_out.mul_(1.01)
    with pytest.raises(RefusalLensError) as caught:
        collect(edited, prompts, engine=ONE, folder=tmp_path / "far", token_budget=1)
    assert str(caught.value) == (
        f"Workers load {checkpoint}, whose weights are not those that this process's model has "
        "now. Save the model and load that, or use the engine local."
    )
    assert not (tmp_path / "far").exists()


# --- without Ray ------------------------------------------------------------------------------


def test_without_ray_installed_it_says_how_to_install_it(settings, prompts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RefusalLensError) as caught:
        collect(settings, prompts, folder=tmp_path, engine="ray")
    assert str(caught.value) == (
        "The engine ray needs Ray, which is not installed. Install it with "
        "`pip install 'refusal-lens[ray]'`, or use the engine local."
    )


def test_address_where_no_ray_is_is_told_at_once(settings, prompts, tmp_path):
    with quiet_ray():
        ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: False)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound and not listening: nothing answers
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            engine = EngineConfig(name="ray", ray_address=address)
            with pytest.raises(RefusalLensError) as caught:
                collect(settings, prompts, folder=tmp_path, engine=engine)
    assert str(caught.value) == (
        f"Ray does not answer at {address}: [Errno 111] Connection refused. Start it there with "
        "`ray start --head`, or give another address with --ray-address or RAY_ADDRESS."
    )


@pytest.mark.parametrize(
    ("engine", "model", "machines", "expected"),
    [
        ({}, {}, [(8, 0), (4, 0)], Workers(3, 4, 0.0)),
        ({}, {}, [(64, 8), (64, 8), (16, 0)], Workers(16, 1, 1.0)),
        ({}, {"n_devices": 2}, [(64, 8), (64, 1)], Workers(4, 1, 2.0)),
        ({}, {"device": "cpu"}, [(64, 8)], Workers(1, 64, 0.0)),
        ({"gpus_per_actor": 0.25}, {}, [(64, 2)], Workers(8, 1, 0.25)),
        ({"n_actors": 3, "cpus_per_actor": 2}, {}, [(4, 0)], Workers(3, 2, 0.0)),
    ],
)
def test_what_a_worker_gets(engine, model, machines, expected):
    assert plan_workers(EngineConfig(**engine), ModelConfig(**model), machines) == expected


def test_worker_that_fits_on_no_machine_is_refused():
    with pytest.raises(RefusalLensError) as caught:
        plan_workers(EngineConfig(), ModelConfig(n_devices=2), [(64, 1), (8, 0)])
    assert str(caught.value) == (
        "A worker needs a machine with 1 CPUs and 2 GPUs; the cluster's have: 64 CPUs, 1 GPUs; "
        "8 CPUs, 0 GPUs. Set engine.cpus_per_actor and engine.gpus_per_actor, or add machines."
    )


def actor(settings, prompts, folder, **changes):
    """An actor as Ray makes it, in this process, and a row for it."""
    collection = Collection.of(load_tokenizer(settings.name), prompts, *PLACES)
    far = RayEngine.of(settings, EngineConfig())._settings(collection)
    some = collection.tokens.select(range(2))
    _, reading = ray_worker.try_out(far, 1, BUDGET, some)
    key = {**reading, "dtype": "float32"}
    opened = open_store(folder, key, n_prompts=len(prompts))
    task = ray_worker.Task(far, 1, {**reading, **changes}, BUDGET, opened)
    row = {"index": 0, "tokens": some, "is_harmful": [True, True]}
    return task, row


def test_worker_that_does_not_see_the_folder_says_so(settings, prompts, tmp_path):
    folder = tmp_path / "far"
    task, row = actor(settings, prompts, folder)
    assert ray_worker.Actor(task)(row)["fault"] == ""
    (folder / "manifest.json").rename(tmp_path / "elsewhere.json")
    assert ray_worker.Actor(task)(row)["fault"] == (
        f"Machine {socket.gethostname()} does not see {folder}. Workers write their shards there: "
        "give a folder on a file system that all machines share, by the same path."
    )


def test_worker_with_another_model_says_so(settings, prompts, tmp_path):
    task, row = actor(settings, prompts, tmp_path / "far", positions=["last"])
    assert ray_worker.Actor(task)(row)["fault"] == (
        f"Machine {socket.gethostname()} does not read activations as the first one does (there):\n"
        "  positions: ['last'] there, ['last', 'mean'] here\n"
        "Give all machines the same checkpoint and the same kind of device."
    )


def test_worker_takes_the_threads_of_its_cpus(settings, prompts, tmp_path):
    # Before: a worker that had imported torch already kept all threads of the machine, and its sums
    # had other last bits than those of a process with as many threads as the worker has CPUs.
    task, _ = actor(settings, prompts, tmp_path / "far")
    torch.set_num_threads(2)
    ray_worker.Actor(task)
    assert torch.get_num_threads() == 1


def test_what_does_not_travel_to_workers_is_refused(checkpoint, model, prompts, tmp_path):
    with pytest.raises(RefusalLensError, match="none is given. Pass folder="):
        collect(model, prompts, engine="ray")
    with (
        model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: x)]),
        pytest.raises(RefusalLensError, match="Hooks stay in this process, .* on hook_embed"),
    ):
        collect(model, prompts, engine="ray", folder=tmp_path)
    stranger = load_model(checkpoint, device="cpu")
    del stranger.load_record
    with pytest.raises(RefusalLensError, match="Workers load the model themselves, and this one"):
        collect(stranger, prompts, engine="ray", folder=tmp_path)
