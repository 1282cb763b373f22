"""`judge` as its user meets it: a sheet is drawn, filled in, and read back."""

import pandas as pd
import pytest
from planted_run import make_run
from typer.testing import CliRunner

from refusal_lens.cli import app
from refusal_lens.config_files import load_config
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages.study import measure_and_store

runner = CliRunner(env={"COLUMNS": "160"})


def invoke(*arguments: object, exit_code: int = 0) -> str:
    outcome = runner.invoke(app, ["judge", *(str(argument) for argument in arguments)])
    assert outcome.exit_code == exit_code, outcome.output
    return outcome.output


@pytest.fixture
def run_folder(tmp_path):
    texts = ["=1+1 and so on", *(f"bad {n}" for n in range(39))], [f"good {n}" for n in range(40)]
    return make_run(tmp_path / "run", texts=texts, n_refused=20)


@pytest.mark.parametrize(
    ("separator", "first", "encoding"),
    [
        (",", "", "utf-8"),
        (";", "", "utf-8-sig"),  # Excel, where the comma stands in numbers
        (";", "sep=;\r\n", "utf-8"),
        ("\t", "sep=\t\n", "utf-8"),
        ("\t", "", "utf-16"),  # Excel's "Unicode text"
    ],
)
def test_a_sheet_goes_out_is_filled_in_and_corrects_the_rates(
    run_folder, separator, first, encoding
):
    printed = invoke(run_folder.path, "--sheet", 80)
    file = run_folder.path / "answers_to_read.csv"
    assert "--labels" in printed
    sheet = pd.read_csv(file, keep_default_na=False)
    assert "'=1+1 and so on" in sheet["prompt"].tolist()
    answers = {(a.prompt_id, a.is_harmful): a.outcome for a in run_folder.read_refusal().answers}
    keys = zip(sheet["prompt_id"], sheet["class"] == "harmful", strict=True)
    sheet["label"] = [answers[key] for key in keys]
    file.write_bytes((first + sheet.to_csv(sep=separator, index=False)).encode(encoding))
    printed = invoke(run_folder.path, "--labels", file)
    assert "80 answers read. Cohen's kappa 1.00." in printed
    rates = run_folder.read_table("corrected_rates").set_index(["is_harmful", "outcome"])
    assert rates.loc[(True, "refused"), "rate"] == 0.5
    confusion = run_folder.read_table("judge_confusion")
    assert confusion["n_judged"].sum() == 80


def test_a_sheet_in_another_encoding_says_how_to_save_it(run_folder, tmp_path):
    (tmp_path / "sheet.csv").write_bytes("prompt_id;class;label\ncaf\u00e9;;\n".encode("cp1252"))
    printed = invoke(run_folder.path, "--labels", tmp_path / "sheet.csv", exit_code=2)
    assert "saved as CSV UTF-8" in " ".join(printed.split())


def test_a_sheet_that_may_be_filled_in_is_not_written_over(run_folder):
    invoke(run_folder.path, "--sheet", 10)
    (run_folder.path / "answers_to_read.csv").write_text("somebody's labels")
    printed = invoke(run_folder.path, "--sheet", 10, exit_code=2)
    assert "may have labels in it" in " ".join(printed.split())
    assert (run_folder.path / "answers_to_read.csv").read_text() == "somebody's labels"


def test_another_judge_reads_the_same_answers(run_folder, tmp_path, monkeypatch):
    (tmp_path / "lax_judges.py").write_text("def never(prompt, answer):\n    return 'answered'\n")
    monkeypatch.syspath_prepend(tmp_path)
    invoke(run_folder.path, "--against", "python:lax_judges.never")
    table = run_folder.read_table("judge_agreement").set_index("is_harmful")
    assert table.loc[True, "share"] == 0.5
    assert table.loc[True, "refused_other"] == 0


def test_it_asks_what_to_do(run_folder):
    assert "Give --sheet 60" in invoke(run_folder.path, exit_code=2)


def test_the_refusal_rate_goes_by_the_judge_of_the_settings(model, prompts, tmp_path, monkeypatch):
    (tmp_path / "strict_judges.py").write_text("def always(prompt, answer):\n    return True\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = ["refusal.judge=python:strict_judges.always", "refusal.n_new_tokens=2"]
    run_folder = RunFolder(tmp_path / "judged")
    report = measure_and_store(load_config(None, settings), run_folder, model, prompts)
    assert report.rate(True) == report.rate(False) == 1.0
