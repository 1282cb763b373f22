"""Prints what there is to start from: what will be done, prompts, tokens read, refusals.

Tested in tests/stages/test_study.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from refusal_lens.experiments.refusal import RefusalReport
from refusal_lens.experiments.refusal_states import (
    describe_borderline,
    describe_lengths,
    describe_score,
    describe_state,
    rate_with_interval,
)
from refusal_lens.models.hook_points import head_of, layer_of, site_of
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.groups import FACTORS, Groups, n_groups
from refusal_lens.prompts.positions import PositionRead
from refusal_lens.prompts.tokens import Tokens
from refusal_lens.stages.outlook import ModelSize, Outlook


def show_outlook(
    console: Console, outlook: Outlook, model_name: str, shown: Sequence[PositionRead]
) -> None:
    """Print what will be done and what it takes, a line each."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "model": f"{model_name}{_size_words(outlook.model)}",
        "prompts": f"{outlook.n_harmful} harmful and {outlook.n_harmless} harmless"
        f"{_components_words(outlook)}, {outlook.n_tokens:,} tokens",
        "reads": f"{_places_words(outlook.hook_points)} at {_positions_words(shown)}",
        "work": _work_words(outlook),
    }
    for name, text in rows.items():
        table.add_row(name, escape(text))
    console.print(table)


def _size_words(size: ModelSize | None) -> str:
    if size is None:
        return ", loaded by workers"
    return (
        f": {size.n_layers} layers, {_short(size.n_parameters)} parameters, {size.dtype} "
        f"({size_of(size.n_bytes)}) on {size.device}"
    )


def _short(count: int) -> str:
    """Write a count of parameters as people say it: 1.7 M, 0.5 B.

    Example:
        >>> _short(1_543_714_304), _short(494_032_768), _short(1_750_000)
        ('1.5 B', '494 M', '1.8 M')
    """
    if count >= 1e9:
        return f"{count / 1e9:.1f} B"
    return f"{count / 1e6:.0f} M" if count >= 1e7 else f"{count / 1e6:.1f} M"


def size_of(n_bytes: int) -> str:
    """Write a size as people read it.

    Example:
        >>> size_of(3_145_728), size_of(2_400_000_000)
        ('3.1 MB', '2.4 GB')
    """
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _components_words(outlook: Outlook) -> str:
    if outlook.n_components == outlook.n_harmful + outlook.n_harmless:
        return ", each taken as independent"
    return f" in {outlook.n_components} independent groups"


def _places_words(hook_points: Sequence[str]) -> str:
    """Count the layers or heads of each site; name the rest."""
    counts: dict[tuple[str, str], int] = {}
    for name in hook_points:
        site, kind = site_of(name), "layer"
        if head_of(name) is not None:
            site, kind = site.rpartition(".")[0], "head"
        counts[site, kind] = counts.get((site, kind), 0) + (layer_of(name) is not None)
    return ", ".join(
        f"{site} of {n} {kind}{'s' if n > 1 else ''}" if n else site
        for (site, kind), n in counts.items()
    )


def _positions_words(shown: Sequence[PositionRead]) -> str:
    """Name the positions, each with what it reads in the first prompt."""
    first = {row.position: row for row in reversed(shown)}
    return ", ".join(
        f"{name} ({row.tokens!r})" if row.token_indices.isdigit() else f"{name} ({row.token_ids})"
        for name, row in reversed(first.items())
    )


def _work_words(outlook: Outlook) -> str:
    """Say what the model is run for and how long that will be."""
    parts = {
        "answers": f"answers of {outlook.n_answer_tokens} tokens",
        "activations": "activations"
        + ("" if outlook.stored_bytes is None else f" ({size_of(outlook.stored_bytes)})"),
    }
    text = " and ".join(parts[each] for each in outlook.work)
    return text if outlook.seconds is None else f"{text}: {_duration(outlook.seconds)}"


def _duration(seconds: float) -> str:
    """Say roughly how long: what was timed is a small part.

    Example:
        >>> _duration(12.0), _duration(190.0), _duration(9000.0)
        ('less than a minute', 'about 3 minutes', 'about 2.5 hours')
    """
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute"
    if minutes >= 90:
        return f"about {minutes / 60:.1f} hours"
    return f"about {minutes:.0f} minute{'' if round(minutes) == 1 else 's'}"


# --- with --wide ------------------------------------------------------------------------------


def show_prompts(console: Console, prompts: ContrastSet, tokens: Mapping[str, Tokens]) -> None:
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


def show_positions(console: Console, shown: Sequence[PositionRead]) -> None:
    """Print which token each position reads in the first prompts."""
    table = Table(title="Positions read", title_justify="left")
    for column in ("prompt", "position", "index", "id", "token"):
        table.add_column(column, overflow="ellipsis", no_wrap=column != "token")
    for row in shown:
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
        if not counts[most]:
            continue  # a position of one token leaves none out
        console.print(
            f"Position {position} left out {average:.1f} tokens a prompt as attention sinks, at "
            f"most {counts[most]:.1f} ({most}): the first token, and those whose norm is above "
            f"{sinks['ratio']:.0f} times the prompt's median (collect.sinks: kept takes them in).",
            markup=False,
            highlight=False,
        )


# --- refusals ---------------------------------------------------------------------------------


def show_rates(console: Console, report: RefusalReport) -> None:
    """Print how much is refused as one more line of the outlook; the answer says what it means."""
    rates = (rate_with_interval(report, is_harmful) for is_harmful in (True, False))
    text = "{} of the harmful and {} of the harmless prompts".format(*rates)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row("[bold]refuses[/]", text)
    console.print(table)


def show_refusal(
    console: Console,
    report: RefusalReport,
    borderline: RefusalReport | None = None,
    *,
    is_wide: bool = False,
) -> None:
    """Print whether the model refuses these prompts at all, and how much of borderline ones."""
    words = describe_state(report)
    style = "bold red" if words.remedy else ""
    console.print(f"{words.sentence} {words.remedy}".strip(), style=style, markup=False)
    if borderline is not None:
        console.print(describe_borderline(borderline), markup=False)
    lengths = describe_lengths(report)
    if is_wide or lengths.remedy:
        style = "bold red" if lengths.remedy else None
        console.print(f"{lengths.sentence} {lengths.remedy}".strip(), style=style, markup=False)
    if not is_wide:
        return
    table = Table(title="Does the model refuse?", title_justify="left")
    for column in ("class", "refused", "evaded", "broken", "mean refusal score (nats)"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, is_harmful in (("harmful", True), ("harmless", False)):
        rate, score = report.rate(is_harmful), report.mean_score(is_harmful)
        low, high = report.interval(is_harmful)
        others = (f"{report.rate(is_harmful, outcome):.1%}" for outcome in ("evaded", "broken"))
        table.add_row(name, f"{rate:.1%} ({low:.1%}-{high:.1%})", *others, f"{score:+.2f}")
    console.print(table)
    console.print(
        f"{describe_score(report)} Refusal tokens: "
        f"{', '.join(repr(token) for token in report.refusal_tokens)}.",
        markup=False,
    )
