"""The same collection on many machines, over Ray Data.

Knows how shards reach workers that each hold one model, and what happens when one of them fails.
Does not know how a shard is read or stored.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from refusal_lens.activations import Activations
from refusal_lens.batching import BatchRecord
from refusal_lens.cluster import (
    N_RESTARTS,
    Workers,
    join_ray,
    plain_errors,
    quiet_ray,
)
from refusal_lens.collector import (
    Moments,
    describe_prompts,
    describe_tokens,
    find_token_budget,
    prompts_key,
    read_shard,
    reading_key,
)
from refusal_lens.config import EngineConfig, ModelConfig, find_resource
from refusal_lens.errors import RefusalLensError
from refusal_lens.models import LoadRecord, Model, load_model, load_tokenizer
from refusal_lens.moments import ClassMoments, class_moments
from refusal_lens.positions import check_positions, normalise_positions
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts import ContrastSet
from refusal_lens.reader import Pooled, Reader, make_reader
from refusal_lens.store import (
    Store,
    describe_difference,
    load_activations,
    open_store,
    shard_rows,
)
from refusal_lens.tokens import Tokens, tokenise


def collect_with_ray(
    model: ModelConfig,
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

    It takes the model's settings and not a model, since every worker loads its own. One worker is
    asked first what the settings come to, so that mistakes show before many models are loaded; each
    other is compared with it. Shards, batches and what all prompts share are those of `collect`, so
    that the values are too, and either can go on with what the other began.

    Args:
        model: How each worker loads its model.
        prompts: Harmful and harmless prompts.
        hook_points: As in `collect`.
        positions: As in `collect`.
        folder: Where the workers write their shards. All machines must see it by this path.
        engine: Which machines, and what a worker gets; the defaults if None. A Ray session that
            this process has joined already is used as it is.
        system_prompt: What the system says before each prompt.
        token_budget: Most tokens in a batch, padding included; None finds what is fastest, on the
            first worker.
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
    with join_ray(engine or EngineConfig(), model) as workers:
        budget, reading = _ask_first(workers, job, token_budget)
        key = {**reading, **prompts_key(job.tokenizer, prompts, job.tokens, system_prompt)}
        key |= {"dtype": dtype, "token_budget": token_budget}
        # Workers write to the folder from wherever they run.
        store = open_store(folder.absolute(), key, n_prompts=len(prompts), resume=resume)
        missing = {index: store.rows[index] for index in store.missing()}
        if store.token_budget is None:
            store.settle(budget)
        task = _Task(job.settings, reading, store.token_budget or budget, store)
        record = _run_shards(workers, task, job, missing, show_progress=show_progress)
        n_read = sum(map(len, missing.values()))
        store.finish(_describe(job, reading, workers, record, n_read))
    return load_activations(folder)


def collect_moments_with_ray(
    model: ModelConfig,
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
            part = _moments_of(row, name)
            merged[name] = merged[name].merge(part) if name in merged else part

    with join_ray(engine or EngineConfig(), model) as workers:
        budget, reading = _ask_first(workers, job, token_budget)
        shards = dict(enumerate(shard_rows(len(prompts))))
        task = _Task(job.settings, reading, budget, None)
        record = _run_shards(workers, task, job, shards, keep, show_progress)
        provenance = _describe(job, reading, workers, record, len(prompts))
    places = tuple(reading["hook_points"]), tuple(reading["positions"])
    return Moments(merged["harmful"], merged["harmless"], *places, provenance)


# --- what this process prepares ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Settings:
    """All that a worker needs to make its reader: plain values, sent to each.

    `frame` stands for all prompts: they begin with what these few begin with.
    """

    model: ModelConfig
    checkpoint: str
    frame: Tokens
    hook_points: str | Sequence[str]
    positions: Sequence[str]


@dataclass(frozen=True, eq=False)
class _Job:
    """What stays in this process: the tokenizer, and all prompts with their tokens."""

    settings: _Settings
    tokenizer: Any
    prompts: ContrastSet
    tokens: Tokens
    system_prompt: str | None


def _prepare(
    model: ModelConfig,
    prompts: ContrastSet,
    hook_points: str | Sequence[str],
    positions: str | Sequence[str],
    system_prompt: str | None,
) -> _Job:
    """Tokenise and check the prompts, which needs no model."""
    tokenizer = load_tokenizer(model.name, revision=model.revision)
    tokens = tokenise(tokenizer, prompts.prompts, system_prompt)
    wanted = normalise_positions(positions)
    check_positions(tokens, wanted, None)
    found = find_resource(model.name)
    checkpoint = model.name if found is None else str(found.absolute())
    settings = _Settings(model, checkpoint, frame(tokens), hook_points, wanted)
    return _Job(settings, tokenizer, prompts, tokens, system_prompt)


def frame(tokens: Tokens) -> Tokens:
    """Pick the few prompts that share a prefix exactly as long as all of them do.

    What all prompts begin with is run once and decides the last bits, so that every worker must
    take the same prefix, whichever prompts it gets. The longest prompt is among them: it is the one
    that a model's context may not hold.

    Example:
        >>> prompts = Tokens(("a", "b", "c"), ((1, 2), (1, 2, 3), (1, 2, 4)), ((0, 1),) * 3)
        >>> frame(prompts).shared_prefix() == prompts.shared_prefix() == (1,)
        True
    """
    rows = range(len(tokens))
    ends = {choose(rows, key=tokens.ids.__getitem__) for choose in (min, max)}
    lengths = {choose(rows, key=tokens.lengths.__getitem__) for choose in (min, max)}
    return tokens.select(sorted(ends | lengths))


def _describe(
    job: _Job, reading: dict[str, Any], workers: Workers, record: BatchRecord, n_read: int
) -> dict[str, Any]:
    """Say where activations came from, as `describe_collection` does, and with how many workers."""
    model = {name: value for name, value in reading["model"].items() if "sample" not in name}
    return {
        "model": model,
        **describe_prompts(job.tokenizer, job.prompts, job.system_prompt),
        **describe_tokens(job.tokenizer, job.prompts, reading["positions"], job.system_prompt),
        "hook_points": reading["hook_points"],
        "positions": reading["positions"],
        "collection": {
            **reading["forward"],
            **asdict(record),
            "n_prompts_read": n_read,
            "prompts_per_second": n_read / record.seconds if record.seconds else None,
            "engine": "ray",
            "n_actors": workers.n_actors,
        },
    }


# --- what workers do --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Task:
    """What one actor is for. Without a store it returns moments."""

    settings: _Settings
    reading: dict[str, Any]
    token_budget: int
    store: Store | None


class _Actor:
    """Holds one model, and reads the shards that Ray Data brings it."""

    def __init__(self, task: _Task) -> None:
        self._task, self._fault = task, ""
        try:
            if task.store is not None:
                _check_folder(task.store.folder)
            self._model, self._reader = _load(task.settings)
            _check_reading(task.reading, reading_key(self._model, self._reader))
        except RefusalLensError as error:
            # Ray loses what an exception was on the way; as a value it arrives.
            self._fault = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Read one shard; write it or return its moments, or say in words why that cannot be."""
        done = {"index": row["index"], "n_tokens": 0, "fault": self._fault}
        if self._fault:
            return done
        try:
            return done | self._read(row["index"], row["tokens"], torch.tensor(row["is_harmful"]))
        except RefusalLensError as error:
            return done | {"fault": str(error)}

    def _read(self, index: int, tokens: Tokens, is_harmful: torch.Tensor) -> dict[str, Any]:
        store = self._task.store
        shard = read_shard(
            self._reader,
            tokens,
            str(self._model.cfg.device),
            token_budget=self._task.token_budget,
            batches=None if store is None else store.batches(index),
        )
        if store is None:
            moments = _moments_row(shard.values, is_harmful)
        else:
            moments = {}
            store.write_shard(index, shard.values, is_harmful, shard.batches)
        return {"n_tokens": shard.record.n_tokens, **moments}


def _load(settings: _Settings) -> tuple[Model, Reader]:
    """Load the model as any other process would, under the name that the user gave it."""
    config = settings.model
    model = load_model(settings.checkpoint, **config.model_dump(exclude={"name"}))
    if isinstance(model.load_record, LoadRecord):
        model.load_record = replace(model.load_record, name=config.name)  # type: ignore[assignment]
    return model, make_reader(model, settings.frame, settings.hook_points, settings.positions)


def _try_out(
    settings: _Settings, token_budget: int | None, sample: Tokens | None
) -> tuple[int, dict[str, Any]]:
    """Load the model once: say what the settings come to, and the budget that is fastest."""
    model, reader = _load(settings)
    if token_budget is None:
        assert sample is not None, "a budget is searched with prompts"
        token_budget = find_token_budget(reader, sample, str(model.cfg.device))
    return token_budget, reading_key(model, reader)


def _check_folder(folder: Path) -> None:
    if not (folder / "manifest.json").is_file():
        raise RefusalLensError(
            f"Machine {socket.gethostname()} does not see {folder}. Workers write their shards "
            "there: give a folder on a file system that all machines share, by the same path."
        )


def _check_reading(first: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a worker whose activations would not belong with the first one's."""
    if first != here:
        raise RefusalLensError(
            f"Machine {socket.gethostname()} does not read activations as the first one does "
            f"(there):\n{describe_difference(first, here)}\n"
            "Give all machines the same checkpoint and the same kind of device."
        )


def _moments_row(values: Pooled, is_harmful: torch.Tensor) -> dict[str, Any]:
    """Write the moments of both classes as arrays; a class without prompts counts zero."""
    row: dict[str, Any] = {}
    for name, mine in (("harmful", values[is_harmful]), ("harmless", values[~is_harmful])):
        nothing = torch.zeros(values.shape[1:], dtype=torch.float64)
        part = class_moments(mine) if len(mine) else ClassMoments(0, nothing, nothing)
        row[f"{name}_count"] = part.count
        row[f"{name}_mean"], row[f"{name}_m2"] = part.mean.numpy(), part.m2.numpy()
    return row


def _moments_of(row: dict[str, Any], name: str) -> ClassMoments:
    mean, m2 = (torch.from_numpy(row[f"{name}_{part}"].copy()) for part in ("mean", "m2"))
    return ClassMoments(row[f"{name}_count"], mean, m2)


# --- bringing shards to workers ------------------------------------------------------------------


def _ask_first(workers: Workers, job: _Job, token_budget: int | None) -> tuple[int, dict[str, Any]]:
    """Have one worker load the model, and hear what it says."""
    import ray

    try_out = ray.remote(num_cpus=workers.n_cpus, num_gpus=workers.n_gpus)(_try_out)
    sample = job.tokens.select(shard_rows(len(job.tokens))[0]) if token_budget is None else None
    with quiet_ray(), plain_errors():
        return ray.get(try_out.remote(job.settings, token_budget, sample))


def _run_shards(
    workers: Workers,
    task: _Task,
    job: _Job,
    shards: dict[int, range],
    keep: Callable[[dict[str, Any]], None] | None = None,
    show_progress: bool | None = None,
) -> BatchRecord:
    """Stream shards through the actors, and hand on what they say in the order of the shards."""
    labels = job.prompts.is_harmful
    counts = {"harmful": len(job.prompts.harmful), "harmless": len(job.prompts.harmless)}
    n_harmful = {index: sum(labels[row] for row in rows) for index, rows in shards.items()}
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


def _dataset(workers: Workers, task: _Task, job: _Job, shards: dict[int, range]) -> Any:
    """Lay out the work: a row a shard and a block a row, so that a death costs one shard."""
    import ray.data

    labels = job.prompts.is_harmful
    rows = [
        {
            "index": index,
            "tokens": job.tokens.select(shard),
            "is_harmful": [labels[row] for row in shard],
        }
        for index, shard in shards.items()
    ]
    # Ray makes an instance in each worker; its annotation knows only functions.
    actor: Any = _Actor
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
