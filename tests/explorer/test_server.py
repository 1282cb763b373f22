"""The explorer's server without a browser: what it serves, to whom, and what it refuses."""

import hashlib
import re
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from explored_run import make_run

from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.explorer import build_app, open_server


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_nothing_is_written_even_when_a_method_is_fitted(tmp_path):
    run_folder = make_run(tmp_path / "run", is_fitted=False)
    for path in [run_folder.path, *run_folder.path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = fingerprint(run_folder.path)
    client = build_app([run_folder.path]).server.test_client()
    assert client.get("/").status_code == 200
    assert fingerprint(run_folder.path) == before


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RefusalLensError, match="is not a run folder"):
        build_app([tmp_path])


@pytest.fixture(scope="module")
def app(folder):
    return build_app([folder.path])


def test_no_debug_mode_and_nothing_from_elsewhere(app):
    page = app.server.test_client().get("/")
    assert not app.server.debug
    assert not re.search(r'(src|href)="(https?:)?//', page.text)
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert '<html lang="en">' in page.text


def test_other_hosts_only_when_told(app):
    with (
        pytest.raises(RefusalLensError, match=r"--host 0\.0\.0\.0 came, which other machines"),
        open_server(app, host="0.0.0.0", port=0),
    ):
        pass


def test_other_hosts_with_a_warning(folder):
    with (
        pytest.warns(RefusalLensWarning, match="whoever opens it sees all prompts"),
        open_server(build_app([folder.path]), host="0.0.0.0", port=0, allow_remote=True) as server,
    ):
        assert server.port > 0


def test_a_port_in_use_is_named_and_the_default_goes_on_to_the_next(app, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"Port {port} of 127.0.0.1 is in use, perhaps by another explorer."
        with pytest.raises(RefusalLensError, match=message), open_server(app, port=port):
            pass
        monkeypatch.setattr("refusal_lens.explorer.server.PORT", port)
        with open_server(app) as server:
            assert port < server.port < port + 20


def test_foreign_names_are_refused(app):
    with open_server(app, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.port}/"
        assert urllib.request.urlopen(url).status == 200
        foreign = urllib.request.Request(url, headers={"Host": "rebound.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("missing", ["dash", "flask", "werkzeug"])
def test_the_command_says_which_extra_is_missing(monkeypatch, folder, missing):
    import sys

    from typer.testing import CliRunner

    from refusal_lens.cli import app as command_line

    for name in [name for name in sys.modules if name.startswith("refusal_lens.explorer")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, f"{missing}.serving", None)
    monkeypatch.delattr("refusal_lens.explorer", raising=False)
    outcome = CliRunner().invoke(command_line, ["explore", str(folder.path)])
    assert outcome.exit_code == 2
    assert "pip install 'refusal-lens[explore]'" in outcome.output


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"null",
        b'{"output": "a.b"}',
        b'{"output": 3, "inputs": []}',
        b'{"output": "heatmap.figure", "outputs": [], "inputs": [{"id": "view"}]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_malformed_requests_are_refused_without_a_traceback(folder, body, capfd, caplog):
    client = build_app([folder.path]).server.test_client()
    answer = client.post(
        "/_dash-update-component", data=body, headers={"Content-Type": "application/json"}
    )
    assert 400 <= answer.status_code < 500
    printed = "".join(capfd.readouterr()) + caplog.text
    assert "Traceback" not in printed + answer.get_data(as_text=True)
    assert len(printed) < 1000


def test_pages_of_other_sites_are_refused(app):
    def status(origin: str | None) -> int:
        headers = {} if origin is None else {"Origin": origin}
        try:
            request = urllib.request.Request(f"http://{host}/", headers=headers)
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    with open_server(app, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.port}"
        assert [status(origin) for origin in (None, f"http://{host}")] == [200, 200]
        foreign = ("http://evil.example", f"http://{host}.evil.example", "null", "")
        assert [status(origin) for origin in foreign] == [403] * 4
        server.shutdown()
