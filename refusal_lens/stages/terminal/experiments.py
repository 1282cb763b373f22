"""Prints what interventions do: causal scores, the choice, doses, answers.

Tested in tests/stages/test_experiment.py.
"""

import math
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.causal_choice import CausalChoice
from refusal_lens.experiments.causal_scores import CausalScores
from refusal_lens.experiments.verdicts import Verdict
from refusal_lens.models.hook_points import short_name
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.validation.frames import rows_where


def show_labels_of(console: Console, prompts: ContrastSet) -> None:
    """Say what the classes are, where they are not harmful and harmless prompts."""
    if prompts.reword("harmful") != "harmful":
        console.print(
            f"By directions.labels, harmful prompts are the {len(prompts.harmful)} "
            f"{prompts.harmful.name} ones below, and harmless the {len(prompts.harmless)} "
            f"{prompts.harmless.name} ones.",
        )


# Lines between columns would cost numbers their last digits in 80 columns.
TIGHT: dict[str, Any] = {
    "title_justify": "left",
    "box": box.SIMPLE_HEAD,
    "padding": (0, 1, 0, 0),
    "pad_edge": False,
    "show_edge": False,
}
"""How wide tables of numbers are laid out."""


def show_causal(console: Console, scores: CausalScores) -> None:
    """Print the causal scores of every candidate, the choice and what it cost."""
    table = Table(
        title=f"What each direction does to refusal ({scores.n_prompts} prompts not fitted on)",
        caption="Refusal scores and KL in nats.",
        **TIGHT,
    )
    for column in ("place", "intervention", "bypass", "induce", "KL", "verdict"):
        is_text = column in ("place", "intervention", "verdict")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in scores.table.to_dict("records"):
        table.add_row(
            f"{short_name(row['hook_point'])}, {row['position']}",
            row["intervention"],
            f"{row['bypass']:+.2f}",
            f"{row['induce']:+.2f}",
            f"{row['kl']:.3f}",
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


def show_interventions(console: Console, summary: pd.DataFrame, verdict: Verdict | None) -> None:
    """Print what interventions with the direction and with its controls did, class by class."""
    first = summary.iloc[0]
    console.print(
        f"Interventions at {first['hook_point']}, {first['position']}, on prompts that the "
        "direction was neither fitted nor chosen on; with 95 % intervals.",
        highlight=False,
    )
    for name, is_harmful in (("harmful", True), ("harmless", False)):
        rows = rows_where(summary, is_harmful=is_harmful)
        if not rows.empty:
            console.print(_outcomes(rows, name))
    n_first, n_controls = (
        int(summary.loc[summary["direction"] != "fitted", name].sum())
        for name in ("n_by_first_token", "n_prompts")
    )
    if n_controls:
        others = "" if n_first == n_controls else ", the others by the whole answer"
        console.print(
            f"Of {n_controls} outcomes under controls, {n_first} are decided by the first token"
            f"{others}.",
            highlight=False,
        )
    if verdict is None:
        console.print("No verdict: that takes an intervention that removes and one that adds.")
        return
    show_verdict(console, verdict)


def show_verdict(console: Console, verdict: Verdict) -> None:
    """Print what is said of the direction, and what that rests on."""
    console.print(_conditions(verdict))
    console.print(f"Verdict: {verdict}")


def _conditions(verdict: Verdict) -> Table:
    """Lay out what the verdict rests on."""
    table = Table(title="What the verdict rests on, with 95 % intervals", title_justify="left")
    for column in ("condition", "measured", "limit", "stands"):
        table.add_column(column, justify="left" if column in ("condition", "stands") else "right")
    for check in verdict.checks:
        interval = "" if check.low != check.low else f" ({check.low:.2f} to {check.high:.2f})"
        measured = f"{check.estimate:.2f}{interval}"
        table.add_row(check.name, measured, f"{check.limit:g}", check.standing)
    return table


def _outcomes(rows: pd.DataFrame, name: str) -> Table:
    """Lay out one class: its plain answers in the title, a row an intervention."""
    plain = rows.iloc[0]
    table = Table(
        title=f"{name}, plain: {plain['plain_rate']:.1%} refused, score "
        f"{plain['plain_score']:+.2f}, loss of text {plain['plain_loss']:.2f}",
        **TIGHT,
    )
    for column in ("intervention", "direction", "refused", "broken", "score", "KL", "loss"):
        is_text = column in ("intervention", "direction")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    for row in rows.to_dict("records"):
        low, high = (100 * row[f"refusal_rate_{end}"] for end in ("low", "high"))
        table.add_row(
            f"{row['intervention']} {row['strength']:g}",
            row["direction"],
            f"{row['refusal_rate']:.1%} ({low:.0f}-{high:.0f})",
            "not read" if math.isnan(row["broken_rate"]) else f"{row['broken_rate']:.1%}",
            f"{row['refusal_score']:+.2f}",
            f"{row['kl']:.3f}",
            f"{row['text_loss']:.2f}",
        )
    return table


def show_answers(console: Console, plain: str, intervened: str) -> None:
    """Print one prompt's answers with and without intervention."""
    for name, answer in (("plain", plain), ("intervened", intervened)):
        console.print(f"{name:>10}: {answer}", markup=False, highlight=False, soft_wrap=True)


def show_fault(console: Console, error: RefusalLensError) -> None:
    """Print what is wrong with one prompt, and nothing else."""
    console.print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
