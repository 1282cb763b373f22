"""Figures of tables: each trace holds the table's numbers, told apart by more than colour."""

import pandas as pd
import planted
import pytest

from refusal_lens import plots
from refusal_lens.errors import RefusalLensError
from refusal_lens.validation.separation import Separation


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


def test_what_is_no_table_is_refused_in_words():
    with pytest.raises(RefusalLensError, match=r"stability needs a table .* but str came"):
        plots.stability("tables/stability.csv")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RefusalLensError, match=r"lacks fit_on, test_on \(it has: site\)"):
        plots.transfer_matrix(pd.DataFrame({"site": ["resid_post"]}))
    with pytest.raises(RefusalLensError, match=r"needs a score .* 'between' came"):
        plots.place_heatmap(planted.separation(3), "between")


def test_scores_are_taken_where_their_table_is():
    frame = planted.separation(3)
    scores = Separation.from_frame(frame, 5)
    drawn = plots.place_heatmap(scores, "separation")
    assert drawn.data[0].z.tolist() == plots.place_heatmap(frame, "separation").data[0].z.tolist()
    with pytest.raises(RefusalLensError, match="nothing of site resid_post at position lasst"):
        scores.at("resid_post", "lasst")
