"""One day and one way to write prompts out, from the first stage of a run to the last."""

from datetime import datetime
from pathlib import Path

import pytest
from conftest import CHATML, HARMFUL, HARMLESS, make_tokenizer, save_checkpoint
from rich.console import Console

from refusal_lens import RefusalLensError, RefusalLensWarning, collect
from refusal_lens.config import Config, EngineConfig
from refusal_lens.config_files import load_config
from refusal_lens.models.backends import tokenizer_of
from refusal_lens.models.loading import load_model
from refusal_lens.prompts.chat_format import date_of, render
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages import study

DATED = "{{ strftime_now('%d %b %Y') + '\n' }}" + CHATML
BEGUN, LATER = "27 Nov 2026\n", "28 Nov 2026\n"


def make_config(folder: Path, template: str, *overrides: str) -> Config:
    if not (folder / "checkpoint").exists():
        save_checkpoint(folder / "checkpoint", "qwen2", make_tokenizer(template=template))
    for name, texts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        (folder / f"{name}.txt").write_text("\n".join(texts))
    files = [f"prompts.{name}={folder / name}.txt" for name in ("harmful", "harmless")]
    model = [f"model.name={folder / 'checkpoint'}", "model.device=cpu"]
    return load_config(None, [*model, *files, "collect.hook_points=[resid_post:1]", *overrides])


def run_collect(config: Config, run_folder: RunFolder, *, resume: bool = False) -> str:
    """Collect as the command does, and return the first prompt as the model saw it."""
    collection, model = study.prepare(config, run_folder, Console(quiet=True), work=["activations"])
    study.collect_stage(config, run_folder, model, collection, Console(quiet=True), resume=resume)
    return tokenizer_of(model).decode(collection.tokens.ids[0])


def test_a_run_goes_on_the_day_after_on_the_day_that_it_began(tmp_path, clock):
    config, run_folder = make_config(tmp_path, DATED), RunFolder(tmp_path / "run")
    assert run_collect(config, run_folder).startswith(BEGUN)
    assert run_folder.read_config().prompts.date == "2026-11-27"
    assert run_folder.read_provenance()["chat_template"]["date"] == "2026-11-27"
    clock.day = datetime(2026, 11, 28, 0, 0, 5)
    study.new_run_folder(config, "default", run_folder.path, resume=True)  # the same settings
    assert run_collect(config, run_folder, resume=True).startswith(BEGUN)
    # Before: without a run that began, the new day is written.
    assert run_collect(config, RunFolder(tmp_path / "other")).startswith(LATER)


def test_later_stages_send_the_prompts_of_the_day_that_the_run_began(tmp_path, clock):
    config, run_folder = make_config(tmp_path, DATED), RunFolder(tmp_path / "run")
    run_collect(config, run_folder)
    clock.day = datetime(2026, 11, 28)
    assert render(tokenizer_of(run_folder.model()), "wash").startswith(BEGUN)


def test_later_stages_write_the_start_of_the_answer(tmp_path):
    config = make_config(tmp_path, CHATML, "prompts.answer_start=Sure,")
    run_folder = RunFolder(tmp_path / "run")
    assert run_collect(config, run_folder).endswith("assistant\nSure,")
    assert render(tokenizer_of(run_folder.model()), "wash").endswith("assistant\nSure,")


def test_a_run_whose_template_writes_no_day_has_none(tmp_path):
    config, run_folder = make_config(tmp_path, CHATML), RunFolder(tmp_path / "run")
    run_collect(config, run_folder)
    assert run_folder.read_config().prompts.date is None


def test_another_day_is_another_run(tmp_path):
    config, run_folder = make_config(tmp_path, DATED), RunFolder(tmp_path / "run")
    run_collect(config, run_folder)
    other = make_config(tmp_path, DATED, "prompts.date=2020-02-02")
    with pytest.raises(RefusalLensError, match="date: .* there, 2020-02-02 here"):
        study.new_run_folder(other, "default", run_folder.path, resume=True)


def test_days_that_are_none_are_refused():
    assert load_config(None, ["prompts.date=2026-02-28"]).prompts.date == "2026-02-28"
    with pytest.raises(RefusalLensError, match="prompts.date.*such as 2026-11-28"):
        load_config(None, ["prompts.date=tomorrow"])


def test_collection_goes_on_the_day_after_in_another_process(tmp_path, clock, prompts):
    make_config(tmp_path, DATED)
    options = {"folder": tmp_path / "store", "show_progress": False}
    first = collect(load_model(tmp_path / "checkpoint", device="cpu"), prompts, **options)
    clock.day = datetime(2026, 11, 28)
    model = load_model(tmp_path / "checkpoint", device="cpu")
    again = collect(model, prompts, resume=True, **options)
    assert again.provenance == first.provenance
    assert date_of(tokenizer_of(model)) == "2026-11-27"


def test_open_reasoning_block_is_told_before_anything_is_read(tmp_path):
    config = make_config(tmp_path, CHATML.replace("assistant\n", "assistant\n<think>\n"))
    with pytest.warns(RefusalLensWarning, match=r"inside a reasoning block \(<think> is opened"):
        study.prepare(
            config, RunFolder(tmp_path / "run"), Console(quiet=True), work=["activations"]
        )


def test_workers_are_sent_prompts_of_the_day_that_the_run_began(tmp_path, clock):
    config, run_folder = make_config(tmp_path, DATED), RunFolder(tmp_path / "run")
    run_collect(config, run_folder)
    clock.day = datetime(2026, 11, 28)
    again = config.model_copy(update={"engine": EngineConfig(name="ray", n_actors=1)})
    collection = study.prepare_without_model(again, run_folder, Console(quiet=True))
    assert tokenizer_of(run_folder.model()).decode(collection.tokens.ids[0]).startswith(BEGUN)
