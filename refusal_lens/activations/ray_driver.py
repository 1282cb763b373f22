"""The same collection on many machines, over Ray Data.

Knows how shards reach workers that each hold one model, and what happens when one of them fails.
Does not know how a shard is read or stored.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from refusal_lens.activations.collector import class_labels
from refusal_lens.activations.first_pass import Survey, survey
from refusal_lens.activations.moments import ClassMoments, Moments
from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.provenance import (
    describe_prompts,
    describe_tokens,
    prompts_key,
    sample_weights,
)
from refusal_lens.activations.ray_cluster import (
    N_RESTARTS,
    Workers,
    join_ray,
    plain_errors,
    quiet_ray,
)
from refusal_lens.activations.ray_worker import Actor, Settings, Task, moments_of, try_out
from refusal_lens.activations.store import load_activations, open_store, shard_rows
from refusal_lens.config import EngineConfig, ModelConfig
from refusal_lens.config_files import find_resource
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.batching import BatchRecord
from refusal_lens.models.loading import LoadRecord, Model
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.groups import find_groups
from refusal_lens.prompts.positions import check_positions, normalise_positions


def collect_with_ray(
    model: Model | ModelConfig,
    prompts: ContrastSet,
    hook_points: str | Sequence[str] = "resid_post",
    positions: str | Sequence[str] = "last",
    *,
    folder: Path,
    engine: EngineConfig | None = None,
    system_prompt: str | None = None,
    token_budget: int | None = None,
    resume: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    show_progress: bool | None = None,
) -> Activations:
    """Collect activations as `collect` does, by workers that each hold one model.

    One worker is asked first what the settings come to, so that mistakes show before many models
    are loaded; each other is compared with it. Shards, batches and what all prompts share are those
    of `collect`, so that the values are too, and either can go on with what the other began. They
    are the same to the last bit on the same kind of device with as many threads as a worker has
    CPUs: other numbers of threads add up in another order.

    Args:
        model: How each worker loads its model; or one from `load_model`, which workers load again.
        prompts: Harmful and harmless prompts.
        hook_points: As in `collect`.
        positions: As in `collect`.
        folder: Where the workers write their shards. All machines must see it by this path.
        engine: Which machines, and what a worker gets. A Ray session that this process has joined
            already is used as it is.
        system_prompt: What the system says before each prompt.
        token_budget: Most tokens in a batch; None finds what is fastest, on the first worker.
        resume: Go on with what is in `folder`.
        dtype: Precision in `folder`.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

    Returns:
        Activations in the order of `prompts.prompts`: harmful first.

    Raises:
        RefusalLensError: As `collect`; or Ray is not installed or cannot be reached, no machine has
            what a worker needs, a worker loaded another model than the first, or a shard killed
            every worker that tried it.
    """
    job = _prepare(model, prompts, hook_points, positions, system_prompt)
    with join_ray(engine or EngineConfig(), job.settings.model) as workers:
        budget, reading = _ask_first(workers, job, token_budget)
        key = {**reading, **prompts_key(job.survey)}
        key |= {"dtype": dtype, "token_budget": token_budget}
        # Workers write to the folder from wherever they run.
        store = open_store(folder.absolute(), key, n_prompts=len(prompts), resume=resume)
        missing = {index: store.rows[index] for index in store.missing()}
        if store.token_budget is None:
            store.settle(budget)
        budget = store.token_budget or budget
        task = Task(job.settings, workers.n_cpus, reading, budget, store)
        record = _run_shards(workers, task, job, missing, show_progress=show_progress)
        n_read = sum(map(len, missing.values()))
        store.finish(_describe(job, reading, workers, record, n_read), find_groups(prompts))
    return load_activations(folder)


def collect_moments_with_ray(
    model: Model | ModelConfig,
    prompts: ContrastSet,
    hook_points: str | Sequence[str] = "resid_post",
    positions: str | Sequence[str] = "last",
    *,
    engine: EngineConfig | None = None,
    system_prompt: str | None = None,
    token_budget: int | None = None,
    show_progress: bool | None = None,
) -> Moments:
    """Collect only what directions need: workers send the moments of their shards, and no files.

    The arguments are those of `collect_with_ray`. The shards' moments are merged in the order of
    the prompts, so that the result does not depend on which worker was faster.

    Returns:
        Moments of both classes, in float64.

    Raises:
        RefusalLensError: As `collect_with_ray`.
    """
    job = _prepare(model, prompts, hook_points, positions, system_prompt)
    merged: dict[str, ClassMoments] = {}

    def keep(row: dict[str, Any]) -> None:
        for name in ("harmful", "harmless"):
            part = moments_of(row, name)
            merged[name] = merged[name].merge(part) if name in merged else part

    with join_ray(engine or EngineConfig(), job.settings.model) as workers:
        budget, reading = _ask_first(workers, job, token_budget)
        shards = dict(enumerate(shard_rows(len(prompts))))
        task = Task(job.settings, workers.n_cpus, reading, budget, None)
        record = _run_shards(workers, task, job, shards, keep, show_progress)
        provenance = _describe(job, reading, workers, record, len(prompts))
    places = tuple(reading["hook_points"]), tuple(reading["positions"])
    return Moments(merged["harmful"], merged["harmless"], *places, provenance)


# --- what this process prepares ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Job:
    """What stays in this process: all prompts, and what a model in it says of its weights."""

    settings: Settings
    survey: Survey
    weights: str | None


def _prepare(
    model: Model | ModelConfig,
    prompts: ContrastSet,
    hook_points: str | Sequence[str],
    positions: str | Sequence[str],
    system_prompt: str | None,
) -> _Job:
    """Tokenise and check the prompts, which needs no model."""
    config = model if isinstance(model, ModelConfig) else _settings_of(model)
    weights = None if isinstance(model, ModelConfig) else sample_weights(model)
    wanted = normalise_positions(positions)
    tokenizer = config.tokenizer()
    check = partial(check_positions, positions=wanted, n_ctx=None)
    surveyed = survey(tokenizer, prompts, system_prompt, check)
    found = find_resource(config.name)
    checkpoint = config.name if found is None else str(found.absolute())
    settings = Settings(config, checkpoint, surveyed.frame, system_prompt, hook_points, wanted)
    return _Job(settings, surveyed, weights)


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
    job: _Job, reading: dict[str, Any], workers: Workers, record: BatchRecord, n_read: int
) -> dict[str, Any]:
    """Say where activations came from, as `describe_collection` does, and with how many workers."""
    model = {name: value for name, value in reading["model"].items() if "sample" not in name}
    return {
        "model": model,
        **describe_prompts(job.survey.tokenizer, job.survey.prompts, job.settings.system_prompt),
        **describe_tokens(
            job.survey.tokenizer,
            job.survey.prompts,
            reading["positions"],
            job.settings.system_prompt,
        ),
        "hook_points": reading["hook_points"],
        "positions": reading["positions"],
        "collection": {
            **reading["forward"],
            **asdict(record),
            "n_prompts_read": n_read,
            "prompts_per_second": n_read / record.seconds if record.seconds else None,
            "engine": "ray",
            "n_threads": workers.n_cpus,
            "n_actors": workers.n_actors,
        },
    }


# --- bringing shards to workers ------------------------------------------------------------------


def _ask_first(workers: Workers, job: _Job, token_budget: int | None) -> tuple[int, dict[str, Any]]:
    """Have one worker load the model, and hear what it says."""
    import ray

    ask = ray.remote(num_cpus=workers.n_cpus, num_gpus=workers.n_gpus)(try_out)
    first = shard_rows(len(job.survey.prompts))[0]
    sample = job.survey.portion(first) if token_budget is None else None
    with quiet_ray(), plain_errors():
        budget, reading = ray.get(ask.remote(job.settings, workers.n_cpus, token_budget, sample))
    if job.weights not in (None, reading["model"]["weights_sample_sha256"]):
        raise RefusalLensError(
            f"Workers load {job.settings.model.name}, whose weights are not those that this "
            "process's model has now. Save the model and load that, or use the engine local."
        )
    return budget, reading


def _run_shards(
    workers: Workers,
    task: Task,
    job: _Job,
    shards: dict[int, range],
    keep: Callable[[dict[str, Any]], None] | None = None,
    show_progress: bool | None = None,
) -> BatchRecord:
    """Stream shards through the actors, and hand on what they say in the order of the shards."""
    prompts = job.survey.prompts
    counts = {"harmful": len(prompts.harmful), "harmless": len(prompts.harmless)}
    n_harmful = {index: int(class_labels(prompts, rows).sum()) for index, rows in shards.items()}
    n_left = {"harmful": sum(n_harmful.values())}
    n_left["harmless"] = sum(map(len, shards.values())) - n_left["harmful"]
    n_tokens, began = 0, time.perf_counter()
    with ClassProgress("Collecting", counts, show_progress) as progress:
        progress.advance({name: counts[name] - n_left[name] for name in counts})
        with quiet_ray(), plain_errors():
            for row in _dataset(workers, task, job, shards).iter_rows() if shards else ():
                if row["fault"]:
                    raise RefusalLensError(row["fault"])
                if keep is not None:
                    keep(row)
                index, n_tokens = row["index"], n_tokens + row["n_tokens"]
                n_harmless = len(shards[index]) - n_harmful[index]
                progress.advance({"harmful": n_harmful[index], "harmless": n_harmless})
    return BatchRecord(task.token_budget, n_tokens, time.perf_counter() - began)


def _dataset(workers: Workers, task: Task, job: _Job, shards: dict[int, range]) -> Any:
    """Lay out the work: a row a shard and a block a row, so that a death costs one shard."""
    import ray.data

    rows = [
        {
            "index": index,
            "portion": job.survey.portion(shard),
            "is_harmful": class_labels(job.survey.prompts, shard).tolist(),
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
