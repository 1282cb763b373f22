"""Prints what a fit is worth: the answer, the layers, the best of them, checks and causes.

Tested in tests/stages/test_study.py.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from refusal_lens.models.hook_points import short_name
from refusal_lens.report.answer import Reply
from refusal_lens.runs.diagnosis import Check, Finding, band
from refusal_lens.validation import thresholds
from refusal_lens.validation.best_place import Choice, layers_beside
from refusal_lens.validation.frames import rows_that
from refusal_lens.validation.planning import MOST_TOPICS, Pilot, plan_table
from refusal_lens.validation.scores import Score, no_interval
from refusal_lens.validation.separation import Separation

BAND_STYLES = {"good": "green", "acceptable": "yellow", "poor": "red"}
MOST_LINES, FEWER_LINES = 12, 7
"""A table of more layers than the first leaves some out, until about the second are left."""

N_OTHERS = 4
"""Sites and positions named beside the one whose layers are shown: heads may be hundreds."""

N_FINDINGS = 1
"""Causes told in the terminal; the report has all."""

GRADE_STYLES = {"good": "bold green", "fair": "bold yellow", "poor": "bold red"}


def show_replies(console: Console, replies: Sequence[Reply], *, is_wide: bool = False) -> None:
    """Print the answer in three sentences, each behind its question; wide, what is behind them."""
    console.print()
    for reply in replies:
        verdict = f"[{GRADE_STYLES[reply.grade]}]{escape(reply.verdict)}[/]"
        told = f"{reply.sentence} {reply.more if is_wide else ''}".strip()
        console.print(f"[bold]{reply.question}[/] {verdict}. {escape(told)}", highlight=False)


def show_layers(
    console: Console,
    shown: Separation,
    best: Choice | None,
    p_values: pd.DataFrame,
    *,
    is_wide: bool = False,
) -> None:
    """Print a line a layer of one site and position; of many layers some, and the best.

    The line of the best place stands out; p-values are corrected for every place looked at.
    `is_wide` prints all layers, with intervals and the scores in sample.
    """
    site, position = shown.columns[0]
    frame = shown.to_frame().merge(p_values, on=["hook_point", "position"])
    is_best = frame["hook_point"] == (best.hook_point if best else "")
    step = 1 if is_wide or len(frame) <= MOST_LINES else math.ceil(len(frame) / FEWER_LINES)
    held_out = "new prompts of the same topics" if shown.new_topics else "new prompts"
    some = "" if step == 1 else "; all by --wide"
    console.print(
        f"\nLayers of {site} at {position} ({held_out}, {shown.n_folds} folds{some})",
        style="italic",
        highlight=False,
    )
    table = Table(
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
    is_shown = (np.arange(len(frame)) % step == 0) | is_best
    for row in rows_that(frame, is_shown).to_dict("records"):
        layer = row["hook_point"] if row["layer"] is None else f"{row['layer']:.0f}"
        if row["separation"] != row["separation"]:  # NaN: there is no direction
            table.add_row(layer, "no direction")
            continue
        marked = best is not None and row["hook_point"] == best.hook_point
        scores = (_scored(row, name, is_wide) for name in ("separation", "accuracy", "auroc"))
        table.add_row(
            layer,
            *scores,
            _p_value(row["p_value_corrected"]),
            _valid(row),
            "best" if marked else "",
            style="bold" if marked else None,
        )
    console.print(table)


def _scored(row: Mapping[Hashable, Any], name: str, is_wide: bool) -> str:
    """Write a score in the colour of its band; and its interval and the score in sample."""
    written = "{:.1%}" if name == "accuracy" else "{:.3f}"
    limits = {
        "separation": (thresholds.MIN_SEPARATION, thresholds.GOOD_SEPARATION),
        "accuracy": (thresholds.MIN_ACCURACY, thresholds.GOOD_ACCURACY),
    }
    value, low, high, before = (
        written.format(row[name + end]) for end in ("", "_low", "_high", "_in_sample")
    )
    ends = f"{low}, {high}"
    if row[name] == row[name] and row[f"{name}_low"] != row[f"{name}_low"]:
        ends = no_interval(row["n_units"])
    if name in limits:
        value = f"[{BAND_STYLES[band(row[name], *limits[name])]}]{value}[/]"
    return rf"{value} \[{ends}] [dim]({before})[/]" if is_wide else value


def _valid(row: Mapping[Hashable, Any]) -> str:
    """Tick a valid place; in green only where exchanged labels do not reach its scores."""
    if not row["is_valid"]:
        return "[red]✗[/]"
    return "[dim]✓[/]" if row["p_value_corrected"] > thresholds.SIGNIFICANT else "[green]✓[/]"


def _p_value(p: float) -> str:
    if p != p:  # NaN: no exchange of labels would tell anything
        return "–"
    style = "green" if p <= thresholds.SIGNIFICANT else "red"
    return f"[{style}]{p:.3f}[/]" if p >= 0.001 else f"[{style}]<.001[/]"


def show_best(
    console: Console, separation: Separation, best: Choice | None, detectable: float
) -> None:
    """Print how many layers are valid, how the best place does, and what these prompts could tell.

    `detectable` is from `nulls.detectable_auroc`; NaN where it is not known.
    """
    shown = layers_beside(separation, best)
    told = f"Valid layers: {int(shown.is_valid.sum())}/{shown.is_valid.numel()}."
    if best is not None:
        place = (
            separation.hook_points.index(best.hook_point),
            separation.positions.index(best.position),
        )
        of_best = _ends(separation.scores, place, separation.n_units)
        told += f" AUROC of {short_name(best.hook_point)} on new prompts of its topics: {of_best}"
        if separation.new_topics:
            of_new = _ends(separation.new_topics, place, separation.n_units_new_topics)
            told += f", on new topics: {of_new}"
        told += "."
        if detectable == detectable:
            told += f" These prompts find one of {detectable:.2f} four times in five."
    site, at = shown.columns[0]
    others = [
        position if other == site else f"{other} at {position}"
        for other, position in separation.columns
        if (other, position) != (site, at)
    ]
    if others:
        more = f" and {len(others) - N_OTHERS} more" if len(others) > N_OTHERS else ""
        told += f" In the report too: {', '.join(others[:N_OTHERS])}{more}."
    console.print(told, highlight=False, markup=False)


def _ends(scores: Mapping[str, Score], place: tuple[int, int], n_units: int | None) -> str:
    """Write the AUROC of a place with its interval, or why there is none."""
    one = scores["auroc"]
    low, high = one.low[place].item(), one.high[place].item()
    ends = f"[{low:.3f}, {high:.3f}]" if low == low else f"({no_interval(n_units)})"
    return f"{one.value[place].item():.3f} {ends}"


def show_plan(console: Console, pilot: Pilot, width: float) -> None:
    """Print how many topics and prompts an interval as narrow as asked for would take."""
    # Of as many topics, those of fewer prompts do.
    rows = plan_table(pilot, [width]).dropna().drop_duplicates("n_topics", keep="last")
    plans = [
        f"{row['n_topics']:.0f} of {row['n_per_topic']}"
        if pilot.has_topics
        else f"{row['n_topics']:.0f} new prompts a side"
        for row in rows.to_dict("records")
    ]
    if plans and pilot.has_topics:
        plans[0] = f"{plans[0].replace(' of ', ' new topics of ')} prompts a side"
    interval = {"auroc": "An AUROC interval", "cohens_d": "A d' interval"}[pilot.score]
    console.print(
        f"{interval} {width:g} wide takes "
        f"{' or '.join(plans) or f'more than {MOST_TOPICS} topics'}.",
        highlight=False,
        markup=False,
    )


def show_checklist(
    console: Console,
    checks: Sequence[Check],
    findings: Sequence[Finding],
    replies: Sequence[Reply] = (),
    *,
    is_wide: bool = False,
) -> None:
    """Print what of the checklist fails, then the first causes that apply, with their remedies.

    Findings are the gravest first; `is_wide` prints all. A cause that stands in the replies, which
    were told already, is not told again.
    """
    failed = [check for check in checks if not check.is_passed]
    n_passed = len(checks) - len(failed)
    wanted = "; ".join(f"{each.name} {each.came} (wanted: {each.wanted})" for each in failed)
    console.print(
        f"Checklist: {n_passed} of {len(checks)} passed."
        + (f" [red]Not:[/] {escape(wanted)}." if failed else ""),
        highlight=False,
    )
    n_shown = len(findings) if is_wide else N_FINDINGS
    for finding in findings[:n_shown]:
        is_told = any(finding.cause in reply.sentence for reply in replies)
        text = finding.remedy if is_told else f"{finding.cause}\n{finding.remedy}"
        bullets = Table.grid(padding=(0, 1, 0, 0))
        for mark, line in zip(("→",) if is_told else ("•", "→"), text.split("\n"), strict=True):
            bullets.add_row(mark, escape(line))
        console.print(bullets)
    if findings[n_shown:]:
        console.print(f"{len(findings) - n_shown} more of this in the report.")
