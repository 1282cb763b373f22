"""Batches: every prompt once, within the budget, split when memory runs out, never a crash."""

import pytest

from refusal_lens.errors import RefusalLensError
from refusal_lens.models import batching
from refusal_lens.models.batching import run_in_batches

LENGTHS = [3, 9, 4, 30, 9, 1]


def run_all(lengths, run=None, **options):
    done: list[list[int]] = []

    def keep(rows):
        if run is not None:
            run(rows)
        done.append(rows)

    return done, run_in_batches(lengths, keep, **options)


def test_every_prompt_once_within_the_budget_longest_first():
    batches, record = run_all(LENGTHS, token_budget=20)
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    sizes = [len(batch) * max(LENGTHS[row] for row in batch) for batch in batches]
    assert all(size <= 20 or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
    assert batches[0] == [3]
    assert (record.token_budget, record.n_tokens) == (20, sum(LENGTHS))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_split_and_tried_again(error):
    def run(rows):
        if len(rows) > 3:
            raise error

    batches, record = run_all([10] * 20, run, token_budget=200)
    assert sorted(row for batch in batches for row in batch) == list(range(20))
    assert {len(batch) for batch in batches} == {2}  # 20 fail, 10 fail, 5 fail, 2 fit
    assert record.token_budget == 20


def test_a_prompt_that_does_not_fit_alone_is_named():
    def run(rows):
        if 3 in rows:
            raise MemoryError

    with pytest.raises(RefusalLensError) as caught:
        run_all(LENGTHS, run, token_budget=100, name_of=lambda row: f"p-{row}")
    assert str(caught.value) == (
        "Prompt p-3 with 30 tokens does not fit in memory on cpu, even alone. Take it out, or use "
        "a smaller dtype or a larger device."
    )


def test_other_errors_are_not_swallowed():
    def run(rows):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        run_all(LENGTHS, run, token_budget=100)


@pytest.mark.parametrize(("fastest", "expected"), [(512, 512), (4096, 1024)])
def test_budget_is_the_fastest_measured(monkeypatch, fastest, expected):
    # Tokens take a time that falls up to the fastest batch size, and rises behind it.
    clock = [0.0]
    monkeypatch.setattr(batching.time, "perf_counter", lambda: clock[0])

    def run(rows):
        size = len(rows) * 8
        slowness = fastest / size if size <= fastest else 2 * size / fastest
        clock[0] += size * slowness

    batches, record = run_all([8] * 2000, run)
    assert sorted(row for batch in batches for row in batch) == list(range(2000))
    assert record.token_budget == expected
    assert len(batches[0]) * 8 == batching.CPU_BUDGETS[0]
