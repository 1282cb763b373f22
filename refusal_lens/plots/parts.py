"""What figures tell prompts apart by: their class alone, or what became of the request too.

Knows labels and how each looks. Draws nothing.

Tested in tests/plots/test_histogram.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from refusal_lens.plots.style import CLASSES, Classes, ClassStyle

_OUTCOMES = ("answered", "neither", "refused")
"""From the lowest row of marks to the highest."""

_LOOKS = {
    "answered": ({True: "#E69F00", False: "#56B4E9"}, "", "dash", -0.3),
    "neither": ({True: "#7A5C00", False: "#5B6B7A"}, ".", "dot", 0.0),
    "refused": ({}, "/", "solid", 0.3),
}
"""Colours by class (of Okabe and Ito's neighbours of the class's own, which the refused keep),
pattern, dash, and how far the marks stand from the class's row."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A label each prompt, and how the prompts of each label look. No label is without prompts."""

    styles: tuple[ClassStyle, ...]
    labels: Int[Tensor, " n_prompts"]
    is_by_outcome: bool = False

    @property
    def classes(self) -> tuple[ClassStyle, ...]:
        """How the classes look: as the parts, unless these are finer."""
        return CLASSES if self.is_by_outcome else self.styles

    def rows(self, label: int) -> list[int]:
        """Return the rows of one part, in order."""
        return (self.labels == label).nonzero().flatten().tolist()


def mark_rows(parts: Parts) -> dict[str, Any]:
    """Return the ticks of an axis whose rows are the parts; finer ones with their numbers."""
    names = [style.name for style in parts.styles]
    if parts.is_by_outcome:
        names = [f"{name} ({len(parts.rows(label))})" for label, name in enumerate(names)]
    heights = [style.row for style in parts.styles]
    size = 10 if parts.is_by_outcome else 12
    return {"tickvals": heights, "ticktext": names, "tickfont": {"size": size}}


def by_class(is_harmful: Bool[Tensor, " n_prompts"], classes: Classes = CLASSES) -> Parts:
    """Tell prompts apart by their class."""
    return Parts(classes, is_harmful.long())


def by_outcome(is_harmful: Bool[Tensor, " n_prompts"], outcomes: Sequence[str]) -> Parts:
    """Tell prompts apart by class and by what the model did: refused, answered, or neither.

    Neither is what is evaded, broken or unjudged.
    """
    told = [outcome if outcome in _OUTCOMES else "neither" for outcome in outcomes]
    pairs = list(zip(is_harmful.tolist(), told, strict=True))
    kinds = [(c.is_harmful, outcome) for c in CLASSES for outcome in _OUTCOMES]
    there = [kind for kind in kinds if kind in set(pairs)]
    styles = tuple(_style(CLASSES[int(is_harmful)], outcome) for is_harmful, outcome in there)
    return Parts(styles, torch.tensor([there.index(pair) for pair in pairs]), is_by_outcome=True)


def ways_to_split(
    is_harmful: Bool[Tensor, " n_prompts"],
    outcomes: Sequence[str] | None,
    classes: Classes = CLASSES,
) -> list[Parts]:
    """Return the ways that prompts can be told apart, by class first.

    By outcome too, where outcomes are known and one class at least has more than one.
    """
    coarse = by_class(is_harmful, classes)
    if outcomes is None:
        return [coarse]
    finer = by_outcome(is_harmful, outcomes)
    return [coarse, finer] if len(finer.styles) > len(coarse.styles) else [coarse]


def _style(of_class: ClassStyle, outcome: str) -> ClassStyle:
    colours, pattern, dash, above = _LOOKS[outcome]
    colour = colours.get(of_class.is_harmful, of_class.colour)
    return replace(
        of_class,
        name=f"{of_class.name}, {outcome}",
        colour=colour,
        outline="white" if outcome == "answered" else colour,
        pattern=pattern,
        dash=dash,
        row=of_class.row + above,
    )
