"""A study set up by questions."""

import yaml
from typer.testing import CliRunner

from refusal_lens.cli import app, new
from refusal_lens.config_files import load_config
from refusal_lens.stages import study


def ask(monkeypatch, tmp_path, answers, *arguments):
    """Answer as on a terminal; return what was printed and the settings that were run."""
    monkeypatch.setattr(new, "is_terminal", lambda: True)
    monkeypatch.chdir(tmp_path)
    run = []
    monkeypatch.setattr(study, "run", lambda settings, *_: run.append(settings))
    outcome = CliRunner().invoke(app, list(arguments), input="".join(f"{a}\n" for a in answers))
    return outcome, run


def test_answers_become_a_config_with_comments_and_are_run(monkeypatch, tmp_path):
    (tmp_path / "mine.csv").write_text("text\n")
    answers = ["some/model", "nowhere.json", "mine.csv", ""]
    outcome, run = ask(monkeypatch, tmp_path, answers, "new")
    assert outcome.exit_code == 0, outcome.output
    assert "There is no file nowhere.json" in outcome.output
    text = (tmp_path / "outputs" / "refusal_lens.yaml").read_text()
    assert text.count("#") > 40
    expected = load_config(None, ["model.name=some/model", "prompts.harmful=mine.csv"])
    assert run == [expected]
    assert load_config(tmp_path / "outputs" / "refusal_lens.yaml") == expected


def test_a_config_that_is_there_is_not_written_over(monkeypatch, tmp_path):
    (tmp_path / "a.yaml").write_text("output: mine\n")
    outcome, run = ask(monkeypatch, tmp_path, [], "new", "--output", "a.yaml")
    assert outcome.exit_code == 2
    assert "a.yaml exists" in outcome.output
    assert not run


def test_nothing_is_asked_on_a_pipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Usage" in CliRunner().invoke(app, []).output
    outcome = CliRunner().invoke(app, ["new"])
    assert outcome.exit_code == 2
    assert "no terminal to ask on" in outcome.output
    assert not list(tmp_path.iterdir())


def test_values_that_yaml_would_read_otherwise_stay_texts():
    text = new.set_key("model:\n  name: a\nprompts:\n  name: b\n", "model.name", "yes: #1")
    assert yaml.safe_load(text) == {"model": {"name": "yes: #1"}, "prompts": {"name": "b"}}
