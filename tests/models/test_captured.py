"""Flags that a device sets are seen by the host; a graph itself needs CUDA."""

import pytest
import torch

from refusal_lens.models.captured import LOOKS_EVERY, Flags, captured

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_on_the_cpu_flags_are_seen_at_once():
    flags = torch.tensor([True, False])
    assert Flags(torch.device("cpu")).look(flags).tolist() == [True, False]


@needs_cuda
def test_on_cuda_flags_are_seen_one_look_later():
    device = torch.device("cuda")
    flags, is_set = Flags(device), torch.tensor([False, True], device=device)
    seen = [flags.look(is_set) for _ in range(2 * LOOKS_EVERY)]
    assert [look is None for look in seen] == [True] * (2 * LOOKS_EVERY - 1) + [False]
    assert seen[-1].tolist() == [False, True]
    flags.forget()
    assert [flags.look(is_set) for _ in range(LOOKS_EVERY)] == [None] * LOOKS_EVERY


@needs_cuda
def test_a_captured_step_goes_on_where_the_last_one_ended():
    count = torch.zeros(1, dtype=torch.long, device="cuda")
    seen = torch.zeros(5, dtype=torch.long, device="cuda")

    def step():
        seen.index_copy_(0, count, count * count)
        count.add_(1)

    step()
    again = captured(step, torch.device("cuda"))
    for _ in range(4):
        again()
    assert seen.tolist() == [0, 1, 4, 9, 16]
