"""Rows of a run's tables: the columns they need, some of them, by layer, by what they share.

Knows the columns that places have. Draws nothing.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import pandas as pd
import plotly.graph_objects as go

from refusal_lens.errors import RefusalLensError
from refusal_lens.plots.style import ClassStyle
from refusal_lens.validation.frames import rows_that
from refusal_lens.validation.separation import Separation

Options = ParamSpec("Options")


def needs_columns(
    *columns: str,
) -> Callable[
    [Callable[Concatenate[pd.DataFrame, Options], go.Figure]],
    Callable[Concatenate[pd.DataFrame | Separation, Options], go.Figure],
]:
    """Let a figure refuse, in words, what is no table with these columns; scores become one."""

    def decorate(
        draw: Callable[Concatenate[pd.DataFrame, Options], go.Figure],
    ) -> Callable[Concatenate[pd.DataFrame | Separation, Options], go.Figure]:
        @wraps(draw)
        def drawn(
            # Whatever comes: what is no table is refused in words.
            table: object,
            /,
            *args: Options.args,
            **options: Options.kwargs,
        ) -> go.Figure:
            return draw(_as_table(table, draw.__name__, columns), *args, **options)

        return drawn

    return decorate


def _as_table(given: object, figure: str, columns: tuple[str, ...]) -> pd.DataFrame:
    table = given.to_frame() if isinstance(given, Separation) else given
    advice = "RunFolder.read_table reads those of a run, read_separation its scores."
    if not isinstance(table, pd.DataFrame):
        raise RefusalLensError(
            f"{figure} needs a table (pandas.DataFrame) with the columns {', '.join(columns)}, but "
            f"{type(table).__name__} came. {advice}"
        )
    missing = [column for column in columns if column not in table]
    if missing:
        found = ", ".join(map(str, table.columns[:8])) or "none"
        raise RefusalLensError(
            f"{figure} needs the columns {', '.join(columns)}, but the table lacks "
            f"{', '.join(missing)} (it has: {found}). {advice}"
        )
    return table


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows inside the blocks, first layer first."""
    rows = rows_that(table, table["layer"].notna()).sort_values("layer", kind="stable")
    return rows.assign(layer=rows["layer"].astype(int))


def of_class(table: pd.DataFrame, style: ClassStyle) -> pd.DataFrame:
    """Return the rows of one class."""
    return rows_that(table, table["is_harmful"].astype(bool) == style.is_harmful)


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
