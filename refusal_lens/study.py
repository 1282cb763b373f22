"""The whole study, readable top to bottom, from prompts to the report.

Knows the order of the stages and what each leaves in the run folder.
"""

import importlib.metadata
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from refusal_lens import figures, interop, terminal
from refusal_lens.activations import Activations
from refusal_lens.artifacts import RunFolder
from refusal_lens.attribution import attribute
from refusal_lens.config import Config
from refusal_lens.diagnosis import (
    Finding,
    checklist,
    diagnose,
    diagnose_confounds,
    diagnose_texts,
)
from refusal_lens.direction_files import with_record
from refusal_lens.directions import Direction, Directions, fit_directions
from refusal_lens.engines import collect
from refusal_lens.errors import RefusalLensError
from refusal_lens.export import export
from refusal_lens.hook_points import (
    layer_of,
    resolve_hook_points,
    select_hook_points,
    site_of,
)
from refusal_lens.models import Model, describe_model, load_model, load_tokenizer, tokenizer_of
from refusal_lens.nested import choose_nested
from refusal_lens.nulls import draw_nulls
from refusal_lens.positions import check_positions, normalise_positions, positions_read
from refusal_lens.prompt_files import read_contrast
from refusal_lens.prompts import ContrastSet, Prompt
from refusal_lens.readout import project_tokens, read_unembedding
from refusal_lens.refusal import measure_refusal
from refusal_lens.report import build_report
from refusal_lens.run_tables import Fitted, check_texts, compute_tables
from refusal_lens.selection import Choice, choose_best, suggest_kernel
from refusal_lens.stability import measure_stability
from refusal_lens.tokens import Tokens, tokenise
from refusal_lens.validation import Separation, validate

DEFAULT_FIGURES = ("projection_histogram", "layer_profile")
TEMPLATES = {"light": "plotly_white", "dark": "plotly_dark"}

VERSIONED = ("refusal-lens", "torch", "transformer-lens", "transformers", "plotly")


def run(config: Config, run_folder: RunFolder, console: Console, *, resume: bool = False) -> None:
    """Do the whole study and leave it in the run folder; what is there already is not redone."""
    prompts, model = prepare(config, run_folder, console)
    measured = run_folder.read_refusal() if resume else None
    if measured is None:
        refusal_stage(config, run_folder, model, prompts, console)
    else:
        terminal.show_refusal(console, measured)
    collect_stage(config, run_folder, model, prompts, console, resume=resume)
    written = fit_stage(config, run_folder, console)
    written += plot_stage(run_folder)
    terminal.show_paths(console, written)
    report_stage(run_folder, console)


def prepare(config: Config, run_folder: RunFolder, console: Console) -> tuple[ContrastSet, Model]:
    """Read prompts, load the model, and check both against the settings before long work starts."""
    prompts = _read_prompts(config, run_folder)
    with console.status(f"Loading {config.model.name}"):
        model = load_model(
            **config.model.model_dump(exclude={"name"}), name_or_path=config.model.name
        )
    resolve_hook_points(model, config.collect.hook_points)
    n_ctx = getattr(model.cfg, "n_ctx", None)
    _begin(config, run_folder, prompts, console, tokenizer=tokenizer_of(model), n_ctx=n_ctx)
    return prompts, model


def prepare_without_model(config: Config, run_folder: RunFolder, console: Console) -> ContrastSet:
    """Read prompts and check them as far as the tokenizer can: workers will load the model."""
    prompts = _read_prompts(config, run_folder)
    tokenizer = load_tokenizer(config.model.name, revision=config.model.revision)
    _begin(config, run_folder, prompts, console, tokenizer=tokenizer, n_ctx=None)
    return prompts


def _read_prompts(config: Config, run_folder: RunFolder) -> ContrastSet:
    prompts = read_contrast(
        config.prompts.harmful, config.prompts.harmless, text_field=config.prompts.text_field
    )
    run_folder.check_prompts(prompts)
    return prompts


def _begin(
    config: Config,
    run_folder: RunFolder,
    prompts: ContrastSet,
    console: Console,
    *,
    tokenizer: Any,
    n_ctx: int | None,
) -> None:
    """Check and show what will be read, then begin the run folder."""
    system_prompt = config.prompts.system_prompt
    sides = {"harmful": prompts.harmful, "harmless": prompts.harmless}
    tokens = {
        name: tokenise(tokenizer, side.prompts, system_prompt) for name, side in sides.items()
    }
    positions = normalise_positions(config.collect.positions)
    for side in tokens.values():
        check_positions(side, positions, n_ctx)
    terminal.show_prompts(console, prompts, tokens)
    read = positions_read(tokenizer, tokens["harmful"], positions)
    terminal.show_positions(console, read)
    run_folder.write_config(config)
    run_folder.write_prompts(prompts)
    run_folder.write_token_counts(_count_tokens(tokens))


def _count_tokens(tokens: dict[str, Tokens]) -> pd.DataFrame:
    """Count the tokens of every prompt, and of the user's own text in it."""
    rows = [
        {
            "prompt_id": prompt_id,
            "is_harmful": name == "harmful",
            "n_tokens": length,
            "n_own_tokens": stop - first,
        }
        for name, side in tokens.items()
        for prompt_id, length, (first, stop) in zip(
            side.prompt_ids, side.lengths, side.instruction_spans, strict=True
        )
    ]
    return pd.DataFrame(rows)


def refusal_stage(
    config: Config, run_folder: RunFolder, model: Model, prompts: ContrastSet, console: Console
) -> None:
    """Measure whether the model refuses these prompts, and say so."""
    report = measure_refusal(
        model,
        prompts,
        phrases=config.refusal.phrases,
        first_words=config.refusal.first_words,
        n_new_tokens=config.refusal.n_new_tokens,
        system_prompt=config.prompts.system_prompt,
    )
    run_folder.write_refusal(report)
    terminal.show_refusal(console, report)


def collect_stage(
    config: Config,
    run_folder: RunFolder,
    model: Model | None,
    prompts: ContrastSet,
    console: Console,
    *,
    resume: bool = False,
) -> None:
    """Collect activations, shard by shard, and write where they came from.

    Workers over Ray load models of their own: `model` may then be None.
    """
    places = (config.collect.hook_points, config.collect.positions)
    options: dict[str, Any] = {
        "system_prompt": config.prompts.system_prompt,
        "token_budget": config.collect.token_budget,
        "folder": run_folder.activations_path,
        "resume": resume,
        "dtype": config.collect.dtype,
    }
    reader = model if model is not None and config.engine.name == "local" else config.model
    activations = collect(reader, prompts, *places, **options, engine=config.engine)
    if not run_folder.provenance_path.is_file():
        run_folder.write_provenance({**activations.provenance, **describe_machine()})
    console.print(f"Collected {activations}", markup=False, highlight=False)


def fit_stage(config: Config, run_folder: RunFolder, console: Console) -> list[Path]:
    """Fit and validate the directions, choose the best, and say what it is worth."""
    activations = run_folder.read_activations(config.directions.hook_points)
    clip_quantile = config.directions.clip_quantile
    method = config.directions.method
    directions = fit_directions(activations, clip_quantile=clip_quantile, method=method)
    options = config.validation
    folds: dict[str, Any] = {"n_folds": options.n_folds, "seed": options.seed}
    n_layers = activations.provenance["model"]["n_layers"]
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
    best = choose_best(separation, n_layers)
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
    run_folder.write_refusal_direction(directions, separation, best, p_values)
    run_folder.write_table("nulls", nulls.to_frame())
    column = (site_of(best.hook_point), best.position) if best else separation.columns[0]
    shown = separation.at(*column)
    terminal.show_separation(console, shown, *column, p_values)
    others = [other for other in separation.columns if other != column]
    terminal.show_others(console, [(*other, separation.at(*other)) for other in others])
    kernel = suggest_kernel(separation, best) if best and best.is_eligible else None
    terminal.show_best(console, shown, best, kernel)
    belief_stage(config, run_folder, activations, best, console)
    prompts, refusal = run_folder.read_prompts(), run_folder.read_refusal()
    checks = checklist(prompts, shown, best)
    least = min(p_values["p_value_corrected"].dropna().tolist(), default=None)
    findings = diagnose(prompts, separation, refusal, least)
    fitted = Fitted(
        config=config,
        prompts=prompts,
        activations=activations,
        directions=directions,
        projections=projections,
        best=best,
        token_counts=run_folder.read_token_counts(),
    )
    findings += tables_stage(run_folder, fitted, console)
    terminal.show_checklist(console, checks, findings)
    return [
        run_folder.path / "directions.safetensors",
        run_folder.direction_path,
        run_folder.separation_path,
        run_folder.path / "tables",
    ]


def belief_stage(
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


def tables_stage(run_folder: RunFolder, fitted: Fitted, console: Console) -> list[Finding]:
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


def plot_stage(
    run_folder: RunFolder,
    names: Sequence[str] = DEFAULT_FIGURES,
    *,
    ending: str = "html",
    template: str = "light",
    folder: Path | None = None,
    width: int = 1000,
    scale: float = 2.0,
) -> list[Path]:
    """Draw figures into files.

    Args:
        run_folder: The run.
        names: Keys of `figures.FIGURES`; `all` stands for those that the run has the files for.
        ending: html, json, png, svg or pdf.
        template: light or dark.
        folder: Where to write; None takes the run folder.
        width: Of pictures, in pixels.
        scale: Dots a pixel of a png.

    Returns:
        The files.
    """
    wanted = dict.fromkeys(
        found
        for name in names
        for found in (figures.available(run_folder) if name == "all" else [name])
    )
    drawn = {
        (folder or run_folder.path) / f"{name}.{ending}": figures.draw(
            run_folder, name, TEMPLATES[template]
        )
        for name in wanted
    }
    export(drawn, width=width, scale=scale)
    return list(drawn)


# --- attribution ------------------------------------------------------------------------------

N_PROMPTS_READ = 3
"""Prompts of each class that `attribute` goes through token by token."""


def attribute_stage(
    config: Config,
    run_folder: RunFolder,
    console: Console,
    hook_point: str | None = None,
    position: str | None = None,
    texts: Sequence[str] = (),
) -> list[Path]:
    """Say which components write a direction of the run and what it says; write three tables.

    Args:
        config: The run's settings.
        run_folder: A run that was fitted.
        console: Where to print.
        hook_point: A hook point of the run, as a full name or `resid_post:5`; None for the best.
        position: A position of the run; None for that of the best place.
        texts: Prompts to go through token by token; none for the first few of each class.
    """
    directions = run_folder.read_directions()
    direction = directions[find_place(run_folder, hook_point, position)]
    with console.status(f"Loading {config.model.name}"):
        model = load_run_model(config, run_folder)
    prompts, system_prompt = run_folder.read_prompts(), config.prompts.system_prompt
    found = attribute(model, prompts, direction, system_prompt=system_prompt)
    terminal.show_attribution(console, found)
    said = read_unembedding(model, direction)
    terminal.show_unembedding(console, said)
    shown = [
        *prompts.harmful.prompts[:N_PROMPTS_READ],
        *prompts.harmless.prompts[:N_PROMPTS_READ],
    ]
    if texts:
        shown = [Prompt(f"prompt-{n}", text, "") for n, text in enumerate(texts, start=1)]
    column = _same_column(directions, direction)
    tokens = [
        project_tokens(model, prompt, column, system_prompt=system_prompt) for prompt in shown
    ]
    return [
        run_folder.write_table("attribution", found.to_frame()),
        run_folder.write_table("unembedding", said.to_frame()),
        run_folder.write_table("prompt_tokens", pd.concat([each.to_frame() for each in tokens])),
    ]


def find_place(
    run_folder: RunFolder, hook_point: str | None, position: str | None
) -> tuple[str, str]:
    """Return the place that was asked for, and the best one's where nothing was.

    Raises:
        RefusalLensError: Nothing was asked for, and no place is the best; or more than one was.
    """
    if hook_point is None or position is None:
        best = _best_place(run_folder)
        hook_point, position = hook_point or best.hook_point, position or best.position
    stored = run_folder.read_directions().hook_points
    names = select_hook_points(stored, hook_point, str(run_folder.path))
    if len(names) != 1:
        raise RefusalLensError(
            f"{hook_point} is {len(names)} hook points of this run; one is needed, such as "
            f"{site_of(names[0])}:{layer_of(names[0])}."
        )
    return names[0], position


def _best_place(run_folder: RunFolder) -> Choice:
    n_folds = run_folder.read_config().validation.n_folds
    separation = Separation.from_frame(run_folder.read_separation(), n_folds)
    best = choose_best(separation, run_folder.read_provenance()["model"]["n_layers"])
    if best is None:
        raise RefusalLensError(
            "No place of this run is the best: there is no direction anywhere. Name one by "
            "--hook-point and --position."
        )
    return best


def load_run_model(config: Config, run_folder: RunFolder) -> Model:
    """Load the model that a run was collected from.

    Raises:
        RefusalLensError: Its checkpoint has changed since.
    """
    model = load_model(**config.model.model_dump(exclude={"name"}), name_or_path=config.model.name)
    there, here = run_folder.read_provenance()["model"], describe_model(model)
    for key in ("weights_sha256", "revision"):
        if there.get(key) != here.get(key):
            raise RefusalLensError(
                f"{config.model.name} has changed since the run was collected ({key} "
                f"{there.get(key)} there, {here.get(key)} here). Put the checkpoint back, or "
                "collect again."
            )
    return model


def _same_column(directions: Directions, direction: Direction) -> list[Direction]:
    """Return the directions of all layers at the site and position of one."""
    return [
        each
        for each in directions
        if (site_of(each.hook_point), each.position)
        == (site_of(direction.hook_point), direction.position)
    ]


# --- exchange ---------------------------------------------------------------------------------


def export_stage(
    source: Path,
    output: Path,
    format_name: str | None,
    hook_points: Sequence[str] = (),
    positions: Sequence[str] = (),
) -> None:
    """Write a run's directions, or those of a file, as another project does.

    Args:
        source: A run folder, or a file that `interop.read_directions` reads.
        output: The file to write.
        format_name: One of `interop.FORMATS`; None takes it from the suffix.
        hook_points: Selectors among the source's. None: all of a file; of a run, the best's site.
        positions: Of the source's. None: all of a file; of a run, that of the best place.
    """
    context: dict[str, Any] = {}
    if source.is_dir():
        run_folder = RunFolder.open(source)
        directions = run_folder.read_directions()
        context["scores"] = run_folder.read_separation()
        if format_name == "llm-abliteration":
            context["activations"] = run_folder.read_activations(directions.hook_points)
        best = None if hook_points and positions else _best_place(run_folder)
    else:
        directions, best = interop.read_directions(source), None
    names = tuple(
        name
        for name in directions.hook_points
        if best is None or site_of(name) == site_of(best.hook_point)
    )
    if hook_points:
        names = select_hook_points(directions.hook_points, hook_points, str(source))
    columns = positions or (directions.positions if best is None else [best.position])
    chosen = interop.take(directions, names, list(columns))
    interop.write_directions(chosen, output, format_name, **context)


# --- run folders ------------------------------------------------------------------------------
def report_stage(run_folder: RunFolder, console: Console) -> None:
    """Write the report of what the run folder holds by now, and say where it is."""
    with console.status("Writing the report"):
        path = build_report(run_folder)
    terminal.show_report(console, path)


def new_run_folder(
    config: Config, config_name: str, output: Path | None, *, resume: bool = False
) -> RunFolder:
    """Choose the run's folder: the one asked for, or the next free one of this model and config.

    Args:
        config: The settings.
        config_name: What the settings file is called.
        output: The folder asked for.
        resume: Go on with the run in `output`; where there is none, begin it.

    Returns:
        A folder that may not exist yet. Without `resume`, never one that holds a run already.

    Raises:
        RefusalLensError: `output` holds a run, without `resume`; or a run with other settings.
    """
    if output is not None:
        run_folder = RunFolder(output)
        if run_folder.config_path.is_file() and not resume:
            raise RefusalLensError(
                f"{output} holds a run already. Go on with it by --resume, or give another "
                "--output."
            )
        if run_folder.config_path.is_file():
            run_folder.check_config(config)
        return run_folder
    if resume:
        raise RefusalLensError("--resume needs to know which run to go on with. Add --output RUN.")
    parent = Path(config.output) / Path(config.model.name).name
    for number in range(1, 10_000):
        path = parent / (config_name if number == 1 else f"{config_name}-{number}")
        if not path.exists():
            return RunFolder(path)
    raise AssertionError("ten thousand runs of one config")


def describe_machine() -> dict[str, Any]:
    """Say with what software and when this was made."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in VERSIONED},
        },
        "machine": {"processor": platform.machine(), "n_threads": torch.get_num_threads()},
        "collected_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
