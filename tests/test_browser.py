"""The watch over pages sees what it is there to see."""

import pytest
from browser import serious_violations, sideways_overflow, stays_here

pytestmark = pytest.mark.browser

PAGE = "<!doctype html><html lang=en><title>t</title><main><h1>Here</h1>{}</main></html>"


@pytest.fixture
def show(open_page, tmp_path):
    def show_(body: str):
        (tmp_path / "page.html").write_text(PAGE.format(body))
        watched = open_page()
        watched.open(tmp_path / "page.html")
        return watched

    return show_


def test_quiet_page_is_quiet(show):
    watched = show("<p>Text.</p>")
    watched.assert_quiet()
    assert serious_violations(watched.page) == []
    assert sideways_overflow(watched.page) == 0


def test_request_off_the_machine_is_seen_and_goes_nowhere(show):
    watched = show('<img alt="" src="https://example.org/a.png">')
    assert watched.strays == ["https://example.org/a.png"]
    with pytest.raises(AssertionError):
        watched.assert_quiet()
    watched.requests.clear()
    (error,) = watched.errors
    assert "ERR_FAILED" in error
    watched.errors.clear()


@pytest.mark.parametrize(
    ("script", "said"), [("console.error('red')", "red"), ("nothing.at.all()", "nothing")]
)
def test_errors_are_seen(show, script, said):
    watched = show(f"<script>{script}</script>")
    (error,) = watched.errors
    assert said in error
    watched.errors.clear()


def test_overflow_and_faults_of_access_are_seen(show):
    watched = show('<div style="width: 1500px">wide</div><img src="data:,"><button></button>')
    assert sideways_overflow(watched.page) == 108
    found = " ".join(serious_violations(watched.page))
    assert "image-alt (critical)" in found
    assert "button-name (critical)" in found


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("file:///tmp/a.html", True),
        ("file://server/share", False),
        ("http://127.0.0.1:8050/x", True),
        ("ws://localhost:1/", True),
        ("http://127.0.0.1.example.org/", False),
        ("https://cdn.plot.ly/plotly.js", False),
        ("data:image/png;base64,", True),
    ],
)
def test_addresses(address, expected):
    assert stays_here(address) is expected
