"""Heads, tokens and words: each number stands at its place."""

import numpy as np
import pandas as pd
import planted
import pytest

from refusal_lens import plots
from refusal_lens.plots.style import HARMFUL_COLOUR


def test_head_attribution_lays_heads_and_mlps_out_by_layer():
    table = planted.attribution(8, n_heads=12)
    figure = plots.head_attribution(table)
    heatmap, harmless, harmful = figure.data
    assert list(heatmap.x) == [*map(str, range(12)), "MLP"]
    own = table[table["category"] == ""].set_index(["component", "head"])["contribution"]
    cells = np.array(heatmap.z, dtype=float)
    assert cells[3, 10] == own["blocks.3.attn", 10.0]
    assert cells[5, 12] == own["blocks.5.mlp"].iloc[0]
    assert heatmap.zmin == -heatmap.zmax
    assert max(*harmless.x, *harmful.x, key=abs) == max(own, key=abs)
    assert len(harmless.x) + len(harmful.x) == 14
    assert all(x <= 0 for x in harmless.x)
    assert all(x > 0 for x in harmful.x)
    # Both classes in one order: what is largest stands above.
    sizes = dict(zip((*harmless.y, *harmful.y), map(abs, (*harmless.x, *harmful.x)), strict=True))
    assert list(figure.layout.yaxis2.categoryarray) == sorted(sizes, key=sizes.get)


def test_attribution_without_heads_has_one_column_for_attention():
    table = planted.attribution(3, n_heads=1)
    heatmap = plots.head_attribution(table.assign(head=np.nan)).data[0]
    assert list(heatmap.x) == ["attention", "MLP"]


def test_unembedding_keeps_tokens_that_look_alike_apart():
    table = planted.unembedding()
    table["token"] = "same"
    lowered, raised = plots.unembedding(table).data
    assert len(set(raised.y)) == len(raised.y) == 10
    assert max(lowered.x) < 0 < min(raised.x)
    assert raised.y[-1] == "same  1"
    assert raised.marker.color == HARMFUL_COLOUR


def test_tokens_keep_their_projections_in_lines():
    table = planted.prompt_tokens()
    figure = plots.prompt_tokens(table)
    own = table[table["prompt_id"] == "harmless-000"]
    (heatmap,) = figure.data
    cells = [cell for line in heatmap.z for cell in line]
    np.testing.assert_allclose(cells[: len(own)], own["projection"], atol=1e-4)
    assert cells[len(own) :] == [None] * (len(cells) - len(own))
    assert list(heatmap.text[0][:3]) == ["&lt;|im_sta…", "user", "↵"]
    assert heatmap.zmin == -heatmap.zmax == -table["projection"].abs().max()
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == list(dict.fromkeys(table["prompt_id"]))
    other = table[table["prompt_id"] == "harmful-001"]
    (z,) = buttons[1].args[0]["z"]
    assert z[0][0] == pytest.approx(other["projection"].iloc[0], abs=1e-4)


def test_tokens_at_several_hook_points_are_a_row_for_each():
    one = planted.prompt_tokens()
    table = pd.concat(
        one.assign(hook_point=f"blocks.{layer}.hook_resid_post", cosine=one["cosine"] / (layer + 1))
        for layer in range(3)
    )
    (heatmap,) = plots.prompt_tokens(
        table.sample(frac=1, random_state=0).sort_values(
            ["prompt_id", "hook_point"], ascending=[False, True]
        )
    ).data
    own = one[one["prompt_id"] == "harmless-002"]
    assert list(heatmap.y) == ["resid_post 0", "resid_post 1", "resid_post 2"]
    assert len(set(heatmap.x)) == len(own)  # "\n" stands there three times
    for layer, row in enumerate(heatmap.z):
        np.testing.assert_allclose(row, own["cosine"] / (layer + 1), atol=1e-4)
