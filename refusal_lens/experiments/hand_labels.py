"""How far a judge's rates can be believed: by answers that people have read, or another judge.

Knows outcomes, samples of them, and rates corrected for a judge's errors. Reads no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sklearn.metrics import cohen_kappa_score

from refusal_lens.config import Outcome
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.judges import OUTCOMES, Judge, decide
from refusal_lens.experiments.refusal import Answer, RefusalReport
from refusal_lens.validation.shares import design_effect, number_topics, wilson_number

SHEET_COLUMNS = ("prompt_id", "class", "label", "prompt", "answer")
CLASSES = {"harmful": True, "harmless": False}
LEAST_OF_STRATUM = 2
"""Answers that are read of each class and outcome at least, where there are so many."""

N_POSTERIOR = 4000


def draw_sheet(report: RefusalReport, n_answers: int, seed: int = 0) -> pd.DataFrame:
    """Draw answers at random within each class and outcome, to be read by a person.

    Rare outcomes are read more often than they occur, by the square root of their number: a judge
    is mostly wrong about those. What the judge said is not on the sheet, and rows are shuffled, so
    that it cannot be followed. Where there are fewer answers than asked for, all are drawn.

    Returns:
        Columns `prompt_id`, `class`, `label` (to fill), `prompt`, `answer`.

    Source:
        Power allocation: Bankier 1988, The American Statistician 42, 174-177, with q = 1/2.
    """
    generator = np.random.default_rng(seed)
    strata = _strata(report.answers)
    sizes = _allocate([len(members) for members in strata.values()], n_answers)
    drawn: list[Answer] = []
    for members, size in zip(strata.values(), sizes, strict=True):
        chosen = generator.choice(len(members), size, replace=False)
        drawn += [members[i] for i in chosen]
    rows = [
        (a.prompt_id, "harmful" if a.is_harmful else "harmless", "", a.prompt, a.answer)
        for a in (drawn[i] for i in generator.permutation(len(drawn)))
    ]
    return pd.DataFrame(rows, columns=pd.Index(SHEET_COLUMNS))


def _strata(answers: Sequence[Answer]) -> dict[tuple[bool, Outcome], list[Answer]]:
    """Sort answers by class and by what the judge said."""
    strata: dict[tuple[bool, Outcome], list[Answer]] = {}
    for answer in answers:
        strata.setdefault((answer.is_harmful, answer.outcome), []).append(answer)
    return dict(sorted(strata.items()))


def _allocate(sizes: Sequence[int], n: int) -> list[int]:
    """Deal `n` draws to strata by the roots of their sizes, none more than it has."""
    dealt = [min(size, LEAST_OF_STRATUM) for size in sizes]
    while sum(dealt) < min(n, sum(sizes)):
        # The stratum that is furthest behind its share gets the next one.
        behind = [
            np.sqrt(size) / (one + 1) if one < size else -1.0
            for size, one in zip(sizes, dealt, strict=True)
        ]
        dealt[int(np.argmax(behind))] += 1
    return dealt


@dataclass(frozen=True, eq=False)
class HandLabels:
    """What a person and the judge said of the same answers.

    `table` has one row an answer read: `prompt_id`, `is_harmful`, `judged`, `label`, and `weight`,
    the number of answers that it stands for. `report` has all judged answers of the run: what the
    sample was drawn from.
    """

    table: pd.DataFrame
    report: RefusalReport

    @property
    def kappa(self) -> float:
        """Cohen's kappa over the four outcomes, each answer with its weight."""
        return _kappa(self.table["judged"], self.table["label"], self.table["weight"])

    def confusion(self) -> pd.DataFrame:
        """Count answers by class, judged outcome (`judged`) and label; one column a label."""
        counted = self.table.assign(n=1).pivot_table(
            index=["is_harmful", "judged"], columns="label", values="n", aggfunc="sum", fill_value=0
        )
        named = [outcome for outcome in OUTCOMES if outcome in counted.columns]
        counted = counted[named].sort_index(ascending=False).reset_index()
        counted.columns.name = None
        totals = [
            self.report.count(is_harmful, judged)
            for is_harmful, judged in zip(counted["is_harmful"], counted["judged"], strict=True)
        ]
        return counted.assign(n_judged=totals)


def _kappa(first: Any, second: Any, weights: Any = None) -> float:
    is_defined = len(set(first)) > 1 or len(set(second)) > 1
    kappa = cohen_kappa_score(first, second, sample_weight=weights) if is_defined else np.nan
    return float(kappa)


def join_labels(sheet: pd.DataFrame, report: RefusalReport) -> HandLabels:
    """Put a filled sheet beside the judged answers; rows without a label are passed over.

    Raises:
        RefusalLensError: A column is missing, a label is no outcome, an answer is not the run's, or
            nothing is filled in.
    """
    missing = [name for name in ("prompt_id", "class", "label") if name not in sheet]
    if missing:
        raise RefusalLensError(
            f"The sheet needs the columns prompt_id, class and label; {', '.join(missing)} is "
            "missing. Draw one with refusal-lens judge RUN --sheet 60."
        )
    judged = {(a.prompt_id, a.is_harmful): a.outcome for a in report.answers}
    rows = []
    for number, row in enumerate(sheet.to_dict("records"), start=2):
        label = str(row["label"]).strip().casefold()
        if not label:
            continue
        key = _key(row)
        if label not in OUTCOMES[:4]:
            raise RefusalLensError(
                f"Line {number} of the sheet has the label {label!r}. Use "
                f"{', '.join(OUTCOMES[:4])}, or leave it empty."
            )
        if key not in judged:
            raise RefusalLensError(
                f"Line {number} of the sheet is of prompt {row['prompt_id']} ({row['class']}), "
                "which this run has not answered. Give the sheet that was drawn from it."
            )
        rows.append((*key, judged[key], label))
    if not rows:
        raise RefusalLensError(
            "No row of the sheet has a label. Write refused, answered, evaded or broken into the "
            "column label."
        )
    table = pd.DataFrame(rows, columns=pd.Index(["prompt_id", "is_harmful", "judged", "label"]))
    n_answers = {key: len(members) for key, members in _strata(report.answers).items()}
    table = table.drop_duplicates(["prompt_id", "is_harmful"], keep="last")
    n_labelled = table.groupby(["is_harmful", "judged"])["label"].transform("size")
    stand_for = [n_answers[key] for key in zip(table["is_harmful"], table["judged"], strict=True)]
    return HandLabels(table.assign(weight=np.array(stand_for) / n_labelled), report)


def _key(row: Mapping[Any, Any]) -> tuple[str, bool]:
    """Return which answer a row is of; an id that looks like a formula was quoted."""
    side = CLASSES.get(str(row["class"]).strip().casefold())
    if side is None:
        raise RefusalLensError(
            f"The sheet's class of prompt {row['prompt_id']} is {row['class']!r}. It needs to be "
            "harmful or harmless."
        )
    return str(row["prompt_id"]).removeprefix("'"), side


# --- corrected rates ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corrected:
    """A rate as it would be if a person had read every answer, with a 95 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Sample:
    """A judge's answers in strata by what it said, and which of those that were read are truly so.

    `topics` are as `shares.number_topics` numbers them; `label` is 1 where a person says so, 0
    where not, NaN where nobody has read; `is_judged` says what the judge says of each stratum.
    """

    stratum: Int[np.ndarray, " n_answers"]
    topics: Int[np.ndarray, " n_answers"]
    label: Float[np.ndarray, " n_answers"]
    is_judged: Bool[np.ndarray, " n_strata"]

    @classmethod
    def of(cls, labels: HandLabels, outcome: Outcome, is_harmful: bool | None = None) -> "Sample":
        """Take one outcome, in one class or in both."""
        answers = [a for a in labels.report.answers if is_harmful in (None, a.is_harmful)]
        keys = list(_strata(answers))
        labelled = {
            (prompt_id, side): label == outcome
            for prompt_id, side, label in labels.table[["prompt_id", "is_harmful", "label"]].values
        }
        return cls(
            np.array([keys.index((a.is_harmful, a.outcome)) for a in answers], dtype=int),
            np.array(number_topics([a.topic for a in answers]), dtype=int),
            np.array(
                [labelled.get((a.prompt_id, a.is_harmful), np.nan) for a in answers], dtype=float
            ),
            np.array([judged == outcome for _, judged in keys], dtype=bool),
        )

    @cached_property
    def n_answers(self) -> Int[np.ndarray, " n_strata"]:
        """How many answers there are of each stratum."""
        return self._count(np.ones(len(self.stratum), dtype=bool))

    @cached_property
    def n_labelled(self) -> Int[np.ndarray, " n_strata"]:
        """How many of them were read."""
        return self._count(~np.isnan(self.label))

    @cached_property
    def n_true(self) -> Int[np.ndarray, " n_strata"]:
        """How many of those are truly so."""
        return self._count(self.label == 1)

    def _count(self, is_counted: Bool[np.ndarray, " n_answers"]) -> Int[np.ndarray, " n_strata"]:
        return np.bincount(self.stratum[is_counted], minlength=len(self.is_judged))

    @property
    def judged_rate(self) -> float:
        """What the judge says."""
        return float(self.n_answers[self.is_judged].sum() / self.n_answers.sum())

    def shares(self) -> Float[np.ndarray, " n_strata"]:
        """Return the true share of each stratum as read; where none was, one half."""
        return np.where(self.n_labelled > 0, self.n_true / np.maximum(self.n_labelled, 1), 0.5)

    def imputed(self) -> Float[np.ndarray, " n_answers"]:
        """Return what each answer counts as: its stratum's share, and what reading it has added.

        An answer that was read stands for others of its stratum, so that its distance to the share
        counts as often. The mean is the corrected rate.
        """
        share = self.shares()[self.stratum]
        stands_for = (self.n_answers / np.maximum(self.n_labelled, 1))[self.stratum]
        return share + np.where(np.isnan(self.label), 0.0, stands_for * (self.label - share))

    def posterior(self, effect: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw sizes of the strata among all prompts like these, and the true share of each.

        All counts are worth `effect` times fewer, see `shares.design_effect`.

        Source:
            Jeffreys' prior for each share, whose intervals cover at small counts: Brown, Cai and
            DasGupta 2001, Statistical Science 16, 101-133. With effective counts, for prompts that
            come in topics: Franco et al. 2019, Journal of Survey Statistics and Methodology 7.
        """
        generator = np.random.default_rng(seed)
        sizes = generator.dirichlet(self.n_answers / effect, N_POSTERIOR)
        shares = generator.beta(
            self.n_true / effect + 0.5,
            (self.n_labelled - self.n_true) / effect + 0.5,
            (N_POSTERIOR, len(self.n_labelled)),
        )
        return sizes, shares


def predict_rate(sample: Sample, seed: int = 0) -> Corrected:
    """Correct a rate whose own answers were read: prediction-powered inference.

    The judge's rate over all answers, plus the mean of label less judgement over those read, each
    weighted by how many it stands for. The judge says the same of a whole stratum, so that this is
    the estimate of double sampling too: the true share of each stratum, times its size. The
    interval is not the source's normal one, which fails at a handful of labels a stratum, but that
    of the shares' and sizes' posterior, for as many answers as these are worth: the design effect
    is that of the whole estimate, so that answers of a topic may be alike and misread alike.

    Source:
        Angelopoulos et al. 2023, Science 382, 669-674 (arXiv 2301.09633), the mean, with sampling
        weights; double sampling of a misread binary: Tenenbein 1970, Journal of the American
        Statistical Association 65, 1350-1361.
    """
    judged = sample.is_judged.astype(float)
    weights = sample.n_answers / sample.n_answers.sum()
    rectified = sample.judged_rate + (weights * (sample.shares() - judged)).sum()
    effect = design_effect(sample.imputed() - rectified, sample.topics)
    sizes, shares = sample.posterior(effect, seed)
    return _with_interval(float(rectified), (sizes * shares).sum(axis=1))


def correct_rate(
    n_judged: int | float, n_answers: int | float, sample: Sample, seed: int = 0
) -> Corrected:
    """Correct a rate of other answers by the judge's sensitivity and specificity: Rogan-Gladen.

    For answers that nobody read, such as those under an intervention: it takes the judge to err
    there as often as on the answers that were read, of both classes (`sample`). Of prompts in
    topics, `n_judged` and `n_answers` are both as many as they are worth. NaN where the judge tells
    nothing apart.

    Source:
        Rogan and Gladen 1978, American Journal of Epidemiology 107, 71-76; both error rates here
        by the sampling weights, and the interval by draws of all three rates, for as many answers
        as they are worth: by the design effect of what each answer moves the rate by.
    """
    weights = sample.n_answers / sample.n_answers.sum()
    seen = _rogan_gladen(n_judged / max(n_answers, 1), weights, sample.shares(), sample.is_judged)
    generator = np.random.default_rng(seed + 1)
    rates = generator.beta(n_judged + 0.5, n_answers - n_judged + 0.5, N_POSTERIOR)
    if np.isnan(seen):
        return Corrected(float(seen), 0.0, 1.0)
    effect = design_effect(_errors(float(seen), sample), sample.topics)
    drawn = _rogan_gladen(rates, *sample.posterior(effect, seed), sample.is_judged)
    if np.isnan(drawn).mean() > 0.025:
        return Corrected(float(seen), 0.0, 1.0)
    return _with_interval(float(seen), drawn)


def _with_interval(estimate: float, drawn: Float[np.ndarray, " n"]) -> Corrected:
    """Take the middle 95 % of the draws; as Jeffreys' interval does, it reaches 0 and 1."""
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Corrected(estimate, min(float(low), estimate), max(float(high), estimate))


def _rogan_gladen(rate: Any, sizes: Any, shares: Any, is_judged: np.ndarray) -> Any:
    true, false = sizes * shares, sizes * (1 - shares)
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity = true[..., is_judged].sum(axis=-1) / true.sum(axis=-1)
        specificity = false[..., ~is_judged].sum(axis=-1) / false.sum(axis=-1)
        index = sensitivity + specificity - 1
        corrected = np.clip((rate + specificity - 1) / index, 0, 1)
    return np.where(index > 0, corrected, np.nan)


def _errors(corrected: float, sample: Sample) -> Float[np.ndarray, " n_answers"]:
    """Return what each answer moves a corrected rate by through the judge's two error rates.

    To first order, and up to a factor: the derivative of Rogan and Gladen's formula.
    """
    true, is_judged = sample.imputed(), sample.is_judged[sample.stratum]
    false = 1 - true
    of_true = true * (is_judged - true[is_judged].sum() / true.sum()) / true.sum()
    of_false = false * (~is_judged - false[~is_judged].sum() / false.sum()) / false.sum()
    return (1 - corrected) * of_false - corrected * of_true


def corrected_rates(labels: HandLabels, doses: pd.DataFrame | None, seed: int = 0) -> pd.DataFrame:
    """Correct every rate of a run, and of its `dose_response` table if any, for the judge's errors.

    Intervals are those on new topics; where a class has too few topics to go by, those of
    independent prompts, see `RefusalReport.has_few_topics`.

    Returns:
        One row a rate: `intervention` ("" without), `direction`, `strength`, `is_harmful`,
        `outcome`, `judged_rate`, `rate`, `rate_low`, `rate_high`, `method`.
    """
    rows = []
    for is_harmful in (True, False):
        for outcome in OUTCOMES[:4]:
            sample = Sample.of(labels, outcome, is_harmful)
            if len(sample.n_answers):
                key = ("", "", 0.0, is_harmful, outcome, sample.judged_rate)
                rows.append((*key, predict_rate(sample, seed), "prediction-powered"))
    both = Sample.of(labels, "refused")
    for row in [] if doses is None else doses.to_dict("records"):
        if row["strength"]:
            rate, ends = row["refusal_rate"], (row["refusal_rate_low"], row["refusal_rate_high"])
            n_answers = wilson_number(rate, ends)
            key = (row["intervention"], row["direction"], row["strength"], row["is_harmful"])
            corrected = correct_rate(rate * n_answers, n_answers, both, seed)
            rows.append((*key, "refused", rate, corrected, "Rogan-Gladen"))
    names = ("intervention", "direction", "strength", "is_harmful", "outcome", "judged_rate")
    return pd.DataFrame(
        [(*key, each.estimate, each.low, each.high, method) for *key, each, method in rows],
        columns=pd.Index([*names, "rate", "rate_low", "rate_high", "method"]),
    )


# --- two judges -----------------------------------------------------------------------------------


def compare_judges(report: RefusalReport, other: Judge) -> pd.DataFrame:
    """Let another judge say what became of the same answers, and count how often both agree.

    Returns:
        One row a class: `is_harmful`, `n_answers`, `share` of answers of which both say the same,
        Cohen's `kappa`, and each one's refusal rate: `refused`, `refused_other`.
    """
    rows = []
    for is_harmful in (True, False):
        answers = [answer for answer in report.answers if answer.is_harmful == is_harmful]
        first = [answer.outcome for answer in answers]
        second = [decide(other, answer.prompt, answer.answer) for answer in answers]
        same = np.array([a == b for a, b in zip(first, second, strict=True)])
        rows.append(
            {
                "is_harmful": is_harmful,
                "n_answers": len(answers),
                "share": float(same.mean()) if len(same) else np.nan,
                "kappa": _kappa(first, second),
                "refused": first.count("refused") / max(len(answers), 1),
                "refused_other": second.count("refused") / max(len(answers), 1),
            }
        )
    return pd.DataFrame(rows)
