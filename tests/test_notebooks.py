"""The notebooks run as they stand, print where they did, and find what their text says."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

NOTEBOOKS = {path.stem: path for path in sorted((REPOSITORY / "data" / "notebooks").glob("*"))}


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run(name: str, capsys) -> dict[str, Any]:
    """Run every cell in one namespace, as a kernel does, and return it."""
    names: dict[str, Any] = {}
    for cell in code_cells(NOTEBOOKS[name]):
        source = "".join(cell["source"])
        exec(compile(source, f"{name}.ipynb", "exec"), names)
        printed = capsys.readouterr().out.splitlines()
        kept = "".join("".join(output["text"]) for output in cell["outputs"]).splitlines()
        assert len(printed) == len(kept), source
    return names


def test_these_are_the_notebooks():
    assert list(NOTEBOOKS) == [
        "1_first_look",
        "2_compare_hook_points",
        "3_ablation_experiment",
        "4_your_own_model",
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_as_executed_from_top_to_bottom(name):
    cells = code_cells(NOTEBOOKS[name])
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert NOTEBOOKS[name].stat().st_size < 20_000
    for cell in cells:
        calls = ast.walk(ast.parse("".join(cell["source"])))
        prints = any(isinstance(node, ast.Name) and node.id == "print" for node in calls)
        assert prints == bool(cell["outputs"])


def test_first_look_finds_refusal_and_where_it_stands(capsys):
    names = run("1_first_look", capsys)
    assert names["report"].rate(True) - names["report"].rate(False) > 0.8
    assert names["table"]["auroc"].max() > 0.95
    assert len(names["figure"].data) > 0


def test_compared_hook_points_part_at_the_last_token_only(capsys):
    with pytest.warns(match="hook_resid_pre, last"):
        names = run("2_compare_hook_points", capsys)
    best = names["table"].groupby("position")["auroc"].max()
    assert best["last"] > 0.95
    assert best["instruction_mean"] < 0.8


def test_ablation_removes_refusal_addition_induces_it_and_a_random_direction_does_neither(capsys):
    names = run("3_ablation_experiment", capsys)
    reports = names["reports"]
    assert reports["plain"].rate(True) - reports["affine ablation"].rate(True) > 0.8
    assert reports["addition"].rate(False) - reports["plain"].rate(False) > 0.5
    assert names["control"].rate(True) > 0.9


def test_your_own_model_ends_with_a_direction_of_it(capsys):
    names = run("4_your_own_model", capsys)
    assert names["direction"].hook_point == names["best"].hook_point
    assert names["report"].rate(True) > 0.85
