"""Prints what a direction is: its file, what writes it, what it says.

Tested in tests/stages/test_study.py.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from refusal_lens.directions.direction import Directions
from refusal_lens.experiments.attribution import Attribution, Component
from refusal_lens.experiments.token_readout import Unembedding
from refusal_lens.models.hook_points import short_name
from refusal_lens.stages.terminal.looks import TIGHT, fill, leave_out, table_of
from refusal_lens.validation.scores import SCORES

HEADINGS = {"auroc": "AUROC", "cohens_d": "d'"}


def show_directions(console: Console, directions: Directions, path: Path) -> None:
    """Print all that a file of directions says about itself."""
    table = Table(title=str(path), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _describe(directions):
        table.add_row(name, escape(value))
    console.print(table)
    _show_places(console, directions)


def _show_places(console: Console, directions: Directions) -> None:
    """Print a line a place; where all columns do not fit, those that say least are left out."""
    record, best = directions.provenance.get("places", {}), directions.provenance.get("best") or {}
    places = [(each.hook_point, each.position) for each in directions]
    is_best = [place == (best.get("hook_point"), best.get("position")) for place in places]
    cells = {
        "hook point": [short_name(hook_point) for hook_point, _ in places],
        "position": [position for _, position in places],
        "best": ["*" if each else "" for each in is_best],
        "raw norm": [f"{each.vector.norm().item():.4g}" for each in directions],
    }
    metrics = [
        record.get(hook_point, {}).get(position, {}).get("metrics", {})
        for hook_point, position in places
    ]
    for name in _scores_recorded(record):
        cells[HEADINGS.get(name, name)] = [_number(each.get(name)) for each in metrics]
    shown = leave_out(cells, console.width, ("raw norm", "accuracy", "separation"))
    title = "Directions, scored on new prompts of the same topics"
    table = table_of(title, list(shown), ("hook point", "position", "best"), **TIGHT)
    if len(shown) < len(cells):
        left_out = ", ".join(name for name in cells if name not in shown)
        table.caption, table.caption_justify = f"Too narrow for: {left_out}.", "left"
    fill(table, shown, ["bold" if each else "" for each in is_best])
    console.print(table)


def _scores_recorded(record: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return which of the main scores a file tells of."""
    places = [place["metrics"] for row in record.values() for place in row.values()]
    shown = [name for name in SCORES if name != "balanced_accuracy"]  # for want of width
    return [name for name in shown if any(name in metrics for metrics in places)]


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
    if "imported" in record:
        yield "imported from", _describe_import(record["imported"])
    for side in ("harmful", "harmless"):
        prompts = record.get("prompts", {}).get(side, {})
        if prompts:
            n = fit.get(f"n_{side}", prompts.get("n"))
            yield f"{side} prompts", f"{n} (sha256 {prompts.get('sha256')})"
    chat_template = record.get("chat_template", {})
    if chat_template:
        yield "chat template", f"sha256 {chat_template.get('sha256')}"
        for name in ("system_prompt", "example"):
            text = chat_template.get(name)
            yield name.replace("_", " "), "none" if text is None else repr(text)
    for position, row in record.get("tokens_read", {}).items():
        tokens = f"{row['token_indices']} of {row['prompt_id']}"
        is_one = row["token_indices"].isdigit()
        text = f"token {tokens}, {row['tokens']!r} (id {row['token_ids']})"
        yield f"position {position}", text if is_one else f"tokens {tokens}"
    for name in ("validation", "versions"):
        if name in record:
            yield name, ", ".join(f"{key} {value}" for key, value in record[name].items())


def _describe_import(imported: Mapping[str, Any]) -> str:
    left_out = "".join(f"; left out: {each}" for each in imported["left_out"])
    return f"{imported['file']} ({imported['format']}, {_length_of(imported)}){left_out}"


def _length_of(imported: Mapping[str, Any]) -> str:
    return "unit vectors" if imported.get("is_unit") else "raw length"


def show_imported(console: Console, directions: Directions) -> None:
    """Print which directions there are, and whether their length means anything."""
    length = _length_of(directions.provenance.get("imported", {}))
    console.print(f"{directions} ({length})", markup=False, highlight=False)
    console.print(f"  {', '.join(directions.hook_points)}", markup=False, soft_wrap=True)


def show_attribution(console: Console, found: Attribution, n_shown: int = 12) -> None:
    """Print the heads and MLPs that write most of the class difference."""
    difference, total = found.difference(), found.total()
    title = (
        f"What writes {short_name(found.hook_point)} at {found.position}: harmful minus "
        f"harmless, {total:+.4g} along the direction"
    )
    table = table_of(title, ("component", "contribution", "share"), ["component"])
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


def show_unembedding(console: Console, readout: Unembedding) -> None:
    """Print the tokens that a direction speaks for and against."""
    place = f"{short_name(readout.hook_point)} at {readout.position}"
    table = table_of(
        f"What {place} says through the unembedding",
        ("raised", "logit", "lowered", "logit"),
        ("raised", "lowered"),
        caption="Change of the logit for one unit along the direction, at final-norm scale 1.",
    )
    for raised, high, lowered, low in zip(
        readout.top_tokens,
        readout.top_logits.tolist(),
        readout.bottom_tokens,
        readout.bottom_logits.tolist(),
        strict=True,
    ):
        table.add_row(escape(repr(raised)), f"{high:+.3g}", escape(repr(lowered)), f"{low:+.3g}")
    console.print(table)
