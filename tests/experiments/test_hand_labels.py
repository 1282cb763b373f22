"""A judge held against people: sheets, confusion, and rates that cover the truth."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments import hand_labels
from refusal_lens.experiments.hand_labels import (
    Sample,
    compare_judges,
    correct_rate,
    corrected_rates,
    draw_sheet,
    join_labels,
    predict_rate,
)
from refusal_lens.experiments.refusal import Answer, RefusalReport
from refusal_lens.validation.shares import share_interval, wilson_interval, wilson_number


def report_of(judged: dict[tuple[bool, str], int]) -> RefusalReport:
    """So many answers of each class and judged outcome; an answer's text is its outcome."""
    answers = []
    for (is_harmful, outcome), n in judged.items():
        for number in range(n):
            name = f"{outcome}-{number}"
            answers.append(Answer(name, "c", is_harmful, f"q {name}", outcome, outcome, 0.0))  # pyright: ignore[reportArgumentType]
    return RefusalReport(tuple(answers), ("I",))


MIXED = report_of(
    {(True, "refused"): 60, (True, "answered"): 30, (False, "answered"): 90, (False, "broken"): 3}
)


def test_a_sheet_draws_from_every_class_and_outcome_and_does_not_tell_the_judge():
    sheet = draw_sheet(MIXED, 40)
    assert list(sheet.columns) == ["prompt_id", "class", "label", "prompt", "answer"]
    assert len(sheet) == 40
    assert not sheet.duplicated(["prompt_id", "class"]).any()
    assert (sheet["label"] == "").all()
    counts = sheet.groupby("class")["answer"].value_counts()
    assert counts["harmless", "broken"] >= 2  # 1 in 60 by chance
    assert counts["harmful", "refused"] > counts["harmful", "answered"]
    assert sheet["answer"].tolist() != sorted(sheet["answer"])
    pd.testing.assert_frame_equal(sheet, draw_sheet(MIXED, 40))
    assert not sheet.equals(draw_sheet(MIXED, 40, seed=1))


def test_a_sheet_holds_all_answers_where_there_are_fewer():
    assert len(draw_sheet(MIXED, 1000)) == 183


def filled(sheet: pd.DataFrame, truth) -> pd.DataFrame:
    return sheet.assign(label=[truth(row) for row in sheet.to_dict("records")])


def test_what_the_judge_gets_right_is_left_as_it_is():
    sheet = draw_sheet(MIXED, 60)
    labels = join_labels(filled(sheet, lambda row: row["answer"]), MIXED)
    assert labels.kappa == 1
    rates = corrected_rates(labels, None).set_index(["is_harmful", "outcome"])
    assert rates.loc[(True, "refused"), "rate"] == pytest.approx(60 / 90)
    assert rates.loc[(False, "broken"), "rate"] == pytest.approx(3 / 93)
    assert (rates["rate_low"] <= rates["rate"]).all()


def test_weights_undo_that_rare_outcomes_are_read_more_often():
    """The judge calls all of 20 broken answers of 200 answered; a fifth of each is read."""
    report = report_of({(True, "refused"): 100, (True, "answered"): 100})
    sheet = filled(draw_sheet(report, 40), lambda row: row["answer"])
    is_answered = sheet["label"] == "answered"
    sheet.loc[sheet.index[is_answered][:4], "label"] = "refused"
    labels = join_labels(sheet, report)
    assert labels.table["weight"].tolist() == [5.0] * 40
    rate = predict_rate(Sample.of(labels, "refused", True))
    assert rate.estimate == pytest.approx(0.5 + 0.5 * 4 / 20)
    # Prediction-powered inference as its paper writes it, over equal weights.
    judged = np.array([answer.is_refused for answer in report.answers], dtype=float)
    said = (labels.table["judged"] == "refused").to_numpy(dtype=float)
    true = (labels.table["label"] == "refused").to_numpy(dtype=float)
    assert rate.estimate == pytest.approx(judged.mean() + (true - said).mean())
    kappa = cohen_kappa_score(labels.table["judged"], labels.table["label"])
    assert labels.kappa == pytest.approx(kappa)


def sample_of(n_answers: list[int], n_labelled: list[int], n_true: list[int]) -> Sample:
    """Answers of independent prompts that the judge calls so, and not so: all, read, truly so."""
    label = np.full(sum(n_answers), np.nan)
    for start, read, true in zip((0, n_answers[0]), n_labelled, n_true, strict=True):
        label[start : start + read] = np.arange(read) < true
    stratum = np.repeat([0, 1], n_answers)
    return Sample(stratum, np.arange(len(label)), label, np.array([True, False]))


def test_rogan_gladen_gives_the_closed_form_back():
    """Sensitivity .8 and specificity .9: of 1,000 answers, 380 are called refused where 400 are."""
    sample = sample_of([380, 620], [380, 620], [320, 80])
    assert correct_rate(380, 1000, sample).estimate == pytest.approx(0.4)
    # Others, under an intervention: (p + specificity - 1) / (sensitivity + specificity - 1).
    assert correct_rate(300, 1000, sample).estimate == pytest.approx((0.3 - 60 / 600) / 0.7)


def test_a_judge_that_tells_nothing_apart_corrects_nothing():
    sample = sample_of([50, 50], [20, 20], [10, 10])
    corrected = correct_rate(50, 100, sample)
    assert np.isnan(corrected.estimate)
    assert (corrected.low, corrected.high) == (0, 1)


def test_rates_under_interventions_are_corrected_too():
    labels = join_labels(filled(draw_sheet(MIXED, 60), lambda row: row["answer"]), MIXED)
    doses = pd.DataFrame(
        {
            "intervention": "ablate",
            "direction": "fitted",
            "strength": [0.0, 1.0],
            "is_harmful": True,
            "n_prompts": 20,
            "refusal_rate": [0.9, 0.1],
            "refusal_rate_low": [0.69, 0.02],
            "refusal_rate_high": [0.98, 0.31],
        }
    )
    rates = corrected_rates(labels, doses)
    row = rates[rates["intervention"] == "ablate"].iloc[0]
    assert row["method"] == "Rogan-Gladen"
    assert row["rate"] == pytest.approx(0.1)
    assert row["rate_low"] < 0.1 < row["rate_high"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": "no"}, "Line 2 of the sheet has the label 'no'"),
        ({"prompt_id": "other"}, "Line 2 of the sheet is of prompt other"),
        ({"class": "good"}, "is 'good'. It needs to be harmful or harmless"),
        ({"label": ""}, "No row of the sheet has a label"),
    ],
)
def test_a_sheet_that_does_not_fit_is_refused_by_its_line(changed, message):
    sheet = draw_sheet(MIXED, 10).assign(label="refused").assign(**changed)
    with pytest.raises(RefusalLensError, match=message):
        join_labels(sheet, MIXED)


def test_two_judges_agree_by_class():
    def other(prompt: str, answer: str) -> bool | str:
        return "evaded" if answer == "refused" else answer

    table = compare_judges(MIXED, other).set_index("is_harmful")  # pyright: ignore[reportArgumentType]
    assert table.loc[True, "share"] == pytest.approx(30 / 90)
    assert table.loc[False, "share"] == 1
    assert table.loc[True, "refused_other"] == 0


def shares_alike(generator, share, likeness, topics) -> np.ndarray:
    """Draw the share of each prompt's topic, so that prompts have this intraclass correlation."""
    if not likeness:
        return np.full(len(topics), share)
    odds = 1 / likeness - 1
    return generator.beta(share * odds, (1 - share) * odds, topics.max() + 1)[topics]


def judge_and_read(generator, topics, rate, likeness, n_read) -> tuple[Sample, float, float]:
    """Let a judge err alike within topics, and read so many answers of each kind.

    Returns:
        What was read; the judge's rate on other answers to the same prompts, a quarter as often
        refused; and how many independent prompts that rate's interval is worth.
    """
    hits, alarms = (shares_alike(generator, share, likeness, topics) for share in (0.8, 0.1))

    def judged_of(rate) -> tuple[np.ndarray, np.ndarray]:
        chances = generator.random((2, len(topics)))
        true = chances[0] < shares_alike(generator, rate, likeness, topics)
        return true, chances[1] < np.where(true, hits, alarms)

    true, judged = judged_of(rate)
    label = np.full(len(topics), np.nan)
    for told in (True, False):
        members = np.flatnonzero(judged == told)
        chosen = generator.choice(members, min(n_read, len(members)), replace=False)
        label[chosen] = true[chosen]
    _, others = judged_of(rate / 4)
    n = wilson_number(others.mean(), share_interval(others.tolist(), topics.tolist()))
    sample = Sample((~judged).astype(int), topics, label, np.array([True, False]))
    return sample, others.mean(), n


@pytest.fixture
def quick_intervals(monkeypatch):
    """Percentiles of so many intervals may be rough: their errors cancel."""
    monkeypatch.setattr(hand_labels, "N_POSTERIOR", 1000)


def coverage(topics, rate, likeness, n_read, n_draws) -> np.ndarray:
    """Return how often intervals hold the plain and the other rate: by topic; as independent.

    Of topics of one prompt the two are the same, and the second is not computed.
    """
    generator = np.random.default_rng(0)
    alone, covered = np.arange(len(topics)), np.zeros((2, 2))
    for _ in range(n_draws):
        sample, other, n = judge_and_read(generator, topics, rate, likeness, n_read)
        ways = [(sample, n)]
        if not np.array_equal(topics, alone):
            ways.append((replace(sample, topics=alone), len(topics)))
        for row, (read, worth) in enumerate(ways):
            ends = predict_rate(read), correct_rate(other * worth, worth, read)
            truths = rate, rate / 4
            covered[row] += [e.low <= t <= e.high for e, t in zip(ends, truths, strict=True)]
    return covered / n_draws


@pytest.mark.usefixtures("quick_intervals")
@pytest.mark.parametrize("rate", [0.15, 0.4, 0.7])
@pytest.mark.parametrize("n_read", [15, 30])
def test_corrected_rates_cover_what_is_true(rate, n_read):
    """Simulated: 95 % intervals hold the true rate 93 to 97 times in a hundred.

    Read answers are of the plain model; the second rate is of others, a quarter as often refused:
    of few refusals, where 15 are read of each kind, its interval holds 97 to 98 times.
    """
    (plain, other), _ = coverage(np.arange(200), rate, 0, n_read, 1500)
    assert 0.93 <= plain <= 0.97
    assert 0.93 <= other <= 0.98


@pytest.mark.usefixtures("quick_intervals")
@pytest.mark.parametrize(("likeness", "rate"), [(0.1, 0.4), (0.3, 0.7)])
def test_of_prompts_in_topics_corrected_rates_cover_too(likeness, rate):
    """30 topics of 2 to 6 prompts that are refused, and misread, alike; 30 read of each kind."""
    topics = np.repeat(np.arange(30), np.random.default_rng(1).integers(2, 7, 30))
    (plain, other), independent = coverage(topics, rate, likeness, 30, 400)
    # The Monte-Carlo error of 400 draws is 1.1 %.
    assert 0.93 - 0.011 <= plain <= 0.97 + 0.011
    assert other >= 0.95 - 0.011
    assert independent[0] < min(0.94, plain)
    assert independent[1] < other


def test_topics_of_the_prompts_widen_a_runs_corrected_rates():
    """24 topics of five prompts each, all or none refused; all are read, and the judge is right."""

    def refused_of(topic_of) -> pd.Series:
        answers = []
        for n in range(120):
            outcome = "refused" if n // 5 % 2 else "answered"
            answers.append(
                Answer(f"{n}", "c", True, f"q{n}", outcome, outcome, 0.0, (), topic_of(n))
            )
        report = RefusalReport(tuple(answers), ("I",))
        labels = join_labels(filled(draw_sheet(report, 120), lambda row: row["answer"]), report)
        rates = corrected_rates(labels, None).set_index("outcome")
        return rates.loc["refused", ["rate", "rate_low", "rate_high"]]

    alone = refused_of(lambda n: "")
    by_topic = refused_of(lambda n: f"topic {n // 5}")
    assert by_topic["rate"] == alone["rate"] == 0.5
    # Five alike are worth one, so that half the width grows by the root of five or so.
    width, wide = ((each["rate_high"] - each["rate_low"]) for each in (alone, by_topic))
    assert 2.0 < wide / width < 2.5
    # Of four topics nothing is told.
    assert refused_of(lambda n: f"topic {n // 30}").equals(alone)


def test_the_interval_of_an_intervened_rate_goes_into_its_correction():
    """A rate that topics make less sure is less sure when it is corrected."""
    labels = join_labels(filled(draw_sheet(MIXED, 60), lambda row: row["answer"]), MIXED)
    row = {"intervention": "ablate", "direction": "fitted", "strength": 1.0, "is_harmful": True}
    ends = [wilson_interval(0.3 * n, n) for n in (90, 30)]
    doses = pd.DataFrame([row | {"n_prompts": 90, "refusal_rate": 0.3}] * 2)
    doses[["refusal_rate_low", "refusal_rate_high"]] = ends
    rates = corrected_rates(labels, doses)
    sure, unsure = rates[rates["intervention"] == "ablate"].to_dict("records")
    assert sure["rate"] == unsure["rate"] == pytest.approx(0.3)
    assert unsure["rate_low"] < sure["rate_low"] < sure["rate_high"] < unsure["rate_high"]
