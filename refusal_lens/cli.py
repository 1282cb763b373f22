"""The command line: one thin command a stage.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from refusal_lens.artifacts import RunFolder
    from refusal_lens.config import Config

app = typer.Typer(
    help="Find, check and look at the refusal direction of a chat model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
console = Console()
errors = Console(stderr=True)

ConfigArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[CONFIG]",
        help="YAML file, or the name of a shipped config (qwen2.5-0.5b). Default: the small model "
        "that comes with the package, offline.",
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Name on the Hugging Face hub, or a local folder.")
]
HarmfulOption = Annotated[
    str | None, typer.Option("--harmful", help="File of prompts that the model refuses.")
]
HarmlessOption = Annotated[
    str | None, typer.Option("--harmless", help="File of prompts that it answers.")
]
HookPointOption = Annotated[
    list[str] | None,
    typer.Option("--hook-point", help="Where to read: resid_post, attn_out:3-8, ... Repeatable."),
]
PositionOption = Annotated[
    list[str] | None,
    typer.Option("--position", help="Which token: last, mean, instruction_mean or -k. Repeatable."),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", help="Run folder. Default: <output>/<model>/<config>, numbered."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the config. Repeatable."),
]
EngineOption = Annotated[
    str | None,
    typer.Option("--engine", help="local, or ray: workers on one or many machines collect."),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Cluster to join (host:6379). Default: RAY_ADDRESS, or a Ray started here.",
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run in --output, with its own settings; what is there is kept.",
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
TemplateOption = Annotated[
    Literal["light", "dark"], typer.Option("--template", help="The page's colours.")
]
PlotOutputOption = Annotated[
    Path | None, typer.Option("--output", help="Folder to write to. Default: the run's own.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
def run(
    config: ConfigArgument = None,
    model: ModelOption = None,
    harmful: HarmfulOption = None,
    harmless: HarmlessOption = None,
    hook_point: HookPointOption = None,
    position: PositionOption = None,
    output: OutputOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    engine: EngineOption = None,
    ray_address: RayAddressOption = None,
    resume: ResumeOption = False,
    set_: SetOption = None,
) -> None:
    """Do the whole study: refusal rate, activations, directions, scores, figures, report."""
    options = _overrides(
        {
            "model.name": model,
            "prompts.harmful": harmful,
            "prompts.harmless": harmless,
            "collect.hook_points": hook_point or None,
            "collect.positions": position or None,
            "model.device": device,
            "model.dtype": dtype,
            "engine.name": engine,
            "engine.ray_address": ray_address,
        },
        set_,
    )
    with _new_run(config, options, output, resume) as (settings, run_folder):
        from refusal_lens import study

        study.run(settings, run_folder, console, resume=resume)


@app.command()
def collect(
    config: ConfigArgument = None,
    model: ModelOption = None,
    harmful: HarmfulOption = None,
    harmless: HarmlessOption = None,
    hook_point: HookPointOption = None,
    position: PositionOption = None,
    output: OutputOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    engine: EngineOption = None,
    ray_address: RayAddressOption = None,
    resume: ResumeOption = False,
    set_: SetOption = None,
) -> None:
    """Collect activations into a run folder, for the other stages to work on."""
    options = _overrides(
        {
            "model.name": model,
            "prompts.harmful": harmful,
            "prompts.harmless": harmless,
            "collect.hook_points": hook_point or None,
            "collect.positions": position or None,
            "model.device": device,
            "model.dtype": dtype,
            "engine.name": engine,
            "engine.ray_address": ray_address,
        },
        set_,
    )
    with _new_run(config, options, output, resume) as (settings, run_folder):
        from refusal_lens import study

        loaded = None
        if settings.engine.name == "ray":
            prompts = study.prepare_without_model(settings, run_folder, console)
        else:
            prompts, loaded = study.prepare(settings, run_folder, console)
        study.collect_stage(settings, run_folder, loaded, prompts, console, resume=resume)
        console.print(f"Next: refusal-lens fit {run_folder.path}", markup=False)


@app.command("refusal-rate")
def refusal_rate(run_path: RunArgument, set_: SetOption = None) -> None:
    """Measure how often the model refuses the prompts of a run."""
    with _existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens import study

        prompts, loaded = study.prepare(settings, run_folder, console)
        study.refusal_stage(settings, run_folder, loaded, prompts, console)
        console.print(f"Answers: {run_folder.refusal_path}", markup=False, soft_wrap=True)


@app.command()
def fit(run_path: RunArgument, set_: SetOption = None) -> None:
    """Fit and validate directions from a run's stored activations; no forward pass."""
    with _existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens import study, terminal

        written = study.fit_stage(settings, run_folder, console)
        run_folder.write_config(settings)
        terminal.show_paths(console, written)


@app.command()
def plot(
    run_path: RunArgument,
    figure: FigureOption = None,
    format_: FormatOption = "html",
    template: TemplateOption = "light",
    output: PlotOutputOption = None,
    width: Annotated[int, typer.Option("--width", help="Of pictures, pixels.", min=200)] = 1000,
    scale: Annotated[float, typer.Option("--scale", help="Of a png, dots a pixel.", min=0.1)] = 2.0,
) -> None:
    """Draw a run's figures from what is stored; no forward pass."""
    with _existing_run(run_path, None) as (_, run_folder):
        from refusal_lens import study, terminal

        written = study.plot_stage(
            run_folder,
            figure or study.DEFAULT_FIGURES,
            ending=format_,
            template=template,
            folder=output,
            width=width,
            scale=scale,
        )
        terminal.show_paths(console, written)


# --- attribution and exchange -----------------------------------------------------------------


@app.command()
def attribute(
    run_path: RunArgument,
    hook_point: Annotated[
        str | None, typer.Option("--hook-point", help="resid_post:5 or a full name. Default: best.")
    ] = None,
    position: Annotated[
        str | None, typer.Option("--position", help="last, mean, ... Default: that of the best.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Text to go through token by token. Repeatable."),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Say which heads and MLPs write a direction, and which tokens it speaks for."""
    with _existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens import attributing, terminal

        written = attributing.attribute_stage(
            settings, run_folder, console, hook_point, position, prompt or ()
        )
        terminal.show_paths(console, written)


ExchangeFormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="article, refusal_direction, llm-abliteration, persona_vectors, assistant_axis, svec, "
        "gguf or numpy. Default: by the file's name and content.",
    ),
]
FileOption = Annotated[Path, typer.Option("--output", help="The file to write.")]


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a file.")],
    output: FileOption,
    format_: ExchangeFormatOption = None,
    hook_point: HookPointOption = None,
    position: PositionOption = None,
) -> None:
    """Write a run's directions in another project's format; by default the best site's."""
    with _plain_errors():
        with console.status("Starting (importing torch and TransformerLens)"):
            from refusal_lens import exchange, terminal
        exchange.export_stage(source, output, format_, hook_point or (), position or ())
        terminal.show_paths(console, [output])


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Another project's file.")],
    output: FileOption,
    format_: ExchangeFormatOption = None,
    n_layers: Annotated[
        int | None, typer.Option("--n-layers", help="Layers of the model, if FILE does not say.")
    ] = None,
    hook_point: Annotated[
        str | None, typer.Option("--hook-point", help="Where a bare vector stands, as full name.")
    ] = None,
    position: Annotated[
        str | None, typer.Option("--position", help="Which token was read, if FILE does not say.")
    ] = None,
) -> None:
    """Read another project's directions into a .safetensors file of this one."""
    with _plain_errors():
        with console.status("Starting (importing torch and TransformerLens)"):
            from refusal_lens import terminal
            from refusal_lens.direction_files import save_directions
            from refusal_lens.interop import read_directions

        directions = read_directions(
            source, format_, n_layers=n_layers, hook_point=hook_point, position=position
        )
        save_directions(output, directions)
        terminal.show_imported(console, directions)
        terminal.show_paths(console, [output])


@app.command()
def report(run_path: RunArgument) -> None:
    """Write a run's report again, from what its folder holds by now."""
    with _existing_run(run_path, None) as (_, run_folder):
        from refusal_lens import study

        study.report_stage(run_folder, console)


@app.command()
def compare(
    run_paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Fitted run folders.")],
    output: Annotated[
        Path, typer.Option("--output", help="Folder for the tables and the page of figures.")
    ] = Path("comparison"),
) -> None:
    """Put runs beside each other: places, methods, cosines, transfer; no forward pass."""
    with _plain_errors(), _told_where(output):
        with console.status("Starting (importing torch and TransformerLens)"):
            from refusal_lens import compare_runs, comparison_page, terminal
            from refusal_lens.shards import write_whole

        runs = compare_runs.open_runs(run_paths)
        tables = compare_runs.compare_runs(runs)
        terminal.show_comparison(console, tables)
        for name, table in tables.items():
            with write_whole(output / f"{name}.csv") as file:
                table.to_csv(file, index=False)
        figures = comparison_page.draw_comparison(runs, tables)
        with write_whole(output / "comparison.html") as file:
            file.write_text(comparison_page.write_page(runs, figures), encoding="utf-8")
        terminal.show_paths(console, sorted(output.glob("*.*")))


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="directions.safetensors or refusal_direction.pt."),
    ],
) -> None:
    """Print what a file of directions says it was made from, and how good it was."""
    with _plain_errors():
        from refusal_lens import terminal
        from refusal_lens.direction_files import load_directions

        terminal.show_directions(console, load_directions(path), path)


DirectionOption = Annotated[
    str | None,
    typer.Option(
        "--direction",
        metavar="HOOK_POINT[,POSITION]",
        help="Which direction: resid_post:5,last. Default: the one that select chose, else the "
        "best by separation.",
    ),
]
InterventionOption = Annotated[
    list[str] | None,
    typer.Option("--intervention", help="affine_ablate, ablate or add. Repeatable."),
]
CoefficientOption = Annotated[
    list[float] | None,
    typer.Option(
        "--coefficient",
        help="Strength of ablation (1 removes all), or of addition in units of the class "
        "difference. Repeatable.",
    ),
]


@app.command()
def select(run_path: RunArgument, set_: SetOption = None) -> None:
    """Choose the direction by what it does to refusal, on prompts it was not fitted on."""
    with _existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens import experiments, terminal

        terminal.show_paths(console, experiments.select_stage(settings, run_folder, console))
        console.print(f"Next: refusal-lens ablate {run_folder.path}", markup=False, soft_wrap=True)


@app.command()
def ablate(
    run_path: RunArgument,
    direction: DirectionOption = None,
    intervention: InterventionOption = None,
    coefficient: CoefficientOption = None,
    set_: SetOption = None,
) -> None:
    """Remove and add the direction, beside controls, and count refusals."""
    with _existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens import experiments, terminal

        request = experiments.read_request(direction, intervention, coefficient)
        written = experiments.ablate_stage(settings, run_folder, console, request)
        terminal.show_paths(console, written)


@app.command()
def chat(
    run_path: RunArgument,
    direction: DirectionOption = None,
    intervention: InterventionOption = None,
    coefficient: CoefficientOption = None,
    set_: SetOption = None,
) -> None:
    """Answer typed (or piped) prompts with and without the intervention."""
    with _existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens import experiments

        request = experiments.read_request(direction, intervention, coefficient)
        experiments.chat_stage(settings, run_folder, console, request)


@app.command()
def explore(
    run_paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    host: Annotated[str, typer.Option(help="Address to answer on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Default: the first free one from 8050 on.")
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Answer other machines too, without a password.")
    ] = False,
) -> None:
    """Open a page in which places and prompts of runs can be compared by hand."""
    with _plain_errors():
        try:
            with console.status("Starting (importing Dash, reading runs)"):
                explorer = _import_explorer()
                page = explorer.build_app(run_paths)
            with explorer.open_server(
                page, host=host, port=port, allow_remote=allow_remote
            ) as server:
                shown = f"[{host}]" if ":" in host else host
                address = f"http://{shown}:{server.port}/"
                console.print(f"Explorer: {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
                server.serve_forever()
        except KeyboardInterrupt:
            console.print("\nExplorer ended.")


def _import_explorer() -> ModuleType:
    """Import the explorer, or say which extra it needs."""
    from refusal_lens.errors import RefusalLensError

    try:
        from refusal_lens import explorer
    except ModuleNotFoundError as error:
        if error.name != "dash":
            raise
        raise RefusalLensError(
            "The explorer needs Dash, which is not installed. Install the extra: pip install "
            "'refusal-lens[explore]'."
        ) from error
    return explorer


def main() -> None:
    """Start the command line."""
    app()


def _overrides(options: Mapping[str, object], set_: list[str] | None) -> list[str]:
    """Write the options as `key=value` so that they are checked like the config."""
    # JSON is YAML: quotes and brackets in a value stay what they are.
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*given, *(set_ or [])]


@contextmanager
def _new_run(
    config: str | None, overrides: list[str], output: Path | None, resume: bool
) -> Iterator[tuple["Config", "RunFolder"]]:
    """Read the settings and choose the folder of a run; end it in plain words."""
    with _plain_errors():
        from refusal_lens.config import load_config

        begun = output / "config.yaml" if output is not None and resume else None
        # A run that goes on has its own settings: those that began it need not be given again.
        is_begun = config is None and begun is not None and begun.is_file()
        settings = load_config(begun if is_begun else config, overrides)
        with console.status("Starting (importing torch and TransformerLens)"):
            from refusal_lens import study
        name = "default" if config is None else Path(config).stem
        run_folder = study.new_run_folder(settings, name, output, resume=resume)
        with _told_where(run_folder.path, f" Go on: --resume --output {run_folder.path}"):
            yield settings, run_folder


@contextmanager
def _existing_run(
    path: Path, overrides: list[str] | None
) -> Iterator[tuple["Config", "RunFolder"]]:
    """Open a run and read its settings, with overrides laid over them."""
    with _plain_errors():
        with console.status("Starting (importing torch and TransformerLens)"):
            from refusal_lens.artifacts import RunFolder
            from refusal_lens.config import load_config

        run_folder = RunFolder.open(path)
        settings = load_config(run_folder.config_path, overrides or [])
        with _told_where(path):
            yield settings, run_folder


@contextmanager
def _told_where(path: Path, advice: str = "") -> Iterator[None]:
    """Say after Ctrl-C what is left and where."""
    try:
        yield
    except KeyboardInterrupt:
        left = sorted(file.name for file in path.glob("*")) if path.exists() else []
        found = (
            f"{path} holds what was finished: {', '.join(left)}.{advice}"
            if left
            else "Nothing was written."
        )
        errors.print(f"\nInterrupted. {found}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Print the package's own errors and warnings as sentences, without a traceback."""
    from refusal_lens.errors import RefusalLensError, RefusalLensWarning

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, RefusalLensWarning):
            errors.print(f"Warning: {message}", style="yellow", markup=False, soft_wrap=True)

    # Other libraries' warnings are about their own inner life; those who debug use the API.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        warnings.simplefilter("always", RefusalLensWarning)
        try:
            yield
        except RefusalLensError as error:
            errors.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except OSError as error:
            errors.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None


if __name__ == "__main__":
    sys.exit(main())
