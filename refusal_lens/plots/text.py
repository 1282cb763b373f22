"""How texts stand in figures: escaped, shortened, wrapped, signed.

Knows plotly's markup. Knows nothing of what the texts mean.

Tested in tests/plots/test_histogram.py.
"""

import html
import re
import textwrap
from typing import Any

from refusal_lens.models.hook_points import short_name

AXIS_TITLES = (
    "projection on the unit direction (activation units)",
    "cosine between activation and direction",
)
"""What an axis of projections says; indexed by whether they are cosines."""

SCALES = ("projection", "cosine")
"""What one of them is called; indexed likewise."""

HOVER_LENGTH = 300
"""Characters of a prompt shown on hover: whole, but for the very long."""


def escape(text: str) -> str:
    """Escape what plotly would read as markup; a dollar would start a formula.

    Plotly reads numbered entities and a few named ones, which `&quot;` is not among.
    """
    return html.escape(text).replace("&quot;", "&#34;").replace("$", "&#36;")


def shorten(text: str, length: int) -> str:
    """Put a text on one line of at most so many characters, cut between words where possible.

    Example:
        >>> shorten("how to  boil an egg", 12)
        'how to boil…'
    """
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    kept = line[: length - 1]
    return (kept if line[length - 1] == " " else re.sub(r"\s\S{0,20}$", "", kept)).rstrip() + "…"


def hover_prompt(prompt_id: str, category: str, text: str) -> str:
    """Return a prompt as shown on hover: its name, its category and its text in lines."""
    lines = [escape(line) for line in textwrap.wrap(shorten(text, HOVER_LENGTH), 60)]
    return "<br>".join([f"<b>{escape(prompt_id)}</b> · {escape(category)}", *lines])


def written(number: float, decimals: int) -> str:
    """Write a number with a real minus sign, and zero without any.

    Example:
        >>> written(-0.004, 2)
        '0.00'
    """
    return f"{number:z.{decimals}f}".replace("-", "−")


def rounded(numbers: Any) -> list[float]:
    """Return the numbers of a column or tensor with five significant digits: pages stay small."""
    return [float(f"{number:.5g}") for number in numbers.tolist()]


def place_name(hook_point: str, position: str) -> str:
    """Write a place as people say it.

    Example:
        >>> place_name("blocks.12.hook_resid_post", "last")
        'resid_post 12 · position last'
    """
    return f"{short_name(hook_point)} · position {position}"
