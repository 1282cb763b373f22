"""Prints judged answers: beside people, beside another judge, beside what the prompts are.

Tested in tests/stages/test_judging.py.
"""

import pandas as pd
from rich.console import Console

from refusal_lens.experiments.hand_labels import HandLabels
from refusal_lens.experiments.refusal_states import FEW_TOPICS
from refusal_lens.stages.terminal.looks import table_of
from refusal_lens.validation.frames import rows_that, rows_where


def show_labels(console: Console, labels: HandLabels, rates: pd.DataFrame) -> None:
    """Print the confusion table, Cohen's kappa, and rates corrected by both."""
    confusion = labels.confusion()
    named = [name for name in confusion.columns[2:] if name != "n_judged"]
    columns = ("class", "judged", *named, "in the run")
    table = table_of("What people read in the answers", columns, columns[:2])
    for row in confusion.to_dict("records"):
        counts = (str(row[name]) for name in (*named, "n_judged"))
        table.add_row(_class_of(row["is_harmful"]), row["judged"], *counts)
    console.print(table)
    kappa = "" if labels.kappa != labels.kappa else f" Cohen's kappa {labels.kappa:.2f}."
    console.print(
        f"{len(labels.table)} answers read.{kappa} Rates as they would be if all had been read:"
    )
    columns = ("answers", "class", "outcome", "judged", "corrected")
    table = table_of(None, columns, columns[:3])
    told = rows_that(rates, (rates["outcome"] == "refused") | (rates["intervention"] == ""))
    for row in rows_that(told, told["direction"].isin(["", "fitted"])).to_dict("records"):
        under = f"{row['intervention']} {row['strength']:g}" if row["intervention"] else "plain"
        corrected = f"{row['rate']:.1%} ({row['rate_low']:.0%}-{row['rate_high']:.0%})"
        table.add_row(
            under,
            _class_of(row["is_harmful"]),
            row["outcome"],
            f"{row['judged_rate']:.1%}",
            corrected,
        )
    console.print(table)
    if not rows_where(rates, method="Rogan-Gladen").empty:
        console.print(
            "Under interventions nobody has read the answers: those rates take the judge to err "
            "as it does on the plain ones.",
        )
    if labels.report.has_few_topics:
        console.print(FEW_TOPICS)


def show_two_judges(console: Console, table: pd.DataFrame, judge: str) -> None:
    """Print how far two judges agree, class by class."""
    columns = ("class", "n", "agree", "kappa", "refused: the run's judge", f"refused: {judge}")
    shown = table_of("Two judges on the same answers", columns, ["class"])
    for row in table.to_dict("records"):
        shown.add_row(
            _class_of(row["is_harmful"]),
            str(row["n_answers"]),
            f"{row['share']:.1%}",
            "" if row["kappa"] != row["kappa"] else f"{row['kappa']:.2f}",
            f"{row['refused']:.1%}",
            f"{row['refused_other']:.1%}",
        )
    console.print(shown)


def show_two_directions(
    console: Console, places: pd.DataFrame | None, prompts: pd.DataFrame | None
) -> None:
    """Print how far harm and refusal are one direction, where refusal is read best, if anywhere."""
    if places is None or prompts is None:
        return
    first = prompts.iloc[0]
    at = {name: first[f"refusal_{name}"] for name in ("hook_point", "position")}
    row = rows_where(places, **at).iloc[0]
    console.print(
        f"Harm and refusal, each with the other held fixed, at {at['hook_point']}, "
        f"{at['position']}: cosine {row['cosine']:.2f} (noise alone would leave "
        f"{row['ceiling']:.2f} of one and the same). Held-out AUROC of the harm direction "
        f"{row['harm_auroc']:.2f} for harm, {row['harm_tells_refusal']:.2f} for refusal; of the "
        f"refusal direction {row['refusal_auroc']:.2f} for refusal, "
        f"{row['refusal_tells_harm']:.2f} for harm.",
        markup=False,
        highlight=False,
    )


def _class_of(is_harmful: bool) -> str:
    return "harmful" if is_harmful else "harmless"
