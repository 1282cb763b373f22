"""Prints what interventions do: causal scores, the choice, doses, answers.

Tested in tests/stages/test_experiment.py.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from rich.console import Console
from rich.table import Table

from refusal_lens.activations.pooled import Activations
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.causal_choice import CausalChoice
from refusal_lens.experiments.causal_scores import CausalPlan, CausalScores, passes_to_score
from refusal_lens.experiments.verdicts import Verdict
from refusal_lens.models.hook_points import short_name
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.stages.terminal.looks import TIGHT, table_of
from refusal_lens.validation.frames import rows_where

_TEXTS = ("place", "intervention", "direction", "verdict", "condition", "stands")
"""Columns of words, which may break."""

_KL = "KL of\nfirst\ntoken"
"""In lines that are as wide as the numbers."""


def show_labels_of(console: Console, prompts: ContrastSet) -> None:
    """Say what the classes are, where they are not harmful and harmless prompts."""
    if prompts.reword("harmful") != "harmful":
        console.print(
            f"By directions.labels, harmful prompts are the {len(prompts.harmful)} "
            f"{prompts.harmful.name} ones below, and harmless the {len(prompts.harmless)} "
            f"{prompts.harmless.name} ones.",
        )


MANY_LAYERS = 16
"""From so many layers on a grid over them is worth a word."""


def show_causal_outlook(
    console: Console, activations: Activations, n_layers: int, plan: CausalPlan
) -> None:
    """Print what scoring will take, and what a coarser grid of layers would."""
    hook_points, n_positions = activations.hook_points, len(activations.positions)
    # A third of the prompts is scored on.
    n_prompts = len(activations.is_harmful) // 6

    def cost(every: int) -> str:
        asked = replace(plan, layers_every=every)
        passes = passes_to_score(hook_points, n_positions, n_prompts, n_layers, asked)
        return f"{passes:,.0f}"

    coarser = ""
    if plan.layers_every == 1 and n_layers >= MANY_LAYERS:
        coarser = f"; with causal.layers_every=3 about {cost(3)}"
    console.print(
        f"Scoring directions at {len(hook_points) * n_positions} places: at most about "
        f"{cost(plan.layers_every)} prompts through the whole model{coarser}.",
        highlight=False,
    )


def show_causal(console: Console, scores: CausalScores) -> None:
    """Print the causal scores of every candidate, the choice and what it cost."""
    table = _table(
        f"What each direction does to refusal ({scores.n_prompts} prompts not fitted on)",
        ("place", "intervention", "bypass", "induce", _KL, "verdict"),
        "Refusal scores in nats; KL, in nats, on harmless prompts.",
    )
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
    if scores.choice.n_candidates < scores.n_places:
        how = ", then ".join(scores.table["scored_on"].unique())
        console.print(
            f"Scored: {how}; {scores.choice.n_candidates} of {scores.n_places} places. A better "
            "one elsewhere would be missed."
        )
    n_ranked = sum(not math.isnan(each) for each in scores.table["bypass_random"])
    if n_ranked:
        best = "that meets all else is" if n_ranked == 1 else f"{n_ranked} that meet all else are"
        console.print(
            f"The best {best} ranked among random directions; of others that do, one cannot tell."
        )


def _table(title: str, columns: Sequence[str], caption: str) -> Table:
    """Prepare a table for 80 columns: texts may break, numbers may not."""
    table = table_of(title, columns, _TEXTS, caption=caption, caption_justify="left", **TIGHT)
    for column in table.columns:
        column.no_wrap = column.justify == "right"
    return table


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
                f"{entry.induce:+.2f}, KL of the first token {entry.kl:.3f}: {', '.join(reasons)}"
            )
    dropped = ", ".join(f"{reason} ({n})" for reason, n in choice.dropped.items())
    console.print(f"Dropped: {dropped or 'none'}\n{in_words}")


def show_interventions(console: Console, summary: pd.DataFrame, verdict: Verdict | None) -> None:
    """Print what interventions with the direction and with its controls did, class by class."""
    first = summary.iloc[0]
    console.print(
        f"Interventions at {first['hook_point']}, {first['position']}, on prompts that the "
        "direction was neither fitted nor chosen on.",
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
    table = _table(
        "What the verdict rests on",
        ("condition", "measured", "limit", "stands"),
        "95 % intervals, as shares, of a bootstrap over pairs: they speak of new prompts on the "
        "same topics, and those above, in percent, of new topics. The KL is measured as by "
        "select, but on prompts that took no part in the choice.",
    )
    for check in verdict.checks:
        interval = "" if check.low != check.low else f" ({check.low:.2f} to {check.high:.2f})"
        measured = f"{check.estimate:.2f}{interval}"
        table.add_row(check.name, measured, f"{check.limit:g}", check.standing)
    return table


def _outcomes(rows: pd.DataFrame, name: str) -> Table:
    """Lay out one class: its plain answers in the title, a row an intervention."""
    plain = rows.iloc[0]
    table = _table(
        f"{name}, plain: {plain['plain_rate']:.1%} refused, score {plain['plain_score']:+.2f}, "
        f"loss of text {plain['plain_loss']:.2f}",
        ("intervention", "direction", "refused", "broken", "score", _KL, "loss"),
        "Refused with Wilson's 95 % interval by topic, in percent. The loss of the text is told of "
        "the fitted direction.",
    )
    for row in rows.to_dict("records"):
        low, high = (100 * row[f"refusal_rate_{end}"] for end in ("low", "high"))
        table.add_row(
            f"{row['intervention']} {row['strength']:g}",
            row["direction"],
            f"{row['refusal_rate']:.1%} ({low:.0f}-{high:.0f})",
            "not read" if math.isnan(row["broken_rate"]) else f"{row['broken_rate']:.1%}",
            f"{row['refusal_score']:+.2f}",
            f"{row['kl']:.3f}",
            "" if math.isnan(row["text_loss"]) else f"{row['text_loss']:.2f}",
        )
    return table


def show_answers(console: Console, plain: str, intervened: str) -> None:
    """Print one prompt's answers with and without intervention."""
    for name, answer in (("plain", plain), ("intervened", intervened)):
        console.print(f"{name:>10}: {answer}", markup=False, highlight=False, soft_wrap=True)


def show_fault(console: Console, error: RefusalLensError) -> None:
    """Print what is wrong with one prompt, and nothing else."""
    console.print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
