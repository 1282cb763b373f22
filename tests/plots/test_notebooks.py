"""In notebooks: objects show as tables, and progress only where it can move."""

import importlib.util

import pandas as pd
import pytest
import torch
from conftest import make_separation
from rich.console import Console

from refusal_lens.directions.direction import Directions
from refusal_lens.progress import ClassProgress, _can_draw
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.separation import Separation

HOOK_POINTS = ("hook_embed", "blocks.3.hook_resid_post")


def separation(first: float = 0.1) -> Separation:
    scores = torch.tensor([[first], [0.5]]).double()
    return make_separation(scores, 0.5 + scores, scores, scores, HOOK_POINTS, ("<b>",), 5)


def test_directions_are_a_table_of_places():
    vectors = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    directions = Directions(vectors, vectors.any(dim=-1), HOOK_POINTS, ("last",))
    expected = pd.DataFrame(
        {
            "hook_point": HOOK_POINTS,
            "site": ["embed", "resid_post"],
            "layer": [None, 3],
            "position": "last",
            "is_kept": [True, False],
            "length": [5.0, 0.0],
        }
    )
    pd.testing.assert_frame_equal(directions.to_frame(), expected)
    shown = directions._repr_html_()
    assert shown.startswith("<p>Directions(1 of 2 places, 2 hook points, positions last")
    assert shown.count("<tr") == 3


def test_separation_is_a_table_that_escapes():
    shown = separation()._repr_html_()
    assert "<p>Separation(1 of 2 places valid, highest separation 0.50, 5-fold" in shown
    assert "<td>&lt;b&gt;</td>" in shown
    assert "<td>0.100</td>" in shown
    assert shown.count("<tr") == 3


def test_reprs_say_what_there_is_and_print_no_numbers():
    assert repr(separation()) == (
        "Separation(1 of 2 places valid, highest separation 0.50, 5-fold cross-fitted)"
    )
    nowhere = make_separation(
        *[torch.full((2, 1), torch.nan).double()] * 4, HOOK_POINTS, ("last",), 5
    )
    assert "highest separation none" in repr(nowhere)
    values = torch.zeros(4, 2, 1).double()
    projections = Projections(
        values,
        values,
        values > 0,
        values[0],
        torch.tensor([True, False, False, False]),
        HOOK_POINTS,
        ("last",),
        True,
    )
    assert repr(projections) == (
        "Projections(4 prompts (1 harmful), 2 hook points, positions last, held out)"
    )


@pytest.mark.parametrize(
    ("console", "has_widgets", "is_drawn"),
    [
        (Console(force_terminal=True, force_jupyter=False), False, True),
        (Console(force_terminal=False, force_jupyter=False), True, False),
        (Console(force_jupyter=True), True, True),
        (Console(force_jupyter=True), False, False),
    ],
)
def test_bars_are_drawn_where_they_can_move(console, has_widgets, is_drawn, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: has_widgets or None)
    assert _can_draw(console) is is_drawn


def test_nothing_is_printed_when_not_a_terminal(capsys):
    with ClassProgress("Collecting", {"harmful": 2}) as progress:
        progress.advance({"harmful": 2})
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
