"""An address holds a view, and may say anything."""

import time
from dataclasses import replace

import pytest

from refusal_lens.explorer.view import View, _beside, nearest_view, not_shown


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


def test_a_place_is_compared_with_another_also_at_the_first_layer(runs):
    for layer, other in ((0, 2), (1, 2), (2, 1), (3, 1)):
        there = nearest_view(View(hook_point=f"blocks.{layer}.hook_resid_post"), runs)
        assert there.other_hook_point == f"blocks.{other}.hook_resid_post"


@pytest.mark.parametrize("n_layers", [2, 3, 4, 9])
def test_no_place_is_compared_with_itself_where_there_is_another(n_layers, runs, monkeypatch):
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(n_layers)]
    run = next(iter(runs.values()))
    monkeypatch.setattr(type(run), "hook_points_of", lambda self, site: names)
    for name in names:
        assert _beside(run, name, "last")[0] != name


def test_an_address_that_selects_ten_million_rows_is_answered_at_once(runs):
    begun = time.monotonic()
    search = "?selected=" + ",".join(["0-9999999"] * 20)
    assert len(View.from_search(search).selected) == 100_000
    assert View.from_search("?selected=5-7,2").selected == (2, 5, 6, 7)
    assert time.monotonic() - begun < 2


def test_what_an_address_asks_in_vain_is_said(view, runs):
    search = "?run=none&threshold=high&position=last&colour=red&selected=a-b"
    shown = nearest_view(View.from_search(search), runs)
    said = not_shown("/there", search, shown)
    assert said.startswith("The address asks for page /there, run none, threshold high")
    assert "colour red" in said
    assert "selected a-b" in said
    assert "position" not in said
    assert not_shown("/", f"?run={view.run}", view) == not_shown("/", None, view) == ""
    assert len(not_shown("/", "?text=" + "x" * 500 + "&run=" + "y" * 500, view)) < 300


def test_an_address_that_the_page_wrote_is_shown_whole(view, runs):
    changed = replace(view, threshold=0.0, selected=(0, 2), text="a&b", scale="cosine")
    assert not_shown("/", changed.to_search(), nearest_view(changed, runs)) == ""
