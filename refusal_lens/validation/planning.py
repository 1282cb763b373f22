"""How many prompts and topics an interval of a width asked for takes, told from a pilot.

Knows how the variance of a score falls with topics and with prompts a topic. Collects nothing.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.groups import Groups, n_groups
from refusal_lens.validation.scores import interval, no_interval, score_with_influence
from refusal_lens.validation.units import (
    FEWEST_UNITS,
    pair_units,
    topic_units,
    unit_variance,
)

MOST_TOPICS = 10_000
"""More topics than this are no plan."""


@dataclass(frozen=True)
class Pilot:
    """What a pilot tells of a score: how it varies, and how much of that between topics.

    `n_topics` are those of the class that has fewer, `n_per_topic` its pairs (or prompts) in each.
    Where no topics are told, each pair is a topic and `has_topics` False.
    """

    score: str
    value: float
    variance: float
    between_share: float
    freedom: float
    n_topics: int
    n_per_topic: float
    has_topics: bool


def read_pilot(
    score: str,
    ends: tuple[float, float, float],
    margins: Float[Tensor, " n_prompts"],
    is_harmful: Bool[Tensor, " n_prompts"],
    groups: Groups,
) -> Pilot:
    """Take the variance of a pilot's score apart.

    What one prompt adds to the score, summed over whole topics, varies between them by both parts;
    within topics, by the smaller one alone. Both are then scaled to the pilot's own interval, which
    knows of the directions' variance too.

    Args:
        score: `auroc` or `cohens_d`.
        ends: The score at the best place and its interval: of new topics, else of new prompts.
        margins: Held-out projections there, less the threshold.
        is_harmful: Labels.
        groups: What depends on each other.

    Raises:
        RefusalLensError: There are too few topics to tell how much they differ.

    Source:
        Two-stage samples, Cochran 1977, "Sampling Techniques", sec. 10.3: the variance of a mean is
        that between units over their number, and that within over the number of prompts.
    """
    topics, pairs = topic_units(is_harmful, groups), pair_units(is_harmful, groups)
    units = topics or pairs
    n_units = min(units.n_per_class)
    if topics is None and 1 < n_groups(groups.topic) < n_groups(groups.pair):
        n_units = n_groups(groups.component)  # there are topics, but none that can be left out
    if n_units < FEWEST_UNITS or np.isnan(ends).any():
        raise RefusalLensError(
            f"These prompts are no pilot to plan from: {no_interval(n_units)}. Collect one on "
            "more topics, with a few prompts each (refusal-lens run --limit 60), and plan from it."
        )
    column = margins.double()[:, None]
    _, influence = score_with_influence(column, column, is_harmful)
    variance, freedom = unit_variance(influence[score], units)
    within, _ = unit_variance(influence[score], pairs)
    share = 1.0 if topics is None else max(0.0, 1 - within.item() / variance.item())
    n_pairs = min(pairs.n_per_class)
    pilot = Pilot(
        score,
        ends[0],
        variance.item(),
        share,
        freedom.item(),
        n_units,
        n_pairs / n_units,
        topics is not None,
    )
    found = ends[2] - ends[1]

    def excess(log_variance: float) -> float:
        trial = replace(pilot, variance=math.exp(log_variance))
        return planned_width(trial, n_units, pilot.n_per_topic) - found

    low, high = -40.0, 10.0
    if excess(low) >= 0:  # as narrow as so many units allow, whatever they say
        return pilot
    root: Any = brentq(excess, low, high)
    return replace(pilot, variance=math.exp(root))


def planned_width(pilot: Pilot, n_topics: int, n_per_topic: int | float) -> float:
    """Return how wide the 95 % interval would be, were the score that of the pilot.

    `n_topics` are those of each class, `n_per_topic` the prompts of a class in each.
    """
    growth, depth = n_topics / pilot.n_topics, n_per_topic / pilot.n_per_topic
    parts = pilot.between_share + (1 - pilot.between_share) / depth
    low, high = interval(
        pilot.score,
        torch.tensor([pilot.value]),
        torch.tensor([pilot.variance * parts / growth]),
        torch.tensor([pilot.freedom * growth]),
        n_topics,
    )
    return (high - low).item()


def planned_topics(pilot: Pilot, width: int | float, n_per_topic: int | float) -> int | None:
    """Return the fewest topics whose interval is so narrow; None where 10,000 are not enough."""
    numbers = range(FEWEST_UNITS, MOST_TOPICS + 1)
    first = bisect_left(
        numbers, True, key=lambda n_topics: planned_width(pilot, n_topics, n_per_topic) <= width
    )
    return numbers[first] if first < len(numbers) else None


def plan_table(pilot: Pilot, widths: Sequence[float]) -> pd.DataFrame:
    """Return one row a width and number of prompts a topic: as in the pilot, and half as many.

    Returns:
        `width`, `n_per_topic`, `n_topics` of each class (NaN where 10,000 are not enough) and
        `n_per_class`, the prompts of each class in all.
    """
    whole = max(1, round(pilot.n_per_topic))
    rows = []
    for width in widths:
        for n_per_topic in dict.fromkeys([whole, max(1, whole // 2)]):
            n_topics = planned_topics(pilot, width, n_per_topic) or np.nan
            rows.append((width, n_per_topic, n_topics, n_topics * n_per_topic))
    columns = pd.Index(["width", "n_per_topic", "n_topics", "n_per_class"])
    return pd.DataFrame(rows, columns=columns)
