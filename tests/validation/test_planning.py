"""Planned intervals are as wide as those of the runs that were planned."""

import numpy as np
import pytest
import torch

from refusal_lens.activations.pooled import Activations
from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.groups import Groups
from refusal_lens.validation.planning import (
    Pilot,
    plan_table,
    planned_topics,
    planned_width,
    read_pilot,
)
from refusal_lens.validation.separation import validate


def draw(n_topics: int, n_pairs: int, seed: int) -> Activations:
    """Twins in topics of both classes: a topic moves all its prompts by 0.7 of their spread."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.arange(n_topics).repeat_interleave(n_pairs)
    values = torch.randn(2, n_topics * n_pairs, 6, generator=generator)
    values += 0.7 * torch.randn(2, n_topics, 6, generator=generator)[:, topic]
    values[0, :, 0] += 1.5
    pair = torch.arange(n_topics * n_pairs)
    groups = Groups(pair.repeat(2), topic.repeat(2), torch.arange(2 * len(pair)))
    is_harmful = torch.arange(2 * len(pair)) < len(pair)
    names = ("blocks.0.hook_resid_post",)
    return Activations(values.reshape(-1, 1, 1, 6), is_harmful, names, ("last",), {}, groups)


def measure(activations: Activations, score: str) -> tuple[Pilot, float]:
    separation, projections = validate(activations, n_repeats=2, n_resamples=60)
    one = separation.headline[score]
    ends = float(one.value), float(one.low), float(one.high)
    margins = projections.values[:, 0, 0] - projections.thresholds[0, 0]
    pilot = read_pilot(score, ends, margins, activations.is_harmful, activations.groups)
    return pilot, ends[2] - ends[1]


@pytest.mark.parametrize("score", ["auroc", "cohens_d"])
def test_the_planned_width_is_the_mean_width_of_what_was_planned(score):
    pilots = [measure(draw(12, 6, seed), score) for seed in range(16)]
    for pilot, width in pilots:
        assert planned_width(pilot, 12, 6) == pytest.approx(width, rel=1e-6)
    for size in ((36, 6), (12, 24)):
        planned = np.array([planned_width(pilot, *size) for pilot, _ in pilots])
        came = np.array([measure(draw(*size, seed), score)[1] for seed in range(100, 106)])
        error = np.sqrt(planned.var(ddof=1) / len(planned) + came.var(ddof=1) / len(came))
        assert abs(planned.mean() - came.mean()) < 3 * error
        # Four times the prompts of the same topics, or three times the topics: not as before.
        assert came.mean() < 0.9 * np.mean([width for _, width in pilots])


def test_the_fewest_topics_are_planned_and_none_where_no_number_is_enough():
    pilot = Pilot("auroc", 0.8, 0.002, 0.5, 11.0, 12, 6.0, True)
    n = planned_topics(pilot, 0.1, 6)
    assert n is not None
    assert planned_width(pilot, n, 6) <= 0.1 < planned_width(pilot, n - 1, 6)
    assert planned_topics(pilot, 1e-4, 6) is None
    table = plan_table(pilot, [0.1])
    assert table["n_per_topic"].tolist() == [6, 3]
    assert table["n_topics"].tolist()[0] == n
    # More topics of fewer prompts: fewer prompts in all.
    assert table["n_topics"].is_monotonic_increasing
    assert table["n_per_class"].is_monotonic_decreasing


def test_too_few_topics_are_no_pilot():
    activations = draw(4, 6, 0)
    with pytest.raises(RefusalLensError, match="too few groups for an interval: 4 of at least 5"):
        measure(activations, "auroc")
