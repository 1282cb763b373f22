"""What a run prints: results as tables and sentences.

Knows rich and the wording. Computes nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from refusal_lens.causal import CausalScores
from refusal_lens.diagnosis import GOOD_ACCURACY, Check, Finding, band
from refusal_lens.hook_points import short_name
from refusal_lens.positions import PositionRead
from refusal_lens.prompts import ContrastSet
from refusal_lens.refusal import RefusalReport
from refusal_lens.selection import GOOD_SEPARATION, CausalChoice, Choice, WeightKernel
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
        low, high = report.interval(is_harmful)
        table.add_row(name, f"{rate:.1%} ({low:.1%}-{high:.1%})", f"{score:+.2f}")
    console.print(table)
    agreement = report.agreement
    kappa = "" if agreement.kappa != agreement.kappa else f" (kappa {agreement.kappa:.2f})"
    console.print(
        f"Sign of the score and judge agree on {agreement.share:.1%} of the answers{kappa}. "
        f"Refusal tokens: {', '.join(repr(token) for token in report.refusal_tokens)}.",
        markup=False,
    )
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


def show_paths(console: Console, paths: Sequence[Path]) -> None:
    """Print what was written."""
    console.print("\nWrote")
    for path in paths:
        console.print(f"  {path}", markup=False, soft_wrap=True)


# --- experiments --------------------------------------------------------------------------------


def show_causal(console: Console, scores: CausalScores) -> None:
    """Print the causal scores of every candidate, the choice and what it cost."""
    table = Table(
        title=f"What each direction does to refusal ({scores.n_prompts} prompts not fitted on)",
        title_justify="left",
        caption="Refusal scores and KL in nats, of ablation to zero and affine ablation.",
    )
    names = ("place", "bypass", "affine", "induce", "KL", "affine", "verdict")
    for column in names:
        is_text = column in ("place", "verdict")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    for row in scores.table.to_dict("records"):
        table.add_row(
            f"{short_name(row['hook_point'])}, {row['position']}",
            f"{row['bypass']:+.2f}",
            f"{row['bypass_affine']:+.2f}",
            f"{row['induce']:+.2f}",
            f"{row['kl']:.3f}",
            f"{row['kl_affine']:.3f}",
            row["verdict"],
            style="bold green" if row["is_chosen"] else None,
        )
    console.print(table)
    first = scores.table.iloc[0]
    console.print(
        f"Without intervention: {first['baseline_harmful']:+.2f} on harmful, "
        f"{first['baseline_harmless']:+.2f} on harmless prompts. Cost: {scores.n_passes:,.0f} "
        "prompts through the whole model."
    )


def show_causal_choice(console: Console, choice: CausalChoice, in_words: str) -> None:
    """Print which direction was chosen by its effect, or why none was."""
    if choice.chosen is not None:
        place = f"{choice.chosen.hook_point} at {choice.chosen.position}"
        console.print(
            f"\nChosen: {place}: lowest bypass among {choice.n_eligible} of "
            f"{choice.n_candidates} that pass the rule"
        )
    else:
        console.print(f"\nNone of {choice.n_candidates} directions passes the rule. Nearest:")
        for entry, reasons in choice.near_misses:
            console.print(
                f"  {entry.hook_point} at {entry.position}: bypass {entry.bypass:+.2f}, induce "
                f"{entry.induce:+.2f}, KL {entry.kl:.3f}: {', '.join(reasons)}"
            )
    dropped = ", ".join(f"{reason} ({n})" for reason, n in choice.dropped.items())
    console.print(f"Dropped: {dropped or 'none'}\n{in_words}")


def show_interventions(console: Console, summary: pd.DataFrame, said: str) -> None:
    """Print what interventions with the direction and with its controls did."""
    first = summary.iloc[0]
    table = Table(
        title=f"Interventions at {first['hook_point']}, {first['position']}",
        title_justify="left",
        caption="On prompts that the direction was neither fitted nor chosen on; 95 % intervals.",
    )
    for column in ("intervention", "strength", "direction", "class", "refused", "was", "score"):
        table.add_column(column, justify="right" if column in ("refused", "was") else "left")
    for column in ("KL", "loss of text"):
        table.add_column(column, justify="right")
    for row in summary.to_dict("records"):
        table.add_row(
            row["intervention"],
            f"{row['strength']:g}",
            row["direction"],
            "harmful" if row["is_harmful"] else "harmless",
            f"{row['refusal_rate']:.1%} "
            f"({row['refusal_rate_low']:.1%}-{row['refusal_rate_high']:.1%})",
            f"{row['plain_rate']:.1%}",
            f"{row['refusal_score']:+.2f} (was {row['plain_score']:+.2f})",
            f"{row['kl']:.3f}",
            f"{row['text_loss']:.2f} (was {row['plain_loss']:.2f})",
        )
    console.print(table)
    console.print(f"Verdict: {said}")


def show_answers(console: Console, plain: str, intervened: str) -> None:
    """Print one prompt's answers with and without intervention."""
    for name, answer in (("plain", plain), ("intervened", intervened)):
        console.print(f"{name:>10}: {answer}", markup=False, highlight=False, soft_wrap=True)
