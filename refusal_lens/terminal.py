"""What a run prints: results as tables and sentences.

Knows rich and the wording. Computes nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from refusal_lens.confounds import Likeness
from refusal_lens.diagnosis import GOOD_ACCURACY, Check, Finding, band
from refusal_lens.positions import PositionRead
from refusal_lens.prompts import ContrastSet
from refusal_lens.refusal import RefusalReport
from refusal_lens.selection import GOOD_SEPARATION, Choice, WeightKernel
from refusal_lens.tokens import Tokens
from refusal_lens.validation import MIN_ACCURACY, MIN_SEPARATION, Separation

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


def show_separation(console: Console, separation: Separation, site: str, position: str) -> None:
    """Print the scores of every layer at one site and position."""
    table = Table(
        title=f"Layers: {site} at position {position}, {separation.n_folds}-fold cross-fitted",
        title_justify="left",
        caption="In brackets: on the prompts that the direction was fitted to.",
    )
    for column in ("layer", "separation", "accuracy", "valid"):
        table.add_column(column, justify="right")
    for row in separation.to_frame().to_dict("records"):
        layer = row["hook_point"] if row["layer"] is None else f"{row['layer']:.0f}"
        if row["separation"] != row["separation"]:  # NaN: there is no direction
            table.add_row(layer, "no direction", "", "")
            continue
        table.add_row(
            layer,
            _scored(row["separation"], row["separation_in_sample"], "separation"),
            _scored(row["accuracy"], row["accuracy_in_sample"], "accuracy"),
            "[green]✓[/]" if row["is_valid"] else "[red]✗[/]",
        )
    console.print(table)


def _scored(value: float, in_sample: float, kind: str) -> str:
    if kind == "separation":
        style = BAND_STYLES[band(value, MIN_SEPARATION, GOOD_SEPARATION)]
        return f"[{style}]{value:.4f}[/] [dim]({in_sample:.4f})[/]"
    style = BAND_STYLES[band(value, MIN_ACCURACY, GOOD_ACCURACY)]
    return f"[{style}]{value:.2%}[/] [dim]({in_sample:.2%})[/]"


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


def show_methods(console: Console, methods: pd.DataFrame, best: Choice) -> None:
    """Print the ways to fit beside each other at the best place."""
    is_here = (methods["hook_point"] == best.hook_point) & (methods["position"] == best.position)
    table = Table(
        title=f"Ways to fit at {best.hook_point}, {best.position}, cross-fitted",
        title_justify="left",
        caption="cosine: with the difference of means, clipped alike.",
    )
    for column in ("method", "clipped", "separation", "accuracy", "AUROC", "d'", "cosine"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in methods[is_here].to_dict("records"):
        table.add_row(
            row["method"].replace("_", " "),
            "yes" if row["is_clipped"] else "no",
            f"{row['separation']:.4f}",
            f"{row['accuracy']:.2%}",
            f"{row['auroc']:.4f}",
            f"{row['cohens_d']:.2f}",
            f"{row['cosine_to_difference_of_means']:+.3f}",
        )
    console.print(table)


def show_confounds(console: Console, confounds: pd.DataFrame, likeness: Likeness) -> None:
    """Print how well the classes are told apart by what has nothing to do with the model."""
    table = Table(title="Told apart by texts alone?", title_justify="left")
    for column in ("feature", "accuracy", "AUROC", "95 % interval"):
        table.add_column(column, justify="left" if column == "feature" else "right")
    for row in confounds.to_dict("records"):
        is_direction = row["feature"] == "direction"
        table.add_row(
            "the direction" if is_direction else row["feature"].replace("_", " "),
            f"{row['accuracy']:.2%}",
            f"{row['auroc']:.3f}",
            f"{row['auroc_low']:.3f} to {row['auroc_high']:.3f}",
            style="bold" if is_direction else "",
        )
    table.caption = (
        f"The classes share {likeness.shared_words:.0%} of their words and "
        f"{likeness.shared_openings:.0%} of their openings (three words); "
        f"{likeness.n_near} of {likeness.n_compared} harmful prompts have a near duplicate among "
        "the harmless ones."
    )
    console.print(table)


def show_paths(console: Console, paths: Sequence[Path]) -> None:
    """Print what was written."""
    console.print("\nWrote")
    for path in paths:
        console.print(f"  {path}", markup=False, soft_wrap=True)
