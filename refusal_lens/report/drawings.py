"""From a run's figures to what the page carries of them.

Knows plotly's JSON and what the page takes over: title, colours, theme. Draws no figure itself.

Tested in tests/report/test_page.py.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from markupsafe import Markup

from refusal_lens.errors import RefusalLensError
from refusal_lens.plots.style import THEMES
from refusal_lens.runs import figures
from refusal_lens.runs.folder import RunFolder

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

TOP_MARGIN = 30
"""Room above a figure without a title, for the bar of buttons."""

LINE = 20
"""Height of a line of a title, in pixels."""

Json = dict[str, Any]


@dataclass(frozen=True)
class ShownFigure:
    """A figure ready to be laid out; `content` is JSON that may stand in a script element."""

    name: str
    title: str
    caption: str
    height: int
    content: Markup
    folded: str


def draw_all(
    run_folder: RunFolder, known: Mapping[str, go.Figure] | None = None
) -> Iterator[ShownFigure | tuple[str, str]]:
    """Yield every figure that can be drawn at once; of each other one its title and why not.

    `known` are figures of this run that are drawn already, by their names.
    """
    known = known or {}
    for name, figure in figures.FIGURES.items():
        if figure.extra:
            # UMAP compiles itself for longer than the rest of a small study takes.
            command = f"refusal-lens plot {run_folder.typed} --figure {name}"
            yield figure.title, f"Drawn where it is asked for by name: {command}"
            continue
        try:
            drawn = known[name] if name in known else figures.draw_figure(run_folder, name)
        except RefusalLensError as error:
            yield figure.title, str(error)
        else:
            yield _show(name, drawn) if drawn.data else (figure.title, _note(drawn))


def _note(figure: go.Figure) -> str:
    """Return what a figure without data says instead."""
    layout: Any = figure.layout
    return " ".join(f"{note.text.capitalize()}." for note in layout.annotations)


def themes() -> dict[str, Json]:
    """Return the themes as the page has them: they let its own background through."""
    clear = "rgba(0,0,0,0)"
    looks = {"paper_bgcolor": clear, "plot_bgcolor": clear, "font_family": FONT}
    return {
        name: go.layout.Template(theme).update(layout=looks).to_plotly_json()
        for name, theme in THEMES.items()
    }


def _show(name: str, drawn: go.Figure) -> ShownFigure:
    content = _plain(drawn)
    title = _move_title_out(content)
    text = embed(json.dumps(content, separators=(",", ":"), ensure_ascii=False))
    height = content["layout"]["height"]
    figure = figures.FIGURES[name]
    return ShownFigure(
        name, figure.title, _caption(figure.sentence, title), height, text, figure.folded
    )


def _plain(figure: go.Figure) -> Json:
    """Return a figure without its theme: the page brings that, once for all figures."""
    content = json.loads(pio.to_json(figure, validate=False) or "{}")
    content["layout"].pop("template", None)
    content["layout"].setdefault("height", 450)
    return content


def _move_title_out(content: Json) -> str:
    """Take the title out, and the room that it took: the page has a heading of its own."""
    layout = content["layout"]
    title = layout.pop("title", {}).get("text") or ""
    if title:
        margin = layout.setdefault("margin", {})
        top = margin.get("t", 100)
        margin["t"] = max(TOP_MARGIN, top - LINE * (title.count("<br>") + 1))
        layout["height"] -= top - margin["t"]
    return title


def _caption(sentence: str, title: str) -> str:
    """Return the figure's sentence, then the place or choice that its own title ends with."""
    parts = html.unescape(re.sub(r"<(?!br)[^>]*>", "", title)).replace("<br>", " · ").split(" · ")
    place = " · ".join(part for part in parts[1:] if part)
    return f"{sentence} Here: {place}." if place else sentence


def embed(content: str) -> Markup:
    r"""Make JSON safe inside a script element, whatever its strings hold.

    Example:
        >>> print(embed('["</script>"]'))
        ["\u003c/script\u003e"]
    """
    for character in "<>&\u2028\u2029":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return Markup(content.encode("utf-8", "replace").decode("utf-8"))
