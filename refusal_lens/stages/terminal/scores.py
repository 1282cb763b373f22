"""Prints what a fit is worth: the answer, the layers, the best of them, checks and causes.

Tested in tests/stages/test_study.py.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from refusal_lens.report.answer import Reply
from refusal_lens.runs.diagnosis import Check, Finding, band
from refusal_lens.validation.best_place import Choice, layers_beside
from refusal_lens.validation.scores import Score, too_few
from refusal_lens.validation.separation import Separation
from refusal_lens.validation.thresholds import (
    GOOD_ACCURACY,
    GOOD_SEPARATION,
    MIN_ACCURACY,
    MIN_SEPARATION,
    SIGNIFICANT,
)

BAND_STYLES = {"good": "green", "acceptable": "yellow", "poor": "red"}
GRADE_STYLES = {"good": "bold green", "fair": "bold yellow", "poor": "bold red"}


def show_replies(console: Console, replies: Sequence[Reply]) -> None:
    """Print the answer in three sentences, each behind its question."""
    console.print()
    for reply in replies:
        verdict = f"[{GRADE_STYLES[reply.grade]}]{escape(reply.verdict)}[/]"
        console.print(
            f"[bold]{reply.question}[/] {verdict}. {escape(reply.sentence)}", highlight=False
        )


def show_layers(
    console: Console,
    shown: Separation,
    best: Choice | None,
    p_values: pd.DataFrame,
    *,
    is_wide: bool = False,
) -> None:
    """Print a line a layer of one site and position.

    Args:
        console: Where to print.
        shown: Scores of that site and position.
        best: The best place, whose line stands out.
        p_values: Corrected for every place looked at.
        is_wide: Intervals and the scores in sample too.
    """
    site, position = shown.columns[0]
    console.print()
    table = Table(
        title=f"Layers of {site} at {position}, {shown.n_folds}-fold cross-fitted",
        title_justify="left",
        caption="[..]: 95 % interval. (..): on the prompts that it was fitted to.\n"
        "p: how often shuffled labels give as high an AUROC at any place."
        if is_wide
        else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for column in ("layer", "separation", "accuracy", "AUROC", "p", "valid"):
        # Wide rows may break on a narrow console; cut off they would lose numbers.
        table.add_column(column, justify="right", no_wrap=not is_wide)
    table.add_column()
    frame = shown.to_frame().merge(p_values, on=["hook_point", "position"])
    for row in frame.to_dict("records"):
        layer = row["hook_point"] if row["layer"] is None else f"{row['layer']:.0f}"
        if row["separation"] != row["separation"]:  # NaN: there is no direction
            table.add_row(layer, "no direction")
            continue
        is_best = best is not None and row["hook_point"] == best.hook_point
        scores = (_scored(row, name, is_wide) for name in ("separation", "accuracy", "auroc"))
        table.add_row(
            layer,
            *scores,
            _p_value(row["p_value_corrected"]),
            _valid(row),
            "best" if is_best else "",
            style="bold" if is_best else None,
        )
    console.print(table)


def _scored(row: Mapping[Hashable, Any], name: str, is_wide: bool) -> str:
    """Write a score in the colour of its band; and its interval and the score in sample."""
    written = "{:.1%}" if name == "accuracy" else "{:.3f}"
    limits = {
        "separation": (MIN_SEPARATION, GOOD_SEPARATION),
        "accuracy": (MIN_ACCURACY, GOOD_ACCURACY),
    }
    value, low, high, before = (
        written.format(row[name + end]) for end in ("", "_low", "_high", "_in_sample")
    )
    ends = f"{low}, {high}" if row[f"{name}_low"] == row[f"{name}_low"] else too_few(row["n_units"])
    if name in limits:
        value = f"[{BAND_STYLES[band(row[name], *limits[name])]}]{value}[/]"
    return rf"{value} \[{ends}] [dim]({before})[/]" if is_wide else value


def _valid(row: Mapping[Hashable, Any]) -> str:
    """Tick a valid place; in green only where exchanged labels do not reach its scores."""
    if not row["is_valid"]:
        return "[red]✗[/]"
    return "[dim]✓[/]" if row["p_value_corrected"] > SIGNIFICANT else "[green]✓[/]"


def _p_value(p: float) -> str:
    if p != p:  # NaN: no exchange of labels would tell anything
        return "–"
    style = "green" if p <= SIGNIFICANT else "red"
    return f"[{style}]{p:.3f}[/]" if p >= 0.001 else f"[{style}]<.001[/]"


def show_best(
    console: Console,
    separation: Separation,
    best: Choice | None,
    detectable: float,
    *,
    is_found: bool,
) -> None:
    """Print how many layers are valid, the best of them, and what these prompts could tell.

    Args:
        console: Where to print.
        separation: Scores of every place.
        best: The best place; None where there is no direction anywhere.
        detectable: From `nulls.detectable_auroc`; NaN where it is not known.
        is_found: There is a direction; else the best place is a near miss.
    """
    shown = layers_beside(separation, best)
    n_valid, n_layers = int(shown.is_valid.sum()), shown.is_valid.numel()
    if best is None:
        console.print(f"Valid layers: {n_valid}/{n_layers}. No direction anywhere.")
        return
    label = "Best layer" if best.is_eligible and is_found else "Nearest miss, layer"
    layer = best.hook_point if best.layer is None else best.layer
    place = separation.hook_points.index(best.hook_point), separation.positions.index(best.position)
    lines = [
        f"Valid layers: {n_valid}/{n_layers}. {label}: {layer} ({best.reason}).",
        f"Its AUROC on new prompts of the same topics: "
        f"{_ends(separation.scores, place, separation.n_units)}",
    ]
    if separation.new_topics:
        lines[-1] += ", on new topics: "
        lines[-1] += _ends(separation.new_topics, place, separation.n_units_new_topics)
    lines[-1] += "."
    if detectable == detectable:
        lines.append(
            f"With these prompts an AUROC of {detectable:.2f} would be found four times in five."
        )
    others = [f"{site} at {position}" for site, position in separation.columns]
    if len(others) > 1:
        others.remove(" at ".join(shown.columns[0]))
        lines.append(f"In the report too: {', '.join(others)}.")
    console.print("\n".join(lines), highlight=False, markup=False)


def _ends(scores: Mapping[str, Score], place: tuple[int, int], n_units: int | None) -> str:
    """Write the AUROC of a place with its interval, or why there is none."""
    one = scores["auroc"]
    low, high = one.low[place].item(), one.high[place].item()
    ends = f"[{low:.3f}, {high:.3f}]" if low == low else f"({too_few(n_units)})"
    return f"{one.value[place].item():.3f} {ends}"


def show_checklist(console: Console, checks: Sequence[Check], findings: Sequence[Finding]) -> None:
    """Print what of the checklist fails, then the causes and remedies that apply."""
    failed = [check for check in checks if not check.is_passed]
    n_passed = len(checks) - len(failed)
    console.print(f"Checklist: {n_passed} of {len(checks)} passed.", highlight=False)
    for check in failed:
        console.print(
            f"  [red]fail[/] {check.name}: {check.came}; wanted: {check.wanted}", highlight=False
        )
    if findings:
        console.print("Diagnosis", style="bold")
    for finding in findings:
        console.print(f"• {finding.cause}\n  → {finding.remedy}", markup=False)
