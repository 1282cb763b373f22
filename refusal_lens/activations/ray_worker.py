"""What a worker does: it holds one model, reads the shards it is brought, and says what went wrong.

Knows how a process on another machine reads exactly what the first one would. Does not know Ray.

Tested in tests/activations/test_ray_driver.py.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refusal_lens.activations.batch_reader import Reader, make_reader
from refusal_lens.activations.moments import ClassMoments
from refusal_lens.activations.provenance import reading_key
from refusal_lens.activations.shard_reader import (
    ShardMoments,
    find_token_budget,
    read_moments,
    read_shard,
)
from refusal_lens.activations.store import Store, describe_difference
from refusal_lens.config import ModelConfig
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.backends import LoadRecord, Model
from refusal_lens.prompts.positions import Sinks
from refusal_lens.prompts.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Settings:
    """All that a worker needs to make its reader: plain values, sent to each.

    `frame` stands for all prompts: they begin with what these few begin with.
    """

    model: ModelConfig
    checkpoint: str
    frame: Tokens
    hook_points: Sequence[str]
    positions: Sequence[str]
    sinks: Sinks


@dataclass(frozen=True, eq=False)
class Task:
    """What one actor is for, and the threads it may use. Without a store it returns moments."""

    settings: Settings
    n_threads: int
    reading: dict[str, Any]
    token_budget: int
    store: Store | None


class Actor:
    """Holds one model, and reads the shards that Ray Data brings it."""

    def __init__(self, task: Task) -> None:
        self._task, self._fault = task, ""
        try:
            if task.store is not None:
                _check_folder(task.store.folder)
            self._model, self._reader = _load(task.settings, task.n_threads)
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

    def _read(self, index: int, tokens: Tokens, is_harmful: Tensor) -> dict[str, Any]:
        store, budget = self._task.store, self._task.token_budget
        device = str(self._model.cfg.device)
        if store is None:
            moments = read_moments(self._reader, tokens, is_harmful, device, token_budget=budget)
            return {"n_tokens": moments.record.n_tokens, **_moments_row(moments)}
        batches = store.batches(index)
        shard = read_shard(self._reader, tokens, device, token_budget=budget, batches=batches)
        how = {"batches": shard.batches, "n_left_out": shard.n_left_out.tolist()}
        store.write_shard(index, shard.values, is_harmful, how)
        return {"n_tokens": shard.record.n_tokens}


def _load(settings: Settings, n_threads: int) -> tuple[Model, Reader]:
    """Load the model as any other process would, under the name that the user gave it."""
    # Sums split over another number of threads have other last bits. Ray asks for this number by
    # OMP_NUM_THREADS, which comes too late where torch was imported before the worker got its work.
    torch.set_num_threads(n_threads)
    config = settings.model
    model = config.model_copy(update={"name": settings.checkpoint}).load()
    if isinstance(model.load_record, LoadRecord):
        model.load_record = replace(model.load_record, name=config.name)  # type: ignore[assignment]
    places = settings.hook_points, settings.positions
    return model, make_reader(model, settings.frame, *places, settings.sinks)


def try_out(
    settings: Settings, n_threads: int, token_budget: int | None, sample: Tokens
) -> tuple[int, dict[str, Any]]:
    """Load the model once: say what the settings come to, and the budget that is fastest."""
    model, reader = _load(settings, n_threads)
    if token_budget is None:
        token_budget = find_token_budget(reader, sample, str(model.cfg.device))
    return token_budget, reading_key(model, reader)


def _check_folder(folder: Path) -> None:
    if not (folder / "manifest.json").is_file():
        raise RefusalLensError(
            f"Machine {socket.gethostname()} does not see {folder}. Workers write their shards "
            "there: give a folder on a file system that all machines share, by the same path."
        )


def _check_reading(first: dict[str, Any], reading: dict[str, Any]) -> None:
    """Refuse a worker whose activations would not belong with the first one's."""
    if first != reading:
        raise RefusalLensError(
            f"Machine {socket.gethostname()} does not read activations as the first one does "
            f"(there):\n{describe_difference(first, reading)}\n"
            "Give all machines the same checkpoint and the same kind of device."
        )


def _moments_row(moments: ShardMoments) -> dict[str, Any]:
    """Write the moments of both classes as arrays, which is what Ray sends best."""
    row: dict[str, Any] = {"n_left_out": moments.n_left_out.numpy()}
    for name, part in (("harmful", moments.harmful), ("harmless", moments.harmless)):
        row[f"{name}_count"] = part.count
        row[f"{name}_mean"], row[f"{name}_m2"] = part.mean.numpy(), part.m2.numpy()
    return row


def moments_of(row: dict[str, Any], name: str) -> ClassMoments:
    """Read the moments of one class, `harmful` or `harmless`, out of what an actor returned."""
    mean, m2 = (torch.from_numpy(row[f"{name}_{part}"].copy()) for part in ("mean", "m2"))
    return ClassMoments(row[f"{name}_count"], mean, m2)
