"""The command that opens the explorer.

Tested in tests/explorer/test_server.py.
"""

from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from refusal_lens.cli.base import console, plain_errors, starting


def explore(
    run_paths: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    host: Annotated[str, typer.Option(help="Address to answer on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Default: the first free one from 8050 on.")
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Answer other machines too, without a password.")
    ] = False,
) -> None:
    """Open a page in which places and prompts of runs can be compared by hand."""
    with plain_errors():
        # While it serves, the server itself takes Ctrl-C as its end.
        with suppress(KeyboardInterrupt):
            with starting():
                explorer = _import_explorer()
            with console.status("Reading runs"):
                page = explorer.build_app(run_paths)
            with explorer.open_server(
                page, host=host, port=port, allow_remote=allow_remote
            ) as server:
                shown = f"[{host}]" if ":" in host else host
                address = f"http://{shown}:{server.port}/"
                console.print(f"Explorer: {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
                server.serve_forever()
        console.print("\nExplorer ended.")


OF_THE_EXTRA = ("dash", "flask", "werkzeug")


def _import_explorer() -> ModuleType:
    """Import the explorer, or say which extra it needs."""
    from refusal_lens.errors import RefusalLensError

    try:
        from refusal_lens import explorer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OF_THE_EXTRA:
            raise
        raise RefusalLensError(
            "The explorer needs Dash, which is not installed. Install the extra: pip install "
            "'refusal-lens[explore]'."
        ) from error
    return explorer
