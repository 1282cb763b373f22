"""The server of the explorer: which addresses it binds to and answers.

Knows sockets and HTTP. Does not know what the page shows.
"""

import errno
import ipaddress
import logging
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flask
import flask.typing
from dash import Dash
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, make_server

from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.explorer.callbacks import register
from refusal_lens.explorer.layout import page
from refusal_lens.explorer.runs import explore_runs

Application = Callable[..., Iterable[bytes]]
"""Of WSGI: takes a request's environment and a function that starts the answer."""

PORT = 8050
N_PORTS_TRIED = 20

MAX_REQUEST = 32 * 2**20
"""Bytes of a request: a selection of a hundred thousand points has a tenth of that."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The browser itself refuses whatever would leave the machine. Dash's own start is inline."""


def build_app(paths: Sequence[str | Path]) -> Dash:
    """Build the explorer of some runs, which are read and never written.

    Raises:
        RefusalLensError: One holds no run, or nothing to look at.
    """
    runs = explore_runs(paths)
    app = Dash(
        __name__,
        title="refusal_lens",
        update_title="",
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.layout = page(list(runs))
    register(app, runs)
    app.server.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST
    app.server.register_error_handler(Exception, _refuse)
    app.server.after_request(_add_policy)
    return app


def _refuse(error: Exception) -> flask.typing.ResponseReturnValue:
    """Answer a request that cannot be followed with one line, here and there, and no traceback."""
    if isinstance(error, HTTPException):
        return error
    logging.getLogger(__name__).warning("A request could not be answered: %.300r", error)
    if isinstance(error, RefusalLensError):
        return flask.Response(f"{error}\n", 500)
    return flask.Response("This request could not be answered.\n", 400)


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine only.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("LOCALHOST"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host.lower() in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def open_server(
    app: Dash, *, host: str = "127.0.0.1", port: int | None = None, allow_remote: bool = False
) -> Iterator[BaseWSGIServer]:
    """Bind the explorer to an address; `serve_forever` on what is given answers.

    Without a port it is the first free one from 8050 on; 0 is any. An address that other machines
    can reach takes `allow_remote`.

    Raises:
        RefusalLensError: The host is not this machine, without `allow_remote`; or the port is
            taken, or is not to be had.
    """
    if not is_loopback(host):
        _check_remote(host, allow_remote)
    answer = _guarded(app.server, is_local=is_loopback(host))
    # One line a request says nothing to who looks at the page.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with _bind(host, port) as bound:
        number = bound.getsockname()[1]
        server = make_server(host, number, answer, threaded=True, fd=bound.fileno())
        try:
            yield server
        finally:
            server.server_close()


def _check_remote(host: str, allow_remote: bool) -> None:
    if not allow_remote:
        raise RefusalLensError(
            f"The explorer needs an address of this machine alone, but --host {host} came, which "
            "other machines can reach: it has no password, and shows all prompts. Leave --host "
            "out, or add --allow-remote if that is meant."
        )
    warnings.warn(
        f"The explorer answers on {host} to every machine that can reach this one. It has no "
        "password and no encryption: whoever opens it sees all prompts.",
        RefusalLensWarning,
        stacklevel=3,
    )


def _bind(host: str, port: int | None) -> socket.socket:
    """Bind the port asked for, or the first free one."""
    tried: Iterable[int] = range(PORT, PORT + N_PORTS_TRIED) if port is None else (port,)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in tried:
        try:
            return socket.create_server((host, number), family=family, backlog=128)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise RefusalLensError(
                    f"The explorer cannot listen on {host}, port {number}: {error.strerror}. Give "
                    "another --host or --port."
                ) from error
    if port is not None:
        raise RefusalLensError(
            f"Port {port} of {host} is in use, perhaps by another explorer. Give another --port, "
            "or leave it out to take the next free one."
        )
    raise RefusalLensError(
        f"Ports {PORT} to {PORT + N_PORTS_TRIED - 1} of {host} are all in use. Give another --port."
    )


def _guarded(application: Application, *, is_local: bool) -> Application:
    """Refuse requests under a foreign name, where it is local, and those of other sites' pages.

    A page on the internet can point a name of its own at 127.0.0.1 and then read what is served
    there; the browser still sends that name, and says whose page makes a request.
    """

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        origin, host = environ.get("HTTP_ORIGIN"), environ.get("HTTP_HOST", "")
        if is_local and not is_loopback(host.rsplit(":", 1)[0].strip("[]")):
            refusal = "This explorer answers to names of its own machine only.\n"
        elif origin is not None and origin.lower().partition("://")[2] != host.lower():
            refusal = "This explorer answers to its own page only.\n"
        else:
            return application(environ, start)
        return flask.Response(refusal, 403)(environ, start)

    return answer


def _add_policy(response: flask.Response) -> flask.Response:
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
