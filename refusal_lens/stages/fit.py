"""From stored activations to directions, scores, doubts and tables in the run folder.

Knows what follows what after collection. Runs no model.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.provenance import describe_machine
from refusal_lens.config import Config
from refusal_lens.directions.direction import Directions, fit_directions
from refusal_lens.files import remove_partial
from refusal_lens.models.hook_points import site_of
from refusal_lens.prompts.groups import find_groups
from refusal_lens.runs.diagnosis import (
    Finding,
    checklist,
    diagnose,
    diagnose_confounds,
    diagnose_template,
    diagnose_texts,
)
from refusal_lens.runs.folder import RunFolder
from refusal_lens.runs.tables import Fitted, check_texts, compute_tables
from refusal_lens.stages import terminal
from refusal_lens.validation.best_place import Choice, suggest_kernel
from refusal_lens.validation.nested_choice import choose_nested
from refusal_lens.validation.nulls import Nulls, detectable_auroc, draw_nulls
from refusal_lens.validation.separation import Separation, validate
from refusal_lens.validation.stability import measure_stability


def fit_stage(config: Config, run_folder: RunFolder, console: Console) -> list[Path]:
    """Fit and validate the directions, choose the best, and say what it is worth."""
    remove_partial(run_folder.path)
    prompts = replace(run_folder.read_prompts(), grouping=config.prompts.groups)
    activations = replace(
        run_folder.read_activations(config.directions.hook_points), groups=find_groups(prompts)
    )
    clip_quantile = config.directions.clip_quantile
    method = config.directions.method
    directions = fit_directions(activations, clip_quantile=clip_quantile, method=method)
    options = config.validation
    folds: dict[str, Any] = {"n_folds": options.n_folds, "seed": options.seed}
    separation, projections = validate(
        activations,
        method=method,
        clip_quantile=clip_quantile,
        n_repeats=options.n_repeats,
        n_resamples=options.n_resamples,
        **folds,
    )
    nulls = draw_nulls(
        activations, clip_quantile=clip_quantile, n_permutations=options.n_permutations, **folds
    )
    p_values = nulls.p_values()
    best = run_folder.best(separation)
    directions = with_record(
        directions,
        separation.to_frame().merge(p_values, on=["hook_point", "position"]),
        best,
        validation=options.model_dump(),
        versions=describe_machine()["versions"],
    )
    run_folder.write_directions(directions)
    run_folder.write_separation(separation, p_values)
    run_folder.write_projections(projections)
    run_folder.write_refusal_direction(directions, separation, p_values)
    run_folder.write_table("nulls", nulls.to_frame())
    shown = _show_scores(console, separation, p_values, best)
    _doubt(config, run_folder, activations, best, console)
    refusal = run_folder.read_refusal()
    least = min(p_values["p_value_corrected"].dropna().tolist(), default=None)
    detectable = _show_power(console, separation, best, nulls)
    findings = diagnose_template(activations.provenance)
    findings += diagnose(prompts, separation, refusal, least, detectable)
    fitted = Fitted(
        config=config,
        prompts=prompts,
        activations=activations,
        directions=directions,
        projections=projections,
        best=best,
        token_counts=run_folder.read_token_counts(),
    )
    findings += _tabulate(run_folder, fitted, console)
    terminal.show_checklist(console, checklist(prompts, shown, best), findings)
    return [
        run_folder.path / "directions.safetensors",
        run_folder.direction_path,
        run_folder.separation_path,
        run_folder.path / "tables",
    ]


def _show_power(
    console: Console, separation: Separation, best: Choice | None, nulls: Nulls
) -> float:
    """Print both headline numbers, and return the least AUROC that would be found."""
    detectable = detectable_auroc(nulls, separation)
    if best is not None:
        terminal.show_headline(console, separation, best, nulls, detectable)
    return detectable


def _show_scores(
    console: Console, separation: Separation, p_values: pd.DataFrame, best: Choice | None
) -> Separation:
    """Print the scores of the best place's site and position, and return them."""
    column = (site_of(best.hook_point), best.position) if best else separation.columns[0]
    shown = separation.at(*column)
    terminal.show_separation(console, shown, *column, p_values)
    others = [other for other in separation.columns if other != column]
    terminal.show_others(console, [(*other, separation.at(*other)) for other in others])
    kernel = suggest_kernel(separation, best) if best and best.is_eligible else None
    terminal.show_best(console, shown, best, kernel)
    return shown


def _doubt(
    config: Config,
    run_folder: RunFolder,
    activations: Activations,
    best: Choice | None,
    console: Console,
) -> None:
    """Measure how far other prompts would turn the directions and change the choice; say so."""
    options, clip_quantile = config.validation, config.directions.clip_quantile
    stability = measure_stability(
        activations,
        clip_quantile=clip_quantile,
        n_resamples=options.n_resamples,
        seed=options.seed,
    )
    with console.status("Choosing anew without each fold"):
        nested = choose_nested(
            activations,
            activations.provenance["model"]["n_layers"],
            clip_quantile=clip_quantile,
            n_folds=options.n_folds,
            n_repeats=options.n_repeats,
            seed=options.seed,
        )
    run_folder.write_table("stability", stability.to_frame())
    run_folder.write_table("learning_curve", stability.curves)
    run_folder.write_table("layer_cosines", stability.layers)
    run_folder.write_table("nested_choice", nested)
    if best is not None:
        n_per_class = int(min(activations.is_harmful.sum(), (~activations.is_harmful).sum()))
        terminal.show_stability(console, stability, best, n_per_class)
        terminal.show_nested(console, nested)


def _tabulate(run_folder: RunFolder, fitted: Fitted, console: Console) -> list[Finding]:
    """Write what the fit says beyond its scores, print the main of it, and return its warnings."""
    tables = compute_tables(fitted)
    likeness, template = check_texts(fitted)
    tables["near_duplicates"] = likeness.pairs
    for name, table in tables.items():
        run_folder.write_table(name, table)
    if fitted.best is None:
        return []
    if "methods" in tables:
        terminal.show_methods(console, tables["methods"], fitted.best)
    terminal.show_confounds(console, tables["confounds"], likeness)
    return diagnose_confounds(tables, fitted.best) + diagnose_texts(likeness, template)


def with_record(
    directions: Directions,
    scores: pd.DataFrame,
    best: Choice | None,
    *,
    validation: Mapping[str, Any],
    versions: Mapping[str, str],
) -> Directions:
    """Add to the provenance what is known only after the directions were tested.

    Args:
        directions: As fitted; their provenance says which model and prompts they came from.
        scores: One row a place, as `Separation.to_frame` gives it.
        best: The place chosen.
        validation: How they were tested: seed, folds.
        versions: Of the software.

    Returns:
        The same directions, with `validation`, `versions`, `best`, and for every place its
        `raw_norm` and `metrics`.
    """
    places: dict[str, dict[str, Any]] = {}
    for row in scores.drop(columns=["site", "layer"]).to_dict("records"):
        hook_point, position = row.pop("hook_point"), row.pop("position")
        place = directions.hook_points.index(hook_point), directions.positions.index(position)
        places.setdefault(hook_point, {})[position] = {
            "raw_norm": directions.vectors[place].norm().item(),
            "metrics": {name: _plain(value) for name, value in row.items()},
        }
    record = {
        "validation": dict(validation),
        "versions": dict(versions),
        "best": {"hook_point": best.hook_point, "position": best.position} if best else None,
        "places": places,
    }
    return replace(directions, provenance={**directions.provenance, **record})


def _plain(value: Any) -> bool | float | None:
    """Return a number as JSON has it, where NaN is null."""
    if isinstance(value, bool):
        return value
    return None if pd.isna(value) else float(value)
