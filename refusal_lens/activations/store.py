"""Activations on disk: shards of prompts and a manifest.

Knows how a collection is laid out in a folder, whether it is complete, and whether it is the one
that is meant. Does not know how activations come about, nor where a run keeps its files.
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.activations import shards
from refusal_lens.activations.pooled import Activations
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.files import WriteError, remove_partial
from refusal_lens.models.hook_points import select_hook_points
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.prompts.groups import Groups

SHARD_PROMPTS = 4096
"""Prompts in one shard: large enough that reading is fast, small enough to lose little."""

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space left, the user's quota spent, or the largest file that this process may write."""


# --- a store that is being written ------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A folder of shards. Plain values, so that worker processes can be given it.

    A shard counts only when the record beside it (`shard-00000.json`, written after it) has its
    checksum: workers can write shards at the same time and touch no common file.

    `key` says what is in it, see `open_store`.
    """

    folder: Path
    key: dict[str, Any]
    n_prompts: int
    shard_prompts: int

    @property
    def rows(self) -> list[range]:
        """The prompts of each shard."""
        return shard_rows(self.n_prompts, self.shard_prompts)

    @property
    def token_budget(self) -> int | None:
        """The token budget that was asked for or found, if there is one: see `keep_budget`."""
        return shards.read_manifest(self.folder)["token_budget"] or self.key.get("token_budget")

    def keep_budget(self, token_budget: int) -> None:
        """Keep the token budget for all shards to come, also after a resume.

        Other batches would give results that differ in their last bits.
        """
        shards.write_manifest(
            self.folder, shards.read_manifest(self.folder) | {"token_budget": token_budget}
        )

    @property
    def finished(self) -> list[int]:
        """The shards that are there, by their sizes alone."""
        paths = [shards.shard_path(self.folder, index) for index in range(len(self.rows))]
        return [i for i, path in enumerate(paths) if shards.find_fault(path, []) is None]

    def missing(self) -> list[int]:
        """Find the shards that have yet to be collected.

        A shard that is not what was written is named in a warning, and deleted.
        """
        missing = []
        for index in range(len(self.rows)):
            path = shards.shard_path(self.folder, index)
            fault = shards.find_fault(path)
            if fault is None:
                continue
            missing.append(index)
            # Without a record it was never finished, which is no surprise after a kill.
            if path.exists() and shards.record_path(path).exists():
                warnings.warn(f"{path} {fault}. It is collected again.", RefusalLensWarning, 2)
            path.unlink(missing_ok=True)
        return missing

    def batches(self, index: int) -> list[list[int]] | None:
        """Return how a shard that was damaged had been batched, to collect it the same way."""
        record = shards.read_record(shards.shard_path(self.folder, index))
        return record.get("batches") if record else None

    def n_left_out(self) -> Int[Tensor, "n_hook_points n_positions"]:
        """Add up the tokens that the means of all shards left out."""
        records = [
            shards.read_record(shards.shard_path(self.folder, index))
            for index in range(len(self.rows))
        ]
        counts = [record["n_left_out"] for record in records if record]
        return torch.tensor(counts).sum(0)

    def write_shard(
        self,
        index: int,
        values: Float[Tensor, "n_prompts n_hook_points n_positions d_model"],
        is_harmful: Bool[Tensor, " n_prompts"],
        how: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one shard, whole or not at all, then the record that makes it count.

        Each hook point is a tensor of its own, `[prompt, position, d_model]`, so that it can be
        read without the rest.

        Args:
            index: Which shard.
            values: Its activations; they are stored in the store's dtype.
            is_harmful: Their labels.
            how: What else its record says: the `batches` it was collected in, by their rows, and
                `n_left_out`, the tokens that its means left out at each place.

        Raises:
            RefusalLensError: The disk is full, or float16 cannot hold the values.
        """
        tensors = {
            name: shards.to_dtype(values[:, column], self.key["dtype"], name)
            for column, name in enumerate(self.key["hook_points"])
        }
        path = shards.shard_path(self.folder, index)
        try:
            shards.write_shard_file(path, {**tensors, "is_harmful": is_harmful}, how or {})
        except WriteError as error:
            if error.errno not in DISK_IS_FULL:
                raise
            n_bytes = sum(tensor.nbytes for tensor in tensors.values())
            raise RefusalLensError(self._disk_is_full(error, n_bytes // len(values))) from error

    def finish(
        self,
        provenance: dict[str, Any],
        groups: Groups | None = None,
        prompts: Sequence[Prompt] = (),
    ) -> None:
        """Write where the activations came from, and that they are complete.

        A store that was complete before, and had a shard mended, keeps what it said.
        """
        manifest = shards.read_manifest(self.folder)
        if not manifest["is_complete"]:
            if prompts:
                shards.write_prompts(self.folder, prompts)
            if groups is not None:
                shards.write_groups(self.folder, groups)
            shards.write_manifest(
                self.folder, manifest | {"is_complete": True, "provenance": provenance}
            )

    def _disk_is_full(self, error: WriteError, bytes_per_prompt: int) -> str:
        finished = self.finished
        n_left = self.n_prompts - sum(len(self.rows[index]) for index in finished)
        needed = n_left * bytes_per_prompt - shutil.disk_usage(self.folder).free
        is_full = error.errno == errno.ENOSPC
        advice = f"Free about {_size(needed)}" if is_full else "Raise the limit on files"
        reason = "The disk is full" if is_full else os.strerror(error.errno or 0)
        return (
            f"{reason}: {len(finished)} of "
            f"{len(self.rows)} shards are finished in {self.folder}. {advice} and run again with "
            "--resume."
        )


def shard_rows(n_prompts: int, shard_prompts: int = SHARD_PROMPTS) -> list[range]:
    """Cut prompts into shards: neighbours stay together, in the order they came in.

    Example:
        >>> shard_rows(5, 2)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    starts = range(0, n_prompts, shard_prompts)
    return [range(start, min(start + shard_prompts, n_prompts)) for start in starts]


def open_store(
    folder: Path,
    key: dict[str, Any],
    *,
    n_prompts: int,
    shard_prompts: int | None = None,
    resume: bool = False,
) -> Store:
    """Begin a store, or go on with one.

    Args:
        folder: Where it is, or is to be.
        key: All that the values depend on, as plain values: `hook_points`, `positions`, `dtype`
            (`float32`, `bfloat16` or `float16`, as stored), and whatever else must be the same for
            shards to belong together, such as `model` and `prompts`.
        n_prompts: Prompts in all shards together.
        shard_prompts: Prompts in a shard, `SHARD_PROMPTS` if None; a store that is there keeps its
            own.
        resume: Go on with the store in `folder`; where there is none, begin it.

    Raises:
        RefusalLensError: There is a store already, without `resume`; or one of another key.
    """
    key = json.loads(json.dumps(key))
    if not (folder / shards.MANIFEST).exists():
        manifest = {
            "is_complete": False,
            "n_prompts": n_prompts,
            "shard_prompts": shard_prompts or SHARD_PROMPTS,
            "token_budget": None,
            "key": key,
            "provenance": {},
        }
        shards.write_manifest(folder, manifest)
    elif not resume:
        raise RefusalLensError(
            f"{folder} holds activations already. Go on with them (resume=True, or --resume), or "
            "give another folder."
        )
    manifest = shards.read_manifest(folder)
    if manifest["key"] != key:
        raise RefusalLensError(
            f"{folder} belongs to another collection:\n"
            f"{describe_difference(manifest['key'], key)}\n"
            "Give another folder, or the settings it was begun with."
        )
    remove_partial(folder)
    return _store(folder, manifest)


def date_of_store(folder: Path) -> str | None:
    """Return the day that the chat template wrote into a store's prompts; None without one."""
    if not (folder / shards.MANIFEST).exists():
        return None
    return shards.read_manifest(folder)["key"].get("chat_template", {}).get("date")


def describe_difference(first: Any, second: Any, name: str = "") -> str:
    """List the entries of two nested mappings that differ, one a line; the model's name always.

    Example:
        >>> print(describe_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}))
          a.c: 2 there, 3 here
    """
    if isinstance(first, dict) and isinstance(second, dict):
        lines = [
            describe_difference(first.get(key), second.get(key), f"{name}.{key}".strip("."))
            for key in dict.fromkeys([*first, *second])
            if first.get(key) != second.get(key) or (name, key) == ("model", "name")
        ]
        return "\n".join(lines)
    return f"  {name}: {first} there, {second} here"


# --- a store that is read ---------------------------------------------------------------------


def load_activations(
    folder: str | Path, hook_points: str | Sequence[str] | None = None
) -> Activations:
    """Read activations back, in the order they were collected in, as float32.

    One float32 shard is mapped into memory; more of them, or another dtype, are read into it.

    Args:
        folder: The store.
        hook_points: Selectors, see `resolve_hook_points`, for some of those stored; None for all.

    Raises:
        RefusalLensError: They are not finished, a shard is missing or is not what was written, or
            there is no such hook point among them.
    """
    folder = Path(folder)
    store, provenance = _open_finished(folder)
    stored = store.key["hook_points"]
    wanted = stored if hook_points is None else _select(folder, stored, hook_points)
    paths = [shards.shard_path(folder, index) for index in range(len(store.rows))]
    labels, values = [], None
    for path, rows in zip(paths, store.rows, strict=True):
        _check(path)
        with shards.open_shard(path) as shard:
            labels.append(shard.get_tensor("is_harmful"))
            if len(paths) == 1 and wanted == stored and store.key["dtype"] == "float32":
                values = shards.map_values(path)
                break
            for column, name in enumerate(wanted):
                part = shard.get_tensor(name)
                if values is None:
                    values = torch.empty(store.n_prompts, len(wanted), *part.shape[1:])
                values[rows.start : rows.stop, column] = part
    assert values is not None, "a store has a prompt and a hook point"
    positions = tuple(store.key["positions"])
    told = provenance, shards.read_groups(folder, store.n_prompts), shards.read_prompts(folder)
    return Activations(values, torch.cat(labels), tuple(wanted), positions, *told)


def load_hook_point(
    folder: str | Path, hook_point: str
) -> Float[Tensor, "n_prompts n_positions d_model"]:
    """Read the activations at one hook point, as float32, and nothing else.

    Raises:
        RefusalLensError: They are not finished, there is no such hook point among them, or a shard
            is missing or is not what was written.
    """
    folder = Path(folder)
    store, _ = _open_finished(folder)
    if hook_point not in store.key["hook_points"]:
        raise RefusalLensError(
            f"{folder} has no activations at {hook_point}. It has those at "
            f"{', '.join(store.key['hook_points'])}."
        )
    parts = []
    for index in range(len(store.rows)):
        path = shards.shard_path(folder, index)
        _check(path, [hook_point])
        with shards.open_shard(path) as shard:
            parts.append(shard.get_tensor(hook_point).float())
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _select(folder: Path, stored: Sequence[str], selectors: str | Sequence[str]) -> list[str]:
    """Resolve selectors as in a model that has the stored hook points, and no others."""
    try:
        return list(select_hook_points(stored, selectors, str(folder)))
    except RefusalLensError as error:
        raise RefusalLensError(f"{folder} holds only what was collected. {error}") from error


def _check(path: Path, tensors: Sequence[str] | None = None) -> None:
    fault = shards.find_fault(path, tensors)
    if fault is not None:
        raise RefusalLensError(
            f"{path} {fault}. Collect it again: refusal-lens collect --resume --output RUN."
        )


# --- the manifest -----------------------------------------------------------------------------


def _open_finished(folder: Path) -> tuple[Store, dict[str, Any]]:
    manifest = shards.read_manifest(folder)
    store = _store(folder, manifest)
    if not manifest["is_complete"]:
        raise RefusalLensError(
            f"{folder} is not finished: it has {len(store.finished)} of {len(store.rows)} shards. "
            "Go on with it: refusal-lens collect --resume --output RUN."
        )
    return store, manifest["provenance"]


def _store(folder: Path, manifest: dict[str, Any]) -> Store:
    return Store(folder, manifest["key"], manifest["n_prompts"], manifest["shard_prompts"])


def _size(n_bytes: int) -> str:
    """Write a number of bytes for people, rounded up.

    Example:
        >>> _size(5_000_000_000), _size(200_000), _size(-5)
        ('4.7 GiB', '1 MiB', '1 MiB')
    """
    mebibytes = max(1, -(-n_bytes // 2**20))
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"
