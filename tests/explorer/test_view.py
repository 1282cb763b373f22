"""An address holds a view, and may say anything."""

import time
from dataclasses import replace

import pytest

from refusal_lens.explorer.view import View, nearest_view


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"threshold": -0.25, "scale": "cosine", "listed": "flipped"},
        {"selected": (0, 1, 2, 7, 9), "listed": "selected"},
        {"text": "a&b=c%20?#é‮</script>", "category": "law"},
        {"hook_point": "blocks.1.hook_mlp_out", "position": "mean", "score": "accuracy"},
    ],
)
def test_an_address_holds_the_view(view, runs, changes):
    sent = replace(view, **changes)
    assert nearest_view(View.from_search(sent.to_search()), runs) == sent


@pytest.mark.parametrize(
    "search",
    [
        "",
        "?",
        None,
        "?run=none&hook_point=x&position=9&threshold=high&selected=9999999,a-b",
        "?selected=5-1&scale=log&listed=some&method=magic&category=?",
        "?run",
        "?%zz=%",
    ],
)
def test_an_address_may_say_anything(view, runs, search):
    assert nearest_view(View.from_search(search), runs) == view


def test_a_layer_that_is_not_there_becomes_the_nearest(runs):
    wanted = View(hook_point="blocks.17.hook_mlp_out")
    assert nearest_view(wanted, runs).hook_point == "blocks.3.hook_mlp_out"


def test_an_address_that_selects_ten_million_rows_is_answered_at_once(runs):
    begun = time.monotonic()
    search = "?selected=" + ",".join(["0-9999999"] * 20)
    assert len(View.from_search(search).selected) == 100_000
    assert View.from_search("?selected=5-7,2").selected == (2, 5, 6, 7)
    assert time.monotonic() - begun < 2
