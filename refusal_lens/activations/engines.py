"""The same collection by either engine: in this process, or by workers over Ray.

Knows which engine is asked for. Does not know how either does it.

Tested in tests/activations/test_collector.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Unpack, overload, runtime_checkable

from refusal_lens.activations.collection import Collection, CollectionOptions
from refusal_lens.activations.collector import LocalEngine
from refusal_lens.activations.moments import Moments
from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.ray_driver import RayEngine
from refusal_lens.activations.sides import (
    Side,
    Sides,
    contrast_of,
    read_caches,
    split_sides,
    tokens_of,
)
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
    """Return the engine that is asked for, with its model, or with settings to load one by.

    Raises:
        RefusalLensError: The model cannot be loaded; or, for workers, it cannot travel.
    """
    if not isinstance(engine, EngineConfig) and engine not in ("local", "ray"):
        raise RefusalLensError(f"There is no engine {engine!r}. Use local, ray or an EngineConfig.")
    asked = engine if isinstance(engine, EngineConfig) else EngineConfig(name=engine)
    if asked.name == "ray":
        return RayEngine.of(model, asked)
    if isinstance(model, ModelConfig):
        model = model.load()
    return LocalEngine(model)


Texts = tuple[Sequence[str], Sequence[str]]
"""Harmful and harmless texts."""

Selectors = str | Sequence[str]


class CollectOptions(CollectionOptions, total=False):
    """What may be said beside the model, the prompts and the places."""

    folder: str | Path | None
    resume: bool
    engine: EngineName
    show_progress: bool | None


@overload
def collect(
    model: Model | ModelConfig,
    prompts: ContrastSet | Texts,
    hook_points: Selectors = ...,
    positions: Selectors = ...,
    **options: Unpack[CollectOptions],
) -> Activations: ...
@overload
def collect(
    model: Model | ModelConfig,
    harmful: Side,
    harmless: Side,
    /,
    hook_points: Selectors = ...,
    positions: Selectors = ...,
    **options: Unpack[CollectOptions],
) -> Activations: ...
# Both overloads are taken; pyright cannot see that names and places exclude each other.
def collect(  # pyright: ignore[reportInconsistentOverload]
    model: Model | ModelConfig,
    prompts: Any,
    *places: Any,
    hook_points: Selectors | None = None,
    positions: Selectors | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    engine: EngineName = "local",
    show_progress: bool | None = None,
    **options: Unpack[CollectionOptions],
) -> Activations:
    """Collect activations at any hook points and positions.

    Args:
        model: A model with its tokenizer, or the settings to load one by.
        prompts: Harmful and harmless prompts, as a `ContrastSet`; or two arguments in its place,
            harmful and harmless, of one kind: lists of texts; token ids, taken as they are; or
            what `run_with_cache` returned of prompts of one length, so that nothing is run.
        places: `hook_points` and `positions`, where they are not named.
        hook_points: As in `Collection.of`.
        positions: As in `Collection.of`.
        folder: Where to store them, shard by shard; for Ray, one that all machines see.
        resume: Go on with what is in `folder`, on the date of its beginning where the template
            writes one; the result is the same to the last bit.
        engine: `local`, `ray`, or an `EngineConfig` that says what workers get.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.
        options: `system_prompt`, `sinks`, `token_budget` and `dtype`, see `CollectionOptions`.

    Returns:
        Activations in the order of the prompts: harmful first, with the groups that `find_groups`
        sees in them.

    Raises:
        RefusalLensError: As `Engine.collect` and, for workers, `RayEngine.collect`.

    Example:
        >>> activations = collect(tiny_model, prompts, "resid_post:0-1", ["last", "mean"])
        >>> activations.values.shape
        torch.Size([8, 2, 2, 32])
        >>> activations["resid_post:1", "last"].shape
        torch.Size([8, 32])
    """
    unknown = set(options) - set(CollectionOptions.__annotations__)
    if unknown:
        raise RefusalLensError(
            f"collect has no option {', '.join(sorted(unknown))}. It has: "
            f"{', '.join(CollectOptions.__annotations__)}."
        )
    sides, rest = split_sides(prompts, places)
    chosen = _places(rest, hook_points, positions)
    if isinstance(sides, Sides) and sides.kind == "caches":
        if folder is not None or set(options) - {"sinks"}:
            raise RefusalLensError(
                "Caches are read as they are: only hook points, positions and sinks can be said."
            )
        hooked = model.load() if isinstance(model, ModelConfig) else model
        return read_caches(hooked, sides, *chosen, options.get("sinks", "left_out"))
    if folder is not None and resume:
        keep_date(_tokenizer(model), date_of_store(Path(folder)))
    collection = _collection(_tokenizer(model), sides, chosen, options)
    collector = make_engine(model, engine)
    return collector.collect(collection, folder, resume=resume, show_progress=show_progress)


def _places(
    named: Sequence[Any], hook_points: Selectors | None, positions: Selectors | None
) -> tuple[Selectors, Selectors]:
    """Return hook points and positions, by name or by place."""
    if len(named) > 2 or (named and hook_points) or (len(named) > 1 and positions):
        raise RefusalLensError(
            "Behind the prompts come hook points and positions, each once: collect(model, prompts, "
            "hook_points, positions), or collect(model, harmful, harmless, hook_points, positions)."
        )
    first, second = (*named, None, None)[:2]
    return hook_points or first or "resid_post", positions or second or "last"


def _collection(
    tokenizer: Any,
    sides: ContrastSet | Sides,
    places: tuple[Selectors, Selectors],
    options: CollectionOptions,
) -> Collection:
    """Say what is collected of prompts, as texts or as token ids."""
    if isinstance(sides, ContrastSet):
        return Collection.of(tokenizer, sides, *places, **options)
    if sides.kind == "texts":
        return Collection.of(tokenizer, contrast_of(sides), *places, **options)
    return Collection.of_ids(tokenizer, *tokens_of(sides, tokenizer), *places, **options)


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
    sides, _ = split_sides(prompts, ())
    collection = _collection(_tokenizer(model), sides, (hook_points, positions), options)
    return make_engine(model, engine).collect_moments(collection, show_progress=show_progress)


def _tokenizer(model: Model | ModelConfig) -> object:
    if isinstance(model, ModelConfig):
        return model.tokenizer()
    if not hasattr(model, "hook_dict"):
        raise RefusalLensError(
            f"collect needs a model, but {type(model).__name__} came. Load one: "
            "rl.load_model(name), or give a ModelConfig."
        )
    return tokenizer_of(model)
