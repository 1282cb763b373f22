"""What commands share: two consoles, options, plain errors, an opened run.

Tested in tests/cli/test_console.py.
"""

import gc
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from refusal_lens.config import Config
    from refusal_lens.runs.folder import RunFolder


console = Console()
errors = Console(stderr=True)
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
HookPointOption = Annotated[
    list[str] | None,
    typer.Option(
        "--hook-point",
        metavar="SELECTOR",
        help="Where to read: resid_post, attn_out:3-8, ... Repeatable.",
    ),
]
PositionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--position",
        metavar="POSITION",
        help="Which token: last, mean, instruction_mean, instruction_last, -k, or k: of the "
        "template's tail. Repeatable.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the config. Repeatable."),
]


@contextmanager
def starting() -> Iterator[None]:
    """Say that a command is starting while it imports what it needs.

    Modules stay to the end, and yet Python looks for garbage in all that they hold, again and again
    while they are imported and once more at exit: 2.7 of the default run's 17 s. Where `main` has
    told it not to, it begins here, with what comes after.
    """
    try:
        with console.status("Starting"):
            yield
    finally:
        if not gc.isenabled():
            gc.freeze()
            gc.enable()


@contextmanager
def existing_run(
    path: Path, overrides: list[str] | None, *, goes_on: bool = False
) -> Iterator[tuple["Config", "RunFolder"]]:
    """Open a run and read its settings, with overrides laid over them.

    `goes_on` tells after Ctrl-C that the same command takes up what it has answered and scored.
    """
    with plain_errors():
        with starting():
            from refusal_lens.runs.folder import RunFolder

        run_folder = RunFolder.open(path)
        settings = run_folder.read_config(overrides or [])
        again = shlex.join(["refusal-lens", *sys.argv[1:]])
        kept = " Answers and scores so far are among them." if goes_on else ""
        advice = f"{kept} Go on: {again}"
        with told_where(path, advice):
            yield settings, run_folder


@contextmanager
def told_where(path: Path, advice: str = "") -> Iterator[None]:
    """Say after Ctrl-C what is left and where."""
    try:
        yield
    except KeyboardInterrupt:
        there = [*path.glob("[!.]*"), *path.glob("[!.]*/[!.]*")]
        sizes = [file.stat().st_size for file in there if file.is_file()]
        files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
        kept = f"{path} keeps {files} ({sum(sizes) / 1e6:.1f} MB).{advice}"
        found = kept if sizes else "Nothing was written."
        errors.print(f"\nInterrupted. {found}", markup=False, soft_wrap=not errors.is_terminal)
        raise typer.Exit(130) from None


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print the package's own errors and warnings as sentences, without a traceback."""
    from refusal_lens.errors import RefusalLensError, RefusalLensWarning

    # People read words that are not broken; what reads a pipe finds a sentence on one line.
    is_whole = not errors.is_terminal
    shown: set[str] = set()  # a run reads its prompts more than once

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, RefusalLensWarning) and str(message) not in shown:
            shown.add(str(message))
            errors.print(f"Warning: {message}", style="yellow", markup=False, soft_wrap=is_whole)

    # Other libraries' warnings are about their own inner life; those who debug use the API.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        warnings.simplefilter("always", RefusalLensWarning)
        try:
            yield
        except RefusalLensError as error:
            errors.print(f"Error: {error}", style="red", markup=False, soft_wrap=is_whole)
            raise typer.Exit(2) from None
        except OSError as error:
            errors.print(f"Error: {error}", style="red", markup=False, soft_wrap=is_whole)
            raise typer.Exit(1) from None
