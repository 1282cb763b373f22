"""What a run prints: results as tables and sentences.

Knows rich and the wording. Computes nothing.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from refusal_lens.attribution import Attribution, Component
from refusal_lens.causal import CausalScores
from refusal_lens.comparison import rows_where
from refusal_lens.confounds import Likeness
from refusal_lens.diagnosis import GOOD_ACCURACY, SIGNIFICANT, Check, Finding, band
from refusal_lens.directions import Directions
from refusal_lens.hook_points import short_name
from refusal_lens.positions import PositionRead
from refusal_lens.prompts import ContrastSet
from refusal_lens.readout import Unembedding
from refusal_lens.refusal import RefusalReport
from refusal_lens.scores import SCORES
from refusal_lens.selection import GOOD_SEPARATION, CausalChoice, Choice, WeightKernel
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


def show_methods(console: Console, methods: pd.DataFrame, best: Choice) -> None:
    """Print the ways to fit beside each other at the best place."""
    here = rows_where(methods, hook_point=best.hook_point, position=best.position)
    table = Table(
        title=f"Ways to fit at {best.hook_point}, {best.position}, cross-fitted",
        title_justify="left",
        caption="cosine: with the difference of means, clipped alike.",
    )
    for column in ("method", "clipped", "separation", "accuracy", "AUROC", "d'", "cosine"):
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


def show_comparison(console: Console, tables: Mapping[str, pd.DataFrame]) -> None:
    """Print a line for each run, then what lies between runs."""
    table = Table(title="Runs, each at its best place, cross-fitted", title_justify="left")
    columns = ("run", "model", "best place", "AUROC", "separation", "d'")
    for column in columns:
        justify = "right" if column in columns[3:] else "left"
        table.add_column(column, justify=justify, no_wrap=column != "run", overflow="fold",
                         min_width=8 if column == "run" else None)  # fmt: skip
    for row in tables["summary"].to_dict("records"):
        scores = ["no direction", "", "", ""]
        if isinstance(row.get("hook_point"), str):
            scores = [
                f"{short_name(row['hook_point'])}, {row['position']}",
                *(f"{row['auroc']:.4f}", f"{row['separation']:.4f}", f"{row['cohens_d']:.2f}"),
            ]
        table.add_row(row["run"], Path(row["model"]).name, *scores)
    console.print(table)
    _show_between(console, tables["cosines"], ("a", "b"), "cosine")
    _show_between(console, tables["transfer"], ("fit_on", "test_on"), "auroc")


def _show_between(
    console: Console, frame: pd.DataFrame, names: tuple[str, str], score: str
) -> None:
    """Print one line for each pair of runs."""
    for row in rows_where(frame, run="").to_dict("records"):
        if row[names[0]] == row[names[1]]:
            continue
        if score == "cosine" and row["a"] > row["b"]:
            continue  # the same both ways round
        joint = "and" if score == "cosine" else "fitted, tested on"
        is_known = score == "cosine" and row["ceiling"] == row["ceiling"]
        ceiling = f" (noise ceiling {row['ceiling']:.3f})" if is_known else ""
        console.print(
            f"{row['kind'].replace('_', ' ')}: {row[names[0]]} {joint} {row[names[1]]} at "
            f"{short_name(row['hook_point'])}, {row['position']}: {score} {row[score]:.3f}"
            f"{ceiling}",
            markup=False,
        )


def show_directions(console: Console, directions: Directions, path: Path) -> None:
    """Print all that a file of directions says about itself."""
    table = Table(title=str(path), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _describe(directions):
        table.add_row(name, escape(value))
    console.print(table)
    places = Table(title="Directions", title_justify="left")
    record, best = directions.provenance.get("places", {}), directions.provenance.get("best") or {}
    scores = _scores_recorded(record)
    for column in ("hook point", "position", "raw norm", *scores):
        is_text = column in ("hook point", "position")
        places.add_column(column.replace("_", " "), justify="left" if is_text else "right")
    for direction in directions:
        here = record.get(direction.hook_point, {}).get(direction.position, {})
        metrics = here.get("metrics", {})
        is_best = (best.get("hook_point"), best.get("position")) == (
            *(direction.hook_point, direction.position),
        )
        places.add_row(
            direction.hook_point,
            direction.position + (" (best)" if is_best else ""),
            f"{direction.vector.norm().item():.4g}",
            *(_number(metrics.get(name)) for name in scores),
            style="bold" if is_best else "",
        )
    console.print(places)


def _scores_recorded(record: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return which of the main scores a file tells of."""
    places = [place["metrics"] for row in record.values() for place in row.values()]
    return [name for name in SCORES if any(name in metrics for metrics in places)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _describe(directions: Directions) -> Iterator[tuple[str, str]]:
    """Yield what there is to say, line by line; what is not known is left out."""
    record = directions.provenance
    model, fit = record.get("model", {}), record.get("fit", {})
    yield "model", str(model.get("name", "unknown"))
    for name in ("architecture", "revision", "weights_sha256", "dtype", "backend", "processing"):
        if model.get(name) is not None:
            yield name.replace("_", " "), str(model[name])
    yield "d_model", str(directions.vectors.shape[-1])
    yield "method", directions.method
    yield "clip quantile", str(directions.clip_quantile)
    for side in ("harmful", "harmless"):
        prompts = record.get("prompts", {}).get(side, {})
        if prompts:
            n = fit.get(f"n_{side}", prompts.get("n"))
            yield f"{side} prompts", f"{n} (sha256 {prompts.get('sha256')})"
    template = record.get("chat_template", {})
    if template:
        yield "chat template", f"sha256 {template.get('sha256')}"
        yield "system prompt", repr(template.get("system_prompt"))
        yield "example", repr(template.get("example"))
    for position, read in record.get("tokens_read", {}).items():
        where = f"{read['token_indices']} of {read['prompt_id']}"
        is_one = read["token_indices"].isdigit()
        said = f"token {where}, {read['tokens']!r} (id {read['token_ids']})"
        yield f"position {position}", said if is_one else f"tokens {where}"
    for name in ("validation", "versions"):
        if name in record:
            yield name, ", ".join(f"{key} {value}" for key, value in record[name].items())


def show_paths(console: Console, paths: Sequence[Path]) -> None:
    """Print what was written."""
    console.print("\nWrote")
    for path in paths:
        console.print(f"  {path}", markup=False, soft_wrap=True)


def show_attribution(console: Console, found: Attribution, n_shown: int = 12) -> None:
    """Print the heads and MLPs that write most of the class difference."""
    difference, total = found.difference(), found.total()
    table = Table(
        title=f"What writes {short_name(found.hook_point)} at {found.position}: harmful minus "
        f"harmless, {total:+.4g} along the direction",
        title_justify="left",
    )
    table.add_column("component")
    for column in ("contribution", "share"):
        table.add_column(column, justify="right")
    order = difference.abs().argsort(descending=True).tolist()[:n_shown]
    for column in order:
        contribution = difference[column].item()
        share = f"{contribution / total:.1%}" if total else ""
        table.add_row(_component_name(found.components[column]), f"{contribution:+.4g}", share)
    n_left = len(difference) - len(order)
    table.caption = (
        f"{n_left} others: {(difference.sum() - difference[order].sum()).item():+.4g}. All "
        f"{len(difference)} sum to {difference.sum().item():+.6g} of {total:+.6g}."
    )
    console.print(table)


def _component_name(component: Component) -> str:
    if component.layer is None:
        return component.name
    kind = "MLP" if component.head is None else f"head {component.head}"
    return f"layer {component.layer} {kind}"


def show_unembedding(console: Console, said: Unembedding) -> None:
    """Print the tokens that a direction speaks for and against."""
    table = Table(
        title=f"What {short_name(said.hook_point)} at {said.position} says through the unembedding",
        title_justify="left",
        caption="Change of the logit for one unit along the direction, at final-norm scale 1.",
    )
    for column in ("raised", "logit", "lowered", "logit"):
        table.add_column(column, justify="right" if column == "logit" else "left")
    for raised, high, lowered, low in zip(
        said.top_tokens,
        said.top_logits.tolist(),
        said.bottom_tokens,
        said.bottom_logits.tolist(),
        strict=True,
    ):
        table.add_row(escape(repr(raised)), f"{high:+.3g}", escape(repr(lowered)), f"{low:+.3g}")
    console.print(table)


def show_imported(console: Console, directions: Directions) -> None:
    """Print which directions there are, and whether their length means anything."""
    imported = directions.provenance.get("imported", {})
    length = "unit vectors" if imported.get("is_unit") else "raw length"
    console.print(f"{directions} ({length})", markup=False, highlight=False)
    console.print(f"  {', '.join(directions.hook_points)}", markup=False, soft_wrap=True)


def show_report(console: Console, path: Path) -> None:
    """Print where the report is: the last line of a run."""
    console.print(f"\nReport: {path}", markup=False, soft_wrap=True)


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
