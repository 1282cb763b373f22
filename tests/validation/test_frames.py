"""Tables come back as they were written: text as text, numbers to the last bit."""

import pandas as pd
import pytest

from refusal_lens.validation.frames import (
    TEXT_COLUMNS,
    for_spreadsheets,
    read_frame,
    rows_that,
    rows_where,
)


@pytest.mark.parametrize("texts", [("-2", "-3"), ("2024", "007"), ("null", "NA"), ("True", "")])
@pytest.mark.parametrize("name", TEXT_COLUMNS)
def test_text_stays_text_whatever_it_looks_like(tmp_path, name, texts):
    pd.DataFrame({name: texts, "n": [1, 2]}).to_csv(tmp_path / "a.csv", index=False)
    table = read_frame(tmp_path / "a.csv")
    assert table[name].tolist() == list(texts)
    assert rows_where(table, **{name: texts[0]})["n"].tolist() == [1]


def test_numbers_come_back_to_the_last_bit_and_nothing_as_nothing(tmp_path):
    numbers = [0.1 + 0.2, 1 / 3, 2.0**-1074, 1e300 / 7, float("nan")]
    table = pd.DataFrame({"position": "-1", "p_value": numbers, "is_valid": True})
    table.to_csv(tmp_path / "a.csv", index=False)
    pd.testing.assert_frame_equal(read_frame(str(tmp_path / "a.csv")), table, check_exact=True)


def test_rows_that_are_wanted_keep_their_order_and_number():
    table = pd.DataFrame({"n": [3, 1, 2]})
    kept = rows_that(table, table["n"] > 1)
    assert kept["n"].tolist() == [3, 2]
    assert kept.index.tolist() == [0, 2]


def test_what_a_spreadsheet_would_run_is_quoted_and_numbers_are_not():
    texts = ["=1+1", "@a", "-2+3", "\tb", "\rb", "+c", "-1", "+2.5e-3", "plain", "a=b", ""]
    frame = pd.DataFrame({"text": texts, "value": [-float(n) for n in range(len(texts))]})
    quoted = for_spreadsheets(frame)
    assert quoted["text"].tolist() == [f"'{text}" for text in texts[:6]] + texts[6:]
    assert quoted["value"].equals(frame["value"])
