"""Prints run folders: what lies in them and between them.

Tested in tests/stages/test_study.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from refusal_lens.models.hook_points import short_name
from refusal_lens.stages.terminal.looks import TIGHT, table_of
from refusal_lens.validation.frames import rows_where


def show_comparison(console: Console, tables: Mapping[str, pd.DataFrame]) -> None:
    """Print a line for each run, then what lies between runs."""
    title = "Runs, each at its best place, on new prompts of the same topics"
    columns = ("run", "model", "best place", "AUROC", "separation", "d'")
    table = table_of(title, columns, columns[:3], **TIGHT)
    for number, column in enumerate(table.columns):
        column.no_wrap, column.overflow = number > 1, "fold"
    table.columns[0].min_width = 8
    for row in tables["summary"].to_dict("records"):
        scores = ["no direction", "", "", ""]
        if isinstance(row.get("hook_point"), str):
            scores = [
                f"{short_name(row['hook_point'])}, {row['position']}",
                *(f"{row['auroc']:.3f}", f"{row['separation']:.3f}", f"{row['cohens_d']:.2f}"),
            ]
        table.add_row(row["run"], Path(row["model"]).name, *scores)
    console.print(table)
    _show_between(console, tables["cosines"], ("a", "b"), "cosine")
    _show_between(console, tables["transfer"], ("fit_on", "test_on"), "auroc")


def _show_between(
    console: Console, frame: pd.DataFrame, names: tuple[str, str], score: str
) -> None:
    """Print one line for each pair of runs."""
    for row in rows_where(frame, run="").to_dict("records"):
        if row[names[0]] == row[names[1]]:
            continue
        if score == "cosine" and row["a"] > row["b"]:
            continue  # the same both ways round
        if row[score] != row[score]:
            continue  # NaN: fitted on every prompt that it could be tested on
        joint = "and" if score == "cosine" else "fitted, tested on"
        is_known = score == "cosine" and row["ceiling"] == row["ceiling"]
        ceiling = f" (noise ceiling {row['ceiling']:.3f})" if is_known else ""
        console.print(
            f"{row['kind'].replace('_', ' ')}: {row[names[0]]} {joint} {row[names[1]]} at "
            f"{short_name(row['hook_point'])}, {row['position']}: {score} {row[score]:.3f}"
            f"{ceiling}",
            markup=False,
        )


def show_paths(console: Console, paths: Sequence[Path]) -> None:
    """Print what was written."""
    console.print("\nWrote")
    for path in paths:
        console.print(f"  {path}", markup=False, soft_wrap=True)


def show_kept(console: Console, stages: Sequence[str]) -> None:
    """Print which stages of a resumed run were finished already."""
    if stages:
        console.print(f"\nFinished already, and kept: {', '.join(stages)}.")


def show_report(console: Console, path: Path) -> None:
    """Print where the report is: the last line of a run."""
    console.print(f"\nReport: {path}", markup=False, soft_wrap=True)
