"""A judge held against people: sheets, confusion, and rates that cover the truth."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from refusal_lens.errors import RefusalLensError
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

TOLD = np.array([True, False])


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


def test_rogan_gladen_gives_the_closed_form_back():
    """Sensitivity .8 and specificity .9: of 1,000 answers, 380 are called refused where 400 are."""
    sample = Sample(
        np.array([380, 620]), np.array([380, 620]), np.array([320, 80]), np.array([True, False])
    )
    assert correct_rate(380, 1000, sample).estimate == pytest.approx(0.4)
    # Others, under an intervention: (p + specificity - 1) / (sensitivity + specificity - 1).
    assert correct_rate(300, 1000, sample).estimate == pytest.approx((0.3 - 60 / 600) / 0.7)


def test_a_judge_that_tells_nothing_apart_corrects_nothing():
    sample = Sample(
        np.array([50, 50]), np.array([20, 20]), np.array([10, 10]), np.array([1, 0]) > 0
    )
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


def judge_and_read(
    generator, n, rate, sensitivity, specificity, n_read
) -> tuple[Sample, np.ndarray]:
    """Let a judge err at random, and read so many of each kind."""
    true = generator.random(n) < rate
    judged = np.where(true, generator.random(n) < sensitivity, generator.random(n) > specificity)
    sizes, read, found = [], [], []
    for said in (True, False):
        members = np.flatnonzero(judged == said)
        chosen = generator.choice(members, min(n_read, len(members)), replace=False)
        sizes.append(len(members))
        read.append(len(chosen))
        found.append(int(true[chosen].sum()))
    return Sample(*map(np.array, (sizes, read, found)), np.array([True, False])), judged


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.15, 0.4, 0.7])
@pytest.mark.parametrize("n_read", [15, 30])
def test_corrected_rates_cover_what_is_true(rate, n_read):
    """Simulated: 95 % intervals hold the true rate 93 to 97 times in a hundred; the judge's do not.

    Read answers are of the plain model; the second rate is of others, a quarter as often refused.
    """
    generator = np.random.default_rng(0)
    covered = np.zeros(3)
    n_runs, other = 1500, rate / 4
    for _ in range(n_runs):
        sample, judged = judge_and_read(generator, 200, rate, 0.8, 0.9, n_read)
        plain = predict_rate(sample)
        covered[0] += plain.low <= rate <= plain.high
        true = generator.random(200) < other
        errs = generator.random(200)
        n_judged = int(np.where(true, errs < 0.8, errs > 0.9).sum())
        moved = correct_rate(n_judged, 200, sample)
        covered[1] += moved.low <= other <= moved.high
        half = 1.96 * np.sqrt(judged.mean() * (1 - judged.mean()) / 200)
        covered[2] += abs(judged.mean() - rate) <= half
    covered /= n_runs
    assert 0.93 <= covered[0] <= 0.97
    assert 0.93 <= covered[1] <= 0.97
