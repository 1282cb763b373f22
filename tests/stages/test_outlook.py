"""What is said of a run before it begins."""

import io
from time import perf_counter

from planted_run import make_run
from rich.console import Console
from typer.testing import CliRunner

from refusal_lens.activations.collection import Collection
from refusal_lens.cli import app
from refusal_lens.stages import outlook, terminal
from refusal_lens.validation.planning import planned_topics


def collection_of(model, prompts, **options):
    return Collection.of(model.tokenizer, prompts, "resid_post", ["last", "-2"], **options)


def test_work_is_counted_in_prompts_tokens_and_bytes(model, prompts):
    collection = collection_of(model, prompts, dtype="bfloat16")
    seen = outlook.look_ahead(collection, model, ["answers", "activations"], 24)
    assert (seen.n_harmful, seen.n_harmless) == (4, 4)
    assert seen.n_tokens == sum(map(len, collection.tokens.ids))
    n_layers, d_model = model.cfg.n_layers, model.cfg.d_model
    assert seen.stored_bytes == 8 * n_layers * 2 * d_model * 2
    assert len(seen.hook_points) == n_layers
    assert seen.model.n_parameters == sum(each.numel() for each in model.parameters())
    assert seen.model.n_bytes == 4 * seen.model.n_parameters


def test_time_is_that_of_the_tokens_timed_times_all(model, prompts, monkeypatch):
    # A model in which every token takes a second: eight prompts and a token more of each.
    clock = iter([0.0, float(sum(collection_of(model, prompts).tokens.lengths) + 8)])
    monkeypatch.setattr(outlook, "perf_counter", lambda: next(clock))
    collection = collection_of(model, prompts)
    seen = outlook.look_ahead(collection, model, ["answers", "activations"], 24)
    # All are read for activations, answered, and searched for refusal tokens.
    assert seen.seconds == 3 * seen.n_tokens + 8 * 24


def test_timing_takes_little(model, prompts):
    collection = collection_of(model, prompts)
    start = perf_counter()
    seen = outlook.look_ahead(collection, model, ["answers"], 2000)
    assert perf_counter() - start < max(5.0, seen.seconds)


def test_workers_models_are_not_timed(model, prompts):
    seen = outlook.look_ahead(collection_of(model, prompts), None, ["activations"], 24)
    assert seen.seconds is None
    assert seen.model is None
    console = Console(width=80, record=True, file=io.StringIO())
    terminal.show_outlook(console, seen, "some/model", ())
    assert "some/model, loaded by workers" in console.export_text()


def test_memory_that_does_not_hold_a_few_prompts_is_no_error(model, prompts, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(outlook, "generate_greedily", fail)
    seen = outlook.look_ahead(collection_of(model, prompts), model, ["answers"], 24)
    assert seen.seconds is None


def test_a_pilot_says_what_a_narrow_interval_takes_and_few_topics_that_they_cannot(tmp_path):
    run = make_run(tmp_path / "run")
    outcome = CliRunner().invoke(app, ["plan", str(run.path), "--width", "0.05"])
    assert outcome.exit_code == 0, outcome.output
    pilot = outlook.run_pilot(run, "auroc")
    n = planned_topics(pilot, 0.05, 1)
    told = " ".join(outcome.output.split())
    assert told.endswith(f"An AUROC interval 0.05 wide takes {n} new prompts a side.")
    few = make_run(tmp_path / "few", categories=["one", "two", "three"])
    outcome = CliRunner().invoke(app, ["plan", str(few.path)])
    assert outcome.exit_code == 2
    assert "no pilot to plan from: too few groups" in " ".join(outcome.output.split())
