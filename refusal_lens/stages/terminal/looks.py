"""How tables of many numbers look, so that they fit 80 columns.

Tested in tests/stages/test_terminal.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
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


def leave_out(
    cells: Mapping[str, Sequence[str]], width: int, less: Sequence[str]
) -> dict[str, Sequence[str]]:
    """Leave out columns of `less`, the first of them first, until a `TIGHT` row fits the width.

    `cells` are texts by heading; rich would cut numbers instead, or all layers to the same name.
    """
    kept = dict(cells)
    for name in less:
        if row_width(kept) <= width:
            break
        kept.pop(name, None)
    return kept


def row_width(cells: Mapping[str, Sequence[str]]) -> int:
    """Return how wide the columns are in `TIGHT` looks, two spaces between them."""
    lines = (["", *"\n".join((name, *column)).split("\n")] for name, column in cells.items())
    return sum(2 + max(map(cell_len, each)) for each in lines) - 2


def fill(table: Table, cells: Mapping[str, Sequence[str]], styles: Sequence[str]) -> None:
    """Put columns of texts into a table that has their headings, in whole lines."""
    for column in table.columns:
        column.no_wrap, column.overflow = column.justify == "right", "fold"
    for row, style in zip(zip(*cells.values(), strict=True), styles, strict=True):
        table.add_row(*row, style=style)
