"""Prompt files: every format read into records, each with the place it came from.

Knows nothing of what makes a record a sound prompt; `prompts` checks that.
"""

import codecs
import csv
import io
import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from refusal_lens.config_files import resource_places
from refusal_lens.errors import RefusalLensError
from refusal_lens.files import refuse_lfs_pointer
from refusal_lens.prompts.contrast import (
    TEXT_FIELDS,
    ContrastSet,
    Grouping,
    Origin,
    PromptSet,
    Record,
    check_records,
    either,
    field_names,
    find_fields,
)
from refusal_lens.prompts.parquet import read_parquet

MAX_DIGITS = 100

WEB_PAGE = re.compile(rb"\s*<(!doctype )?html\b", re.IGNORECASE)
"""How the page begins that a link gives in place of a file that is not there."""


class PromptFile(NamedTuple):
    """What a file holds: its records, the fields that they have, and what could not be read."""

    place: str
    records: list[Record]
    columns: list[str]
    faults: list[str]


def read_prompts(
    path: str | Path, name: str | None = None, text_field: str | None = None
) -> PromptSet:
    """Read one set of prompts; the suffix tells the format.

    `.json` holds a list of strings or objects, `.jsonl` one of them a line, `.csv`, `.tsv` and
    `.parquet` a table with named columns, `.txt` one prompt a line. Blank lines of `.txt` and
    `.jsonl` are skipped; texts of `.txt` are stripped, all others are taken as they are. Objects
    and tables may carry an `id`, a `category`, a `pair` (the same for twins of both classes) and a
    `group` (the same for prompts of one topic, template or source). Text files are UTF-8.

    Args:
        path: The file: a path, or a shipped one such as `data/harmful_prompts.json`.
        name: Name of the set, by default the file's; ids that the file does not give are
            `<name>-001` and so on.
        text_field: Field or column with the text, or several to be joined by a blank line
            (`instruction + input`); by default the first of `contrast.TEXT_FIELDS` there is.

    Returns:
        The prompts in file order, repeated texts dropped with a warning: a repeat could stand in
        both the fitting and the test fold.

    Raises:
        RefusalLensError: The file cannot be read or holds faults; the message lists the first ten
            with their lines and counts the rest.
    """
    return _check(_read_file(path, text_field), name or Path(path).stem, text_field, "text_field")


def read_contrast(
    harmful_path: str | Path,
    harmless_path: str | Path,
    text_field: str | None = None,
    *,
    harmful_text_field: str | None = None,
    harmless_text_field: str | None = None,
    grouping: Grouping = "found",
    section: str = "",
) -> ContrastSet:
    """Read harmful and harmless prompts and check them against each other.

    Args:
        harmful_path: File of prompts that the model refuses.
        harmless_path: File of prompts that it answers.
        text_field: Field or column with the text, see `read_prompts`; a file that has none of this
            name is read by the usual names, if the other has one.
        harmful_text_field: That of the harmful file alone, in place of `text_field`.
        harmless_text_field: That of the harmless file alone.
        grouping: Where pairs and groups come from, see `groups.find_groups`.
        section: What messages write before the names of these settings: `prompts.` in a config.

    Returns:
        The contrast set.

    Raises:
        RefusalLensError: A file holds faults (those of both are told), or a text is in both files.
    """
    sides = {
        "harmful": (harmful_path, harmful_text_field),
        "harmless": (harmless_path, harmless_text_field),
    }
    files, sets, faults = {}, [], []
    for name, (path, named) in sides.items():
        try:
            files[name] = _read_file(path, named or text_field)
        except RefusalLensError as error:
            faults.append(str(error))
    is_anywhere = any(_has(file, text_field) for file in files.values())
    for name, file in files.items():
        asked, setting = sides[name][1], f"{section}{name}_text_field"
        if asked is None and (_has(file, text_field) or not is_anywhere):
            asked = text_field
        try:
            sets.append(_check(file, name, asked, setting))
        except RefusalLensError as error:
            faults.append(str(error))
    if faults:
        raise RefusalLensError("\n".join(faults))
    return ContrastSet(sets[0], sets[1], grouping)


def _has(file: PromptFile, text_field: str | None) -> bool:
    return text_field is not None and find_fields(text_field, file.columns) is not None


def _check(file: PromptFile, name: str, text_field: str | None, setting: str) -> PromptSet:
    wanted = TEXT_FIELDS if text_field is None else (text_field,)
    origin = Origin(file.place, wanted, setting, is_named=text_field is not None)
    return PromptSet(name, check_records(name, origin, file.records, file.faults, file.columns))


def _read_file(path: str | Path, text_field: str | None) -> PromptFile:
    """Read what may be wanted of a file, whatever it is."""
    found = _locate(path)
    suffix = found.suffix.lower()
    reader = _READERS.get(suffix)
    if reader is None and suffix != ".parquet":
        raise RefusalLensError(
            f"{found}: a prompt file needs the suffix {either([*_READERS, '.parquet'])}, "
            f"but {found.suffix or 'none'} came. Convert or rename the file."
        )
    faults: list[str] = []
    try:
        refuse_lfs_pointer(found)
        if reader is None:
            records, columns = read_parquet(found, text_field, faults)
        else:
            records = reader(found, faults)
            columns = field_names(records)
    except OSError as error:
        raise RefusalLensError(f"{found} cannot be read: {error.strerror or error}.") from error
    return PromptFile(str(found), records, columns, faults)


# ---- files: each reader gives records and adds what it cannot read to `faults` ----


def _locate(path: str | Path) -> Path:
    """Find the file below the current folder or among the shipped ones."""
    places = resource_places(path)
    found = next((place for place in places if place.exists()), None)
    if found is None:
        looked = " and ".join(str(place.absolute()) for place in places)
        raise RefusalLensError(
            f"The prompt file {path} does not exist; looked for {looked}. Correct the path."
        )
    if found.is_dir():
        raise RefusalLensError(f"{found} is a folder, but a prompt file is needed. Name the file.")
    return found


def _read_text(path: Path, faults: list[str]) -> str:
    """Decode line by line, so that a wrong byte can be told with its line."""
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    lines: list[str] = []
    if WEB_PAGE.match(raw):
        faults.append(f"{path}: is a web page, and not the file that it was to be. Fetch it again.")
    for number, line in enumerate(raw.replace(b"\r\n", b"\n").split(b"\n"), start=1):
        if b"\0" in line:
            faults.append(f"{path}:{number}: holds a zero byte, which no text has.")
        elif line.startswith((b"<<<<<<< ", b">>>>>>> ")):
            faults.append(
                f"{path}:{number}: a merge was left open ({line[:8].decode()}...). End it."
            )
        try:
            lines.append(line.decode())
        except UnicodeDecodeError as error:
            faults.append(
                f"{path}:{number}: byte {error.start + 1} of the line, 0x{line[error.start]:02x}, "
                "is not UTF-8. Save the file as UTF-8."
            )
            lines.append(line.decode(errors="replace"))  # go on: there may be more faults
    return "\n".join(lines)


def _numbered_lines(path: Path, faults: list[str]) -> Iterator[tuple[int, str]]:
    """Give the lines that are not blank with their numbers."""
    # Not splitlines(): it also splits at U+2028 and others that may stand inside a text.
    text = _read_text(path, faults).replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _read_txt(path: Path, faults: list[str]) -> list[Record]:
    """Read one prompt a line."""
    return [Record(f"{path}:{n}", line.strip()) for n, line in _numbered_lines(path, faults)]


def _read_jsonl(path: Path, faults: list[str]) -> list[Record]:
    """Read one JSON value a line."""
    records: list[Record] = []
    for number, line in _numbered_lines(path, faults):
        try:
            records.append(Record(f"{path}:{number}", _decode_line(line)))
        except json.JSONDecodeError as error:
            faults.append(f"{path}:{number}:{error.colno}: not valid JSON: {error.msg}.")
    return records


def _read_json(path: Path, faults: list[str]) -> list[Record]:
    """Read a JSON list, each element with the line it starts on, or its number on a shared one."""
    text = _read_text(path, faults)
    found: list[tuple[int, object]] = []
    line, counted = 1, 0
    try:
        for start, value in _json_elements(text):
            line, counted = line + text.count("\n", counted, start), start
            found.append((line, value))
    except json.JSONDecodeError as error:
        faults.append(f"{path}:{error.lineno}:{error.colno}: not a valid JSON list: {error.msg}.")
    n_on = Counter(line for line, _ in found)
    return [
        Record(f"{path}:{line}{_item(number, value) if n_on[line] > 1 else ''}", value)
        for number, (line, value) in enumerate(found, start=1)
    ]


def _item(number: int, value: object) -> str:
    """Name an element that shares its line: by its number, and its id where it has one."""
    named = value.get("id") if isinstance(value, dict) else None
    return f": item {number}" + ("" if named is None else f" (id {reprlib.repr(named)})")


class _UnsoundError(ValueError):
    """JSON that can be read and says too much: a key twice, a number without end."""


def _pairs_to_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _UnsoundError(f"The key {twice[:60]} stands twice")
    return found


def _whole_number(digits: str) -> int:
    # Python refuses to read numbers of more than 4,300 digits, and takes long for fewer.
    if len(digits) > MAX_DIGITS:
        raise _UnsoundError(f"A number has {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs_to_dict, parse_int=_whole_number)


def _decode(text: str, start: int) -> tuple[object, int]:
    """Decode one JSON value and say where it ends; whatever is wrong is a JSONDecodeError."""
    try:
        return _DECODER.raw_decode(text, start)
    except _UnsoundError as error:
        raise json.JSONDecodeError(str(error), text, start) from error
    except RecursionError as error:
        raise json.JSONDecodeError("Nested too deep", text, start) from error


def _decode_line(line: str) -> object:
    value, end = _decode(line, _skip_space(line, 0))
    end = _skip_space(line, end)
    if end < len(line):
        raise json.JSONDecodeError("Extra data", line, end)
    return value


def _json_elements(text: str) -> Iterator[tuple[int, object]]:
    """Decode a JSON list element by element, since `json.loads` forgets where each stood."""
    start = _skip_space(text, 0)
    if text[start : start + 1] != "[":
        raise json.JSONDecodeError("Expecting '['", text, start)
    start = _skip_space(text, start + 1)
    is_open = text[start : start + 1] != "]"
    while is_open:
        value, end = _decode(text, start)
        yield start, value
        start = _skip_space(text, end)
        if text[start : start + 1] not in {",", "]"}:
            raise json.JSONDecodeError("Expecting ',' or ']'", text, start)
        is_open = text[start] == ","
        start = _skip_space(text, start + 1) if is_open else start
    end = _skip_space(text, start + 1)
    if end < len(text):
        raise json.JSONDecodeError("Extra data after the list", text, end)


def _skip_space(text: str, start: int) -> int:
    """Give the index of the next character that is not JSON white space."""
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def _read_table(path: Path, faults: list[str]) -> list[Record]:
    """Read CSV or TSV: the first record names the columns."""
    rows = _table_rows(path, faults)
    _, header = next(rows, ("", []))
    columns = [column.strip() for column in header]
    counts = Counter(column for column in columns if column)
    twice = [column for column, count in counts.items() if count > 1]
    if twice:
        faults.append(f"{path}: the column {twice[0][:60]} stands twice. Rename one of them.")
    records: list[Record] = []
    for place, row in rows:
        if len(row) == len(columns):
            records.append(Record(place, dict(zip(columns, row, strict=True))))
        else:
            faults.append(
                f"{place}: has {len(row)} columns, but the header has {len(columns)}. "
                "Put a text that holds the separator in double quotes."
            )
    return records


def _table_rows(path: Path, faults: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Give each record that is not a blank line with the place where it starts."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # strict: else a quote that is never closed silently swallows the rest of the file.
    stream = io.StringIO(_read_text(path, faults), newline="")
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    start = 1
    try:
        for row in reader:
            place, start = f"{path}:{start}", reader.line_num + 1
            if row:
                yield place, row
    except csv.Error as error:
        faults.append(f"{path}:{start}: not a valid record: {error}. Check its double quotes.")


_READERS: dict[str, Callable[[Path, list[str]], list[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".txt": _read_txt,
}
