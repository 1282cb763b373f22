"""Commands of the study: run, and its stages one by one.

Tested in tests/stages/test_study.py.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from refusal_lens.cli.base import (
    HookPointOption,
    PositionOption,
    RunArgument,
    SetOption,
    console,
    existing_run,
    plain_errors,
    starting,
    told_where,
)

if TYPE_CHECKING:
    from refusal_lens.config import Config
    from refusal_lens.runs.folder import RunFolder


ConfigArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file, or the name of a shipped config (qwen2.5-0.5b). Default: the small model "
        "that comes with the package, offline.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", help="Run folder. Default: <output>/<model>/<config>, numbered."),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run in --output, with its own settings; what is there is kept.",
    ),
]
WideOption = Annotated[
    bool,
    typer.Option(
        "--wide",
        help="Tables with all their columns: lengths, tokens read, intervals, scores in sample.",
    ),
]
FigureOption = Annotated[
    list[str] | None,
    typer.Option(
        "--figure",
        metavar="NAME",
        help="Which figure, or all that the run has. Repeatable. Default: the projection "
        "histogram and the layer profile. An unknown name lists those there are.",
    ),
]
FormatOption = Annotated[
    Literal["html", "json", "png", "svg", "pdf"],
    typer.Option("--format", help="Pictures (png, svg, pdf) need Chrome or Chromium."),
]
ThemeOption = Annotated[
    Literal["light", "dark"], typer.Option("--theme", help="The page's colours.")
]
PlotOutputOption = Annotated[
    Path | None, typer.Option("--output", help="Folder to write to. Default: the run's own.")
]


def _text(help_: str) -> Any:
    return Annotated[str | None, typer.Option(help=help_)]


KEY_OPTIONS: dict[str, tuple[str, Any]] = {
    "model": ("model.name", _text("Name on the Hugging Face hub, a local folder or a .gguf file.")),
    "harmful": ("prompts.harmful", _text("File of harmful prompts: those it should refuse.")),
    "harmless": ("prompts.harmless", _text("File of harmless prompts: those it should answer.")),
    "limit": (
        "prompts.limit",
        Annotated[
            int | None,
            typer.Option(help="At most N prompts a side, in whole pairs and topics.", metavar="N"),
        ],
    ),
    "hook_point": ("collect.hook_points", HookPointOption),
    "position": ("collect.positions", PositionOption),
    "device": ("model.device", _text("auto, cpu, cuda, cuda:1 or mps.")),
    "dtype": ("model.dtype", _text("auto, float32, bfloat16 or float16.")),
    "engine": (
        "engine.name",
        _text("local, or ray: workers on one or many machines collect."),
    ),
    "ray_address": (
        "engine.ray_address",
        _text("Cluster to join (host:6379). Default: RAY_ADDRESS, or a Ray started here."),
    ),
}
"""Options that stand for a key of the config, by their names; a row is all that one more needs."""


def _starts_a_run(act: Callable[["Config", "RunFolder", bool, bool], None]) -> Callable[..., None]:
    """Make a command of what is to be done with a new run: its options, settings and folder."""

    def command(
        config: ConfigArgument = None,
        output: OutputOption = None,
        resume: ResumeOption = False,
        wide: WideOption = False,
        set_: SetOption = None,
        **by_name: Any,
    ) -> None:
        # An option that was not given is None, or an empty list.
        given = {KEY_OPTIONS[name][0]: value for name, value in by_name.items() if value != []}
        opened = _new_run(act.__name__, config, _overrides(given, set_), output, resume)
        with opened as (settings, run_folder):
            act(settings, run_folder, resume, wide)

    # What typer reads: the table's options stand where `by_name` takes them.
    first, *others, _ = inspect.signature(command).parameters.values()
    options = [
        inspect.Parameter(name, first.kind, default=None, annotation=hint)
        for name, (_, hint) in KEY_OPTIONS.items()
    ]
    signature = inspect.Signature([first, *options, *others])
    command.__dict__.update(__signature__=signature)
    command.__name__, command.__doc__ = act.__name__, act.__doc__
    return command


@_starts_a_run
def run(settings: "Config", run_folder: "RunFolder", resume: bool, wide: bool) -> None:
    """Do the whole study: refusal rate, activations, directions, scores, figures, report."""
    from refusal_lens.stages import study

    study.run(settings, run_folder, console, resume=resume, is_wide=wide)


@_starts_a_run
def collect(settings: "Config", run_folder: "RunFolder", resume: bool, wide: bool) -> None:
    """Collect activations into a run folder, for the other stages to work on."""
    from refusal_lens.stages import study

    loaded = None
    if settings.engine.name == "ray":
        collection = study.prepare_without_model(settings, run_folder, console, is_wide=wide)
    else:
        collection, loaded = study.prepare(
            settings, run_folder, console, work=["activations"], is_wide=wide
        )
    study.collect_stage(
        settings, run_folder, loaded, collection, console, resume=resume, is_wide=wide
    )
    console.print(f"Next: refusal-lens fit {run_folder.typed}", markup=False)


def refusal_rate(run_path: RunArgument, set_: SetOption = None) -> None:
    """Measure how often the model refuses the prompts of a run."""
    with existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens.stages import study, terminal

        collection, loaded = study.prepare(settings, run_folder, console, work=["answers"])
        measured = study.measure_and_store(settings, run_folder, loaded, collection.prompts)
        terminal.show_refusal(console, measured, run_folder.read_borderline())
        console.print(f"Answers: {run_folder.path / 'refusal.json'}", markup=False, soft_wrap=True)


def fit(run_path: RunArgument, wide: WideOption = False, set_: SetOption = None) -> None:
    """Fit and validate directions from a run's stored activations; no forward pass."""
    with existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens.stages import study, terminal

        written = study.fit_stage(settings, run_folder, console, is_wide=wide)
        terminal.show_paths(console, written)


def plot(
    run_path: RunArgument,
    figure: FigureOption = None,
    format_: FormatOption = "html",
    theme: ThemeOption = "light",
    output: PlotOutputOption = None,
    width: Annotated[int, typer.Option("--width", help="Of pictures, pixels.", min=200)] = 1000,
    scale: Annotated[float, typer.Option("--scale", help="Of a png, dots a pixel.", min=0.1)] = 2.0,
) -> None:
    """Draw a run's figures from what is stored; no forward pass."""
    with existing_run(run_path, None) as (_, run_folder):
        from refusal_lens.stages import study, terminal

        written = study.plot_stage(
            run_folder,
            figure or study.DEFAULT_FIGURES,
            ending=format_,
            theme=theme,
            folder=output,
            width=width,
            scale=scale,
        )
        terminal.show_paths(console, list(written))


def report(run_path: RunArgument) -> None:
    """Write a run's report again, from what its folder holds by now."""
    with existing_run(run_path, None) as (_, run_folder):
        from refusal_lens.stages import study

        study.report_stage(run_folder, console)


def plan(
    run_path: RunArgument,
    width: Annotated[
        float, typer.Option("--width", help="Of the 95 % interval.", min=0.001, max=10)
    ] = 0.1,
    score: Annotated[str, typer.Option("--score", help="auroc, or cohens_d: d'.")] = "auroc",
) -> None:
    """Say how many topics and prompts a narrow interval takes, from a fitted pilot run.

    A pilot of 30 pairs: refusal-lens run --limit 60.
    """
    with existing_run(run_path, None) as (_, run_folder):
        from refusal_lens.errors import RefusalLensError
        from refusal_lens.stages import outlook, terminal

        if score not in ("auroc", "cohens_d"):
            raise RefusalLensError(f"--score is auroc or cohens_d, not {score!r}.")
        terminal.show_plan(console, outlook.run_pilot(run_folder, score), width)


def _overrides(options: Mapping[str, object], set_: list[str] | None) -> list[str]:
    """Write the options as `key=value` so that they are checked like the config."""
    # JSON is YAML: quotes and brackets in a value stay what they are.
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*given, *(set_ or [])]


@contextmanager
def _new_run(
    command: str, config: str | None, overrides: list[str], output: Path | None, resume: bool
) -> Iterator[tuple["Config", "RunFolder"]]:
    """Read the settings and choose the folder of a run; end it in plain words."""
    with plain_errors():
        from refusal_lens.config_files import load_config
        from refusal_lens.runs.checksums import check

        begun = output / "config.yaml" if output is not None and resume else None
        # A run that goes on has its own settings: those that began it need not be given again.
        is_begun = config is None and begun is not None and begun.is_file()
        if is_begun and output is not None:
            check(output, "config.yaml")
        settings = load_config(begun if is_begun else config, overrides)
        with starting():
            from refusal_lens.stages import study
        name = "default" if config is None else Path(config).stem
        run_folder = study.new_run_folder(settings, name, output, resume=resume)
        advice = f" Go on: refusal-lens {command} --resume --output {run_folder.typed}"
        with told_where(run_folder.path, advice):
            yield settings, run_folder
