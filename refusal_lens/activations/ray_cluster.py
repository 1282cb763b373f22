"""Ray itself: joining or starting it, what a worker gets, its noise and its errors.

Does not know what workers do.

Tested in tests/activations/test_ray_driver.py.
"""

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from refusal_lens.config import EngineConfig, ModelConfig
from refusal_lens.errors import RefusalLensError

N_RESTARTS = 10
"""How often a worker is started again: machines may go, but a crash at every start must end."""


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what each of them gets."""

    n_actors: int
    n_cpus: int
    n_gpus: float


@contextmanager
def join_ray(engine: EngineConfig, model: ModelConfig) -> Iterator[Workers]:
    """Join the cluster or start a local Ray, and leave it when the block ends.

    A session that this process has joined before is used as it is, and stays.

    Raises:
        RefusalLensError: Ray is not installed or does not answer, or no machine has what a worker
            needs.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield plan_workers(engine, model, _machines(ray.nodes()))
        return
    # "local": without an address Ray would also join a cluster that another user started here.
    address = engine.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        _knock(address)
        with quiet_ray():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise RefusalLensError(
            f"Ray does not answer at {address}: {str(error).splitlines()[0].rstrip('.')}. Start it "
            "there with `ray start --head`, or give another address with --ray-address or "
            "RAY_ADDRESS."
        ) from error
    try:
        yield plan_workers(engine, model, _machines(ray.nodes()))
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Find out at once whether something listens there: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _import_ray() -> Any:
    try:
        with quiet_ray():
            import ray
            import ray.data
    except ImportError as error:
        raise RefusalLensError(
            "The engine ray needs Ray, which is not installed. Install it with "
            "`pip install 'refusal-lens[ray]'`, or use the engine local."
        ) from error
    return ray


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Keep Ray's notices about its own inner life off the terminal."""
    logger, variable = logging.getLogger("ray.data"), "RAY_BACKEND_LOG_LEVEL"
    level, is_ours = logger.level, variable not in os.environ
    logger.setLevel(logging.ERROR)
    os.environ.setdefault(variable, "fatal")
    try:
        with warnings.catch_warnings():
            # Ray sets options of its own that it has deprecated.
            for category in (DeprecationWarning, FutureWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logger.setLevel(level)
        if is_ours:
            del os.environ[variable]


def _machines(nodes: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Read the CPUs and GPUs of each machine out of what Ray says about them."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return [(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in resources]


def plan_workers(
    engine: EngineConfig, model: ModelConfig, machines: Sequence[tuple[int, int]]
) -> Workers:
    """Decide what a worker gets: as many GPUs as its model is spread over, or a machine's CPUs.

    What `engine` asks for it gets; `machines` are the CPUs and GPUs of each.

    Raises:
        RefusalLensError: No machine has that much: Ray would wait for one for ever.

    Example:
        >>> plan_workers(EngineConfig(), ModelConfig(n_devices=2), [(64, 8), (64, 8)])
        Workers(n_actors=8, n_cpus=1, n_gpus=2.0)
    """
    has_gpus = any(n_gpus for _, n_gpus in machines) and model.device in ("auto", "cuda")
    gpus = engine.gpus_per_actor
    if gpus is None:
        gpus = float(model.n_devices if has_gpus else 0)
    cpus = engine.cpus_per_actor
    if cpus is None:
        cpus = 1 if gpus else max(1, min((n_cpus for n_cpus, _ in machines if n_cpus), default=1))
    n_fitting = sum(
        min(n_cpus // cpus, int(n_gpus / gpus) if gpus else n_cpus) for n_cpus, n_gpus in machines
    )
    if n_fitting == 0:
        found = "; ".join(f"{n_cpus} CPUs, {n_gpus} GPUs" for n_cpus, n_gpus in machines)
        raise RefusalLensError(
            f"A worker needs a machine with {cpus} CPUs and {gpus:g} GPUs; the cluster's have: "
            f"{found}. Set engine.cpus_per_actor and engine.gpus_per_actor, or add machines."
        )
    return Workers(engine.n_actors or n_fitting, cpus, gpus)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Take the package's own errors out of what Ray wraps around them, and explain deaths."""
    from ray.exceptions import OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

    try:
        yield
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, RefusalLensError):
            raise RefusalLensError(str(cause)) from None
        if isinstance(cause, (OutOfMemoryError, RayActorError, WorkerCrashedError)):
            raise RefusalLensError(
                f"A worker died, and again whenever it was started anew (at most {N_RESTARTS} "
                "times). Mostly memory is short: lower engine.n_actors or collect.token_budget, "
                "then run again with --resume; finished shards are kept. Ray says: "
                f"{' '.join(str(cause).split())[:300]}"
            ) from error
        raise
