"""Chromium for tests that look at what a reader sees, and a watch over what a page does meanwhile.

Fixtures: `chromium` (the browser), `open_page` (pages of any size and colour scheme, each with the
log of its requests and errors). Pages must stay on this machine and raise nothing: every test that
opens one checks that at its end, without asking.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
HERE = {"127.0.0.1", "localhost", "::1"}
INERT = {"data", "blob", "about"}


@dataclass
class Watched:
    """A page, and what it did besides showing itself.

    `requests` are all addresses asked for, `errors` what the console said in red and exceptions
    that nothing caught. A test that provokes an error takes it out of the list.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, target: Path | str) -> Page:
        """Go to a file or an address, and return the page."""
        self.page.goto(target.as_uri() if isinstance(target, Path) else target)
        return self.page

    @property
    def strays(self) -> list[str]:
        """Requests that leave this machine."""
        return [address for address in self.requests if not stays_here(address)]

    def assert_quiet(self) -> None:
        """Fail when the page asked for anything off this machine, or raised."""
        assert self.strays == []
        assert self.errors == []


def stays_here(address: str) -> bool:
    """Say whether an address is a file, carried by the page itself, or of this machine."""
    parts = urlsplit(address)
    if parts.scheme in INERT or (parts.scheme == "file" and not parts.netloc):
        return True
    return parts.scheme in {"http", "ws"} and parts.hostname in HERE


def find_chromium() -> str | None:
    """Return where the machine's Chromium is, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The machine's Chromium, for one module: while it runs, no other event loop can here."""
    path = find_chromium()
    if path is None:
        pytest.skip("There is no Chromium here. Install one: apt-get install chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., Watched]]:
    """A function that opens an empty watched page.

    Its options are those of a playwright context; `width`, `height` and `is_offline` are short for
    the commonest.
    """
    opened: list[tuple[BrowserContext, Watched]] = []

    def open_(
        width: int = 1400, height: int = 900, *, is_offline: bool = False, **options: Any
    ) -> Watched:
        viewport: Any = {"width": width, "height": height}
        context = chromium.new_context(viewport=viewport, offline=is_offline, **options)
        context.set_default_timeout(30_000)
        context.route(lambda address: not stays_here(address), _refuse)
        watched = Watched(context.new_page())
        _watch(watched)
        opened.append((context, watched))
        return watched

    yield open_
    for context, _ in opened:
        context.close()
    for _, watched in opened:
        watched.assert_quiet()


def _refuse(route: Route) -> None:
    route.abort()


def _watch(watched: Watched) -> None:
    watched.page.on("request", lambda request: watched.requests.append(request.url))
    watched.page.on("websocket", lambda socket: watched.requests.append(socket.url))
    watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
    watched.page.on(
        "console",
        lambda message: watched.errors.append(message.text) if message.type == "error" else None,
    )


# --- what tests ask a page ---------------------------------------------------------------------


def serious_violations(page: Page) -> list[str]:
    """Return what axe-core calls serious or critical, with the elements it is about."""
    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']} ({violation['impact']}): "
        + "; ".join(str(node["html"])[:160] for node in violation["nodes"][:4])
        for violation in found
        if violation["impact"] in {"serious", "critical"}
    ]


def sideways_overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
