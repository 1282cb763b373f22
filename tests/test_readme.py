"""The README's commands and example are what the package does."""

import re

import pytest
import torch
from conftest import REPOSITORY

import refusal_lens
from refusal_lens import ContrastSet, PromptSet

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_library_example_runs_and_does_what_it_says(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    example = python_blocks()[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 14
    names: dict = {}
    exec(example, names)
    harmful = names["activations"].is_harmful
    lengths = names["lengths"]
    assert lengths[harmful].mean() > lengths[~harmful].mean()
    # Ablated at every layer's output, nothing is left along the direction.
    left = names["ablated"].at(names["direction"].hook_point, "last") @ names["direction"].unit
    torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-3, rtol=0)
    assert len(names["figure"].data) > 0


def test_experiments_example_removes_and_induces_refusal(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    example = next(block for block in python_blocks() if "rl.causal_scores" in block)
    read = refusal_lens.read_contrast

    def read_some(*files):
        whole = read(*files)
        return ContrastSet(
            PromptSet("harmful", whole.harmful.prompts[::3]),
            PromptSet("harmless", whole.harmless.prompts[::3]),
        )

    # A third of the prompts will do, and takes a third of the time.
    monkeypatch.setattr(refusal_lens, "read_contrast", read_some, raising=False)
    names: dict = {}
    exec(example, names)
    assert names["plain"].rate(True) >= 0.9
    assert names["removed"] <= 0.05
    assert names["plain"].rate(False) <= 0.05
    assert names["induced"] >= 0.8


def test_every_option_that_the_readme_names_exists(monkeypatch):
    from typer.testing import CliRunner

    from refusal_lens.cli import app

    runner = CliRunner(env={"COLUMNS": "200"})
    shown = "".join(runner.invoke(app, [name, "--help"]).output for name in ("run", "ablate"))
    for option in set(re.findall(r"(--[a-z-]+)", "".join(re.findall(r"refusal-lens .*", README)))):
        assert option in shown


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(link):
    assert (REPOSITORY / link).exists()
