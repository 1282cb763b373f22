"""Prints run folders: what lies in them and between them.

Tested in tests/stages/test_study.py.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from refusal_lens.models.hook_points import short_name
from refusal_lens.stages.terminal.looks import TIGHT, fill, leave_out, row_width, table_of
from refusal_lens.validation.frames import rows_where


def show_comparison(console: Console, tables: Mapping[str, pd.DataFrame]) -> None:
    """Print a line for each run, then what lies between runs."""
    rows = tables["summary"].to_dict("records")
    has_direction = [isinstance(row.get("hook_point"), str) for row in rows]

    def column(write: Callable[[Mapping[Hashable, Any]], str], otherwise: str = "") -> list[str]:
        return [
            write(row) if has else otherwise for row, has in zip(rows, has_direction, strict=True)
        ]

    cells = {
        "run": [row["run"] for row in rows],
        "model": [Path(row["model"]).name for row in rows],
        "best place": column(
            lambda row: f"{short_name(row['hook_point'])}, {row['position']}", "no direction"
        ),
        "AUROC": column(lambda row: f"{row['auroc']:.3f}"),
        "separation": column(lambda row: f"{row['separation']:.3f}"),
        "d'": column(lambda row: f"{row['cohens_d']:.2f}"),
    }
    if row_width(cells) > console.width:
        # Two lines a run are better than a name that is broken.
        cells["best place"] = [place.replace(", ", ",\n") for place in cells["best place"]]
    shown = leave_out(cells, console.width, ("separation", "model"))
    title = "Runs, each at its best place, on new prompts of the same topics"
    table = table_of(title, list(shown), ("run", "model", "best place"), **TIGHT)
    fill(table, shown, [""] * len(rows))
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
