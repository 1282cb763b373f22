"""What a run prints: results as tables and sentences.

Knows rich and the wording. Computes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from refusal_lens.comparison import rows_where
from refusal_lens.confounds import Likeness
from refusal_lens.diagnosis import GOOD_ACCURACY, Check, Finding, band
from refusal_lens.directions import Directions
from refusal_lens.hook_points import short_name
from refusal_lens.positions import PositionRead
from refusal_lens.prompts import ContrastSet
from refusal_lens.refusal import RefusalReport
from refusal_lens.scoring import SCORES
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
