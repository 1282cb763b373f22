"""Progress bars of long work: what, how much, how fast, how long still.

Tested in tests/activations/test_collector.py.
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
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
                ipywidgets, and nowhere else.
        """
        console = Console(stderr=True)
        if is_shown is None:
            is_shown = _can_draw(console)
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

    def __enter__(self) -> "ClassProgress":
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing, whatever happened."""
        self._bars.stop()


def track(steps: Sequence[Step], what: str, is_shown: bool | None = None) -> Iterator[Step]:
    """Go through the steps of some work, with a bar that is gone when it is done.

    Args:
        steps: What is to be gone through.
        what: The work, as words ("Drawing nulls").
        is_shown: Draw the bar; None draws it on a terminal and in notebooks only.

    Example:
        >>> list(track([1, 2], "Counting", False))
        [1, 2]
    """
    console = Console(stderr=True)
    if is_shown is None:
        is_shown = console.is_terminal or "ipykernel" in sys.modules
    yield from rich.progress.track(
        steps, what, console=console, transient=True, disable=not is_shown
    )
