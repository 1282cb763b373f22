"""The README's commands and example are what the package does."""

import re
import warnings

import pytest
import torch
from conftest import REPOSITORY

import refusal_lens as rl

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = sorted((REPOSITORY / "refusal_lens").glob("**/README.md"))
ROOMS = [path for path in PAGES if path.parent.name != "formats"]
"""Pages whose examples run as they stand; those of formats need other projects' files."""


def python_blocks() -> list[str]:
    texts = [README, *(path.read_text(encoding="utf-8") for path in PAGES)]
    return re.findall(r"```python\n(.*?)```", "\n".join(texts), re.DOTALL)


def example_with(words: str) -> str:
    return next(block for block in python_blocks() if words in block)


def test_library_example_runs_and_does_what_it_says(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    example = example_with("projection_histogram")
    assert len([line for line in example.splitlines() if line.strip()]) <= 14
    names: dict = {}
    exec(example, names)
    assert names["plain"].rate(is_harmful=True) >= 0.85
    assert names["ablated"].rate(is_harmful=True) <= 0.05
    assert len(names["figure"].data) > 0


def test_every_option_that_the_readme_names_exists(monkeypatch):
    from typer.testing import CliRunner

    from refusal_lens.cli import app

    texts = [README, *(path.read_text(encoding="utf-8") for path in PAGES)]
    for command in re.findall(r"^refusal-lens .*", "\n".join(texts), re.MULTILINE):
        stage = re.findall(r"\S+", command)[1]
        shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [stage, "--help"]).output
        for option in re.findall(r"(--[a-z-]+)", command):
            assert option in shown, command


def test_exchange_example_moves_a_direction_from_one_project_to_another(monkeypatch, tmp_path):
    gguf = pytest.importorskip("gguf")
    monkeypatch.chdir(tmp_path)
    content = torch.arange(1, 1 + 2 * 3 * 8, dtype=torch.float64).reshape(2, 3, 8)
    torch.save(content[:1], "mean_diffs.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rl.RefusalLensWarning)
        exec(example_with("rl.write_directions"), {"rl": rl})
    (tensor,) = gguf.GGUFReader("refusal.gguf").tensors
    # The input of block 2 is the output of block 1.
    assert tensor.name == "direction.1"
    torch.testing.assert_close(torch.tensor(tensor.data.copy()), content[0, 2].float())


def removes_and_induces_refusal_and_sums_to_the_class_difference(names: dict) -> None:
    assert names["plain"].rate(True) >= 0.85
    assert names["removed"] <= 0.05
    assert names["plain"].rate(False) <= 0.1
    assert names["induced"] >= 0.8
    direction, table = names["direction"], names["parts"]
    expected = (direction.vector @ direction.unit.double()).item()
    whole = table[table.category == ""].contribution.sum()
    assert whole == pytest.approx(expected, rel=1e-4)
    assert "Sure" in names["said"].bottom_tokens
    values = names["activations"].at(direction.hook_point, "last")[0].double()
    assert names["tokens"].projections[-1, 0].item() == pytest.approx(
        (values @ direction.unit.double()).item(), rel=1e-4
    )


CLAIMS = {"experiments": removes_and_induces_refusal_and_sums_to_the_class_difference}


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.parent.name)
def test_room_examples_run_and_links_lead_somewhere(path, monkeypatch, tmp_path):
    (tmp_path / "data").symlink_to(REPOSITORY / "data")
    monkeypatch.chdir(tmp_path)
    text, names = path.read_text(encoding="utf-8"), {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    CLAIMS.get(path.parent.name, lambda names: None)(names)
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / link).exists(), link


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(link):
    assert (REPOSITORY / link).exists()
