"""Prompts: read from files, checked all at once, kept in order and fingerprinted.

Knows nothing of models, chat templates or tokens.
"""

import codecs
import csv
import hashlib
import io
import json
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from refusal_lens.errors import RefusalLensError, RefusalLensWarning

TEXT_FIELDS = ("text", "prompt", "instruction", "goal")
MIN_PROMPTS_PER_SIDE = 30
_N_SHOWN = 10


@dataclass(frozen=True)
class Prompt:
    """One request to the model, as the user would type it.

    Args:
        id: Name within its set; results and messages refer to it.
        text: The request, without any chat template.
        category: Subject, for results by group.
        source: Where it came from (`file:line`), for messages only: two prompts that differ in
            nothing else are equal.
    """

    id: str
    text: str
    category: str
    source: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Prompts of one kind, in a fixed order.

    Args:
        name: What they are called in results, such as `harmful`.
        prompts: The prompts; `from_texts` and `read_prompts` check them.

    Example:
        >>> greetings = PromptSet.from_texts("greetings", ["Say hello.", "Say goodbye."])
        >>> len(greetings), greetings.prompts[1].id
        (2, 'greetings-002')
        >>> greetings
        PromptSet('greetings', 2 prompts, sha256 2a821384)
    """

    name: str
    prompts: tuple[Prompt, ...]

    @classmethod
    def from_texts(cls, name: str, texts: Sequence[str]) -> "PromptSet":
        """Make a set from plain texts, under the same checks as a file.

        Args:
            name: Name of the set; the ids are `<name>-001` and so on.
            texts: One text a prompt. Repeats are dropped with a warning.

        Returns:
            The set, in the order of `texts`.

        Raises:
            RefusalLensError: A text is empty or not a string, or there are none.
        """
        if isinstance(texts, str):
            raise RefusalLensError(
                f"The set {name!r} needs a list of texts, but a single string came. "
                "Put it in brackets."
            )
        records = [_Record(f"{name}[{index}]", text) for index, text in enumerate(texts)]
        return cls(name, _check_records(name, _Origin(name, None), records, []))

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __repr__(self) -> str:
        return f"PromptSet({self.name!r}, {len(self)} prompts, sha256 {self.sha256[:8]})"

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return [prompt.text for prompt in self.prompts]

    @property
    def sha256(self) -> str:
        """Fingerprint of ids, texts and categories in order; the name and places do not count."""
        rows = [[prompt.id, prompt.text, prompt.category] for prompt in self.prompts]
        # JSON keeps field borders apart, so ("ab", "c") and ("a", "bc") differ.
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class ContrastSet:
    """Harmful and harmless prompts, whose difference is the refusal direction.

    Fewer than 30 prompts a side only warn: a try-out with ten is fine, a finding is not.

    Args:
        harmful: Prompts that the model refuses.
        harmless: Prompts that it answers, alike in length and form.

    Raises:
        RefusalLensError: A side is empty, or a text stands in both.
    """

    harmful: PromptSet
    harmless: PromptSet

    def __post_init__(self) -> None:
        _check_sizes(self.harmful, self.harmless)
        _check_overlap(self.harmful, self.harmless)

    @classmethod
    def from_texts(cls, harmful: Sequence[str], harmless: Sequence[str]) -> "ContrastSet":
        """Make a contrast set from two lists of texts, as in a notebook.

        Args:
            harmful: Texts that the model refuses.
            harmless: Texts that it answers.

        Returns:
            The contrast set.

        Raises:
            RefusalLensError: A text is empty, not a string or on both sides, or a side is empty.
        """
        return cls(
            PromptSet.from_texts("harmful", harmful), PromptSet.from_texts("harmless", harmless)
        )

    def __len__(self) -> int:
        return len(self.harmful) + len(self.harmless)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts, harmful first, then harmless."""
        return self.harmful.prompts + self.harmless.prompts

    @property
    def is_harmful(self) -> tuple[bool, ...]:
        """The class of each prompt, in the order of `prompts`."""
        return (True,) * len(self.harmful) + (False,) * len(self.harmless)


def read_prompts(path: str | Path, name: str, text_field: str | None = None) -> PromptSet:
    """Read one set of prompts; the suffix tells the format.

    `.json` holds a list of strings or objects, `.jsonl` one of them a line, `.csv`, `.tsv` and
    `.parquet` a table with named columns, `.txt` one prompt a line. Blank lines of `.txt` and
    `.jsonl` are skipped; texts of `.txt` are stripped, all others are taken as they are. Objects
    and tables may carry an `id` and a `category`. Text files are UTF-8.

    Args:
        path: The file: a path, or a shipped one such as `data/harmful_prompts.json`.
        name: Name of the set; ids that the file does not give are `<name>-001` and so on.
        text_field: Field or column with the text; by default the first of `text`, `prompt`,
            `instruction` and `goal` that the file has.

    Returns:
        The prompts in file order, repeated texts dropped with a warning: a repeat could stand in
        both the fitting and the test fold.

    Raises:
        RefusalLensError: The file cannot be read or holds faults; the message lists the first ten
            with their lines and counts the rest.
    """
    found = _locate(path)
    reader = _READERS.get(found.suffix.lower())
    if reader is None:
        raise RefusalLensError(
            f"{found}: a prompt file needs the suffix {_either(_READERS)}, "
            f"but {found.suffix or 'none'} came. Convert or rename the file."
        )
    faults: list[str] = []
    try:
        records = reader(found, faults)
    except OSError as error:
        raise RefusalLensError(f"{found} cannot be read: {error.strerror or error}.") from error
    return PromptSet(name, _check_records(name, _Origin(str(found), text_field), records, faults))


def read_contrast(
    harmful_path: str | Path, harmless_path: str | Path, text_field: str | None = None
) -> ContrastSet:
    """Read harmful and harmless prompts and check them against each other.

    Args:
        harmful_path: File of prompts that the model refuses.
        harmless_path: File of prompts that it answers.
        text_field: Field or column with the text, in both files; see `read_prompts`.

    Returns:
        The contrast set.

    Raises:
        RefusalLensError: A file holds faults (those of both are told), or a text is in both files.
    """
    sets, faults = [], []
    for path, name in ((harmful_path, "harmful"), (harmless_path, "harmless")):
        try:
            sets.append(read_prompts(path, name, text_field))
        except RefusalLensError as error:
            faults.append(str(error))
    if faults:
        raise RefusalLensError("\n".join(faults))
    return ContrastSet(*sets)


# ---- what both sides of a contrast set must keep ----


def _check_sizes(harmful: PromptSet, harmless: PromptSet) -> None:
    """Refuse an empty side and warn of a small one."""
    came = f"{len(harmful)} harmful and {len(harmless)} harmless came"
    smallest = min(len(harmful), len(harmless))
    if smallest == 0:
        raise RefusalLensError(
            f"A contrast set needs prompts on both sides, but {came}. Add prompts to the empty one."
        )
    if smallest < MIN_PROMPTS_PER_SIDE:
        warnings.warn(
            f"A contrast set needs {MIN_PROMPTS_PER_SIDE} prompts a side for numbers that can be "
            f"believed, but {came}. Add prompts, or take the results as a try-out.",
            RefusalLensWarning,
            stacklevel=4,
        )


def _check_overlap(harmful: PromptSet, harmless: PromptSet) -> None:
    """Refuse texts that stand on both sides."""
    places = {_same_text_key(prompt.text): _place(prompt) for prompt in harmful}
    shared = [
        f"{places[key]} and {_place(prompt)}: {reprlib.repr(prompt.text)}"
        for prompt in harmless
        if (key := _same_text_key(prompt.text)) in places
    ]
    if shared:
        raise RefusalLensError(
            "A prompt is either harmful or harmless, but these texts stand in both sets. "
            f"Remove each from one of them.\n{_first_ones(shared)}"
        )


def _place(prompt: Prompt) -> str:
    """Where to find a prompt: its source or, made by hand, its id."""
    return prompt.source or prompt.id


def _same_text_key(text: str) -> str:
    """Give what texts share that differ in white space and case alone."""
    return " ".join(text.split()).casefold()


# ---- from raw records to prompts ----


class _Record(NamedTuple):
    """One entry of a file, not yet checked: a string, a dict or something wrong."""

    place: str
    value: object


class _Origin(NamedTuple):
    """The file (or set) that records came from and the text field asked for."""

    place: str
    text_field: str | None


def _check_records(
    name: str, origin: _Origin, records: Sequence[_Record], faults: list[str]
) -> tuple[Prompt, ...]:
    """Turn records into prompts, or raise all faults: those given and those found."""
    text_field = _choose_text_field(origin, records, faults)
    prompts = _make_prompts(name, records, text_field, faults)
    if not records and not faults:
        faults.append(f"{origin.place}: holds no prompts. Add some.")
    if faults:
        raise RefusalLensError(_first_ones(faults))
    return _drop_repeats(origin, prompts)


def _choose_text_field(
    origin: _Origin, records: Sequence[_Record], faults: list[str]
) -> str | None:
    """Choose one text field for the whole file; None if there are no fields or none fits."""
    tables = [record.value for record in records if isinstance(record.value, dict)]
    present = dict.fromkeys(key for table in tables for key in table)
    asked = origin.text_field
    wanted = TEXT_FIELDS if asked is None else (asked,)
    chosen = next((key for key in wanted if key in present), None)
    if chosen is None and tables:
        faults.append(
            f"{origin.place}: the text is looked for in the field {_either(wanted)}, but the "
            f"fields are {', '.join(present) or 'none'}. "
            "Set text_field to the one that holds the text."
        )
    elif chosen is None and asked is not None and records:
        faults.append(
            f"{origin.place}: the text is looked for in the field {asked}, but the prompts are "
            "plain strings without fields. Leave text_field out."
        )
    return chosen


def _make_prompts(
    name: str, records: Sequence[_Record], text_field: str | None, faults: list[str]
) -> list[Prompt]:
    """Turn each sound record into a prompt and add a line to `faults` for each other one."""
    prompts: list[Prompt] = []
    place_of_id: dict[str, str] = {}
    for number, record in enumerate(records, start=1):
        prompt_id = _label(record.value, "id", default=f"{name}-{number:03d}")
        if prompt_id in place_of_id:
            faults.append(
                f"{record.place}: the id {prompt_id!r} is taken by {place_of_id[prompt_id]}. "
                "Give each prompt its own."
            )
        place_of_id.setdefault(prompt_id, record.place)
        text = _text_of(record, text_field, faults)
        if text is not None:
            category = _label(record.value, "category", default="uncategorised")
            prompts.append(Prompt(prompt_id, text, category, record.place))
    return prompts


def _label(value: object, key: str, default: str) -> str:
    """Read an optional id or category; numbers are fine, missing and blank give the default."""
    label = value.get(key) if isinstance(value, dict) else None
    return default if label is None else str(label).strip() or default


def _text_of(record: _Record, text_field: str | None, faults: list[str]) -> str | None:
    """Take the text out of a record, or None after adding to `faults`."""
    text = record.value
    if isinstance(text, dict):
        if text_field is None:
            return None  # told once for the whole file
        if text_field not in text:
            faults.append(
                f"{record.place}: has no field {text_field}, only {', '.join(text) or 'none'}."
            )
            return None
        text = text[text_field]
    fault = _text_fault(text)
    if fault is not None:
        faults.append(f"{record.place}: {fault}")
    return text if isinstance(text, str) and fault is None else None


def _text_fault(text: object) -> str | None:
    """Say what is wrong with a text, or None."""
    if not isinstance(text, str):
        kind = type(text).__name__
        return f"the text needs to be a string, but {reprlib.repr(text)} came ({kind})."
    if not text.strip():
        return "the text is empty. Fill it in or remove the prompt."
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half a character ("\ud83d"); no tokenizer takes one.
        half = text[error.start].encode("ascii", "backslashreplace").decode()
        return f"character {error.start + 1} of the text is {half}, half of one. Write it whole."
    return None


def _drop_repeats(origin: _Origin, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Keep the first of each text and warn of the others."""
    kept: dict[str, Prompt] = {}
    repeats: list[str] = []
    for prompt in prompts:
        first = kept.setdefault(_same_text_key(prompt.text), prompt)
        if first is not prompt:
            repeats.append(f"{prompt.source} repeats {first.source}")
    if repeats:
        warnings.warn(
            f"{origin.place}: repeated texts were dropped, {len(kept)} of {len(prompts)} prompts "
            f"are left. Remove the repeats.\n{_first_ones(repeats)}",
            RefusalLensWarning,
            stacklevel=4,
        )
    return tuple(kept.values())


def _first_ones(lines: Sequence[str]) -> str:
    """Join the first ten lines and count the rest."""
    n_more = len(lines) - _N_SHOWN
    return "\n".join([*lines[:_N_SHOWN], *([f"... and {n_more} more"] if n_more > 0 else [])])


def _either(words: Iterable[str]) -> str:
    """Join words as in `a, b or c`."""
    *head, last = words
    return f"{', '.join(head)} or {last}" if head else last


# ---- files: each reader gives records and adds what it cannot read to `faults` ----


def _locate(path: str | Path) -> Path:
    """Find the file below the current folder or among the shipped ones."""
    # Imported late: prompts made in a notebook do not need pydantic.
    from refusal_lens.config import resource_places

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
    for number, line in enumerate(raw.replace(b"\r\n", b"\n").split(b"\n"), start=1):
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
    for number, line in enumerate(_read_text(path, faults).split("\n"), start=1):
        if line.strip():
            yield number, line


def _read_txt(path: Path, faults: list[str]) -> list[_Record]:
    """Read one prompt a line."""
    return [_Record(f"{path}:{n}", line.strip()) for n, line in _numbered_lines(path, faults)]


def _read_jsonl(path: Path, faults: list[str]) -> list[_Record]:
    """Read one JSON value a line."""
    records: list[_Record] = []
    for number, line in _numbered_lines(path, faults):
        try:
            records.append(_Record(f"{path}:{number}", json.loads(line)))
        except json.JSONDecodeError as error:
            faults.append(f"{path}:{number}:{error.colno}: not valid JSON: {error.msg}.")
    return records


def _read_json(path: Path, faults: list[str]) -> list[_Record]:
    """Read a JSON list, each element with the line it starts on."""
    text = _read_text(path, faults)
    records: list[_Record] = []
    line, counted = 1, 0
    try:
        for start, value in _json_elements(text):
            line, counted = line + text.count("\n", counted, start), start
            records.append(_Record(f"{path}:{line}", value))
    except json.JSONDecodeError as error:
        faults.append(f"{path}:{error.lineno}:{error.colno}: not a valid JSON list: {error.msg}.")
    return records


def _json_elements(text: str) -> Iterator[tuple[int, object]]:
    """Decode a JSON list element by element, since `json.loads` forgets where each stood."""
    decoder = json.JSONDecoder()
    start = _skip_space(text, 0)
    if text[start : start + 1] != "[":
        raise json.JSONDecodeError("Expecting '['", text, start)
    start = _skip_space(text, start + 1)
    is_open = text[start : start + 1] != "]"
    while is_open:
        value, end = decoder.raw_decode(text, start)
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


def _read_table(path: Path, faults: list[str]) -> list[_Record]:
    """Read CSV or TSV: the first record names the columns."""
    rows = _table_rows(path, faults)
    _, header = next(rows, ("", []))
    columns = [column.strip() for column in header]
    records: list[_Record] = []
    for place, row in rows:
        if len(row) == len(columns):
            records.append(_Record(place, dict(zip(columns, row, strict=True))))
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


def _read_parquet(path: Path, faults: list[str]) -> list[_Record]:
    """Read a Parquet table; rows count from 1."""
    # Imported here: it takes longer than all the rest of this module.
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RefusalLensError(
            f"{path}: reading Parquet needs pyarrow, which is not installed. "
            "Run: pip install pyarrow"
        ) from error
    try:
        rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except pyarrow.ArrowInvalid:
        faults.append(f"{path}: not a valid Parquet file. Write or download it again.")
        return []
    return [_Record(f"{path}:row {number}", row) for number, row in enumerate(rows, start=1)]


_READERS: dict[str, Callable[[Path, list[str]], list[_Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}
