"""The same collection by either engine: in this process, or by workers over Ray.

Knows which engine is asked for. Does not know how either does it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from refusal_lens.activations import collector, ray_driver
from refusal_lens.activations.moments import Moments
from refusal_lens.activations.pooled import Activations
from refusal_lens.config import EngineConfig, ModelConfig
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.loading import Model
from refusal_lens.prompts.contrast import ContrastSet

Engine = EngineConfig | Literal["local", "ray"]


def collect(
    model: Model | ModelConfig,
    prompts: ContrastSet,
    hook_points: str | Sequence[str] = "resid_post",
    positions: str | Sequence[str] = "last",
    *,
    system_prompt: str | None = None,
    token_budget: int | None = None,
    folder: Path | None = None,
    resume: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    engine: Engine = "local",
    show_progress: bool | None = None,
) -> Activations:
    """Collect activations at any hook points and positions of the residual stream.

    `collector.collect` says how they are read; workers read them in the same way.

    Args:
        model: A model with its tokenizer, or the settings to load one by.
        prompts: Harmful and harmless prompts.
        hook_points: Selectors, see `resolve_hook_points`.
        positions: `last`, `mean`, `instruction_mean` (the user's own tokens), or `-k`.
        system_prompt: What the system says before each prompt.
        token_budget: Most tokens in a batch, padding included; None finds what is fastest here.
        folder: Where to store them, shard by shard; for Ray, one that all machines see.
        resume: Go on with what is in `folder`; the result is the same to the last bit.
        dtype: Precision in `folder`; no matter without one.
        engine: `local`, `ray`, or an `EngineConfig` that says what workers get.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

    Returns:
        Activations in the order of `prompts.prompts`: harmful first.

    Raises:
        RefusalLensError: As `collector.collect` and `ray_driver.collect_with_ray`.

    Example:
        >>> activations = collect(tiny_model, prompts, "resid_post:0-1", ["last", "mean"])
        >>> activations.values.shape
        torch.Size([8, 2, 2, 32])
    """
    return _activations_by(engine, folder)(
        model,
        prompts,
        hook_points,
        positions,
        system_prompt=system_prompt,
        token_budget=token_budget,
        folder=folder,
        resume=resume,
        dtype=dtype,
        show_progress=show_progress,
    )


def collect_moments(
    model: Model | ModelConfig,
    prompts: ContrastSet,
    hook_points: str | Sequence[str] = "resid_post",
    positions: str | Sequence[str] = "last",
    *,
    system_prompt: str | None = None,
    token_budget: int | None = None,
    engine: Engine = "local",
    show_progress: bool | None = None,
) -> Moments:
    """Collect only what directions need, in memory that does not grow with the prompts.

    The arguments are those of `collect`. No prompt's activation is kept, so that directions can be
    fitted but not validated.

    Returns:
        Moments of both classes, in float64.

    Raises:
        RefusalLensError: As `collect`.

    Example:
        >>> collect_moments(tiny_model, prompts, "resid_post:0-1").harmful.mean.shape
        torch.Size([2, 1, 32])
    """
    return _moments_by(engine)(
        model,
        prompts,
        hook_points,
        positions,
        system_prompt=system_prompt,
        token_budget=token_budget,
        show_progress=show_progress,
    )


def _activations_by(engine: Engine, folder: Path | None) -> Callable[..., Activations]:
    asked = _asked(engine)
    if asked.name == "local":
        return lambda model, *rest, **options: collector.collect(_loaded(model), *rest, **options)
    if folder is None:
        raise RefusalLensError(
            "Workers over Ray write activations to a folder, and none is given. Pass folder=..., "
            "one that all machines see, or keep moments only (collect_moments)."
        )
    return partial(ray_driver.collect_with_ray, engine=asked)


def _moments_by(engine: Engine) -> Callable[..., Moments]:
    asked, local = _asked(engine), collector.collect_moments
    if asked.name == "local":
        return lambda model, *rest, **options: local(_loaded(model), *rest, **options)
    return partial(ray_driver.collect_moments_with_ray, engine=asked)


def _asked(engine: Engine) -> EngineConfig:
    return engine if isinstance(engine, EngineConfig) else EngineConfig(name=engine)


def _loaded(model: Model | ModelConfig) -> Model:
    if isinstance(model, ModelConfig):
        return model.load()
    return model
