"""Rows of a run's tables: some of them, by layer, by what they have in common.

Knows the columns that places have. Draws nothing.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from refusal_lens.validation.frames import rows_that


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows inside the blocks, first layer first."""
    rows = rows_that(table, table["layer"].notna()).sort_values("layer", kind="stable")
    return rows.assign(layer=rows["layer"].astype(int))


def last_layer(rows: pd.DataFrame) -> int:
    """Return the last layer there is; 0 where there is none."""
    return max(rows["layer"].tolist(), default=0)


def groups(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns and the rows that have them, in the table's order."""
    for values, rows in table.groupby(list(columns), sort=False, dropna=False):
        yield *values, pd.DataFrame(rows)  # pyright: ignore[reportGeneralTypeIssues]


def lines_of(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of every site and position, named."""
    return [
        (f"{site}, {position}", part) for site, position, part in groups(rows, "site", "position")
    ]
