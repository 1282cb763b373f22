"""Moments merge exactly, whatever the shards."""

import pytest
import torch

from refusal_lens.activations.moments import ClassMoments, class_moments


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n_shards", [2, 3, 7])
def test_moments_of_shards_merge_to_those_of_the_whole(n_shards):
    values = torch.randn(50, 3, 2, 5, generator=generator(), dtype=torch.float64) + 1e3
    merged = None
    for shard in values.tensor_split(n_shards):
        part = class_moments(shard)
        merged = part if merged is None else merged.merge(part)
    whole = class_moments(values)
    assert merged.count == 50
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.m2, whole.m2, rtol=1e-9, atol=0)
    torch.testing.assert_close(whole.m2 / 49, values.var(dim=0), rtol=1e-9, atol=0)


def test_merging_with_nothing_changes_nothing():
    some = class_moments(torch.ones(3, 2))
    none = ClassMoments(0, torch.zeros(2).double(), torch.zeros(2).double())
    for merged in (some.merge(none), none.merge(some)):
        assert merged.count == 3
        torch.testing.assert_close(merged.mean, some.mean)
    assert none.merge(none).count == 0


def test_means_keep_digits_that_float32_would_lose():
    values = torch.full((10_001, 1), 1e4)
    values[0] += 1.0
    exact = 1e4 + 1 / 10_001
    assert class_moments(values).mean.item() == pytest.approx(exact, rel=1e-12)
    assert values.mean().item() != pytest.approx(exact, rel=1e-12)
