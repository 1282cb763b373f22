"""Long work says how far it is, also where no bar can move."""

import logging
import re

import pytest

from refusal_lens import progress
from refusal_lens.progress import ClassProgress, track


class Clock:
    """Time that passes only when told to."""

    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(Clock, "now", 0.0)
    monkeypatch.setattr(progress, "time", Clock)
    return Clock


def test_a_plain_line_comes_every_half_minute_where_output_is_no_terminal(clock, capsys):
    with ClassProgress("Answering", {"harmful": 60, "harmless": 60}) as bars:
        for _ in range(10):
            clock.now += 10
            bars.advance({"harmful": 6, "harmless": 6})
    lines = capsys.readouterr().err.splitlines()
    # At 30, 60 and 90 s; the last line would say what the next one of the stage says.
    assert lines == [
        "Answering harmful and harmless: 36 of 120 prompts, 1.2 a second, 1 min 10 s left",
        "Answering harmful and harmless: 72 of 120 prompts, 1.2 a second, 40 s left",
        "Answering harmful and harmless: 108 of 120 prompts, 1.2 a second, 10 s left",
    ]


def test_steps_have_their_lines_too(clock, capsys):
    for _ in track(range(4), "Drawing nulls"):
        clock.now += 31
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Drawing nulls: 1 of 4 steps, 0.0323 a second, 1 min 33 s left"
    assert len(lines) == 3


def test_nothing_is_said_of_short_work_or_where_it_is_not_wanted(clock, capsys):
    with ClassProgress("Answering", {"harmful": 2}) as bars:
        clock.now += 29
        bars.advance({"harmful": 1})
    with ClassProgress("Answering", {"harmful": 2}, False) as bars:
        clock.now += 50
        bars.advance({"harmful": 1})
    assert list(track(range(3), "Counting", False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_log_has_the_end_of_each_work(clock, caplog):
    caplog.set_level(logging.INFO, logger="refusal_lens")
    with ClassProgress("Collecting", {"harmful": 3}, False) as bars:
        clock.now += 7
        bars.advance({"harmful": 3})
    assert re.search(r"Collecting harmful: 3 prompts in 7 s", caplog.text)
