"""Progress of long work: what, how much, how fast, how long still.

Knows bars for terminals and notebooks, and plain lines for everywhere else. Does not know what the
work is.
"""

import importlib.util
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import rich.progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Step = TypeVar("Step")

LOGGER = logging.getLogger("refusal_lens")
"""Is told the same lines, whether or not they are shown: whoever keeps a log listens to it."""

SECONDS_A_LINE = 30.0
"""How long nothing is said where bars cannot move."""


class _Lines:
    """A plain line now and then, and one for the log at the end."""

    def __init__(self, what: str, total: int, unit: str, *, is_shown: bool) -> None:
        self.what, self.total, self.unit, self.is_shown = what, total, unit, is_shown
        self.n_done = 0
        self.begun = self.told = time.monotonic()

    def advance(self, n: int) -> None:
        self.n_done += n
        now = time.monotonic()
        if self.n_done == self.total:
            LOGGER.info(f"{self.what}: {self.total:,} {self.unit} in {_span(now - self.begun)}")
        elif now - self.told >= SECONDS_A_LINE:
            self.told = now
            rate = self.n_done / (now - self.begun)
            left = _span((self.total - self.n_done) / rate) if rate else "unknown time"
            line = (
                f"{self.what}: {self.n_done:,} of {self.total:,} {self.unit}, {rate:.3g} a second, "
                f"{left} left"
            )
            LOGGER.info(line)
            if self.is_shown:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()


def _span(seconds: float) -> str:
    """Write a span of time.

    Example:
        >>> _span(7.2), _span(79.0), _span(7260.0)
        ('7 s', '1 min 19 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _RateColumn(ProgressColumn):
    """Prompts per second, over the recent past."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} prompts/s", style="dim")


def _can_draw(console: Console) -> bool:
    """Whether bars can move here, and not fill a log or a cell with copies of themselves."""
    if console.is_jupyter:
        # Without widgets rich only warns, at every step.
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


class ClassProgress:
    """One bar a class of prompts, as a context manager.

    Example:
        >>> with ClassProgress("Collecting", {"harmful": 2, "harmless": 2}, False) as progress:
        ...     progress.advance({"harmful": 1, "harmless": 1})
    """

    def __init__(self, what: str, counts: Mapping[str, int], is_shown: bool | None = None) -> None:
        """Prepare the bars.

        Args:
            what: The work, as a word ("Collecting").
            counts: Prompts to do in each class.
            is_shown: Draw the bars; None draws them on a terminal and in notebooks that have
                ipywidgets, and writes a plain line now and then elsewhere.
        """
        console = Console(stderr=True)
        is_silent = is_shown is False
        if is_shown is None:
            is_shown = _can_draw(console)
        named = f"{what} {' and '.join(counts)}"
        has_lines = not is_shown and not is_silent
        self._lines = _Lines(named, sum(counts.values()), "prompts", is_shown=has_lines)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not is_shown,
        )
        self._tasks = {
            name: self._bars.add_task(f"{what} {name}", total=total)
            for name, total in counts.items()
        }

    def advance(self, done: Mapping[str, int]) -> None:
        """Count prompts as done, by class."""
        for name, n_prompts in done.items():
            self._bars.advance(self._tasks[name], n_prompts)
        self._lines.advance(sum(done.values()))

    def __enter__(self) -> "ClassProgress":
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing, whatever happened."""
        self._bars.stop()


def track(steps: Sequence[Step], what: str, is_shown: bool | None = None) -> Iterator[Step]:
    """Go through the steps of some work, with a bar that is gone when it is done.

    Args:
        steps: What is to be gone through.
        what: The work, as words ("Drawing nulls").
        is_shown: Draw the bar; None draws it on a terminal and in notebooks, and writes a plain
            line now and then elsewhere.

    Example:
        >>> list(track([1, 2], "Counting", False))
        [1, 2]
    """
    console = Console(stderr=True)
    is_silent = is_shown is False
    if is_shown is None:
        is_shown = console.is_terminal or "ipykernel" in sys.modules
    lines = _Lines(what, len(steps), "steps", is_shown=not is_shown and not is_silent)
    for step in rich.progress.track(
        steps, what, console=console, transient=True, disable=not is_shown
    ):
        yield step
        lines.advance(1)
