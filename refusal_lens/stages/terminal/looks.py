"""How tables of many numbers look, so that they fit 80 columns.

Tested in tests/stages/test_terminal.py.
"""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

TIGHT: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "padding": (0, 1, 0, 0),
    "pad_edge": False,
    "show_edge": False,
}
"""Lines between columns would cost places and numbers their ends."""


def table_of(
    title: str | None, columns: Sequence[str], texts: Sequence[str], **looks: Any
) -> Table:
    """Prepare a table whose columns hold numbers, but for those of texts."""
    table = Table(title=title, title_justify="left", **looks)
    for column in columns:
        table.add_column(column, justify="left" if column in texts else "right")
    return table
