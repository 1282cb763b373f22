"""The command line as its user meets it, on the small model that comes with the package."""

import inspect
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, save_activations
from explored_run import make_run
from typer.testing import CliRunner

import refusal_lens as rl
from refusal_lens.activations import store
from refusal_lens.activations.store import load_activations
from refusal_lens.cli import app, directions, new
from refusal_lens.config import ModelConfig
from refusal_lens.config_files import load_config
from refusal_lens.journal import Journal
from refusal_lens.models.generation import generate_greedily
from refusal_lens.report import build_report
from refusal_lens.report.answer import answer
from refusal_lens.report.evidence import gather
from refusal_lens.runs.figures import draw_figure
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages.study import new_run_folder

runner = CliRunner(env={"COLUMNS": "160"})


def invoke(*arguments: str, exit_code: int = 0) -> str:
    outcome = runner.invoke(app, [str(argument) for argument in arguments])
    assert outcome.exit_code == exit_code, outcome.output
    return outcome.output


QUICK = ("--set", "validation.n_permutations=19", "--set", "validation.n_resamples=20")


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The run without arguments, and what it printed in 80 columns."""
    folder = tmp_path_factory.mktemp("runs") / "default"
    done = subprocess.run(
        [sys.executable, "-m", "refusal_lens", "run", "--output", folder],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return RunFolder(folder), done.stdout


def test_default_run_finds_the_refusal_direction(default_run):
    run_folder, printed = default_run
    valid, n_layers = re.search(r"Valid layers: (\d)/(\d)", printed).groups()
    assert int(valid) >= 6
    assert n_layers == "8"
    best = torch.load(run_folder.direction_path, weights_only=True)
    scores = best["validation"][best["best_layer"]]
    assert scores["separation"] >= 0.5
    assert scores["accuracy"] >= 0.85
    rates = json.loads((run_folder.path / "refusal.json").read_text())["refusal_rate"]
    # It is unsure of the doubtful ones, as its card says.
    assert 0.85 <= rates["harmful"] <= 0.97
    assert 0.02 <= rates["harmless"] <= 0.1
    assert f"Where? Layer {best['best_layer']}." in printed
    assert "Checklist: 4 of 4 passed." in printed


def test_default_run_prints_what_the_user_is_to_see_in_order(default_run):
    printed = default_run[1]
    places = [
        printed.index(text)
        for text in (
            *("model ", "prompts ", "reads ", " minute", "refuses  "),
            *("Is there a direction? Yes.", "Where? Layer", "Can it be trusted?"),
            *("Layers of resid_post at last", "Valid layers", "Checklist"),
            "Report: ",
        )
    ]
    assert places == sorted(places)
    assert printed.rstrip().endswith(str(default_run[0].path / "report.html"))


def test_what_only_reads_a_run_starts_without_transformer_lens(default_run, tmp_path):
    run_folder = default_run[0].path
    commands = [
        ["inspect", str(run_folder / "directions.safetensors")],
        ["plot", str(run_folder), "--output", str(tmp_path)],
        ["report", str(run_folder)],
        ["compare", str(run_folder), "--output", str(tmp_path)],
    ]
    code = (
        "import sys; from refusal_lens.cli import app\n"
        f"for command in {commands}: app(command, standalone_mode=False)\n"
        "print('modules:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.rpartition("modules:")[2].split()
    assert "refusal_lens.report.page" in modules, "what was run must have been run here"
    assert not {"transformer_lens", "umap"} & set(modules)


def test_default_run_fits_a_screen(default_run):
    # It once printed 125 lines and no answer, some of them 250 characters long.
    run_folder, printed = default_run
    lines = printed.splitlines()
    assert len(lines) <= 45
    assert not [line for line in lines if len(line) > 80 and str(run_folder.path) not in line]
    assert len(re.findall(r"^ +\d+ .*[✓✗]", printed, re.MULTILINE)) == 8


def test_intervals_and_scores_in_sample_come_with_wide(default_run, tmp_path):
    assert "[..]: 95 % interval" not in default_run[1]
    folder = tmp_path / "run"
    options = ("--hook-point", "resid_post:1", "--position", "mean", "--wide")
    printed = invoke("collect", "--output", folder, *options)
    assert "quartile" in printed
    assert "Prompts that depend on each other: 184 pairs" in printed
    assert "as attention sinks" in printed
    printed = invoke("fit", folder, "--wide", *QUICK)
    row = RunFolder(folder).read_separation().iloc[0]
    # In 80 columns a cell folds behind the comma.
    assert f"{row['separation']:.3f} [{row['separation_low']:.3f}," in printed
    assert f"{row['separation_high']:.3f}] ({row['separation_in_sample']:.3f})" in printed


def test_run_folder_holds_everything(default_run):
    run_folder, printed = default_run
    names = {path.name for path in run_folder.path.iterdir()}
    assert names == {
        *("config.yaml", "provenance.json", "prompts.json", "refusal.json", "activations"),
        "checksums.json",
        *("directions.safetensors", "projections.safetensors"),
        *("refusal_direction.pt", "separation.csv", "tables"),
        *("projection_histogram.html", "layer_profile.html", "report.html"),
    }
    frame = pd.read_csv(run_folder.separation_path)
    assert len(frame) == 16
    for name in ("nulls", "stability", "learning_curve", "layer_cosines", "nested_choice"):
        assert len(run_folder.read_table(name)) > 0
    provenance = run_folder.read_provenance()
    assert provenance["model"]["weights_sha256"]
    assert provenance["versions"]["transformer-lens"].startswith("3.")


def test_scores_come_with_interval_and_p_value(default_run):
    run_folder, printed = default_run
    frame = run_folder.read_separation()
    for name in ("separation", "accuracy", "balanced_accuracy", "auroc", "cohens_d"):
        assert (frame[f"{name}_low"] <= frame[name]).all()
        assert (frame[name] <= frame[f"{name}_high"]).all()
    # The two layers before the decision are near chance; all others beat every shuffle.
    assert frame[frame["layer"] >= 2]["p_value"].to_numpy() == pytest.approx(1 / 1001)
    assert (frame["p_value"] <= frame["p_value_corrected"]).all()
    where = answer(gather(run_folder))[1]
    assert re.search(r"\d of 15 choices made on part of the prompts", where.more)
    assert "four times in five" in " ".join(printed.split())
    assert "There is no direction here" not in printed


def test_shuffled_labels_give_no_direction(default_run, tmp_path):
    texts = [prompt.text for prompt in default_run[0].read_prompts().prompts]
    random.Random(0).shuffle(texts)
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file, some in zip(files, (texts[:192], texts[192:]), strict=True):
        file.write_text("\n".join(some))
    folder = tmp_path / "run"
    invoke("collect", "--harmful", files[0], "--harmless", files[1], "--output", folder)
    printed = invoke("fit", folder)
    assert "with exchanged labels the best of all places does as well in" in " ".join(
        printed.split()
    )
    frame = RunFolder(folder).read_separation()
    assert frame["p_value_corrected"].min() > 0.05
    # Below one half they may lie: a held-out prompt is what the fitting prompts of its class lack.
    assert not (frame["auroc_low"] > 0.5).any()


def test_fit_leaves_its_tables(default_run):
    run_folder, printed = default_run
    names = {path.stem for path in (run_folder.path / "tables").iterdir()}
    assert names >= {
        *("methods", "confounds", "coordinates", "clip_sweep", "categories", "misread"),
        *("transfer", "cosines", "length_correlations", "near_duplicates", "token_counts"),
    }
    methods = run_folder.read_table("methods")
    assert methods["auroc"].min() > 0.9
    best = run_folder.read_directions().provenance["best"]
    assert set(methods["hook_point"]) == {best["hook_point"]}
    confounds = run_folder.read_table("confounds").set_index("feature")
    assert confounds.loc["direction", "auroc_low"] > 0.9
    assert confounds.drop("direction")["auroc"].max() < 0.8
    assert "the direction may be" not in printed
    counts = run_folder.read_table("token_counts")
    assert counts["prompt_id"].tolist()[::383] == ["harmful-001", "harmless-192"]
    # The shipped template: three tokens before the text and five after it.
    assert (counts["n_tokens"] - counts["n_own_tokens"]).nunique() == 1


def test_other_way_to_fit_is_used_everywhere(default_run, tmp_path):
    folder = tmp_path / "refit"
    subprocess.run(["cp", "-r", default_run[0].path, folder], check=True)
    options = ("directions.method=lda", "directions.compare_methods=[]")
    invoke("fit", folder, *QUICK, *(part for each in options for part in ("--set", each)))
    refit, first = RunFolder(folder), default_run[0]
    assert refit.read_directions().method == "lda"
    best = refit.read_directions().provenance["best"]
    place = best["hook_point"], best["position"]
    turned = refit.read_directions()[place].unit @ first.read_directions()[place].unit
    assert turned.item() < 0.9
    assert refit.separation_path.read_text() != first.separation_path.read_text()


def test_classes_that_differ_in_length_are_said_to(tmp_path):
    for name, end in (("long", " and tell me all about it"), ("short", "")):
        lines = [
            f"Paint the {word} door{end}"
            for word in ("red", "blue", "old", "new", "big", "tall", "wide", "wet", "dry", "hot")
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    printed = invoke(
        *(
            "run",
            "--harmful",
            tmp_path / "long.txt",
            "--harmless",
            tmp_path / "short.txt",
            "--wide",
        ),
        *("--output", tmp_path / "run", "--hook-point", "resid_post:5", "--position", "last"),
        # All are of one frame, which would leave a single unit to deal.
        *("--set", "prompts.groups=off"),
    )
    assert "The number of tokens alone tells the classes apart as well as the" in printed


def test_figures_need_no_network(default_run):
    for name in ("projection_histogram", "layer_profile"):
        page = (default_run[0].path / f"{name}.html").read_text(encoding="utf-8")
        assert "Plotly.newPlot" in page
        assert not re.search(r'<(script|link)[^>]*(src|href)=["\']http', page)


def test_stages_one_at_a_time_give_what_the_run_gave(default_run, tmp_path):
    whole = default_run[0]
    staged = RunFolder(tmp_path / "staged")
    invoke("collect", "--output", staged.path)
    assert "Answers: " in invoke("refusal-rate", staged.path)
    printed = invoke("fit", staged.path)
    invoke("plot", staged.path)
    assert "Report: " in invoke("report", staged.path)
    assert "Where? Layer " in printed
    # Each found its own token budget: other batches differ in their last bits.
    pd.testing.assert_frame_equal(staged.read_separation(), whole.read_separation(), rtol=1e-4)
    assert {path.name for path in staged.path.iterdir()} == {
        path.name for path in whole.path.iterdir()
    }


def test_another_clip_needs_no_new_forward_pass(default_run, tmp_path):
    folder = tmp_path / "refit"
    subprocess.run(["cp", "-r", default_run[0].path, folder], check=True)
    invoke("fit", folder, *QUICK, "--set", "directions.clip_quantile=null")
    refit, first = RunFolder(folder), default_run[0]
    assert refit.read_config().directions.clip_quantile is None
    assert refit.read_directions().clip_quantile is None
    assert refit.separation_path.read_text() != first.separation_path.read_text()


def test_directions_of_behaviour_are_fitted_by_stored_answers(tmp_path):
    """Terminal and page say what the labels are; a run whose model refuses too little is named."""
    folder = make_run(tmp_path / "run", is_answered=True, is_fitted=False)
    shown = invoke("fit", str(folder.path), "--set", "directions.labels=behaviour", *QUICK)
    told = "The labels are what the model did: 20 refused and 60 answered prompts"
    assert told in " ".join(shown.split())
    assert folder.read_projections().is_harmful.tolist() == [True] * 20 + [False] * 60
    prompts, stored = folder.read_prompts(), folder.stored_prompts()
    assert (len(prompts.harmful), len(stored.harmful)) == (20, 40)
    page = build_report(folder).read_text(encoding="utf-8")
    assert f"{told}, harmful and harmless alike." in page
    assert "20 refused, 60 answered" in page
    figure = draw_figure(folder, "projection_histogram")
    assert [trace.name for trace in figure.data if trace.showlegend] == [
        "answered (60)",
        "refused (20)",
    ]
    # What prompts are stands in figures of what the model does with them.
    by_topic = draw_figure(folder, "refusal_by_topic")
    assert {bars.name for bars in by_topic.data} == {"harmful", "harmless"}
    assert draw_figure(folder, "roc").layout.xaxis.title.text == "answered called refused (%)"

    folder = make_run(tmp_path / "few", n=18, is_answered=True)
    said = invoke("fit", str(folder.path), "--set", "directions.labels=behaviour", exit_code=2)
    assert "of 36 only 9 were refused" in " ".join(said.split())
    assert folder.read_config().directions.labels == "harm"


def test_subset_of_layers_needs_no_new_forward_pass(default_run, tmp_path):
    folder = tmp_path / "refit"
    subprocess.run(["cp", "-r", default_run[0].path, folder], check=True)
    printed = invoke("fit", folder, *QUICK, "--set", 'directions.hook_points=["resid_post:2-4"]')
    assert "Valid layers: 3/3" in printed
    refit, first = RunFolder(folder).read_separation(), default_run[0].read_separation()
    shared = first[first.layer.isin([2, 3, 4])].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        refit[["hook_point", "separation_in_sample"]],
        shared[["hook_point", "separation_in_sample"]],
    )
    printed = invoke("fit", folder, "--set", "directions.hook_points=[attn_out]", exit_code=2)
    assert "holds only what was collected. Hook point blocks.0.hook_attn_out" in printed


def test_model_that_never_refuses_is_said_at_the_top_and_in_the_diagnosis(tmp_path, some_prompts):
    harmful, harmless = some_prompts
    options = ["--model", REPOSITORY / "data/tiny-complier", "--output", tmp_path / "run", *QUICK]
    options += ["--hook-point", "resid_post:4", "--set", "refusal.n_new_tokens=8"]
    printed = invoke("run", *options, "--harmful", harmful, "--harmless", harmless)
    printed = " ".join(printed.split())
    told, remedy = "There is no refusal to find: the model refuses 0%", "Use a model that refuses"
    assert printed.count(told) == 1
    assert printed.index(told) < printed.index("Layers of resid_post")
    assert printed.index(remedy) > printed.index("Checklist")


def test_what_commands_write_without_being_told_where_lies_where_git_does_not_look():
    ignored = (REPOSITORY / ".gitignore").read_text().split()
    compared = inspect.signature(directions.compare).parameters["output"].default
    for path in (compared, new.CONFIG, load_config(None).output):
        assert f"{Path(path).parts[0]}/" in ignored


def test_second_run_takes_the_next_free_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        invoke("collect", "--hook-point", "resid_post:1", "--position", "last")
    runs = sorted(path.name for path in (tmp_path / "outputs/tiny-refuser").iterdir())
    assert runs == ["default", "default-2"]


def test_options_reach_the_config(tmp_path):
    folder = tmp_path / "run"
    options = ("--hook-point", "attn_out:2", "--position", "-2", "--position", "mean")
    invoke("collect", "--output", folder, *options, "--set", "collect.token_budget=999")
    collected = RunFolder(folder).read_config().collect
    assert (collected.hook_points, collected.positions) == (["attn_out:2"], ["-2", "mean"])
    assert collected.token_budget == 999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./missing"], "The model folder ./missing does not exist"),
        (["--harmful", "missing.json"], "missing.json"),
        (["--hook-point", "resid_past"], "Hook point resid_past cannot be collected: this model"),
        (["--position", "first"], "There is no position 'first'."),
        (["--set", "directions.clip=1"], "the closest is directions.clip_quantile"),
        (["nonsense"], "one of the shipped"),
    ],
)
def test_mistakes_end_in_one_sentence_and_leave_nothing_behind(tmp_path, arguments, message):
    folder = tmp_path / "run"
    printed = invoke("run", *arguments, "--output", folder, exit_code=2)
    assert message in printed
    assert "Traceback" not in printed
    assert not folder.exists()


def test_prompt_file_with_a_mistake_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"How do I wash a car?\nCaf\xe9\n")
    printed = invoke("run", "--harmless", path, "--output", tmp_path / "run", exit_code=2)
    assert f"{path}:2" in printed


@pytest.mark.parametrize(
    "texts", [["The same?"] * 9, [f"Kill person number {i}?" for i in range(9)]]
)
@pytest.mark.parametrize("arguments", [["run"], ["collect"], ["collect", "--engine", "ray"]])
def test_prompts_that_give_no_scores_are_refused_before_the_model_is_loaded(
    tmp_path, texts, arguments, monkeypatch
):
    monkeypatch.setattr(ModelConfig, "load", None)
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(texts))
    printed = invoke(*arguments, "--harmful", path, "--output", tmp_path / "run", exit_code=2)
    assert "need at least 2 prompts of each class that do not depend" in printed
    assert not (tmp_path / "run").exists()


def test_stage_on_a_folder_that_is_no_run(tmp_path):
    assert "is not a run folder" in invoke("fit", tmp_path, exit_code=2)


def test_folders_that_are_missing_are_named_with_the_nearest(default_run):
    folder = default_run[0].path
    typo = folder.parent / "defualt"
    for arguments in (["run", "--resume", "--output", typo], ["plot", typo], ["ablate", typo]):
        printed = " ".join(invoke(*arguments, exit_code=2).split())
        assert f"There is no folder {typo}" in printed
        assert f"the nearest there is {folder}" in printed
    assert not typo.exists()


def test_settings_are_named_as_they_are_typed(tmp_path):
    options = ("--set", "prompts.harmful_text_field=none", "--output", tmp_path / "run")
    assert "Set prompts.harmful_text_field to" in invoke("run", *options, exit_code=2)


def test_one_word_stands_for_a_list_of_it():
    words = ["directions.hook_points=resid_mid", "collect.positions=-1"]
    config = load_config(None, words)
    assert config.directions.hook_points == ["resid_mid"]
    assert config.collect.positions == ["-1"]


def test_a_quick_look_takes_whole_topics(tmp_path):
    folder = tmp_path / "run"
    printed = invoke("collect", "--limit", 40, "--hook-point", "resid_post:1", "--output", folder)
    assert "36 harmful and 36 harmless" in printed
    assert len(RunFolder(folder).read_prompts().harmful) == 36


def test_places_can_be_told_apart_in_80_columns(default_run):
    path = default_run[0].path / "directions.safetensors"
    printed = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["inspect", str(path)]).output
    rows = re.findall(r"^ *resid_post (\d+) +(last|mean) .*\d\.\d{3}", printed, re.MULTILINE)
    assert rows == [(str(layer), at) for layer in range(8) for at in ("last", "mean")]


def test_run_folder_is_not_overwritten(default_run):
    folder = default_run[0].path
    printed = invoke("run", "--output", folder, exit_code=2)
    assert f"{folder} holds a run already. Go on with it by --resume" in printed


def test_resume_needs_a_folder():
    assert "Add --output RUN." in invoke("run", "--resume", exit_code=2)


def test_resumed_run_keeps_what_is_there(default_run, tmp_path):
    first = default_run[0].path
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", first, folder], check=True)
    (folder / "separation.csv").unlink()
    kept = ("refusal.json", "provenance.json", "activations/shard-00000.safetensors")
    before = [(folder / name).stat().st_mtime_ns for name in kept]
    printed = invoke("run", "--resume", "--output", folder)
    assert [(folder / name).stat().st_mtime_ns for name in kept] == before
    assert (folder / "separation.csv").read_text() == (first / "separation.csv").read_text()
    assert "refuses  9" in printed
    assert "Where? Layer " in printed
    # Answers are there: only activations are still to be done.
    assert "answers of" not in printed


def test_a_finished_run_is_kept_as_it_is(default_run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", default_run[0].path, folder], check=True)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    printed = invoke("run", "--resume", "--output", folder)
    assert "Finished already, and kept: fit, plot, report." in printed
    again = {p for p in before if p.stat().st_mtime_ns != before[p]}
    # What the run was begun with is compared, and written as it was.
    begun = ("config.yaml", "prompts.json", "tables/token_counts.csv", "checksums.json")
    assert again <= {folder / name for name in begun}
    # A figure that is damaged is drawn again; the report has its own.
    (folder / "layer_profile.html").write_text("damaged")
    assert "kept: fit, report." in invoke("run", "--resume", "--output", folder)
    # Other answers are another beginning.
    invoke("refusal-rate", folder, "--set", "refusal.n_new_tokens=2")

    def refit(*_arguments, **_options):
        raise rl.RefusalLensError("It is fitted anew.")

    monkeypatch.setattr("refusal_lens.stages.study.fit_stage", refit)
    printed = invoke("run", "--resume", "--output", folder, exit_code=2)
    assert "It is fitted anew." in printed


def test_interrupted_answers_are_kept_and_gone_on_with(tmp_path, some_prompts, monkeypatch):
    options = ["--hook-point", "resid_post:2", "--set", "refusal.n_new_tokens=4"]
    for name, path in zip(("--harmful", "--harmless"), some_prompts, strict=True):
        options += [name, path]
    monkeypatch.setattr("refusal_lens.experiments.answers.ANSWER_BUDGET", 512)
    for name in ("whole", "stopped"):
        invoke("collect", *options, "--output", tmp_path / name)
    invoke("refusal-rate", tmp_path / "whole")
    asked = []

    def stop_at_third(model, tokens, n_new_tokens, hooks):
        asked.append(n_new_tokens)
        # Finding the refusal tokens asks for one token.
        if asked.count(4) == 3:
            raise KeyboardInterrupt
        return generate_greedily(model, tokens, n_new_tokens, hooks)

    generate = "refusal_lens.experiments.answers.generate_greedily"
    with monkeypatch.context() as patched:
        patched.setattr(generate, stop_at_third)
        assert " Go on: " in invoke("refusal-rate", tmp_path / "stopped", exit_code=130)
    kept = tmp_path / "stopped" / "unfinished" / "refusal-rate.jsonl"
    assert len(Journal(kept)) == 2
    asked.clear()

    def count(model, tokens, n_new_tokens, hooks):
        asked.append(n_new_tokens)
        return generate_greedily(model, tokens, n_new_tokens, hooks)

    monkeypatch.setattr(generate, count)
    invoke("refusal-rate", tmp_path / "stopped")
    whole, stopped = (tmp_path / name / "refusal.json" for name in ("whole", "stopped"))
    assert stopped.read_bytes() == whole.read_bytes()
    assert not kept.parent.exists()
    n_resumed = asked.count(4)
    asked.clear()
    invoke("refusal-rate", tmp_path / "whole")
    assert n_resumed == asked.count(4) - 2


def test_borderline_prompts_are_answered_and_read_as_all_others(tmp_path, some_prompts):
    """Planted: half of them are harmful prompts of this model's, and it refuses those."""
    texts = []
    for name in ("harmful", "harmless"):
        whole = json.loads((REPOSITORY / "data" / f"{name}_prompts.json").read_text())
        texts += [each["text"] if isinstance(each, dict) else each for each in whole[:24:2]]
    rows = [{"text": text, "category": f"topic {i % 12}"} for i, text in enumerate(texts)]
    asked, run = tmp_path / "borderline.json", tmp_path / "run"
    asked.write_text(json.dumps(rows))
    options = ["--hook-point", "resid_post:2", "--set", "refusal.n_new_tokens=8"]
    for name, path in zip(("--harmful", "--harmless"), some_prompts, strict=True):
        options += [name, path]
    invoke("collect", *options, "--output", run)
    setting = f"prompts.borderline={asked}"
    shown = " ".join(invoke("refusal-rate", run, "--set", setting).split())
    folder = RunFolder(run)
    # The same prompts as classes of their own are the same to the model.
    contrast = rl.ContrastSet.from_texts(texts[:12], texts[12:])
    model = ModelConfig().load()
    kept = folder.read_borderline()
    like = rl.measure_refusal(model, contrast, folder.read_config().refusal)
    assert [a.answer for a in kept.answers] == [a.answer for a in like.answers]
    assert [a.outcome for a in kept.answers] == [a.outcome for a in like.answers]
    assert kept.refusal_ids == folder.read_refusal().refusal_ids
    read = rl.collect(model, contrast, "resid_post:2", ["last", "mean"])
    stored = load_activations(folder.borderline_path)
    torch.testing.assert_close(stored.values, read.values, rtol=1e-4, atol=1e-4)
    n_refused = sum(a.outcome == "refused" for a in like.answers)
    assert 0 < n_refused < 24
    assert "Of 24 borderline prompts, which sound harmful and are not, the model refuses " in shown
    assert f"the model refuses {n_refused / 24:.0%} (" in shown
    invoke("refusal-rate", run, "--set", setting)  # measured again, it is what it was
    assert folder.read_borderline().answers == kept.answers


def test_borderline_prompts_are_the_third_class_beside_harm_and_refusal(tmp_path):
    """Planted: they lie where the harmful prompts lie, and were in no fit."""
    folder = make_run(tmp_path / "run", is_answered=True, is_fitted=False)
    setting = ("--set", "prompts.borderline=b.json")
    said = invoke("fit", str(folder.path), *QUICK, *setting, exit_code=2)
    assert "prompts.borderline is b.json" in said
    assert "refusal-rate" in said
    assert folder.read_config().prompts.borderline is None
    whole, refusal = folder.stored_activations(), folder.read_refusal()
    # Half of the harmful prompts' own copies: refused ones, every second.
    rows = list(range(20))
    answers = tuple(
        replace(a, is_harmful=False, prompt_id=f"borderline-{a.prompt_id}")
        for a in refusal.answers[:20]
    )
    nobody = replace(whole.take(rows), is_harmful=torch.zeros(20, dtype=torch.bool))
    save_activations(folder.borderline_path, nobody)
    folder.write_borderline(replace(refusal, answers=answers))
    told = " ".join(invoke("fit", str(folder.path), *QUICK, *setting).split())
    sentence = "Of 20 borderline prompts, which sound harmful and are not, the model refuses 50% ("
    assert sentence in told
    table = folder.read_table("quadrants")
    assert table["class"].value_counts().to_dict() == {
        "harmful": 40,
        "harmless": 40,
        "borderline": 20,
    }
    third = table[table["class"] == "borderline"]
    assert third["outcome"].tolist() == [a.outcome for a in answers]
    assert (third["harm"] > 0).mean() > 0.9
    page = build_report(folder).read_text(encoding="utf-8")
    assert sentence in page
    assert 'id="table-over_refusal"' in page
    names = {trace.name for trace in draw_figure(folder, "quadrants").data}
    assert {"borderline, refused (10)", "borderline, answered (10)"} <= names


def test_damaged_prompts_are_named_and_come_back_by_what_the_message_says(default_run, tmp_path):
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", default_run[0].path, folder], check=True)
    path = folder / "prompts.json"
    whole = path.read_text()
    path.write_text(whole.replace("How", "Now", 1))
    (folder / ".report.html.x1.partial").write_text("killed")
    printed = invoke("collect", "--resume", "--output", folder, exit_code=2)
    assert "prompts.json is not what the run wrote" in " ".join(printed.split())
    path.unlink()
    invoke("collect", "--resume", "--output", folder)
    assert path.read_text() == whole
    assert not list(folder.glob(".*"))


def test_resume_with_other_settings_says_which(default_run):
    folder = default_run[0].path
    options = ("--position", "last", "--set", "collect.token_budget=99")
    printed = invoke("collect", "--resume", "--output", folder, *options, exit_code=2)
    assert f"{folder} was begun with other settings:" in printed
    assert "collect.positions: ['last', 'mean'] there, ['last'] here" in printed
    assert "collect.token_budget: None there, 99 here" in printed
    assert "collect.hook_points" not in printed


def test_prompt_file_that_changed_since_is_refused(default_run, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("\n".join(f"How do I paint door {number}?" for number in range(40)))
    folder = tmp_path / "run"
    invoke("collect", "--harmless", mine, "--output", folder, "--hook-point", "resid_post:1")
    before = (folder / "prompts.json").read_text()
    mine.write_text(mine.read_text().replace("door 7?", "wall 7?"))
    printed = invoke("collect", "--resume", "--output", folder, exit_code=2)
    assert "was begun with other prompts:" in printed
    assert re.search(
        r"harmless: 40 prompts \(sha256 \w{8}\) there, 40 prompts \(sha256 \w{8}\) here", printed
    )
    assert (folder / "prompts.json").read_text() == before


SLOW_SHARDS = """
import time
import refusal_lens as rl
from refusal_lens.activations import store
store.SHARD_PROMPTS = 16
write_shard = store.Store.write_shard
def slowly(*arguments, **options):
    write_shard(*arguments, **options)
    time.sleep(0.1)
store.Store.write_shard = slowly
from refusal_lens.cli import main
main()
"""


def test_killed_collection_resumes_to_the_same_bits(tmp_path, monkeypatch):
    options = ["collect", "--hook-point", "resid_post:0-2", "--set", "collect.token_budget=512"]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SHARDS, *options, "--output", str(killed)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    while not (killed / "activations/shard-00002.json").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stderr.close()
    n_done = len(list((killed / "activations").glob("*.safetensors")))
    printed = invoke("fit", killed, exit_code=2)
    assert "is not finished: it has " in printed
    invoke("collect", "--resume", "--output", killed)
    monkeypatch.setattr(store, "SHARD_PROMPTS", 16)
    invoke(*options, "--output", tmp_path / "whole")
    whole = RunFolder(tmp_path / "whole")
    assert torch.equal(RunFolder(killed).read_activations().values, whole.read_activations().values)
    n_shards = len(list(whole.activations_path.glob("*.safetensors")))
    assert 3 <= n_done < n_shards


def test_interrupt_says_what_is_left(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "refusal_lens", "run", "--output", str(folder)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    while not (folder / "prompts.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted." in said
    # A run that had got further listed some thirty files.
    kept = rf"{re.escape(str(folder))} keeps \d+ files? \(\d+\.\d MB\)\. "
    assert re.search(rf"{kept}Go on: refusal-lens run --resume --output {folder}$", said.strip())
    assert "Traceback" not in said
    assert not list(Path(folder).rglob("*.partial"))


def test_the_folder_of_a_run_has_names_that_windows_takes(tmp_path):
    settings = load_config(None, [f"output={tmp_path}", "model.name=hub/qwen:7b."])
    assert new_run_folder(settings, "aux", None).path == tmp_path / "qwen_7b" / "_aux"
