"""What a run prints: results as tables and sentences.

Knows rich and the wording. Computes nothing.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from refusal_lens.diagnosis import GOOD_ACCURACY, SIGNIFICANT, Check, Finding, band
from refusal_lens.positions import PositionRead
from refusal_lens.prompts import ContrastSet
from refusal_lens.refusal import RefusalReport
from refusal_lens.selection import GOOD_SEPARATION, Choice, WeightKernel
from refusal_lens.stability import Stability
from refusal_lens.tokens import Tokens
from refusal_lens.validation import MIN_ACCURACY, MIN_SEPARATION, Separation

FEW_PROMPTS, WANTED_DEGREES = 40, 10
"""What the learning curve is told at: prompts a side, and an angle."""

BAND_STYLES = {"good": "green", "acceptable": "yellow", "poor": "red"}


def show_prompts(console: Console, prompts: ContrastSet, tokens: dict[str, Tokens]) -> None:
    """Print how many prompts there are and how long they are."""
    table = Table(title="Prompts", title_justify="left")
    columns = ("class", "n", "shortest", "lower quartile", "median", "upper quartile", "longest")
    for column in columns:
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, side in (("harmful", prompts.harmful), ("harmless", prompts.harmless)):
        quantiles = tokens[name].length_quantiles()
        table.add_row(name, str(len(side)), *(str(quantiles[column]) for column in columns[2:]))
    table.caption = "Lengths in tokens, chat template included."
    console.print(table)


def show_positions(console: Console, read: Sequence[PositionRead]) -> None:
    """Print which token each position reads in the first prompts."""
    table = Table(title="Positions read", title_justify="left")
    for column in ("prompt", "position", "index", "id", "token"):
        table.add_column(column, overflow="ellipsis", no_wrap=column != "token")
    for row in read:
        token = row.tokens if len(row.tokens) <= 60 else f"{row.tokens[:40]} … {row.tokens[-16:]}"
        table.add_row(
            row.prompt_id, row.position, row.token_indices, row.token_ids, escape(repr(token))
        )
    console.print(table)


def show_refusal(console: Console, report: RefusalReport) -> None:
    """Print whether the model refuses these prompts at all."""
    table = Table(title="Does the model refuse?", title_justify="left")
    for column in ("class", "refused", "mean refusal score (nats)"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, is_harmful in (("harmful", True), ("harmless", False)):
        rate, score = report.rate(is_harmful), report.mean_score(is_harmful)
        table.add_row(name, f"{rate:.1%}", f"{score:+.2f}")
    console.print(table)
    if report.has_refusal:
        return
    console.print(
        "[bold red]There is no refusal to find here:[/] the model refuses "
        f"{report.rate(True):.1%} of the harmful and {report.rate(False):.1%} of the harmless "
        "prompts. Whatever separates them below is not what makes it refuse.\n"
    )


def show_separation(
    console: Console,
    separation: Separation,
    site: str,
    position: str,
    p_values: pd.DataFrame | None = None,
) -> None:
    """Print the scores of every layer at one site and position, with p-values."""
    table = Table(
        title=f"Layers: {site} at position {position}, {separation.n_folds}-fold cross-fitted",
        title_justify="left",
        caption="[..]: 95 % interval. (..): on the prompts that it was fitted to.\n"
        "p: how often shuffled labels give as high an AUROC at any place.",
        caption_justify="left",
    )
    for column in ("layer", "separation", "accuracy", "p", "valid"):
        table.add_column(column, justify="right")
    frame = separation.to_frame()
    if p_values is not None:
        frame = frame.merge(p_values, on=["hook_point", "position"])
    for row in frame.to_dict("records"):
        layer = row["hook_point"] if row["layer"] is None else f"{row['layer']:.0f}"
        if row["separation"] != row["separation"]:  # NaN: there is no direction
            table.add_row(layer, "no direction", *[""] * 3)
            continue
        table.add_row(
            layer,
            _scored(row, "separation"),
            _scored(row, "accuracy"),
            _p_value(row["p_value_corrected"]) if "p_value_corrected" in row else "",
            "[green]✓[/]" if row["is_valid"] else "[red]✗[/]",
        )
    console.print(table)


def _scored(row: Mapping[Hashable, Any], name: str) -> str:
    """Write a score in the colour of its band, its interval, and the score in sample."""
    value, low, high, before = (row[name + end] for end in ("", "_low", "_high", "_in_sample"))
    if name == "separation":
        style = BAND_STYLES[band(value, MIN_SEPARATION, GOOD_SEPARATION)]
        return rf"[{style}]{value:.3f}[/] \[{low:.2f}, {high:.2f}] [dim]({before:.3f})[/]"
    style = BAND_STYLES[band(value, MIN_ACCURACY, GOOD_ACCURACY)]
    ends = f"{100 * low:.0f}, {100 * high:.0f}"
    return rf"[{style}]{value:.1%}[/] \[{ends}] [dim]({before:.1%})[/]"


def _p_value(p: float) -> str:
    style = "green" if p <= SIGNIFICANT else "red"
    return f"[{style}]{p:.3f}[/]" if p >= 0.001 else f"[{style}]<.001[/]"


def show_others(console: Console, others: Sequence[tuple[str, str, Separation]]) -> None:
    """Print one line for each other site and position."""
    for site, position, separation in others:
        highest = separation.separation.nan_to_num(-1.0).max().item()
        console.print(
            f"Also collected: {site} at position {position}: {int(separation.is_valid.sum())}/"
            f"{separation.is_valid.numel()} valid, highest separation {highest:.4f}"
        )


def show_best(
    console: Console, separation: Separation, best: Choice | None, kernel: WeightKernel | None
) -> None:
    """Print how many layers are valid, the best of them and the weight kernel around it."""
    n_valid, n_layers = int(separation.is_valid.sum()), separation.is_valid.numel()
    console.print(f"\nValid layers: {n_valid}/{n_layers}")
    if best is None:
        console.print("Best layer: none (there is no direction anywhere)")
        return
    label = "Best layer" if best.is_eligible else "Nearest miss, layer"
    layer = best.hook_point if best.layer is None else best.layer
    console.print(
        f"{label}: {layer} ({best.hook_point} at {best.position}: separation "
        f"{best.separation:.4f}, accuracy {best.accuracy:.2%}; {best.reason})"
    )
    if kernel is not None:
        console.print(
            f"Suggested weight kernel: peak {kernel.peak:g} at layer {kernel.position:g}, falling "
            f"linearly to {kernel.floor:g} at {kernel.distance:g} layers away"
        )


def show_stability(console: Console, stability: Stability, best: Choice, n_per_class: int) -> None:
    """Print how far the best direction would turn with other prompts, or with more."""
    row = stability.hook_points.index(best.hook_point)
    cosine = stability.split_half_cosine[row, stability.positions.index(best.position)].item()
    turning = stability.turning[best.hook_point, best.position]
    console.print(
        f"Stability: two halves of the prompts give directions at a cosine of {cosine:.2f}.",
        soft_wrap=True,
        highlight=False,
    )
    enough = turning.prompts_for(WANTED_DEGREES)
    if enough == float("inf"):
        console.print("More prompts would not help: the classes differ by no more than chance.")
        return
    console.print(
        f"With {n_per_class} prompts a side the direction lies about "
        f"{turning.degrees(n_per_class):.0f}° from that of unlimited prompts; with {FEW_PROMPTS} "
        f"prompts a side the direction would turn by about {turning.degrees(FEW_PROMPTS):.0f}°; "
        f"{max(2, math.ceil(enough)):,} prompts are enough for {WANTED_DEGREES}°.",
        soft_wrap=True,
        highlight=False,
    )


def show_nested(console: Console, nested: pd.DataFrame) -> None:
    """Print which places win when chosen without the prompts they are scored on."""
    if nested.empty:
        return
    chosen = [
        f"{name} at {at}" for name, at in zip(nested["hook_point"], nested["position"], strict=True)
    ]
    wins = Counter(chosen)
    said = ", ".join(f"{name} {n}" for name, n in wins.most_common(3))
    means = nested[["separation", "accuracy", "auroc"]].mean()
    console.print(
        f"Chosen anew without each fold, of {len(nested)} choices: {said}"
        f"{', others' if len(wins) > 3 else ''}. On the folds left out: separation "
        f"{means['separation']:.4f}, accuracy {means['accuracy']:.2%}, AUROC {means['auroc']:.3f}.",
        soft_wrap=True,
        highlight=False,
    )


def show_checklist(console: Console, checks: Sequence[Check], findings: Sequence[Finding]) -> None:
    """Print the checklist with pass or fail, then the causes and remedies that apply."""
    table = Table(title="Checklist", title_justify="left", show_header=False)
    for _ in range(4):
        table.add_column()
    for check in checks:
        mark = "[green]pass[/]" if check.is_passed else "[red]fail[/]"
        table.add_row(mark, check.name, check.came, f"[dim]wanted: {check.wanted}[/]")
    console.print(table)
    if findings:
        console.print("Diagnosis", style="bold")
    for finding in findings:
        console.print(f"• {finding.cause}\n  → {finding.remedy}", markup=False)


def show_paths(console: Console, paths: Sequence[Path]) -> None:
    """Print what was written."""
    console.print("\nWrote")
    for path in paths:
        console.print(f"  {path}", markup=False, soft_wrap=True)
