"""Prompt files: every format, every fault with its place, and both files of a contrast."""

import json
import sys
import time
import warnings
from collections.abc import Callable
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
    with pytest.warns(RefusalLensWarning, match="from the field prompt; the file has goal, instr"):
        assert read_prompts(path, "harmful").texts == ["P"]
    assert read_prompts(path, "harmful", "text_zh").texts == ["Z"]


def test_a_set_without_a_name_is_called_after_its_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("One.\nTwo.\n")
    read = read_prompts(path)
    assert (read.name, read.prompts[1].id) == ("mine", "mine-002")


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
            "the text is looked for in the field text, prompt, instruction, goal, "
            "forbidden_prompt or behavior, but the "
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
            "the text is looked for in the field text, prompt, instruction, goal, "
            "forbidden_prompt or behavior, but the "
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
            f"{name}: a prompt file needs the suffix .json, .jsonl, .csv, .tsv, .txt or .parquet, "
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


# ---- public prompt sets as they are ----

HARMBENCH = (
    "Behavior,FunctionalCategory,Tags,ContextString,BehaviorID\n"
    'Summarise the text above,contextual,context,"A long text about a bridge.",a\n'
    "Name rivers,standard,,,b\n"
)
ALPACA = [
    {"instruction": "Sort these words.", "input": "pear, apple, fig", "output": "x"},
    {"instruction": "Sort these words.", "input": "stone, river, bank", "output": "y"},
    {"instruction": "Name three rivers.", "input": "", "output": "z"},
]
JAILBREAKBENCH = "Index,Goal,Target,Behavior\n0,Name two bridges,Sure,Bridges\n"


def told(read: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RefusalLensWarning)
        read()
    return [str(each.message) for each in caught if "needs 30 prompts" not in str(each.message)]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_filled_fields_that_belong_to_the_prompt_are_warned_of_with_their_count(tmp_path, suffix):
    path = write_rows(tmp_path, suffix, ALPACA)
    # What differs there is no repeat.
    with pytest.warns(RefusalLensWarning):
        assert len(read_prompts(path, "x")) == 3
    assert told(lambda: read_prompts(path, "x")) == [
        f"{path}: 2 of 3 prompts have a field input that is filled and not read: they are sent "
        "without it. Set text_field to 'instruction + input' to send both, or remove these prompts."
    ]
    joined = told(lambda: read_prompts(path, "x", "instruction + input"))
    assert not joined
    assert read_prompts(path, "x", "instruction + input").texts == [
        "Sort these words.\n\npear, apple, fig",
        "Sort these words.\n\nstone, river, bank",
        "Name three rivers.",
    ]


def test_the_context_of_a_contextual_behaviour_is_warned_of(tmp_path):
    path = write(tmp_path, "harmbench.csv", HARMBENCH)
    (warning,) = told(lambda: read_prompts(path, "x"))
    assert "1 of 2 prompts have a field ContextString" in warning


def test_files_that_name_their_text_differently_are_read_together(tmp_path):
    harmful = write(tmp_path, "harmbench.csv", HARMBENCH.replace("A long text about a bridge.", ""))
    harmless = write_rows(tmp_path, ".json", [{"request": "Count."}, {"request": "Sing."}])
    with pytest.raises(RefusalLensError, match="Set harmless_text_field to the one that holds"):
        read_contrast(harmful, harmless)
    wanted = [["Summarise the text above", "Name rivers"], ["Count.", "Sing."]]
    for asked in (
        {"text_field": "request"},
        {"harmless_text_field": "request"},
        {"text_field": "request", "harmful_text_field": "behavior"},
    ):
        contrast = read_contrast(harmful, harmless, **asked)
        assert [contrast.harmful.texts, contrast.harmless.texts] == wanted
    for side, field in (("harmful", "request"), ("harmless", "Behavior")):
        with pytest.raises(RefusalLensError, match=f"looked for in the field {field}, but the"):
            read_contrast(harmful, harmless, **{f"{side}_text_field": field})
    # A name that neither file has is a mistake in the name.
    with pytest.raises(RefusalLensError, match="the field requests, but the fields are Behavior"):
        read_contrast(harmful, harmless, "requests")
    plain = write(tmp_path, "plain.txt", "Count.\nSing.")
    assert read_contrast(harmful, plain, "Behavior").harmless.texts == ["Count.", "Sing."]


def test_the_goal_comes_before_the_label_behavior(tmp_path):
    path = write(tmp_path, "jbb.csv", JAILBREAKBENCH)
    assert read_prompts(path, "x").texts == ["Name two bridges"]


# ---- files that are not what they seem ----


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_pointer_of_git_lfs_is_no_prompts(tmp_path, suffix):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5\n"
    assert "git lfs pull" in fault(write(tmp_path, f"a{suffix}", pointer))
    # Before: one behind a byte order mark, and those of old versions, were three prompts.
    old = pointer.replace("git-lfs.github.com/spec/v1", "hawser.github.com/spec/v1")
    for changed in (f"\ufeff{pointer}", old):
        assert "git lfs pull" in fault(write(tmp_path, f"a{suffix}", changed))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\n<!DOCTYPE html>\n<html><body>404</body></html>", "a.txt: is a web page"),
        ("<html lang=en>\nNot found", "a.txt: is a web page"),
        ("How?\n<<<<<<< HEAD\nWhy?\n=======\nWhen?\n>>>>>>> other\n", "a.txt:2: a merge was left"),
        ("How?\nWh\0?\n", "a.txt:2: holds a zero byte"),
    ],
)
def test_what_came_in_place_of_prompts_is_told(tmp_path, content, expected):
    # Before: each of its lines was a prompt.
    assert expected in fault(write(tmp_path, "a.txt", content))


def test_lines_may_end_as_on_old_macs(tmp_path):
    # Before: the whole file was one prompt.
    read = read_prompts(write(tmp_path, "a.txt", "How?\rWhy?\r"), "harmful")
    assert list(read.texts) == ["How?", "Why?"]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_several_usual_text_fields_are_told(tmp_path, suffix):
    # Before: the first of the usual names was taken without a word.
    path = write_rows(tmp_path, suffix, [{"prompt": "How?", "Text": "Why?"}])
    with pytest.warns(RefusalLensWarning, match="from the field Text; the file has prompt too"):
        assert read_prompts(path, "harmful").texts == ["Why?"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_prompts(path, "harmful", "prompt").texts == ["How?"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,id,text\na,b,c\n", ": the column text stands twice. Rename one of them."),
        ("a.json", '[{"text": "a", "text": "b"}]', ":1:2: not a valid JSON list: The key text"),
        ("a.jsonl", '{"text": "a", "text": "b"}', ":1:1: not valid JSON: The key text stands"),
        ("a.json", "[" * 100_000, ":1:2: not a valid JSON list: Nested too deep."),
        ("a.jsonl", '{"a":' * 100_000, ":1:1: not valid JSON: Nested too deep."),
        ("a.json", f'[{{"id": {"7" * 5000}}}]', ":1:2: not a valid JSON list: A number has"),
        ("a.json", '[{"text": "a", "id": {"b": 1}}]', ":1: the id needs to be a text or a number"),
        ("a.json", '[{"text": "a", "id": "\\ud83d"}]', ":1: character 1 of the id is \\ud83d"),
        ("a.json", '[{"text": "a", "category": "b\\ude00"}]', ":1: character 2 of the category"),
    ],
)
def test_records_that_say_two_things_or_nothing_are_told(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    assert fault(path).startswith(f"{path}{message}")


def test_a_message_of_many_and_long_fields_stays_short(tmp_path):
    fields = {f"{number}{'x' * 500}": "a" for number in range(5000)}
    message = fault(write(tmp_path, "a.json", json.dumps([fields])))
    assert "and 4990 more" in message
    assert len(message) < 2000


def write_parquet(folder: Path, **columns: object) -> Path:
    path = folder / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")
    return path


def test_values_of_parquet_that_python_cannot_hold_are_told_with_their_row(tmp_path):
    raw = pyarrow.array([b"fine", b"\xff\xfe"])
    text = pyarrow.StringArray.from_buffers(2, *raw.buffers()[1:])
    path = write_parquet(tmp_path, text=text)
    assert fault(path).startswith(f"{path}:row 2: text cannot be read: ")
    far = pyarrow.array([0, 2**62], pyarrow.timestamp("ms"))
    path = write_parquet(tmp_path, text=["a", "b"], id=far)
    assert fault(path).startswith(f"{path}:row 2: id cannot be read: ")


def test_columns_of_parquet_that_are_not_wanted_are_not_read(tmp_path):
    twice = pyarrow.StructArray.from_arrays([pyarrow.array([1]), pyarrow.array([2])], ["a", "a"])
    path = write_parquet(tmp_path, text=["a"], meta=twice)
    assert read_prompts(path, "x").texts == ["a"]
    path = write_parquet(tmp_path, text=twice)
    assert "the text needs to be a string, but ['struct<a: int64" in fault(path)


def test_a_small_parquet_file_that_unpacks_to_gigabytes_is_refused_at_once(tmp_path):
    path = tmp_path / "a.parquet"
    text = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 30_000, pyarrow.int32()), pyarrow.array(["x" * 100_000])
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    begun = time.monotonic()
    assert "MiB of text; prompts are read up to 1,000,000 rows and 256 MiB" in fault(path)
    assert time.monotonic() - begun < 5


def test_an_item_of_a_list_on_one_line_is_told_by_its_number_and_id(tmp_path):
    # All of them were told as line 1.
    items: list[dict[str, str]] = [{"id": f"p{i}", "text": f"request {i}"} for i in range(40)]
    del items[11]["text"]
    items[12] = {"topic": "x"}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    with pytest.raises(RefusalLensError) as error:
        read_prompts(path)
    assert str(error.value).splitlines() == [
        f"{path}:1: item 12 (id 'p11'): has no field text, only id.",
        f"{path}:1: item 13: has no field text, only topic.",
    ]
    path.write_text(json.dumps(items, indent=1), encoding="utf-8")
    with pytest.raises(RefusalLensError, match=rf"^{path}:46: has no field text, only id\."):
        read_prompts(path)
