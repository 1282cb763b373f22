"""The tables of one run beyond its scores: what a fit computes from stored activations.

Knows which tables there are, and which need a best place or token counts. Does not write them.

Tested in tests/stages/test_study.py.
"""

from dataclasses import dataclass

import pandas as pd

from refusal_lens.activations.pooled import Activations
from refusal_lens.config import Config
from refusal_lens.directions.direction import Directions
from refusal_lens.experiments.refusal import RefusalReport
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.validation.behaviour import Behaviour, quadrants, two_directions
from refusal_lens.validation.best_place import Choice
from refusal_lens.validation.categories import category_table, misread_table, transfer_table
from refusal_lens.validation.confounds import (
    length_correlations,
    score_confounds,
    score_direction,
)
from refusal_lens.validation.coordinates import clip_sweep, coordinate_table
from refusal_lens.validation.cosines import (
    category_cosines,
    compare_methods,
    method_cosines,
    place_cosines,
    reliabilities,
)
from refusal_lens.validation.crossfit import Projections, assign_folds
from refusal_lens.validation.units import pair_units


@dataclass(frozen=True, eq=False)
class Labelled:
    """Prompts of two classes and what is known of each, in one order.

    `token_counts` is None for runs that did not store them.
    """

    prompts: ContrastSet
    activations: Activations
    token_counts: pd.DataFrame | None


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit has at hand."""

    config: Config
    labelled: Labelled
    directions: Directions
    projections: Projections
    best: Choice | None


def compute_tables(fitted: Fitted) -> dict[str, pd.DataFrame]:
    """Compute every table that this run allows, by name.

    Of each place: `coordinates`, `categories`, `misread`, `cosines`, and `length_correlations`
    where token counts were stored. At the best place: `methods`, `confounds`, `transfer` and
    `clip_sweep`.
    """
    prompts = fitted.labelled.prompts.prompts
    tables = {
        "coordinates": coordinate_table(fitted.directions),
        "categories": category_table(fitted.projections, prompts),
        "misread": misread_table(fitted.projections, prompts),
    }
    quantile = fitted.config.directions.clip_quantile
    reliability = reliabilities(fitted.labelled.activations, clip_quantile=quantile)
    cosines = [place_cosines(fitted.directions, reliability)]
    if fitted.labelled.token_counts is not None:
        lengths = fitted.labelled.token_counts["n_tokens"].tolist()
        tables["length_correlations"] = length_correlations(fitted.projections, lengths)
    if fitted.best is not None:
        tables |= _tables_at_best(fitted, fitted.best)
        cosines += _cosines_at_best(fitted, fitted.best)
    tables["cosines"] = pd.concat(cosines, ignore_index=True)
    return tables


def behaviour_tables(
    activations: Activations,
    refusal: RefusalReport,
    seed: int,
    borderline: tuple[Activations, RefusalReport] | None = None,
) -> dict[str, pd.DataFrame]:
    """Compute what the answers say beside the labels, from stored activations.

    `behaviour` is the two by two of harmful and refused; where both can be told apart,
    `two_directions` has a row for each place, and `quadrants` one for each prompt, borderline ones
    too.
    """
    outcomes = [answer.outcome for answer in refusal.answers]
    behaviour = Behaviour.of(activations.is_harmful, outcomes)
    tables = {"behaviour": behaviour.to_frame()}
    found = two_directions(activations, behaviour, seed)
    if found is not None:
        tables["two_directions"] = found.to_frame()
        ids = [answer.prompt_id for answer in refusal.answers]
        others = None
        if borderline is not None:
            asked = borderline[1].answers
            others = (borderline[0], [a.prompt_id for a in asked], [a.outcome for a in asked])
        tables["quadrants"] = quadrants(found, ids, outcomes, others)
    return tables


def _tables_at_best(fitted: Fitted, best: Choice) -> dict[str, pd.DataFrame]:
    settings, seed = fitted.config.directions, fitted.config.validation.seed
    units = pair_units(fitted.labelled.activations.is_harmful, fitted.labelled.activations.groups)
    n_folds = fitted.config.validation.n_folds
    folds = assign_folds(fitted.labelled.activations.is_harmful, n_folds, seed, units)
    at_best = fitted.labelled.activations.only_at(best.hook_point, best.position)
    counts = fitted.labelled.token_counts
    lengths = None if counts is None else counts["n_tokens"].tolist()
    row, column = fitted.projections.place(best.hook_point, best.position)
    projected = fitted.projections.values[:, row, column]
    confounds = [
        score_confounds(fitted.labelled.prompts, folds, lengths, units, projected),
        score_direction(fitted.projections, best.hook_point, best.position, units),
    ]
    options = {"clip_quantile": settings.clip_quantile}
    tables = {
        "confounds": pd.concat(confounds, ignore_index=True),
        "transfer": transfer_table(
            at_best, fitted.labelled.prompts.prompts, folds, method=settings.method, **options
        ),
        "clip_sweep": clip_sweep(at_best, folds, method=settings.method),
    }
    if settings.compare_methods:
        compared = at_best if settings.compare_at == "best" else fitted.labelled.activations
        tables["methods"] = compare_methods(compared, folds, settings.compare_methods, **options)
    return tables


def _cosines_at_best(fitted: Fitted, best: Choice) -> list[pd.DataFrame]:
    settings = fitted.config.directions
    at_best = fitted.labelled.activations.only_at(best.hook_point, best.position)
    options = {"clip_quantile": settings.clip_quantile}
    return [
        method_cosines(at_best, settings.compare_methods, **options),
        category_cosines(at_best, fitted.labelled.prompts.prompts, **options),
    ]
