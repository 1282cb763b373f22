"""What the page shows, as one value: the state that the address holds.

Knows how to write it into an address, read it back whatever stands there, and go on to the nearest
that the runs have. Knows no page and no numbers.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from urllib.parse import parse_qs, urlencode

from refusal_lens.explorer.runs import SPLITS, ExploredRun
from refusal_lens.models.hook_points import layer_of, site_of
from refusal_lens.validation.scores import SCORES

SCALES = {"raw": "projection", "cosine": "cosine"}
"""What numbers can be looked at, and what they are called."""

LISTS = ("all", "selected", "flipped", "misread")
"""Which prompts are listed: `flipped` are those that a moved threshold calls otherwise, `misread`
those on the wrong side of it."""


MAX_SELECTED = 100_000
"""Rows that an address may select."""


@dataclass(frozen=True)
class View:
    """All that the page shows.

    `hook_point` and `position` are the place, `other_*` the one it is compared with. `threshold` is
    None where it has not been moved. `selected` are rows of the run's prompts.
    """

    run: str = ""
    hook_point: str = ""
    position: str = ""
    method: str = ""
    scale: str = "raw"
    split: str = "class"
    score: str = "separation"
    threshold: float | None = None
    other_hook_point: str = ""
    other_position: str = ""
    category: str = ""
    text: str = ""
    listed: str = "all"
    selected: tuple[int, ...] = ()

    @property
    def is_cosine(self) -> bool:
        """The numbers shown are cosines."""
        return self.scale == "cosine"

    @property
    def ruler(self) -> tuple[str, ...]:
        """What a threshold is bound to: on another ruler its number means nothing."""
        return self.run, self.hook_point, self.position, self.method, self.scale

    def to_search(self) -> str:
        """Write the view as the search part of an address; what is as it starts is left out."""
        start = View()
        given = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != getattr(start, field.name)
        }
        if "selected" in given:
            given["selected"] = write_rows(self.selected)
        return f"?{urlencode(given)}"

    @classmethod
    def from_search(cls, search: str | None) -> "View":
        """Read a view from an address; what cannot be read is as it starts."""
        names = {field.name for field in fields(cls)}
        found = parse_qs((search or "").removeprefix("?"))
        given: dict[str, str] = {
            name: values[-1] for name, values in found.items() if name in names
        }
        return cls(**{name: _READERS.get(name, str)(text) for name, text in given.items()})

    @classmethod
    def from_store(cls, stored: Mapping[str, object] | None) -> "View":
        """Read a view that travelled as JSON."""
        given = dict(stored or {})
        return cls(**given | {"selected": tuple(given.get("selected", ()))})  # pyright: ignore


def not_shown(path: str | None, search: str | None, view: View) -> str:
    """Say what of an address the page, at "/" alone, cannot show; "" where it shows all."""
    wanted = View.from_search(search)
    known = {field.name for field in fields(View)}
    missed = [f"page {path}"] if path not in (None, "", "/") else []
    for name, values in parse_qs((search or "").removeprefix("?")).items():
        is_known = name in known and getattr(wanted, name) not in (None, ())
        if not is_known or getattr(wanted, name) != getattr(view, name):
            missed.append(f"{name} {values[-1]}")
    if not missed:
        return ""
    asked = ", ".join(part if len(part) <= 80 else f"{part[:79]}…" for part in missed)
    return f"The address asks for {asked}: there is no such thing here, so the nearest is shown."


def nearest_view(view: View, runs: Mapping[str, ExploredRun]) -> View:
    """Return the nearest view that the runs can show.

    Another run may lack a site, layer or position, and an address may say anything.
    """
    run = runs.get(view.run) or next(iter(runs.values()))
    hook_point, position = _place(run, view.hook_point, view.position, run.best)
    other = _place(
        run, view.other_hook_point, view.other_position, _beside(run, hook_point, position)
    )
    n_prompts = len(run.prompts)
    return replace(
        view,
        run=run.name,
        hook_point=hook_point,
        position=position,
        method=_one_of(view.method, run.methods, run.run_method),
        scale=_one_of(view.scale, SCALES, "raw"),
        split=_one_of(view.split, run.splits, SPLITS[0]),
        score=_one_of(view.score, SCORES, SCORES[0]),
        other_hook_point=other[0],
        other_position=other[1],
        category=_one_of(view.category, run.categories, ""),
        listed=_one_of(view.listed, LISTS, LISTS[0]),
        selected=tuple(row for row in view.selected if 0 <= row < n_prompts),
    )


def _place(
    run: ExploredRun, hook_point: str, position: str, fallback: tuple[str, str]
) -> tuple[str, str]:
    """Return a place of the run: the one wanted, the nearest layer of its site, or the fallback."""
    if hook_point not in run.hook_points:
        hook_point = run.nearest(site_of(hook_point), layer_of(hook_point)) or fallback[0]
    return hook_point, _one_of(position, run.positions, fallback[1])


def _beside(run: ExploredRun, hook_point: str, position: str) -> tuple[str, str]:
    """Return a place to compare with: the same position halfway down the layers.

    The first two have none halfway but the first, whose numbers say little: theirs is the middle,
    or the first where they are it.
    """
    names = run.hook_points_of(site_of(hook_point))
    index = names.index(hook_point)
    half = index // 2 or len(names) // 2
    return names[half if half != index else 0], position


def _one_of(wanted: str, there: Iterable[str], fallback: str) -> str:
    return wanted if wanted in there else fallback


# --- rows and numbers in addresses -------------------------------------------------------------


def write_rows(rows: Iterable[int]) -> str:
    """Write rows as ranges.

    Example:
        >>> write_rows([7, 1, 2, 3])
        '1-3,7'
    """
    runs: list[list[int]] = []
    for row in sorted(set(rows)):
        if runs and row == runs[-1][1] + 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read_rows(text: str) -> tuple[int, ...]:
    """Read ranges of rows, `MAX_SELECTED` at most; parts that are none are passed over.

    Example:
        >>> read_rows("1-3,7,x")
        (1, 2, 3, 7)
    """
    rows: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", part)
        if match is not None:
            first, last = int(match[1]), int(match[2] or match[1])
            rows.update(range(first, min(last + 1, first + MAX_SELECTED - len(rows))))
    return tuple(sorted(rows))


def read_number(text: str) -> float | None:
    """Read a finite number; None where there is none.

    Example:
        >>> read_number("-0.5"), read_number("nan"), read_number("high")
        (-0.5, None, None)
    """
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


_READERS = {"threshold": read_number, "selected": read_rows}
