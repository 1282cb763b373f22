"""The whole study, readable top to bottom, from prompts to figures.

Knows the order of the stages and what each leaves in the run folder.
"""

import importlib.metadata
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from refusal_lens import figures, terminal
from refusal_lens.activations import Activations
from refusal_lens.artifacts import RunFolder
from refusal_lens.collector import collect
from refusal_lens.config import Config
from refusal_lens.diagnosis import checklist, diagnose
from refusal_lens.directions import fit_directions
from refusal_lens.distributed import collect_with_ray
from refusal_lens.errors import RefusalLensError
from refusal_lens.hook_points import resolve_hook_points, site_of
from refusal_lens.models import Model, load_model, load_tokenizer, tokenizer_of
from refusal_lens.nested import choose_nested
from refusal_lens.nulls import draw_nulls
from refusal_lens.positions import check_positions, normalise_positions, positions_read
from refusal_lens.prompt_files import read_contrast
from refusal_lens.prompts import ContrastSet
from refusal_lens.refusal import measure_refusal
from refusal_lens.selection import Choice, choose_best, suggest_kernel
from refusal_lens.stability import measure_stability
from refusal_lens.tokens import tokenise
from refusal_lens.validation import validate

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
    if config.engine.name == "ray":
        activations = collect_with_ray(
            config.model, prompts, *places, **options, engine=config.engine
        )
    else:
        assert model is not None, "the local engine reads through a model"
        activations = collect(model, prompts, *places, **options)
    if not run_folder.provenance_path.is_file():
        run_folder.write_provenance({**activations.provenance, **describe_machine()})
    console.print(f"Collected {activations}", markup=False, highlight=False)


def fit_stage(config: Config, run_folder: RunFolder, console: Console) -> list[Path]:
    """Fit and validate the directions, choose the best, and say what it is worth."""
    activations = run_folder.read_activations(config.directions.hook_points)
    clip_quantile = config.directions.clip_quantile
    directions = fit_directions(activations, clip_quantile=clip_quantile)
    options = config.validation
    folds: dict[str, Any] = {"n_folds": options.n_folds, "seed": options.seed}
    n_layers = activations.provenance["model"]["n_layers"]
    separation, projections = validate(
        activations,
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
    terminal.show_checklist(console, checks, diagnose(prompts, separation, refusal, least))
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


def plot_stage(run_folder: RunFolder) -> list[Path]:
    """Draw the two figures as self-contained pages."""
    # plotly.js goes into the file: the page opens from disk, without a network.
    return [
        run_folder.write_figure(name, figures.draw(run_folder, name).to_html(include_plotlyjs=True))
        for name in ("projection_histogram", "layer_profile")
    ]


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
