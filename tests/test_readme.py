"""The README's commands and example are what the package does."""

import re

import pytest
import torch
from conftest import REPOSITORY

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


def test_every_option_that_the_readme_names_exists(monkeypatch):
    from typer.testing import CliRunner

    from refusal_lens.cli import app

    runner = CliRunner(env={"COLUMNS": "200"})
    named = re.findall(r"refusal-lens ([a-z-]+)(.*)", README)
    assert {"run", "plot"} <= {command for command, _ in named}
    for command, rest in named:
        shown = runner.invoke(app, [command, "--help"]).output
        for option in re.findall(r"(--[a-z-]+)", rest):
            assert option in shown, f"{command} {option}"


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(link):
    assert (REPOSITORY / link).exists()
