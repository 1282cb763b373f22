"""How tables of many numbers look, so that they fit 80 columns.

Tested in tests/stages/test_terminal.py.
"""

from typing import Any

from rich import box

TIGHT: dict[str, Any] = {
    "title_justify": "left",
    "box": box.SIMPLE_HEAD,
    "padding": (0, 1, 0, 0),
    "pad_edge": False,
    "show_edge": False,
}
"""Lines between columns would cost places and numbers their ends."""
