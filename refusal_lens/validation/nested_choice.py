"""The best place chosen anew on part of the prompts, and scored on the rest.

Knows how to choose inside and score outside. Takes the rule itself from selection.
"""

from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import CLIP_QUANTILE
from refusal_lens.validation.best_place import BestBy, Choice, choose_best
from refusal_lens.validation.crossfit import Splits, assign_folds, project_splits, repeat_folds
from refusal_lens.validation.scores import Score, score
from refusal_lens.validation.separation import Separation
from refusal_lens.validation.units import Units, widest_units

COLUMNS = ("repeat", "fold", "hook_point", "position", "separation", "accuracy", "auroc")

FEWEST = 4
"""Units of a class from which on folds can be dealt within the folds fitted to."""


def choose_nested(
    activations: Activations,
    n_layers: int,
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
    n_folds: int = 5,
    n_repeats: int = 3,
    seed: int = 0,
    best_by: BestBy = "cohens_d",
) -> pd.DataFrame:
    """Choose the best place on inner folds, and score it on the outer fold.

    The scores of the best of many places are optimistic: it is the best partly by luck on the very
    prompts that it is scored on. Here each outer fold helps neither to fit nor to choose; with the
    seed of `validate` the outer folds are its folds. The rule and `n_layers` are those of
    `choose_best`.

    Returns:
        One row an outer fold: the place chosen without it, and that place's scores on it. Folds
        hold whole topics where there are topics to leave out, else whole pairs. Empty with fewer
        than four such units of a class, or where there is no direction.

    Source:
        Varma & Simon 2006, "Bias in error estimation when using cross-validation for model
        selection", BMC Bioinformatics 7.
    """
    is_harmful = activations.is_harmful
    units = widest_units(is_harmful, activations.groups)
    if min(units.n_per_class) < FEWEST:
        return pd.DataFrame(columns=list(COLUMNS))
    rule = partial(choose_best, n_layers=n_layers, by=best_by)
    rows = []
    for repeat, outer in enumerate(repeat_folds(is_harmful, n_folds, n_repeats, seed, units)):
        rounds = _inner_folds(is_harmful, units, outer, n_folds, seed)
        splits = project_splits(activations, _splits_of(outer, rounds), clip_quantile)
        first = len(rounds)
        for fold, inner in enumerate(rounds):
            best = _choose(activations, splits, inner, first, rule)
            first += int(inner.max()) + 1
            if best is not None:
                scores = _score_outside(activations, splits, outer == fold, fold, best)
                rows.append((repeat, fold, best.hook_point, best.position, *scores))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _inner_folds(
    is_harmful: Bool[Tensor, " n_prompts"],
    units: Units,
    outer: Int[Tensor, " n_prompts"],
    n_folds: int,
    seed: int,
) -> list[Int[Tensor, " n_prompts"]]:
    """Deal the fitting set of each outer fold to inner folds; -1 is the outer fold itself."""
    rounds = []
    for fold in range(int(outer.max()) + 1):
        is_inside = outer != fold
        inner = torch.full_like(outer, -1)
        inside = Units.of(is_harmful[is_inside], units.of_prompt[is_inside])
        inner[is_inside] = assign_folds(is_harmful[is_inside], n_folds, seed, inside)
        rounds.append(inner)
    return rounds


def _splits_of(
    outer: Int[Tensor, " n_prompts"], rounds: list[Int[Tensor, " n_prompts"]]
) -> Bool[Tensor, "n_splits n_prompts"]:
    """Return the outer fitting sets, then the inner ones of each."""
    splits = [outer != fold for fold in range(len(rounds))]
    for inner in rounds:
        splits += [(inner >= 0) & (inner != fold) for fold in range(int(inner.max()) + 1)]
    return torch.stack(splits)


def _choose(
    activations: Activations,
    splits: Splits,
    inner: Int[Tensor, " n_prompts"],
    first: int,
    rule: Callable[[Separation], Choice | None],
) -> Choice | None:
    """Choose the best place by cross-fitting inside; the inner splits begin at `first`."""
    is_inside = inner >= 0
    values, thresholds = splits.held_out(inner.clamp(min=0), first)
    cosines, margins = values / splits.norms, values - thresholds
    is_harmful = activations.is_harmful[is_inside]
    scores = score(cosines[is_inside], margins[is_inside], is_harmful)
    separation = Separation(
        {name: Score.of(values) for name, values in scores.items()},
        activations.hook_points,
        activations.positions,
        int(inner.max()) + 1,
    )
    return rule(separation)


def _score_outside(
    activations: Activations,
    splits: Splits,
    is_outside: Bool[Tensor, " n_prompts"],
    split: int,
    best: Choice,
) -> tuple[float, float, float]:
    """Return separation, accuracy and AUROC of a place on the prompts left outside."""
    row = activations.hook_points.index(best.hook_point)
    column = activations.positions.index(best.position)
    values = splits.values[split, is_outside, row, column]
    cosines = values / splits.norms[is_outside, row, column]
    margins = values - splits.thresholds[split, row, column]
    names = ("separation", "accuracy", "auroc")
    scores = score(cosines, margins, activations.is_harmful[is_outside], names)
    return tuple(scores[name].item() for name in names)  # type: ignore[return-value]
