"""Prompt files: every format, every fault with its place, and both files of a contrast."""

import json
import sys
import warnings
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.prompts.files import read_contrast, read_prompts

ROOT = Path(__file__).parents[2]
HARMFUL = [f"Harmful request {number}." for number in range(30)]
HARMLESS = [f"Harmless request {number}." for number in range(30)]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_rows(folder: Path, suffix: str, rows: list[dict[str, str]]) -> Path:
    """The same rows in any format with columns."""
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if suffix == ".json":
        return write(folder, path.name, json.dumps(rows, ensure_ascii=False))
    if suffix == ".jsonl":
        return write(
            folder, path.name, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        )
    separator = {".csv": ",", ".tsv": "\t"}[suffix]
    table = [list(rows[0])] + [[f'"{value}"' for value in row.values()] for row in rows]
    return write(folder, path.name, "\n".join(separator.join(line) for line in table))


def fault(path: str | Path, text_field: str | None = None) -> str:
    with pytest.raises(RefusalLensError) as caught:
        read_prompts(path, "harmful", text_field)
    return str(caught.value)


# ---- formats ----


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_rows_read_alike_from_every_format(tmp_path, suffix):
    rows = [
        {"id": "a", "text": "One, two\tthree?", "category": "counting"},
        {"id": "", "text": "抱歉\u2028 no", "category": " "},
    ]
    prompts = read_prompts(write_rows(tmp_path, suffix, rows), "harmful")
    assert prompts.prompts == (
        Prompt("a", "One, two\tthree?", "counting"),
        Prompt("harmful-002", "抱歉\u2028 no", "uncategorised"),
    )
    assert prompts.name == "harmful"


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.json", '[\n "First.",\n\n {"text":\n "Second."},\n "Third."]\n', [2, 4, 6]),
        ("a.jsonl", '"First."\n\n{"text": "Second."}\n"Third."\n\n', [1, 3, 4]),
        ("a.csv", ' text \nFirst.\n\n"Second."\nThird.\n', [2, 4, 5]),
        ("a.txt", "First.\n\n \n  Second. \nThird.\n\n", [1, 4, 5]),
        ("a.TXT", "First.\r\nSecond.\r\nThird.", [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_each_prompt_knows_its_line(tmp_path, name, content, lines, bom):
    path = write(tmp_path, name, bom + content.encode())
    prompts = read_prompts(path, "harmful")
    assert prompts.texts == ["First.", "Second.", "Third."]
    assert [prompt.source for prompt in prompts] == [f"{path}:{line}" for line in lines]
    assert [prompt.id for prompt in prompts] == ["harmful-001", "harmful-002", "harmful-003"]


def test_csv_record_over_several_lines_is_named_by_its_first(tmp_path):
    path = write(tmp_path, "a.csv", 'text\n"One\r\ntwo\n"\n"Three"\n')
    prompts = read_prompts(path, "harmful").prompts
    assert [prompt.text for prompt in prompts] == ["One\ntwo\n", "Three"]
    assert [prompt.source for prompt in prompts] == [f"{path}:2", f"{path}:5"]


def test_first_usual_field_is_taken_unless_one_is_named(tmp_path):
    rows = [{"goal": "G", "instruction": "I", "prompt": "P", "text_zh": "Z"}]
    path = write_rows(tmp_path, ".json", rows)
    assert read_prompts(path, "harmful").texts == ["P"]
    assert read_prompts(path, "harmful", "text_zh").texts == ["Z"]


def test_numbers_are_fine_as_ids(tmp_path):
    path = write(tmp_path, "a.json", '[{"id": 0, "text": "a", "category": null}]')
    assert read_prompts(path, "harmful").prompts == (Prompt("0", "a", "uncategorised"),)


def test_shipped_file_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "data/censored_topics.json"
    prompts = read_prompts(path, "censored")
    assert prompts.prompts[0].source == f"{ROOT / path}:2"
    write_rows(tmp_path, ".json", [{"text": "Mine."}])
    (tmp_path / "data").mkdir()
    (tmp_path / "rows.json").rename(tmp_path / path)
    assert read_prompts(path, "censored").texts == ["Mine."]


# ---- faults ----


def test_all_content_faults_are_told_together(tmp_path):
    rows = [
        '{"id": "a", "text": "Fine."}',
        '{"id": "a", "text": "Also fine."}',
        '{"text": "  "}',
        '{"text": 3}',
        '{"texts": "x"}',
        "{}",
        "[1, 2]",
        '"\\ud83d half"',
    ]
    path = write(tmp_path, "a.json", "[" + ",\n".join(rows) + "]")
    assert fault(path).splitlines() == [
        f"{path}:2: the id 'a' is taken by {path}:1. Give each prompt its own.",
        f"{path}:3: the text is empty. Fill it in or remove the prompt.",
        f"{path}:4: the text needs to be a string, but 3 came (int).",
        f"{path}:5: has no field text, only texts.",
        f"{path}:6: has no field text, only none.",
        f"{path}:7: the text needs to be a string, but [1, 2] came (list).",
        f"{path}:8: character 1 of the text is \\ud83d, half of one. Write it whole.",
    ]


def test_ten_faults_are_shown_and_the_rest_counted(tmp_path):
    path = write(tmp_path, "a.json", "[" + ",\n".join(["3"] * 13) + "]")
    lines = fault(path).splitlines()
    assert lines[9:] == [
        f"{path}:10: the text needs to be a string, but 3 came (int).",
        "... and 3 more",
    ]
    assert len(fault(write(tmp_path, "b.json", "[3,3,3,3,3,3,3,3,3,3]")).splitlines()) == 10


def test_wrong_bytes_are_told_with_line_and_byte_and_do_not_hide_other_faults(tmp_path):
    path = write(tmp_path, "a.csv", b"text\nCaf\xe9\n\xff\n  \n")
    assert fault(path).splitlines() == [
        f"{path}:2: byte 4 of the line, 0xe9, is not UTF-8. Save the file as UTF-8.",
        f"{path}:3: byte 1 of the line, 0xff, is not UTF-8. Save the file as UTF-8.",
        f"{path}:4: the text is empty. Fill it in or remove the prompt.",
    ]
    alone = write(tmp_path, "a.json", b'["\xff"]')
    assert fault(alone) == (
        f"{alone}:1: byte 3 of the line, 0xff, is not UTF-8. Save the file as UTF-8."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a",\n "b" "c"]', ":2:6: not a valid JSON list: Expecting ',' or ']'."),
        ('["a",\n]', ":2:1: not a valid JSON list: Expecting value."),
        ('["a",\n "b', ":2:2: not a valid JSON list: Unterminated string starting at."),
        ('["a"', ":1:5: not a valid JSON list: Expecting ',' or ']'."),
        ('["a"]\n["b"]', ":2:1: not a valid JSON list: Extra data after the list."),
        ('{"prompts": ["a"]}', ":1:1: not a valid JSON list: Expecting '['."),
        ("", ":1:1: not a valid JSON list: Expecting '['."),
        ("[ ]", ": holds no prompts. Add some."),
    ],
)
def test_invalid_json_is_told_with_line_and_column(tmp_path, content, message):
    path = write(tmp_path, "a.json", content)
    assert fault(path) == f"{path}{message}"


def test_invalid_lines_of_jsonl_are_told_together(tmp_path):
    path = write(tmp_path, "a.jsonl", '"a"\n{"text": }\n\n"b" 3\n')
    assert fault(path).splitlines() == [
        f"{path}:2:10: not valid JSON: Expecting value.",
        f"{path}:4:5: not valid JSON: Extra data.",
    ]


def test_broken_records_of_a_table(tmp_path):
    path = write(tmp_path, "a.csv", 'text,id\nOne, two, a\n"x\ny"\n"open,b\nThree,c\n')
    assert fault(path).splitlines() == [
        f"{path}:2: has 3 columns, but the header has 2. "
        "Put a text that holds the separator in double quotes.",
        f"{path}:3: has 1 columns, but the header has 2. "
        "Put a text that holds the separator in double quotes.",
        f"{path}:5: not a valid record: unexpected end of data. Check its double quotes.",
    ]


def test_faults_of_parquet_name_the_row(tmp_path):
    path = write_rows(tmp_path, ".parquet", [{"text": "a"}, {"text": ""}])
    assert fault(path) == f"{path}:row 2: the text is empty. Fill it in or remove the prompt."
    broken = write(tmp_path, "b.parquet", "no table")
    assert fault(broken) == f"{broken}: not a valid Parquet file. Write or download it again."


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = write_rows(tmp_path, ".parquet", [{"text": "a"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert fault(path) == (
        f"{path}: reading Parquet needs pyarrow, which is not installed. Run: pip install pyarrow"
    )


@pytest.mark.parametrize(
    ("content", "text_field", "message"),
    [
        (
            '[{"id": "a", "question": "b"}, {"c": "d"}]',
            None,
            "the text is looked for in the field text, prompt, instruction or goal, but the "
            "fields are id, question, c. Set text_field to the one that holds the text.",
        ),
        (
            '[{"text": "b"}]',
            "text_zh",
            "the text is looked for in the field text_zh, but the fields are text. "
            "Set text_field to the one that holds the text.",
        ),
        (
            '["a"]',
            "text_zh",
            "the text is looked for in the field text_zh, but the prompts are plain strings "
            "without fields. Leave text_field out.",
        ),
        (
            "[{}]",
            None,
            "the text is looked for in the field text, prompt, instruction or goal, but the "
            "fields are none. Set text_field to the one that holds the text.",
        ),
    ],
)
def test_missing_field_says_which_there_are(tmp_path, content, text_field, message):
    path = write(tmp_path, "a.json", content)
    assert fault(path, text_field) == f"{path}: {message}"


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fault("data/no.json") == (
        f"The prompt file data/no.json does not exist; looked for {tmp_path / 'data/no.json'} and "
        f"{ROOT / 'data/no.json'}. Correct the path."
    )
    assert fault("no.json") == (
        f"The prompt file no.json does not exist; looked for {tmp_path / 'no.json'}. "
        "Correct the path."
    )
    assert fault(tmp_path) == (
        f"{tmp_path} is a folder, but a prompt file is needed. Name the file."
    )
    for name, suffix in (("a.yaml", ".yaml"), ("prompts", "none")):
        assert fault(write(tmp_path, name, "a")) == (
            f"{name}: a prompt file needs the suffix .json, .jsonl, .csv, .tsv, .parquet or .txt, "
            f"but {suffix} came. Convert or rename the file."
        ).replace(name, str(tmp_path / name), 1)
    for name in ("a.txt", "a.csv", "a.jsonl"):
        path = write(tmp_path, name, "\n")
        assert fault(path) == f"{path}: holds no prompts. Add some."


def test_repeated_texts_are_dropped_with_a_warning(tmp_path):
    path = write(tmp_path, "a.txt", "Say  hello.\nSay bye.\n\nsay hello. \nSAY BYE.\n")
    with pytest.warns(RefusalLensWarning) as caught:
        prompts = read_prompts(path, "harmful")
    assert [str(warning.message) for warning in caught] == [
        f"{path}: repeated texts were dropped, 2 of 4 prompts are left. Remove the repeats.\n"
        f"{path}:4 repeats {path}:1\n{path}:5 repeats {path}:2"
    ]
    assert prompts.texts == ["Say  hello.", "Say bye."]


# ---- both files of a contrast ----


def test_text_in_both_files_is_an_error_with_both_lines(tmp_path):
    harmful = write(tmp_path, "harmful.txt", "\n".join(HARMFUL))
    harmless = write(tmp_path, "harmless.txt", "\n".join([*HARMLESS, "harmful  REQUEST 4."]))
    intro = (
        "A prompt is either harmful or harmless, but these texts stand in both sets. "
        "Remove each from one of them.\n"
    )
    with pytest.raises(RefusalLensError) as caught:
        read_contrast(harmful, harmless)
    assert str(caught.value) == f"{intro}{harmful}:5 and {harmless}:31: 'harmful  REQUEST 4.'"


def test_faults_of_both_files_are_told(tmp_path):
    harmful = write(tmp_path, "harmful.txt", "")
    harmless = write(tmp_path, "harmless.json", "[3]")
    with pytest.raises(RefusalLensError) as caught:
        read_contrast(harmful, harmless)
    assert str(caught.value).splitlines() == [
        f"{harmful}: holds no prompts. Add some.",
        f"{harmless}:1: the text needs to be a string, but 3 came (int).",
    ]


@pytest.mark.parametrize(
    ("harmful", "harmless", "text_field"),
    [
        ("data/harmful_prompts.json", "data/harmless_prompts.json", None),
        ("data/censored_topics.json", "data/neutral_topics.json", None),
        ("data/censored_topics.json", "data/neutral_topics.json", "text_zh"),
    ],
)
def test_shipped_prompts_are_sound(harmful, harmless, text_field):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RefusalLensWarning)
        contrast = read_contrast(harmful, harmless, text_field)
    assert min(len(contrast.harmful), len(contrast.harmless)) >= 30
    assert "uncategorised" not in {prompt.category for prompt in contrast.prompts}
