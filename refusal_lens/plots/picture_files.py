"""Figures into files: pages, data and pictures.

Knows formats and the browser that pictures need. Does not know what a figure shows.

Tested in tests/runs/test_figures.py.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from refusal_lens.errors import RefusalLensError
from refusal_lens.files import write_whole
from refusal_lens.plots.style import PRIVATE

PICTURES = ("png", "svg", "pdf")
FORMATS = (*PICTURES, "html", "json")


def export(
    figures: Mapping[Path, go.Figure] | Mapping[str, go.Figure],
    *,
    width: int = 1000,
    scale: float = 2.0,
) -> None:
    """Write figures, each in the format that its path ends in; whole or not at all.

    Pages hold plotly.js: they open from disk, without a network. Pictures are drawn by Chrome or
    Chromium, which reads nothing from the network either; sliders and menus are left out of them.

    Args:
        figures: Where to write which.
        width: Of pictures, in pixels before scaling; heights are the figures' own.
        scale: Dots a pixel of a png: 2 is sharp in print and on dense screens.

    Raises:
        RefusalLensError: There is no such format, or no browser for a picture.
    """
    drawn = {Path(path): figure for path, figure in figures.items()}
    for path in drawn:
        if _format_of(path) not in FORMATS:
            raise RefusalLensError(
                f"Figures can be written as {', '.join(FORMATS)}, but {path.name} asks for "
                f"{_format_of(path) or 'no format'}. Give the file one of these endings."
            )
    pictures = {path: each for path, each in drawn.items() if _format_of(path) in PICTURES}
    _draw_pictures(pictures, width, scale)
    for path, figure in drawn.items():
        if path not in pictures:
            text = figure.to_json() if _format_of(path) == "json" else page(figure)
            with write_whole(path) as file:
                file.write_text(str(text), encoding="utf-8")


def _format_of(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


def page(figure: go.Figure) -> str:
    """Return a figure as one self-contained page, as dark around it as the figure is.

    The figure is as high as the window, or half its own height where that is more.
    """
    layout: Any = figure.layout
    least = (layout.height or 450) // 2
    content = figure.to_dict()
    content["layout"].pop("height", None)
    content["layout"]["autosize"] = True
    whole = pio.to_html(
        content,
        validate=False,  # it was when it was drawn
        include_plotlyjs=True,
        config=PRIVATE | {"responsive": True},
        default_height="100%",
        post_script=FIT_FIGURE + FIT_WINDOW,
        # Alone on its page: plotly's random name would make every drawing another file.
        div_id="figure",
    )
    background = layout.template.layout.paper_bgcolor or "white"
    style = (
        f"<style>html, body {{ margin: 0; height: 100%; background: {background} }} "
        f"body > div {{ height: 100%; min-height: {least}px }}</style>"
    )
    return whole.replace("</head>", f"{_VIEWPORT}{style}</head>", 1)


_VIEWPORT = '<meta name="viewport" content="width=device-width, initial-scale=1">'

FIT_FIGURE = (Path(__file__).parent / "assets" / "fit_figure.js").read_text(encoding="utf-8")

FIT_WINDOW = (Path(__file__).parent / "assets" / "fit_window.js").read_text(encoding="utf-8")


def _still(figure: go.Figure) -> go.Figure:
    """Return a figure without what can only be used on a page."""
    still = go.Figure(figure)
    # Set, not updated: an update with nothing leaves all as it is.
    still.layout.sliders = still.layout.updatemenus = ()
    return still


def _draw_pictures(figures: Mapping[Path, go.Figure], width: int, scale: float) -> None:
    """Let one browser draw all pictures, and put each in its place."""
    if not figures:
        return
    import kaleido
    from kaleido.errors import BrowserFailedError, ChromeNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        drawn = {path: Path(folder) / f"{n}{path.suffix.lower()}" for n, path in enumerate(figures)}
        orders = [
            {
                "fig": _still(figure).to_dict(),
                "path": drawn[path],
                "opts": {
                    "format": _format_of(path),
                    "width": width,
                    "height": figure["layout"]["height"],
                    "scale": scale,
                },
            }
            for path, figure in figures.items()
        ]
        try:
            # Without this the browser would fetch MathJax, which no figure needs.
            kaleido.write_fig_from_object_sync(orders, kopts={"mathjax": False})
        except ChromeNotFoundError:
            raise RefusalLensError(
                "A picture needs Chrome or Chromium, and none was found. Install one (Debian and "
                "Ubuntu: apt-get install chromium; anywhere: kaleido_get_chrome), or say where it "
                "is in BROWSER_PATH. Formats html and json need none."
            ) from None
        except BrowserFailedError as error:
            raise RefusalLensError(
                f"Chrome or Chromium was found but did not start: {error} Try it by hand, or name "
                "another in BROWSER_PATH. Formats html and json need none."
            ) from None
        for path, picture in drawn.items():
            with write_whole(path) as file:
                file.write_bytes(picture.read_bytes())
