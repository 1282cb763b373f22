"""Figures of tables: each trace holds the table's numbers, told apart by more than colour."""

import pandas as pd
import planted

from refusal_lens import plots


def test_tables_are_not_changed():
    for name, table in planted.every_table(3).items():
        before = table.copy(deep=True)
        plot = {
            "coordinates": "coordinate_shares",
            "methods": "method_comparison",
            "categories": "category_breakdown",
            "misread": "misread_prompts",
            "attribution": "head_attribution",
        }.get(name, name)
        if name != "nulls":
            getattr(plots, plot)(table)
        pd.testing.assert_frame_equal(table, before)
