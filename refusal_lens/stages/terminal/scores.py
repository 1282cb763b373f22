"""Prints how good directions are: layers, the best, stability, ways to fit, confounds, checks."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from refusal_lens.directions.kernel import WeightKernel
from refusal_lens.runs.diagnosis import Check, Finding, band
from refusal_lens.validation.best_place import Choice
from refusal_lens.validation.confounds import Likeness
from refusal_lens.validation.frames import rows_where
from refusal_lens.validation.nulls import Nulls
from refusal_lens.validation.scores import Score
from refusal_lens.validation.separation import Separation
from refusal_lens.validation.stability import Stability
from refusal_lens.validation.thresholds import (
    FEW_PROMPTS,
    GOOD_ACCURACY,
    GOOD_SEPARATION,
    MIN_ACCURACY,
    MIN_SEPARATION,
    SIGNIFICANT,
    STEADY_DEGREES,
)

BAND_STYLES = {"good": "green", "acceptable": "yellow", "poor": "red"}


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


EXCHANGED = {
    "topics": "the classes of whole topics exchanged",
    "pairs": "the classes of twins exchanged",
    "prompts": "the classes of prompts exchanged",
}


def show_headline(
    console: Console, separation: Separation, best: Choice, nulls: Nulls, detectable: float
) -> None:
    """Print the AUROC on new prompts and on new topics, and what these prompts could tell."""
    row = separation.hook_points.index(best.hook_point)
    place = row, separation.positions.index(best.position)
    lines = [f"AUROC on new prompts of the same topics: {_ends(separation.scores, place)}"]
    if separation.new_topics:
        lines.append(f"on new topics: {_ends(separation.new_topics, place)}")
        lines.append(f"{separation.gap[place].item():.3f} apart")
    if separation.intraclass_correlation is not None and separation.n_effective is not None:
        lines.append(
            f"intraclass correlation {separation.intraclass_correlation[place].item():.2f}, so "
            f"that these prompts are worth {separation.n_effective[place].item():.0f} independent "
            "ones"
        )
    power = (
        f" With these prompts an AUROC of {detectable:.2f} would be found four times in five."
        if detectable == detectable
        else ""
    )
    console.print(
        f"{'; '.join(lines)}. p: {EXCHANGED[nulls.shuffled]}, exact for that "
        f"({2 ** min(nulls.log2_labellings, 60):.3g} labellings).{power}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _ends(scores: Mapping[str, Score], place: tuple[int, int]) -> str:
    """Write the AUROC of a place with its interval, or why there is none."""
    one = scores["auroc"]
    low, high = one.low[place].item(), one.high[place].item()
    ends = f"[{low:.3f}, {high:.3f}]" if low == low else "(too few groups for an interval)"
    return f"{one.value[place].item():.3f} {ends}"


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
    enough = turning.prompts_for(STEADY_DEGREES)
    if enough == float("inf"):
        console.print(
            "These prompts cannot tell how far it lies from that of unlimited prompts: the classes "
            "differ by no more than chance.",
            soft_wrap=True,
        )
        return
    angle, *ends = turning.delivered()
    shifts = turning.quantile, -turning.quantile
    fewer, more = (turning.prompts_for(STEADY_DEGREES, shift) for shift in shifts)
    most = f"{max(2, math.ceil(more)):,}" if math.isfinite(more) else "any number"
    console.print(
        f"With {n_per_class} prompts a side the direction (before clipping) lies about "
        f"{angle:.1f}° from that of unlimited prompts [{ends[0]:.1f}, {ends[1]:.1f}]; with "
        f"{FEW_PROMPTS} prompts a side the direction would turn by about "
        f"{turning.degrees(FEW_PROMPTS):.1f}°; {max(2, math.ceil(enough)):,} prompts are enough "
        f"for {STEADY_DEGREES}° [{max(2, math.ceil(fewer)):,} to {most}].",
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


def show_methods(console: Console, methods: pd.DataFrame, best: Choice) -> None:
    """Print the ways to fit beside each other at the best place."""
    here = rows_where(methods, hook_point=best.hook_point, position=best.position)
    table = Table(
        title=f"Ways to fit at {best.hook_point}, {best.position}, cross-fitted",
        title_justify="left",
        caption="cosine: with the difference of means, clipped alike.",
    )
    for column in ("method", "clip", "separation", "accuracy", "AUROC", "d'", "cosine"):
        is_name = column == "method"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    for row in here.to_dict("records"):
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
        "the harmless ones. AUROC below 0.5 tells nothing: where prompts are matched across the "
        "classes, what is held out is what the others lack."
    )
    console.print(table)


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
