"""Prints what there is to start from: prompts, the tokens read, and whether the model refuses."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from refusal_lens.experiments.refusal import RefusalReport
from refusal_lens.experiments.refusal_states import describe_state
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.groups import FACTORS, Groups, n_groups
from refusal_lens.prompts.positions import PositionRead
from refusal_lens.prompts.tokens import Tokens


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


ORIGINS = {
    "given": "given by the prompt files",
    "category": "the prompts' categories",
    "found": "found in the texts",
}


def show_groups(console: Console, groups: Groups) -> None:
    """Print which prompts depend on each other and where that was read."""
    n_prompts = len(groups.pair)
    counts = [
        f"{_n_shared(getattr(groups, name))} {name}s of several prompts ({ORIGINS[how]})"
        for name in FACTORS
        if (how := groups.origin[name]) in ORIGINS
    ]
    if not counts:
        line = "Prompts are taken as independent of each other: no pairs, topics or frames."
    else:
        line = (
            f"Prompts that depend on each other: {', '.join(counts)}. Pairs and topics join "
            f"{n_prompts} prompts to {n_groups(groups.component)} independent components; whatever "
            "is dealt or shuffled keeps to them (prompts.groups: off takes prompts as independent)."
        )
    console.print(line, markup=False, highlight=False)


def _n_shared(labels: Int[Tensor, " n_prompts"]) -> int:
    """Count the groups of more than one prompt."""
    return int((labels.unique(return_counts=True)[1] > 1).sum())


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


def show_sinks(console: Console, sinks: Mapping[str, Any]) -> None:
    """Print how many tokens the means left out, on average over the hook points and at most."""
    if sinks["are"] == "kept":
        return
    for position, counts in sinks["left_out_a_prompt"].items():
        most = max(counts, key=counts.__getitem__)
        average = sum(counts.values()) / len(counts)
        console.print(
            f"Position {position} left out {average:.1f} tokens a prompt as attention sinks, at "
            f"most {counts[most]:.1f} ({most}): the first token, and those whose norm is above "
            f"{sinks['ratio']:.0f} times the prompt's median (collect.sinks: kept takes them in).",
            markup=False,
            highlight=False,
        )


def show_refusal(console: Console, report: RefusalReport) -> None:
    """Print whether the model refuses these prompts at all."""
    table = Table(title="Does the model refuse?", title_justify="left")
    for column in ("class", "refused", "evaded", "broken", "mean refusal score (nats)"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, is_harmful in (("harmful", True), ("harmless", False)):
        rate, score = report.rate(is_harmful), report.mean_score(is_harmful)
        low, high = report.interval(is_harmful)
        others = (f"{report.rate(is_harmful, outcome):.1%}" for outcome in ("evaded", "broken"))
        table.add_row(name, f"{rate:.1%} ({low:.1%}-{high:.1%})", *others, f"{score:+.2f}")
    console.print(table)
    agreement = report.agreement
    kappa = "" if agreement.kappa != agreement.kappa else f" (kappa {agreement.kappa:.2f})"
    console.print(
        f"Sign of the score and judge agree on {agreement.share:.1%} of the answers{kappa}. "
        f"Refusal tokens: {', '.join(repr(token) for token in report.refusal_tokens)}.",
        markup=False,
    )
    words = describe_state(report)
    if words.remedy:
        console.print(f"[bold red]{escape(words.sentence)}[/] {escape(words.remedy)}\n")
