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
from typing import TYPE_CHECKING, Annotated

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
    """Do the whole study: refusal rate, activations, directions, scores, figures."""
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
def plot(run_path: RunArgument, set_: SetOption = None) -> None:
    """Draw a run's figures from its stored activations; no forward pass."""
    with _existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens import study, terminal

        terminal.show_paths(console, study.plot_stage(run_folder))


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
