"""Tables of results: how they are read back, one row a place, some of their rows.

Knows which columns are text. Does not know what a table is about.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusal_lens.models.hook_points import layer_of, site_of

PLACE = ("hook_point", "position")
TEXT_COLUMNS = (
    *(*PLACE, "site", "run", "kind", "score", "method", "intervention", "verdict"),
    *("prompt_id", "category", "text", "token", "a", "b", "fit_on", "test_on"),
    *("feature", "component", "reasons", "direction", "end", "shuffled"),
    *("harmful_id", "harmless_id", "harmful_text", "harmless_text"),
)
"""Columns that are text whatever stands in them: a position may be "-2", a category "2024", a token
"null". A reader that guesses would give numbers in one run and text in the next."""


def read_frame(path: str | Path) -> pd.DataFrame:
    """Read a table that was written as CSV, with the types of its columns fixed.

    An empty cell is "" in a column of text, and NaN in any other.
    """
    names = pd.read_csv(path, nrows=0).columns
    options: dict[str, Any] = {
        "dtype": dict.fromkeys(TEXT_COLUMNS, str),
        # A token may be "null" or "NA": only an empty cell among numbers is nothing.
        "na_values": {name: [""] for name in names if name not in TEXT_COLUMNS},
        "keep_default_na": False,
    }
    return pd.read_csv(path, **options)


def place_frame(hook_points: tuple[str, ...], positions: tuple[str, ...]) -> pd.DataFrame:
    """Return the columns that name a place, one row each, hook point by hook point."""
    return pd.DataFrame(
        {
            "hook_point": hook_point,
            "site": site_of(hook_point),
            "layer": layer_of(hook_point),
            "position": position,
        }
        for hook_point in hook_points
        for position in positions
    )


def rows_where(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Return the rows whose columns have these values.

    Example:
        >>> len(rows_where(pd.DataFrame({"kind": ["a", "b"], "n": [1, 1]}), kind="a", n=1))
        1
    """
    is_wanted = np.ones(len(table), dtype=bool)
    for name, value in wanted.items():
        is_wanted &= np.asarray(table[name] == value)
    return rows_that(table, is_wanted)


def rows_that(table: pd.DataFrame, is_wanted: Any) -> pd.DataFrame:
    """Return the rows for which a column of truth values says so."""
    return table.take(np.flatnonzero(np.asarray(is_wanted, dtype=bool)))


def for_spreadsheets(frame: pd.DataFrame) -> pd.DataFrame:
    """Put an apostrophe before texts that a spreadsheet would take for formulas, and run.

    For what people download and open; tables that are read back are written as they are. Numbers
    stay numbers, also where they are texts, as position -1 is.

    Source:
        https://owasp.org/www-community/attacks/CSV_Injection

    Example:
        >>> for_spreadsheets(pd.DataFrame({"text": ["=1+1", "-1", "plain"]}))["text"].tolist()
        ["'=1+1", '-1', 'plain']
    """
    return frame.map(
        lambda cell: f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell
    )


_FORMULA = re.compile(r"(?![+-]?[\d.]+(?:e[+-]?\d+)?\Z)[=+\-@\t\r]", re.IGNORECASE)
