"""Commands on directions: compare, inspect, attribute, export, import.

Tested in tests/stages/test_export.py.
"""

from pathlib import Path
from typing import Annotated

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

ExchangeFormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="article, refusal_direction, llm-abliteration, persona_vectors, assistant_axis, svec, "
        "gguf or numpy. Default: by the file's name and content.",
    ),
]
FileOption = Annotated[Path, typer.Option("--output", help="The file to write.")]


def compare(
    run_paths: Annotated[list[Path], typer.Argument(metavar="RUN", help="Fitted run folders.")],
    output: Annotated[
        Path, typer.Option("--output", help="Folder for the tables and the page of figures.")
    ] = Path("outputs/comparison"),
) -> None:
    """Put runs beside each other: places, methods, cosines, transfer; no forward pass."""
    with plain_errors(), told_where(output):
        with starting():
            from refusal_lens.files import write_whole
            from refusal_lens.runs.compare import compare_runs, open_runs
            from refusal_lens.runs.compare_page import draw_comparison, render_page
            from refusal_lens.runs.decision import warn_of_miss
            from refusal_lens.stages import terminal
            from refusal_lens.validation.frames import for_spreadsheets

        runs = open_runs(run_paths)
        tables = compare_runs(runs)
        terminal.show_comparison(console, tables)
        for run in runs:
            warn_of_miss(run.folder, run.folder.best())
        for name, table in tables.items():
            with write_whole(output / f"{name}.csv") as file:
                for_spreadsheets(table).to_csv(file, index=False)
        figures = draw_comparison(runs, tables)
        with write_whole(output / "comparison.html") as file:
            file.write_text(render_page(runs, figures), encoding="utf-8")
        terminal.show_paths(console, sorted(output.glob("*.*")))


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE",
            help="A run folder, or a file: directions.safetensors, refusal_direction.pt, ...",
        ),
    ],
) -> None:
    """Print what the directions of a run or a file were made from, and how good they are."""
    with plain_errors():
        with starting():
            from refusal_lens.directions.formats import read_directions
            from refusal_lens.runs.decision import warn_of_miss
            from refusal_lens.runs.folder import RunFolder
            from refusal_lens.stages import terminal

        run_folder = RunFolder.open(path) if path.is_dir() else None
        directions = run_folder.read_directions() if run_folder else read_directions(path)
        terminal.show_directions(console, directions, path)
        if run_folder is not None and run_folder.separation_path.is_file():
            warn_of_miss(run_folder, run_folder.best())


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
        typer.Option(
            "--prompt", metavar="TEXT", help="Text to go through token by token. Repeatable."
        ),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Say which heads and MLPs write a direction, and which tokens it speaks for."""
    with existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens.stages import terminal
        from refusal_lens.stages.attribute import attribute_stage

        written = attribute_stage(settings, run_folder, console, hook_point, position, prompt or ())
        terminal.show_paths(console, written)


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a file.")],
    output: FileOption,
    format_: ExchangeFormatOption = None,
    hook_point: HookPointOption = None,
    position: PositionOption = None,
) -> None:
    """Write a run's directions in another project's format; by default the best site's."""
    with plain_errors():
        with starting():
            from refusal_lens.stages import terminal
            from refusal_lens.stages.export import export_stage
        export_stage(source, output, format_, hook_point or (), position or ())
        terminal.show_paths(console, [output])


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
    with plain_errors():
        with starting():
            from refusal_lens.directions.formats import read_directions, save_directions
            from refusal_lens.stages import terminal

        directions = read_directions(
            source, format_, n_layers=n_layers, hook_point=hook_point, position=position
        )
        save_directions(output, directions)
        terminal.show_imported(console, directions)
        terminal.show_paths(console, [output])
