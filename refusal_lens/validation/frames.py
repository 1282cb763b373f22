"""Tables of one row a place.

Knows the columns that name a place, and how to pick rows. Does not know what else stands in them.
"""

import numpy as np
import pandas as pd

from refusal_lens.models.hook_points import layer_of, site_of


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
    return table.take(np.flatnonzero(is_wanted))
