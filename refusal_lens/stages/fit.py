"""From stored activations to directions, scores, doubts and tables in the run folder.

Knows what follows what after collection. Runs no model.

Tested in tests/stages/test_study.py.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.provenance import describe_machine
from refusal_lens.activations.store import load_activations
from refusal_lens.config import Config
from refusal_lens.directions.direction import Directions, fit_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.refusal import RefusalReport
from refusal_lens.files import remove_partial
from refusal_lens.prompts.groups import find_groups
from refusal_lens.report.answer import answer
from refusal_lens.report.evidence import gather
from refusal_lens.runs.folder import RunFolder
from refusal_lens.runs.tables import Fitted, Labelled, behaviour_tables, compute_tables
from refusal_lens.stages import terminal
from refusal_lens.stages.outlook import run_pilot
from refusal_lens.validation.best_place import Choice, layers_beside
from refusal_lens.validation.confounds import compare_texts
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.nested_choice import choose_nested
from refusal_lens.validation.nulls import Nulls, draw_nulls, power_table
from refusal_lens.validation.separation import Separation, validate
from refusal_lens.validation.stability import measure_stability

NARROW = 0.1
"""Width of an AUROC's interval from which on a run says how many topics one so narrow takes."""


def fit_stage(
    config: Config, run_folder: RunFolder, console: Console, *, is_wide: bool = False
) -> list[Path]:
    """Fit and validate the directions, choose the best, and say what it is worth."""
    remove_partial(run_folder.path)
    run_folder.begin("fit")
    _fit(config, run_folder, console)
    show_fit(run_folder, console, is_wide=is_wide)
    run_folder.finish("fit", config)
    names = ("directions.safetensors", "refusal_direction.pt", "separation.csv", "tables")
    return [run_folder.path / name for name in names]


def _fit(config: Config, run_folder: RunFolder, console: Console) -> None:
    """Compute and write all that a fit leaves."""
    everything, labelled = _read(config, run_folder)
    borderline = _read_borderline(config, run_folder)
    activations = labelled.activations
    clip_quantile, method = config.directions.clip_quantile, config.directions.method
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
    run_folder.write_config(config)  # the choice, and all that reads it later, go by it
    best = run_folder.best(separation)
    directions = with_record(
        directions,
        separation.to_frame().merge(p_values, on=["hook_point", "position"]),
        best,
        validation=options.model_dump(),
        versions=describe_machine()["versions"],
    )
    _write(run_folder, directions, projections, separation, nulls)
    _doubt(config, run_folder, activations, console)
    fitted = Fitted(config, labelled, directions, projections, best)
    _tabulate(run_folder, fitted, everything, borderline)


def show_fit(run_folder: RunFolder, console: Console, *, is_wide: bool = False) -> None:
    """Say what the fit in a run folder is worth."""
    evidence = gather(run_folder)
    replies, separation, best = answer(evidence), evidence.separation, evidence.best
    terminal.show_replies(console, replies, is_wide=is_wide)
    shown = layers_beside(separation, best)
    p_values = evidence.scores.filter(["hook_point", "position", "p_value_corrected"])
    # Where there is no direction, no line of the table is the one to take it from.
    marked = best if evidence.diagnosis.decision.is_found else None
    terminal.show_layers(console, shown, marked, p_values, is_wide=is_wide)
    terminal.show_best(console, separation, best, evidence.chance.detectable)
    if marked is not None:
        _show_plan(console, run_folder, separation, marked)
    if is_wide:
        tables = (run_folder.read_table(name) for name in ("two_directions", "quadrants"))
        terminal.show_two_directions(console, *tables)
    told = evidence.diagnosis
    terminal.show_checklist(console, told.checks, told.findings, replies, is_wide=is_wide)


def _read(config: Config, run_folder: RunFolder) -> tuple[Activations, Labelled]:
    """Read the activations of all prompts, and those of the prompts labelled as asked for."""
    prompts = replace(run_folder.stored_prompts(), grouping=config.prompts.groups)
    stored = run_folder.stored_activations(config.directions.hook_points)
    everything = replace(stored, groups=find_groups(prompts))
    counts = run_folder.read_table("token_counts")
    relabelling = run_folder.relabelling(config.directions.labels)
    if relabelling is None:
        return everything, Labelled(prompts, everything, counts)
    counts = None if counts is None else counts.iloc[list(relabelling.rows)]
    activations = relabelling.of_activations(everything)
    return everything, Labelled(relabelling.of_prompts(prompts), activations, counts)


def _read_borderline(
    config: Config, run_folder: RunFolder
) -> tuple[Activations, RefusalReport] | None:
    report = run_folder.read_borderline(config)
    if report is None:
        return None
    hook_points = config.directions.hook_points
    return load_activations(run_folder.borderline_path, hook_points), report


def _show_plan(
    console: Console, run_folder: RunFolder, separation: Separation, best: Choice
) -> None:
    """Say what a narrow interval would take, where there is none and topics can tell."""
    one = separation.only_at(best.hook_point, best.position).headline["auroc"]
    if (one.high - one.low).item() > NARROW:
        with suppress(RefusalLensError):  # too few topics to tell, as the line above says
            terminal.show_plan(console, run_pilot(run_folder, "auroc"), NARROW)


def _write(
    run_folder: RunFolder,
    directions: Directions,
    projections: Projections,
    separation: Separation,
    nulls: Nulls,
) -> None:
    """Write what was fitted and how it did."""
    p_values = nulls.p_values()
    run_folder.write_directions(directions)
    run_folder.write_separation(separation, p_values)
    run_folder.write_projections(projections)
    run_folder.write_refusal_direction(directions, separation, p_values)
    run_folder.write_table("nulls", nulls.to_frame())
    run_folder.write_table("power", power_table(nulls, separation))


def _doubt(
    config: Config, run_folder: RunFolder, activations: Activations, console: Console
) -> None:
    """Measure how far other prompts would turn the directions and change the choice."""
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
            best_by=options.best_by,
        )
    run_folder.write_table("stability", stability.to_frame())
    run_folder.write_table("learning_curve", stability.curves)
    run_folder.write_table("layer_cosines", stability.layers)
    run_folder.write_table("nested_choice", nested)


def _tabulate(
    run_folder: RunFolder,
    fitted: Fitted,
    everything: Activations,
    borderline: tuple[Activations, RefusalReport] | None,
) -> None:
    """Write what the fit says beyond its scores, and of harm and refusal what all prompts say."""
    tables = compute_tables(fitted)
    likeness = compare_texts(fitted.labelled.prompts, seed=fitted.config.validation.seed)
    tables |= {"near_duplicates": likeness.pairs, "likeness": likeness.to_frame()}
    for name, table in tables.items():
        run_folder.write_table(name, table)
    refusal = run_folder.read_refusal()
    if refusal is not None:
        seed = fitted.config.validation.seed
        for name, table in behaviour_tables(everything, refusal, seed, borderline).items():
            run_folder.write_table(name, table)


def with_record(
    directions: Directions,
    scores: pd.DataFrame,
    best: Choice | None,
    *,
    validation: Mapping[str, Any],
    versions: Mapping[str, str],
) -> Directions:
    """Add to the provenance what is known only after the directions were tested.

    Returns:
        The same directions, with `validation` (how they were tested: seed, folds), `versions` of
        the software, `best`, and for every place its `raw_norm` and `metrics`, from its row in
        `scores`.
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
