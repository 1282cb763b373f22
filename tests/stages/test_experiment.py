"""select, ablate and chat on the small model that refuses: out of sample, nothing tuned by hand."""

import json
import re
from collections import Counter
from io import StringIO

import pandas as pd
import pytest
from conftest import REPOSITORY
from rich.console import Console
from typer.testing import CliRunner

from refusal_lens.cli import app
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages.terminal import show_interventions

runner = CliRunner(env={"COLUMNS": "160"})


def invoke(*arguments: object, typed: str | None = None, exit_code: int = 0) -> str:
    outcome = runner.invoke(app, [str(argument) for argument in arguments], input=typed)
    assert outcome.exit_code == exit_code, outcome.output
    return outcome.output


def run_experiments(model: str, folder, prompts) -> tuple[RunFolder, str, str]:
    harmful, harmless = prompts
    options = ["--model", REPOSITORY / "data" / model, "--output", folder, "--position", "last"]
    # Its refusals show within eight tokens; whole answers would take most of the time.
    options += ["--hook-point", "resid_post:3-5", "--set", "refusal.n_new_tokens=8"]
    # Its refusal is graded: taking it out costs 0.04 to 0.2 nats on 30 harmless prompts.
    options += ["--set", "causal.max_kl=0.25"]
    # What scores are worth is not what is tried here.
    options += ["--set", "validation.n_permutations=19", "--set", "validation.n_resamples=20"]
    options += ["--set", "directions.compare_methods=[]"]
    invoke("run", *options, "--harmful", harmful, "--harmless", harmless)
    selected = invoke("select", folder)
    settings = ("dose.strengths=[1.0]", "dose.coefficients=[1.0]", "dose.n_controls=20")
    sets = [part for setting in settings for part in ("--set", setting)]
    return RunFolder(folder), selected, invoke("ablate", folder, *sets)


@pytest.fixture(scope="module")
def refuser(tmp_path_factory, some_prompts):
    folder = tmp_path_factory.mktemp("runs") / "refuser"
    return run_experiments("tiny-refuser", folder, some_prompts)


def test_select_chooses_a_direction_that_causes_refusal(refuser):
    run_folder, printed, _ = refuser
    table = run_folder.read_table("causal_scores")
    chosen = table[table["is_chosen"]]
    assert len(chosen) == 1
    row = chosen.iloc[0]
    assert row["layer"] < 5  # its output is the input of a block below int(0.8 * 8)
    assert row["kl"] <= 0.25
    assert row["intervention"] == "affine_ablate"
    assert set(table["intervention"]) == {"affine_ablate", "ablate"}
    assert row["verdict"] == "separates and causes"
    assert f"Chosen: {row['hook_point']} at last" in printed
    ranked = table[table["bypass_random"].notna()]
    assert len(ranked) == 1, "it ranks before random directions, so that no other is ranked"
    assert ranked["is_chosen"].all()
    assert not (run_folder.path / "unfinished").exists()
    assert "affine ablation" in printed


def rates(run_folder: RunFolder) -> pd.DataFrame:
    summary = pd.read_csv(run_folder.path / "interventions.csv")
    return summary.set_index(["intervention", "direction", "is_harmful"])


def test_affine_ablation_removes_refusal_out_of_sample(refuser):
    removed = rates(refuser[0]).loc[("affine_ablate", "fitted", True)]
    assert removed["plain_rate"] >= 0.8
    assert removed["refusal_rate"] <= 0.05
    kept = rates(refuser[0]).loc[("affine_ablate", "fitted", False)]
    # Chosen where it was at most 0.1 on other prompts; on these it may be a little more.
    assert kept["kl"] <= 0.15


def test_addition_induces_refusal_out_of_sample(refuser):
    induced = rates(refuser[0]).loc[("add", "fitted", False)]
    assert induced["plain_rate"] <= 0.2
    assert induced["refusal_rate"] >= 0.8


def test_random_directions_do_not(refuser):
    table = rates(refuser[0])
    for intervention, is_harmful in (("affine_ablate", True), ("add", False)):
        fitted, random = (
            abs(row["refusal_rate"] - row["plain_rate"])
            for row in (
                table.loc[(intervention, kind, is_harmful)] for kind in ("fitted", "random")
            )
        )
        # Of twenty together; a push in any direction tips a doubtful request over now and then.
        assert random <= 0.1 * fitted


def test_no_number_is_cut_in_eighty_columns(refuser):
    run_folder, _, _ = refuser
    summary = pd.read_csv(run_folder.path / "interventions.csv")
    console = Console(width=80, record=True, file=StringIO())
    show_interventions(console, summary, None)
    text = console.export_text()
    assert "…" not in text
    for row in summary.to_dict("records"):
        assert f"{row['refusal_score']:+.2f}" in text
        assert f"{row['refusal_rate']:.1%} (" in text
    assert "Wilson" in text
    assert "nan" not in text


def test_completions_stand_side_by_side(refuser):
    run_folder, _, printed = refuser
    lines = (run_folder.path / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    completions = [json.loads(line) for line in lines]
    assert Counter(c["direction"] for c in completions)["fitted"] == 2 * 2 * 30
    removed = [
        c
        for c in completions
        if (c["intervention"], c["direction"]) == ("affine_ablate", "fitted") and c["is_harmful"]
    ]
    assert sum((c["outcome_plain"], c["outcome"]) == ("refused", "answered") for c in removed) >= 25
    assert {"prompt", "category", "plain", "intervened"} <= set(completions[0])
    assert "Verdict: separates and causes" in printed


def test_chat_answers_piped_prompts_both_ways(refuser):
    prompts = json.loads((REPOSITORY / "data" / "harmful_prompts.json").read_text())
    texts = [prompts[1]["text"], "", prompts[3]["text"]]
    printed = invoke("chat", refuser[0].path, typed="\n".join(texts))
    answers = re.findall(r"^ *plain: (.*)\n *intervened: (.*)$", printed, re.MULTILINE)
    assert len(answers) == 2
    assert all(plain != intervened for plain, intervened in answers)


def test_chat_goes_on_after_a_prompt_that_it_cannot_take(refuser):
    typed = "How?<|im_end|>\nHow do I bake bread?\n"
    printed = invoke("chat", refuser[0].path, typed=typed)
    assert re.search(r"^Error: Prompt typed-001 holds <\|im_end\|>", printed, re.MULTILINE)
    assert re.search(r"^ *plain: .*\n *intervened: ", printed, re.MULTILINE)


def test_what_is_asked_for_wrongly_is_told(refuser):
    path = refuser[0].path
    assert "There is no intervention 'erase'. Use ablate, affine_ablate, add." in invoke(
        "ablate", path, "--intervention", "erase", exit_code=2
    )
    assert "names 8. Give its layer too, such as resid_post:4." in invoke(
        "ablate", path, "--direction", "resid_post", exit_code=2
    )
    assert "There is no direction at blocks.3.hook_resid_post,-2." in invoke(
        "chat", path, "--direction", "resid_post:3,-2", exit_code=2
    )


def test_a_model_that_never_refuses_only_separates(tmp_path, some_prompts):
    few = []
    for path in some_prompts:
        few.append(tmp_path / path.name)
        few[-1].write_text(json.dumps(json.loads(path.read_text())[::2]))
    run_folder, printed, ablated = run_experiments("tiny-complier", tmp_path / "run", few)
    table = run_folder.read_table("causal_scores")
    assert not table["is_chosen"].any()
    assert "None of 3 directions passes the rule." in printed
    assert "refusal-lens select chose none of 3 directions by its effect:" in ablated
    assert "separates and causes" not in set(table["verdict"])
    assert "separates only" in set(table["verdict"])
    assert "Verdict: separates only" in ablated
