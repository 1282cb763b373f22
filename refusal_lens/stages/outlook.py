"""What a run is about to do and what that takes, told before it begins.

Knows what work there is and how to time a little of it. Prints nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

from refusal_lens.activations.collection import Collection
from refusal_lens.experiments.refusal import N_FINDING
from refusal_lens.models.backends import Model
from refusal_lens.models.batching import fits
from refusal_lens.models.generation import generate_greedily
from refusal_lens.models.hook_points import resolve_of_one_width, width_of
from refusal_lens.prompts.groups import find_groups, n_groups
from refusal_lens.prompts.tokens import Tokens
from refusal_lens.runs.folder import RunFolder, best_or_refuse
from refusal_lens.validation.planning import Pilot, read_pilot

Work = Literal["answers", "activations"]
PlannedScore = Literal["auroc", "cohens_d"]

N_TIMED = 8
"""Prompts that are timed: enough to keep two cores busy, seconds in a model of 1.5 B."""

VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelSize:
    """What is loaded."""

    n_layers: int
    n_parameters: int
    n_bytes: int
    dtype: str
    device: str


@dataclass(frozen=True)
class Outlook:
    """What will be done. `model` and `seconds` are None where workers will load the model."""

    work: tuple[Work, ...]
    n_harmful: int
    n_harmless: int
    n_tokens: int
    n_components: int
    """Independent parts that pairs and topics join the prompts to."""
    n_answer_tokens: int
    hook_points: tuple[str, ...]
    """Full names; selectors where the model is not loaded."""
    positions: tuple[str, ...]
    stored_bytes: int | None
    model: ModelSize | None
    seconds: float | None
    """In the model, by a few prompts that were timed; None where these did not fit."""


def look_ahead(
    collection: Collection, model: Model | None, work: Sequence[Work], n_answer_tokens: int
) -> Outlook:
    """Say what will be done with these prompts, and time a few of them to say how long.

    Where workers will load the model, `model` is None.
    """
    n_tokens = int(sum(collection.tokens.lengths))
    size = None if model is None else _size(model)
    names = collection.hook_points
    stored, seconds = None, None
    if model is not None:
        names = resolve_of_one_width(model, names)
        n_vectors = len(collection) * len(names) * len(collection.positions)
        stored = n_vectors * width_of(model, names[0]) * VALUE_BYTES[collection.dtype]
        a_token = _seconds_a_token(model, collection.tokens)
        n_passed = _n_passed(collection.tokens, work, n_answer_tokens)
        seconds = None if a_token is None else a_token * n_passed
    return Outlook(
        work=tuple(work),
        n_harmful=len(collection.prompts.harmful),
        n_harmless=len(collection.prompts.harmless),
        n_tokens=n_tokens,
        n_components=n_groups(find_groups(collection.prompts).component),
        n_answer_tokens=n_answer_tokens,
        hook_points=tuple(names),
        positions=collection.positions,
        stored_bytes=stored,
        model=size,
        seconds=seconds,
    )


def _size(model: Model) -> ModelSize:
    weights = list(model.parameters())
    cfg: Any = model.cfg
    return ModelSize(
        n_layers=cfg.n_layers,
        n_parameters=sum(weight.numel() for weight in weights),
        n_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        dtype=str(cfg.dtype).removeprefix("torch."),
        device=str(cfg.device),
    )


def _n_passed(tokens: Tokens, work: Sequence[Work], n_answer_tokens: int) -> int:
    """Count the tokens that go through the model."""
    n_prompts, n_tokens = len(tokens), int(sum(tokens.lengths))
    counts: dict[Work, int] = {
        "activations": n_tokens,
        # Every prompt and its answer; and those that the refusal tokens are found on, once more.
        "answers": n_tokens
        + n_prompts * n_answer_tokens
        + n_tokens * min(n_prompts, 2 * N_FINDING) // n_prompts,
    }
    return sum(counts[each] for each in work)


def _seconds_a_token(model: Model, tokens: Tokens) -> float | None:
    """Time a few prompts of middle length and one further token of each."""
    by_length = sorted(range(len(tokens)), key=lambda row: tokens.lengths[row])
    first = max(0, (len(by_length) - N_TIMED) // 2)
    timed = tokens.select(by_length[first : first + N_TIMED])

    def run(some: Tokens, n_new_tokens: int) -> None:
        generate_greedily(model, some, n_new_tokens)

    # The first call of a process sets kernels up.
    if not fits(run, timed.select(range(1)), 1):
        return None
    start = perf_counter()
    if not fits(run, timed, 2):
        return None
    return (perf_counter() - start) / (int(sum(timed.lengths)) + len(timed))


# --- a run to come, told from one that was --------------------------------------------------------


def run_pilot(run_folder: RunFolder, score: PlannedScore) -> Pilot:
    """Read from a fitted run how its score at the best place varies.

    Raises:
        RefusalLensError: It has no direction, or too few topics to plan from.
    """
    best, separation = best_or_refuse(run_folder), run_folder.separation()
    at_best = separation.only_at(best.hook_point, best.position).headline[score]
    projections = run_folder.read_projections().only_at(best.hook_point, best.position)
    grouping = run_folder.read_config().prompts.groups
    return read_pilot(
        score,
        (at_best.value.item(), at_best.low.item(), at_best.high.item()),
        (projections.values - projections.thresholds)[:, 0, 0],
        projections.is_harmful,
        find_groups(replace(run_folder.read_prompts(), grouping=grouping)),
    )
