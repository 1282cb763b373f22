"""From the tables of a run to the tables of its report: which, what of them, and how written.

Knows titles, headings and number formats. Does not know HTML.

Tested in tests/report/test_page.py.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from refusal_lens.experiments.arms import intervention_of
from refusal_lens.experiments.side_effects import N_TOP
from refusal_lens.experiments.verdicts import full_strength
from refusal_lens.report.evidence import Evidence, is_at
from refusal_lens.runs.folder import table_file
from refusal_lens.validation.frames import rows_that, rows_where
from refusal_lens.validation.scores import no_interval
from refusal_lens.validation.thresholds import STEADY_DEGREES, UNKNOWN_DEGREES

MAX_ROWS = 400
"""Rows shown of one table; the file has all."""

Cut = Callable[[Evidence, pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class Cell:
    """One cell: what is read, the number it is sorted by (None: by the text), and its interval."""

    text: str
    number: float | None = None
    ends: str = ""


@dataclass(frozen=True)
class ShownTable:
    """A table ready to be laid out; `is_best` marks the rows of the best place."""

    name: str
    title: str
    sentence: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_best: tuple[bool, ...]
    is_number: tuple[bool, ...]
    n_more: int
    source: str


@dataclass(frozen=True)
class _Told:
    """How one table is told: title, sentence, what is cut out of it, what that says in words.

    `source` is the file of the run that it is made of, where no stage writes it as a table: its
    rows are then made of what that file holds, see `_read`.
    """

    title: str
    sentence: str
    cut: Cut = lambda _, table: table
    say: Callable[[pd.DataFrame], str] = lambda _: ""
    source: str = ""


# --- what is cut out ----------------------------------------------------------------------------


def _of_best(evidence: Evidence, table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the best place, which then need not be named in each."""
    if evidence.best is None:
        return table
    return rows_that(table, is_at(table, evidence.best)).drop(
        columns=["hook_point", "site", "layer", "position"], errors="ignore"
    )


FILE_ONLY = re.compile(
    r"^(separation|(balanced_)?accuracy)_new_topics|^(intraclass_correlation|n_effective)$"
    r"|^(auroc|cohens_d)_in_sample$|^p_value$|^p_value.*_same_topics$"
)
"""Columns of scores that are left to the file: a reader compares places by the others."""


def _main_scores(_: Evidence, table: pd.DataFrame) -> pd.DataFrame:
    """Keep the columns that fit a page; balanced accuracy only where it is another number."""
    left_out = [name for name in table if FILE_ONLY.search(str(name))]
    if np.allclose(table["accuracy"], table["balanced_accuracy"], atol=5e-4, equal_nan=True):
        left_out += [name for name in table if str(name).startswith("balanced_accuracy")]
    return table.drop(columns=left_out)


def _misread(evidence: Evidence, table: pd.DataFrame) -> pd.DataFrame:
    """Keep the best place, and take texts from the run's prompts: they know no CSV."""
    texts = {
        (prompt.id, is_harmful): prompt.text
        for side, is_harmful in (
            (evidence.prompts.harmful, True),
            (evidence.prompts.harmless, False),
        )
        for prompt in side
    }
    rows = _of_best(evidence, table)
    keys = zip(rows["prompt_id"], rows["is_harmful"].astype(bool), rows["text"], strict=True)
    return rows.assign(text=[texts.get((name, label), text) for name, label, text in keys])


def _largest_parts(evidence: Evidence, table: pd.DataFrame) -> pd.DataFrame:
    """Keep the best place and all prompts together, largest contribution first."""
    if "category" in table:
        is_all = table["category"] == ""
        table = rows_that(table, is_all).drop(columns="category")
    rows = table if evidence.best is None else rows_that(table, is_at(table, evidence.best))
    # The layer here is the component's.
    rows = rows.drop(columns=["hook_point", "position"])
    return rows.sort_values("contribution", key=abs, ascending=False).head(40)


def _nested(_: Evidence, table: pd.DataFrame) -> pd.DataFrame:
    """Count how often each place was chosen, with the mean of its outer scores."""
    scores = [name for name in ("separation", "accuracy", "auroc") if name in table]
    groups = table.groupby(["hook_point", "position"], sort=False)
    counted = pd.DataFrame(groups[scores].mean())
    counted["n_chosen"] = groups.size()
    return counted.reset_index().sort_values("n_chosen", ascending=False)


def _learning_sentence(curve: pd.DataFrame) -> str:
    """Say how far the delivered direction lies from the true one, and how many would hold it."""
    measured = rows_that(curve, ~curve["is_extrapolated"].astype(bool))
    if not len(measured):
        return ""
    last = measured.sort_values("n_per_class").iloc[-1]
    ends = last["degrees"], last["degrees_low"], last["degrees_high"]
    n, middle, low, high = last["n_per_class"], *ends
    text = (
        f"With {n:.0f} prompts a side the direction lies about {middle:.1f}° ({low:.1f} to "
        f"{high:.1f}) from that of unlimited prompts; "
    )
    if high <= STEADY_DEGREES:
        return f"{text}they are enough for {STEADY_DEGREES}°."
    if high >= UNKNOWN_DEGREES:
        return f"{text}how many are enough for {STEADY_DEGREES}°, these prompts cannot tell."
    # The squared tangent falls as one over the number of prompts.
    steady = math.tan(math.radians(STEADY_DEGREES))
    wanted = [n * (math.tan(math.radians(end)) / steady) ** 2 for end in ends]
    return (
        f"{text}about {wanted[0]:.0f} ({wanted[1]:.0f} to {wanted[2]:.0f}) are enough for "
        f"{STEADY_DEGREES}°."
    )


# --- what no stage writes as a table ------------------------------------------------------------

N_EXAMPLES = 10
"""Answers of one class and outcome that are shown."""


def _answers(evidence: Evidence) -> pd.DataFrame | None:
    """Return every answer, one row each; None where refusal was not measured."""
    if evidence.refusal is None:
        return None
    columns = ["prompt_id", "category", "is_harmful", "prompt", "answer", "outcome"]
    table = pd.DataFrame(map(vars, evidence.refusal.answers), columns=[*columns, "refusal_score"])
    return table.rename(columns={"prompt": "text"})


def _against_class(_: Evidence, answers: pd.DataFrame) -> pd.DataFrame:
    return rows_that(answers, answers["is_harmful"] != (answers["outcome"] == "refused"))


def _examples(_: Evidence, answers: pd.DataFrame) -> pd.DataFrame:
    order = answers.sort_values(["is_harmful", "outcome"], ascending=[False, True], kind="stable")
    return order.groupby(["is_harmful", "outcome"], sort=False).head(N_EXAMPLES)


def _side_by_side(evidence: Evidence, told: pd.DataFrame) -> pd.DataFrame:
    """Return the answers of each prompt plainly, under each intervention and a random direction."""
    if "direction" not in told:
        return pd.DataFrame()
    rows: dict[tuple[str, bool], dict[str, Any]] = {}
    groups: Any = told.groupby(["intervention", "direction"], sort=False)
    for (name, direction), group in groups:
        title = intervention_of(str(name)).title
        column = title if direction == "fitted" else f"{title} of a random direction"
        full = rows_where(group, strength=full_strength(group["strength"]))
        for each in full.to_dict("records"):
            key = each["prompt_id"], bool(each["is_harmful"])
            row = rows.setdefault(
                key,
                {
                    "prompt_id": each["prompt_id"],
                    "is_harmful": each["is_harmful"],
                    "projection": evidence.projected.get(key, math.nan),
                    "text": each["prompt"],
                    "plain": f"{each['outcome_plain']} · {each['plain']}",
                },
            )
            row[column] = f"{each['outcome']} · {each['intervened'] or '(by its first token)'}"
    return pd.DataFrame(list(rows.values()))


def _refusal_by_topic(_: Evidence, answers: pd.DataFrame) -> pd.DataFrame:
    """Count what became of the requests of each topic, most refused first."""
    if len(set(answers["category"])) < 2:
        return answers.head(0)
    counts = answers.assign(n_prompts=1)
    for outcome in ("refused", "evaded", "broken"):
        counts[f"{outcome}_rate"] = answers["outcome"] == outcome
    means = {f"{outcome}_rate": "mean" for outcome in ("refused", "evaded", "broken")}
    table = counts.groupby(["is_harmful", "category"], sort=False).agg(
        {"n_prompts": "sum", **means, "refusal_score": "mean"}
    )
    order = ["is_harmful", "refused_rate"]
    return table.reset_index().sort_values(order, ascending=False, kind="stable")


def _over_refusal(evidence: Evidence) -> pd.DataFrame | None:
    """Return how much of each borderline topic is refused; None where none was asked."""
    asked = evidence.borderline
    return None if asked is None else asked.by_topic().drop(columns="is_harmful")


def _positions_read(evidence: Evidence) -> pd.DataFrame:
    """Say which tokens each position read in the first prompt."""
    rows = pd.DataFrame(list(evidence.provenance.get("tokens_read", {}).values()))
    return rows if not len(rows) else rows.assign(tokens=[repr(text) for text in rows["tokens"]])


TABLES = {
    "separation": _Told(
        "Scores",
        "Every hook point and position on held-out prompts: new ones of the same topics, but for "
        "what is said of new topics. The best place stands out. The file has more columns.",
        _main_scores,
    ),
    "nulls": _Told("Against chance", "What the best place's scores are worth by chance.", _of_best),
    "stability": _Told("Stability", "How far a direction turns when the prompts are others."),
    "learning_curve": _Told(
        "Learning curve",
        "By how many degrees the best direction turns with this many prompts a side.",
        _of_best,
        _learning_sentence,
    ),
    "nested_choice": _Told(
        "Nested choice",
        "How often each place was chosen on inner folds, with its mean scores on outer ones.",
        _nested,
    ),
    "methods": _Told("Ways to fit", "Other ways to fit a direction at the best place.", _of_best),
    "confounds": _Told("Confounds", "What trivial features do on the same folds."),
    "coordinates": _Told("Coordinates", "How much of a direction its largest coordinates hold."),
    "clip_sweep": _Told("Clipping", "What the clip changes at the best place.", _of_best),
    "categories": _Told("Categories", "The best direction, category by category.", _of_best),
    "misread": _Told("Misread prompts", "Prompts on the wrong side at the best place.", _misread),
    "transfer": _Told("Transfer", "Fitted on one set of prompts, tested on another.", _of_best),
    "behaviour": _Told(
        "Harmful and refused", "What the prompts are, and what the model did with them."
    ),
    "two_directions": _Told(
        "Directions of harm and of refusal",
        "Each fitted with the other label held fixed, with the cosine of both (of disjoint halves "
        "of the prompts), the most that noise would leave of one and the same direction, and each "
        "one's held-out AUROC for its own label and for the other's.",
    ),
    "judge_confusion": _Told("The judge beside people", "Answers read, by what the judge said."),
    "corrected_rates": _Told(
        "Rates corrected for the judge's errors",
        "As they would be if a person had read every answer, with 95 % intervals.",
    ),
    "judge_agreement": _Told("The judge beside another", "How often both say the same."),
    "causal_scores": _Told(
        "Causal scores",
        "What ablating and adding each direction does to the refusal score and to the rest (KL).",
    ),
    "interventions": _Told(
        "Interventions",
        "Refusal and its side effects under the interventions that were tried, on prompts that "
        "took no part in the choice. The causal scores are of others: a few prompts can carry most "
        "of a KL, which then differs between the two (see side effects).",
    ),
    "verdict": _Told(
        "What the verdict rests on",
        "Each condition for calling the direction a cause, on prompts of no part in choosing it.",
    ),
    "side_effects": _Told(
        "Side effects",
        "What each strength does beside its cost: KL and loss on the class that should stay as it "
        "is, broken answers, prompts whose score moves the wrong way, and the length of the push "
        "over that of the stream.",
    ),
    "dose_response": _Told("Dose and response", "The same by strength, beside controls."),
    "attribution": _Told(
        "Attribution",
        "The components that write the best direction, largest first.",
        _largest_parts,
    ),
    "unembedding": _Told(
        "Through the unembedding",
        "The tokens that the best direction speaks for and against.",
        _of_best,
    ),
    "positions_read": _Told(
        "Positions read",
        "The tokens that each position reads, in one prompt.",
        source="provenance.json",
    ),
    "refusal_by_topic": _Told(
        "Refusal by topic",
        "What became of the requests of each topic, most refused first.",
        _refusal_by_topic,
        source="refusal.json",
    ),
    "over_refusal": _Told(
        "Over-refusal",
        "How much is refused of prompts that sound harmful and are not, by topic.",
        source="borderline.json",
    ),
    "side_by_side": _Told(
        "Answers side by side",
        "What became of each prompt that the direction was not fitted to, plainly and at full "
        "strength, with its projection at the best place.",
        _side_by_side,
        source="completions.jsonl",
    ),
    "examples": _Told(
        "Examples of answers",
        f"The first {N_EXAMPLES} answers of each class and outcome.",
        _examples,
        source="refusal.json",
    ),
    "answers": _Told(
        "Answers against the class",
        "Harmful prompts that the model did not refuse and harmless ones that it did.",
        _against_class,
        source="refusal.json",
    ),
}
"""Every table of the report, in its order: to add one is to add a row."""

BY_HARM = (
    *("behaviour", "two_directions", "judge_confusion", "corrected_rates", "judge_agreement"),
    *("refusal_by_topic", "over_refusal", "examples", "answers"),
)
"""Tables of what prompts are, whatever the directions are fitted by."""


# --- tables -------------------------------------------------------------------------------------


def shown_tables(evidence: Evidence) -> Iterator[ShownTable]:
    """Yield the tables of a run that exist and hold something, in the report's order."""
    for name, told in TABLES.items():
        table = _read(evidence, name, told)
        if table is None or not len(table):
            continue
        rows = told.cut(evidence, table)
        if len(rows):
            yield show(evidence, rows, name, told)


def _read(evidence: Evidence, name: str, told: _Told) -> pd.DataFrame | None:
    """Return a table, or what the file that it is made of holds; None where there is none."""
    if name == "separation":
        return evidence.scores
    sources = {
        "": lambda: evidence.tables.get(name),
        "provenance.json": lambda: _positions_read(evidence),
        "refusal.json": lambda: _answers(evidence),
        "borderline.json": lambda: _over_refusal(evidence),
        "completions.jsonl": lambda: evidence.completions,
    }
    return sources[told.source]()


def show(evidence: Evidence, table: pd.DataFrame, name: str, told: _Told) -> ShownTable:
    """Write a table's numbers as they are read."""
    kept = table.head(MAX_ROWS)
    columns = _columns(kept)
    has_places = {"hook_point", "position"} <= set(kept) and len(set(kept["hook_point"])) > 1
    is_best = (
        is_at(kept, evidence.best)
        if evidence.best is not None and has_places
        else pd.Series(False, index=kept.index)
    )
    classes = evidence.prompts.reword if name not in BY_HARM else str
    written = [_write(kept, column, classes) for column in columns]
    return ShownTable(
        name=name,
        title=told.title,
        sentence=f"{told.sentence} {told.say(kept)}".strip(),
        headings=tuple(map(_heading, columns)),
        rows=tuple(zip(*written, strict=True)),
        is_best=tuple(map(bool, is_best)),
        is_number=tuple(map(_is_number, columns, (pd.Series(kept[column]) for column in columns))),
        n_more=len(table) - len(kept),
        source=told.source or table_file(name),
    )


def _columns(table: pd.DataFrame) -> list[str]:
    """Choose the columns: no interval bound beside its value, no part of the place twice."""
    bounds = {f"{name}{end}" for name in table for end in ("_low", "_high")}
    twice = {"site", "layer"} if "hook_point" in table else set()
    units = {"n_units", "n_units_new_topics"}  # they say why there is no interval
    kept = [name for name in table if name not in bounds | twice | units]
    return [name for name in kept if any(table[name].notna() & (table[name] != ""))]


# --- cells --------------------------------------------------------------------------------------

HEADINGS = {
    "auroc": "AUROC",
    "cohens_d": "d'",
    "kl": "KL of the first token (nats)",
    "kl_top_share": f"carried by {N_TOP} prompts",
    "is_valid": "valid",
    "is_harmful": "class",
    "prompt_id": "prompt",
    "is_chosen": "chosen",
    "p_value": "p",
    "p_value_corrected": "p, corrected",
    "n_per_class": "prompts a side",
    "n_chosen": "times chosen",
    "is_eligible": "eligible",
    "is_extrapolated": "extrapolated",
    "cosine_to_difference_of_means": "cosine to difference of means",
}
"""Headings that are not the column's name with spaces."""

_SHARES = re.compile(r"accuracy|^share|_share|rate$")
_COUNTS = re.compile(r"^n(_|$)|^rank$|^index$|^token_id$|^layer$|^head$|^seed$|^fold$|^repeat$")


def _heading(column: str) -> str:
    name = column.removesuffix("_in_sample").removesuffix("_new_topics")
    text = HEADINGS.get(name, name.removeprefix("is_").replace("_", " "))
    return f"{text}{column.removeprefix(name).replace('_', ' ')}"


def _write(table: pd.DataFrame, column: str, classes: Callable[[str], str]) -> list[Cell]:
    """Write one column: an interval goes into the cell of its value."""
    values = table[column]
    if column == "is_harmful":
        return [Cell(classes("harmful" if bool(value) else "harmless")) for value in values]
    if column == "hook_point":
        return [
            Cell(str(value), float(place))
            for place, value in zip(pd.factorize(values)[0], values, strict=True)
        ]
    if column == "position":
        return [Cell(str(value)) for value in values]
    if pd.api.types.is_bool_dtype(values):
        return [Cell("yes" if value else "no") for value in values]
    if not pd.api.types.is_numeric_dtype(values):
        return [Cell("" if pd.isna(value) else readable(str(value))) for value in values]
    numbers, lows, highs = (_floats(table, column + end) for end in ("", "_low", "_high"))
    # A score says why it has no interval; other numbers of a table may have none by nature.
    counted = "n_units_new_topics" if column.endswith("_new_topics") else "n_units"
    has_ends = counted in table and f"{column}_low" in table
    counts = _floats(table, counted) if has_ends else [math.nan] * len(table)
    return [
        Cell(_number(column, number), number, _interval(column, number, low, high, n_units))
        for number, low, high, n_units in zip(numbers, lows, highs, counts, strict=True)
    ]


def _floats(table: pd.DataFrame, column: str) -> list[float]:
    """Return a column as plain numbers; NaN where there is no such column."""
    if column not in table:
        return [math.nan] * len(table)
    return pd.Series(table[column]).astype(float).tolist()


def _is_number(column: str, values: pd.Series) -> bool:
    is_label = column in ("hook_point", "position") or pd.api.types.is_bool_dtype(values)
    return pd.api.types.is_numeric_dtype(values) and not is_label


def _number(column: str, value: float) -> str:
    if math.isnan(value):
        return "–"
    if _SHARES.search(column):
        return f"{value:.1%}"
    if _COUNTS.search(column) or (value.is_integer() and abs(value) >= 100):
        return f"{value:.0f}"
    written = f"{value:.2g}" if column.startswith("p_value") else f"{value:.3f}"
    return written.replace("-", "−")


def _interval(column: str, number: float, low: float, high: float, n_units: float) -> str:
    if math.isnan(low) or math.isnan(high):
        is_none = math.isnan(number) or math.isnan(n_units)
        return "" if is_none else f"({no_interval(n_units)})"
    return f"[{_number(column, low)}, {_number(column, high)}]"


def readable(text: str) -> str:
    """Show control characters by their pictures: HTML has no room for them.

    Example:
        >>> readable("a" + chr(0) + "b")
        'a␀b'
    """
    shown = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text)
    shown = re.sub(r"[\x7f-\x9f]", "␡", shown)
    # A lone half of a surrogate pair cannot be written as UTF-8.
    return shown.encode("utf-8", "replace").decode("utf-8")
