"""The same collection on many machines, over Ray Data.

Knows how shards reach workers that each hold one model, and what happens when one of them fails.
Does not know how a shard is read or stored.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refusal_lens.activations.collection import Collection, frame
from refusal_lens.activations.moments import ClassMoments, Moments
from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.provenance import describe_collection, sample_weights
from refusal_lens.activations.ray_cluster import (
    N_RESTARTS,
    Workers,
    join_ray,
    plain_errors,
    quiet_ray,
)
from refusal_lens.activations.ray_worker import Actor, Settings, Task, moments_of, try_out
from refusal_lens.activations.shard_reader import LeftOut
from refusal_lens.activations.store import load_activations, open_store, shard_rows
from refusal_lens.config import EngineConfig, ModelConfig
from refusal_lens.config_files import find_resource
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.backends import LoadRecord, Model
from refusal_lens.models.batching import BatchRecord
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts.groups import find_groups


@dataclass(frozen=True, eq=False)
class RayEngine:
    """Reads by workers that each hold one model; made by `RayEngine.of`.

    One worker is asked first what the settings come to, so that mistakes show before many models
    are loaded; each other is compared with it. Shards, batches and what all prompts share are those
    of `LocalEngine`, so that the values are too, and either can go on with what the other began.
    They are the same to the last bit on the same kind of device with as many threads as a worker
    has CPUs: other numbers of threads add up in another order.
    """

    model: ModelConfig
    engine: EngineConfig
    weights: str | None
    """What the model in this process says of its weights; None where there is none."""

    @classmethod
    def of(cls, model: Model | ModelConfig, engine: EngineConfig) -> "RayEngine":
        """Prepare the engine, which loads no model; each worker loads its own, by these settings.

        A model of `load_model` is loaded again there. A Ray session that this process has joined
        already is used as it is.

        Raises:
            RefusalLensError: A model of this process that workers cannot load.
        """
        if isinstance(model, ModelConfig):
            return cls(model, engine, None)
        return cls(_settings_of(model), engine, sample_weights(model))

    def collect(
        self,
        collection: Collection,
        folder: str | Path | None = None,
        *,
        resume: bool = False,
        show_progress: bool | None = None,
    ) -> Activations:
        """Collect activations, as `Engine.collect` says.

        Raises:
            RefusalLensError: As there; or no folder is given, Ray is not installed or cannot be
                reached, no machine has what a worker needs, a worker loaded another model than the
                first, or a shard killed every worker that tried it.
        """
        if folder is None:
            raise RefusalLensError(
                "Workers over Ray write activations to a folder, and none is given. Pass "
                "folder=..., one that all machines see, or keep moments only (collect_moments)."
            )
        settings = self._settings(collection)
        with join_ray(self.engine, self.model) as workers:
            budget, reading = self._ask_first(workers, settings, collection)
            key = {**reading, **collection.key()}
            # Workers write to the folder from wherever they run.
            store = open_store(
                Path(folder).absolute(), key, n_prompts=len(collection), resume=resume
            )
            missing = {index: store.rows[index] for index in store.missing()}
            if store.token_budget is None:
                store.keep_budget(budget)
            budget = store.token_budget or budget
            task = Task(settings, workers.n_cpus, reading, budget, store)
            record = _run_shards(workers, task, collection, missing, show_progress=show_progress)
            n_read = sum(map(len, missing.values()))
            n_left_out = store.n_left_out()
            described = _describe(collection, reading, record, n_read, n_left_out, workers)
            prompts = collection.prompts
            store.finish(described, find_groups(prompts), prompts.prompts)
        return load_activations(folder)

    def collect_moments(
        self, collection: Collection, *, show_progress: bool | None = None
    ) -> Moments:
        """Collect moments, as `Engine.collect_moments` says: workers send them, and write no files.

        The shards' moments are merged in the order of the prompts, so that the result does not
        depend on which worker was faster.
        """
        settings = self._settings(collection)
        merged: dict[str, ClassMoments] = {}
        left_out: list[Any] = []

        def keep(row: dict[str, Any]) -> None:
            for name in ("harmful", "harmless"):
                part = moments_of(row, name)
                merged[name] = merged[name].merge(part) if name in merged else part
            left_out.append(row["n_left_out"])

        with join_ray(self.engine, self.model) as workers:
            budget, reading = self._ask_first(workers, settings, collection)
            shards = dict(enumerate(shard_rows(len(collection))))
            task = Task(settings, workers.n_cpus, reading, budget, None)
            record = _run_shards(workers, task, collection, shards, keep, show_progress)
            n_read, n_left_out = len(collection), torch.from_numpy(sum(left_out))
            provenance = _describe(collection, reading, record, n_read, n_left_out, workers)
        places = tuple(reading["hook_points"]), tuple(reading["positions"])
        return Moments(merged["harmful"], merged["harmless"], *places, provenance)

    def _settings(self, collection: Collection) -> Settings:
        found = find_resource(self.model.name)
        checkpoint = self.model.name if found is None else str(found.absolute())
        few = frame(collection.tokens)
        places = collection.hook_points, collection.positions
        return Settings(self.model, checkpoint, few, *places, collection.sinks)

    def _ask_first(
        self, workers: Workers, settings: Settings, collection: Collection
    ) -> tuple[int, dict[str, Any]]:
        """Have one worker load the model, and hear what it says."""
        import ray

        ask = ray.remote(num_cpus=workers.n_cpus, num_gpus=workers.n_gpus)(try_out)
        sample = collection.tokens.select(shard_rows(len(collection))[0])
        with quiet_ray(), plain_errors():
            budget, reading = ray.get(
                ask.remote(settings, workers.n_cpus, collection.token_budget, sample)
            )
        if self.weights not in (None, reading["model"]["weights_sample_sha256"]):
            raise RefusalLensError(
                f"Workers load {self.model.name}, whose weights are not those that this process's "
                "model has now. Save the model and load that, or use the engine local."
            )
        return budget, reading


def _settings_of(model: Model) -> ModelConfig:
    """Say how workers are to load a model that this process holds."""
    record = getattr(model, "load_record", None)
    if not isinstance(record, LoadRecord):
        raise RefusalLensError(
            "Workers load the model themselves, and this one does not say from where. Load it with "
            "load_model, or use the engine local."
        )
    hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    if hooked:
        raise RefusalLensError(
            f"Hooks stay in this process, and the model has some on {', '.join(hooked[:3])}. "
            "Remove them (model.reset_hooks()), or use the engine local."
        )
    return ModelConfig(
        name=record.name,
        revision=record.revision,
        gguf_file=None if record.gguf is None else record.gguf["asked"],
        backend=record.backend,  # pyright: ignore[reportArgumentType]
        device=record.device.split(":")[0],
        dtype=record.dtype,  # pyright: ignore[reportArgumentType]
        processing=record.processing,  # pyright: ignore[reportArgumentType]
        n_devices=getattr(model.cfg, "n_devices", 1),
    )


def _describe(
    collection: Collection,
    reading: dict[str, Any],
    record: BatchRecord,
    n_read: int,
    n_left_out: LeftOut,
    workers: Workers,
) -> dict[str, Any]:
    engine = {"engine": "ray", "n_threads": workers.n_cpus, "n_actors": workers.n_actors}
    return describe_collection(collection, reading, record, n_read, n_left_out, **engine)


# --- bringing shards to workers ------------------------------------------------------------------


def _run_shards(
    workers: Workers,
    task: Task,
    collection: Collection,
    shards: dict[int, range],
    keep: Callable[[dict[str, Any]], None] | None = None,
    show_progress: bool | None = None,
) -> BatchRecord:
    """Stream shards through the actors, and hand on what they say in the order of the shards."""
    prompts = collection.prompts
    counts = prompts.counts()
    n_harmful = {index: int(collection.labels(rows).sum()) for index, rows in shards.items()}
    n_left = {"harmful": sum(n_harmful.values())}
    n_left["harmless"] = sum(map(len, shards.values())) - n_left["harmful"]
    n_tokens, began = 0, time.perf_counter()
    with ClassProgress("Collecting", counts, show_progress) as progress:
        progress.advance({name: counts[name] - n_left[name] for name in counts})
        with quiet_ray(), plain_errors():
            for row in _dataset(workers, task, collection, shards).iter_rows() if shards else ():
                if row["fault"]:
                    raise RefusalLensError(row["fault"])
                if keep is not None:
                    keep(row)
                index, n_tokens = row["index"], n_tokens + row["n_tokens"]
                n_harmless = len(shards[index]) - n_harmful[index]
                progress.advance({"harmful": n_harmful[index], "harmless": n_harmless})
    return BatchRecord(task.token_budget, n_tokens, time.perf_counter() - began)


def _dataset(workers: Workers, task: Task, collection: Collection, shards: dict[int, range]) -> Any:
    """Lay out the work: a row a shard and a block a row, so that a death costs one shard."""
    import ray.data

    rows = [
        {
            "index": index,
            "tokens": collection.tokens.select(shard),
            "is_harmful": collection.labels(shard).tolist(),
        }
        for index, shard in shards.items()
    ]
    # Ray makes an instance in each worker; its annotation knows only functions.
    actor: Any = Actor
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        actor,
        fn_constructor_args=[task],
        compute=ray.data.ActorPoolStrategy(size=min(workers.n_actors, len(rows))),
        num_cpus=workers.n_cpus,
        num_gpus=workers.n_gpus,
        max_restarts=N_RESTARTS,
        max_task_retries=-1,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    # Moments are merged as they come: another order would change their last bits.
    dataset.context.execution_options.preserve_order = True
    return dataset
