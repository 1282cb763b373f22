"""The same collection by either engine: in this process, or by workers over Ray.

Knows which engine is asked for. Does not know how either does it.

Tested in tests/activations/test_collector.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, Unpack, runtime_checkable

from refusal_lens.activations.collection import Collection, CollectionOptions
from refusal_lens.activations.collector import LocalEngine
from refusal_lens.activations.moments import Moments
from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.ray_driver import RayEngine
from refusal_lens.activations.store import date_of_store
from refusal_lens.config import EngineConfig, ModelConfig
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.backends import Model, tokenizer_of
from refusal_lens.prompts.chat_format import keep_date
from refusal_lens.prompts.contrast import ContrastSet


@runtime_checkable
class Engine(Protocol):
    """Whatever reads a collection. Both give the same values to the last bit."""

    def collect(
        self,
        collection: Collection,
        folder: str | Path | None = None,
        *,
        resume: bool = False,
        show_progress: bool | None = None,
    ) -> Activations:
        """Collect activations.

        Args:
            collection: What to read.
            folder: Where to store them: each shard of prompts is written as soon as it is read.
            resume: Go on with what is in `folder`; the result is the same to the last bit.
            show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

        Returns:
            Activations in the order of the prompts, with the groups that `find_groups` sees.

        Raises:
            RefusalLensError: A hook point or position that this model or a prompt does not have, a
                prompt that does not fit in memory, a folder of other activations, or a full disk.
        """
        ...

    def collect_moments(
        self, collection: Collection, *, show_progress: bool | None = None
    ) -> Moments:
        """Collect moments of both classes only, in memory that holds a batch at a time.

        Raises:
            RefusalLensError: As `collect`.
        """
        ...


EngineName = EngineConfig | Literal["local", "ray"]


def make_engine(model: Model | ModelConfig, engine: EngineName = "local") -> Engine:
    """Return the engine that is asked for, with its model.

    Args:
        model: A model with its tokenizer, or the settings to load one by.
        engine: `local`, `ray`, or an `EngineConfig` that says what workers get.

    Raises:
        RefusalLensError: The model cannot be loaded; or, for workers, it cannot travel.
    """
    asked = engine if isinstance(engine, EngineConfig) else EngineConfig(name=engine)
    if asked.name == "ray":
        return RayEngine.of(model, asked)
    if isinstance(model, ModelConfig):
        model = model.load()
    return LocalEngine(model)


Texts = tuple[Sequence[str], Sequence[str]]
"""Harmful and harmless texts."""


def collect(
    model: Model | ModelConfig,
    prompts: ContrastSet | Texts,
    hook_points: str | Sequence[str] = "resid_post",
    positions: str | Sequence[str] = "last",
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    engine: EngineName = "local",
    show_progress: bool | None = None,
    **options: Unpack[CollectionOptions],
) -> Activations:
    """Collect activations at any hook points and positions of the residual stream.

    Args:
        model: A model with its tokenizer, or the settings to load one by.
        prompts: Harmful and harmless prompts; or two lists of texts, `(harmful, harmless)`.
        hook_points: As in `Collection.of`.
        positions: As in `Collection.of`.
        folder: Where to store them, shard by shard; for Ray, one that all machines see.
        resume: Go on with what is in `folder`, on the date of its beginning where the template
            writes one; the result is the same to the last bit.
        engine: `local`, `ray`, or an `EngineConfig` that says what workers get.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.
        options: `system_prompt`, `sinks`, `token_budget` and `dtype`, see `CollectionOptions`.

    Returns:
        Activations in the order of `prompts.prompts`: harmful first, with the groups that
        `find_groups` sees in them.

    Raises:
        RefusalLensError: As `Engine.collect` and, for workers, `RayEngine.collect`.

    Example:
        >>> activations = collect(tiny_model, prompts, "resid_post:0-1", ["last", "mean"])
        >>> activations.values.shape
        torch.Size([8, 2, 2, 32])
        >>> activations["resid_post:1", "last"].shape
        torch.Size([8, 32])
    """
    contrast, tokenizer = _contrast(prompts), _tokenizer(model)
    if folder is not None and resume:
        keep_date(tokenizer, date_of_store(Path(folder)))
    collection = Collection.of(tokenizer, contrast, hook_points, positions, **options)
    collector = make_engine(model, engine)
    collected = collector.collect(collection, folder, resume=resume, show_progress=show_progress)
    return replace(collected, prompts=contrast.prompts)


def _contrast(prompts: Any) -> ContrastSet:
    """Make a contrast set of two lists of texts; one that is one already stays."""
    if isinstance(prompts, ContrastSet):
        return prompts
    is_pair = isinstance(prompts, tuple) and len(prompts) == 2
    if not is_pair or any(isinstance(side, str) for side in prompts):
        raise RefusalLensError(
            "collect needs prompts of both classes: a ContrastSet, or two lists of texts in "
            f"brackets, (harmful, harmless), but {type(prompts).__name__} came."
        )
    return ContrastSet.from_texts(*prompts)


def collect_moments(
    model: Model | ModelConfig,
    prompts: ContrastSet | Texts,
    hook_points: str | Sequence[str] = "resid_post",
    positions: str | Sequence[str] = "last",
    *,
    engine: EngineName = "local",
    show_progress: bool | None = None,
    **options: Unpack[CollectionOptions],
) -> Moments:
    """Collect only what `fit_directions` needs of millions of prompts: no activation is kept.

    The arguments are those of `collect`. Directions can be fitted to moments but not validated.

    Returns:
        Moments of both classes, in float64.

    Raises:
        RefusalLensError: As `collect`.

    Example:
        >>> collect_moments(tiny_model, prompts, "resid_post:0-1").harmful.mean.shape
        torch.Size([2, 1, 32])
    """
    contrast = _contrast(prompts)
    collection = Collection.of(_tokenizer(model), contrast, hook_points, positions, **options)
    return make_engine(model, engine).collect_moments(collection, show_progress=show_progress)


def _tokenizer(model: Model | ModelConfig) -> object:
    if isinstance(model, ModelConfig):
        return model.tokenizer()
    return tokenizer_of(model)
