"""Budgets that were found before: kept by case, found again, and never in the way."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from refusal_lens import collect
from refusal_lens.models import batching, known_budgets
from refusal_lens.models.batching import run_in_batches
from refusal_lens.models.known_budgets import Found, KnownBudget, _cache_folder

FOUND = Found(512, True, 1.0)
CFG = SimpleNamespace(n_layers=2, d_model=8, d_mlp=16, n_heads=2, d_vocab=9, device="cpu", dtype=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(known_budgets, "_cache_folder", lambda: tmp_path)
    return tmp_path / "token_budgets"


@pytest.fixture
def clock(monkeypatch):
    """A machine on which batches of 512 tokens are fastest."""
    now = [0.0]
    monkeypatch.setattr(batching.time, "perf_counter", lambda: now[0])

    def run(rows):
        size = len(rows) * 8
        now[0] += size * (512 / size if size <= 512 else 2 * size / 512)

    return run


def test_a_second_run_begins_with_what_the_first_one_found(folder, clock):
    known, sizes = KnownBudget.of(CFG, "fast", 8), []

    def run(rows):
        sizes.append(len(rows) * 8)
        clock(rows)

    run_in_batches([8] * 2000, run, known=known)
    assert (sizes[0], known.recall()) == (256, Found(512, True, 1.0))
    sizes.clear()
    assert run_in_batches([8] * 2000, run, known=known).token_budget == 512
    assert set(sizes[:-1]) == {512}


def test_short_runs_go_on_with_the_search_where_the_last_one_ended(folder, clock):
    known = KnownBudget.of(CFG, "fast", 8)
    for n_prompts, expected in [
        (64, Found(512, False, 0.5)),  # two batches of 256 tokens: the first one warms up
        (128, Found(1024, False, 1.0)),
        (256, Found(512, True, 1.0)),  # 1,024 are half as fast
        (256, Found(512, True, 1.0)),
    ]:
        run_in_batches([8] * n_prompts, clock, known=known)
        assert known.recall() == expected


def test_another_model_machine_or_length_is_another_case(folder, monkeypatch):
    known = KnownBudget.of(CFG, "fast", 20)
    known.keep(FOUND)
    assert KnownBudget.of(CFG, "fast", 31).recall() == FOUND
    wider = SimpleNamespace(**{**vars(CFG), "d_model": 16})
    half = SimpleNamespace(**{**vars(CFG), "dtype": torch.bfloat16})
    for other in (wider, half):
        assert KnownBudget.of(other, "fast", 20).recall() is None
    assert KnownBudget.of(CFG, "fast", 32).recall() is None
    assert KnownBudget.of(CFG, "TransformerLens", 20).recall() is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert KnownBudget.of(CFG, "fast", 20).recall() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"token_budget": 0, "is_final": true, "rate": 1.0}',
        '{"token_budget": "512"}',
        "\xff",
    ],
)
def test_damage_is_as_if_nothing_were_there(folder, text):
    known = KnownBudget.of(CFG, "fast", 8)
    known.keep(FOUND)
    known.file.write_bytes(text.encode("latin-1"))
    assert known.recall() is None


def test_what_is_old_is_measured_anew(folder):
    known = KnownBudget.of(CFG, "fast", 8)
    known.keep(FOUND)
    old = time.time() - known_budgets.SECONDS_KEPT - 60
    os.utime(known.file, (old, old))
    assert known.recall() is None


def test_a_folder_that_cannot_be_written_to_stops_nothing(folder):
    folder.write_text("a file where the folder should be")
    known = KnownBudget.of(CFG, "fast", 8)
    known.keep(FOUND)
    assert known.recall() is None


def test_a_budget_that_memory_set_is_not_kept(folder):
    def run(rows):
        if len(rows) > 3:
            raise MemoryError

    known = KnownBudget.of(CFG, "fast", 8)
    run_in_batches([8] * 200, run, known=known)
    assert known.recall() is None


def test_a_budget_that_is_given_is_neither_changed_nor_kept(folder, clock):
    known = KnownBudget.of(CFG, "fast", 8)
    known.keep(Found(64, True, 1.0))
    assert run_in_batches([8] * 100, clock, token_budget=128, known=known).token_budget == 128
    assert known.recall() == Found(64, True, 1.0)


def test_collecting_takes_it_and_says_so(folder, model, prompts):
    options = {"positions": "last", "show_progress": False}
    first = collect(model, prompts, "resid_post", **options)
    budget = first.provenance["collection"]["token_budget"]
    assert budget == batching.CPU_BUDGETS[0]  # one batch: nothing was measured
    assert not folder.exists()
    n_tokens = first.provenance["collection"]["n_tokens"] // len(prompts)
    KnownBudget.of(model.cfg, "fast", n_tokens).keep(Found(48, True, 1.0))
    second = collect(model, prompts, "resid_post", **options)
    assert second.provenance["collection"]["token_budget"] == 48


def test_the_folder_is_that_of_the_users_caches(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert _cache_folder() == Path("/somewhere/refusal_lens")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert _cache_folder() == Path.home() / ".cache/refusal_lens"
