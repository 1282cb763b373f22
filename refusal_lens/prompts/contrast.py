"""Prompts: checked all at once, kept in order and fingerprinted.

Knows nothing of files, models, chat templates or tokens.
"""

import hashlib
import json
import re
import reprlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from refusal_lens.errors import RefusalLensError, RefusalLensWarning

TEXT_FIELDS = ("text", "prompt", "instruction", "goal", "forbidden_prompt", "behavior")
"""Usual names of the field with the text; case does not count."""

LABEL_FIELDS = ("id", "category", "pair", "group")

PROMPT_FIELDS = ("id", "text", "category", "pair", "group")
"""What is kept of a prompt: all but its source."""

COMPANION_FIELDS = (
    *("input", "context", "contextstring", "context_string", "passage", "document", "history"),
    *("system", "system_prompt"),
)
"""Fields that public prompt sets keep a part of the prompt in; case does not count."""

JOINED = "+"
"""In a text field's name: several fields, joined by a blank line."""

MIN_PROMPTS_PER_SIDE = 30
"""Fewer only warn. A limit of prompts, which this room, before any that validates, speaks of."""

UNCATEGORISED = "uncategorised"
Grouping = Literal["found", "given", "off"]
"""Where pairs and groups come from: the files and else the texts, the files alone, or nowhere."""

_N_SHOWN, _N_SHOWN_CHARS = 10, 60


@dataclass(frozen=True)
class Prompt:
    """One request to the model, as the user would type it.

    Args:
        id: Name within its set; results and messages refer to it.
        text: The request, without any chat template.
        category: Subject, for results by subject.
        pair: What it shares with its twin of the other class; "" for none.
        group: What it shares with prompts that it is not independent of (topic, template, source);
            "" leaves that to `category`.
        source: Where it came from (`file:line`), for messages only: two prompts that differ in
            nothing else are equal.
    """

    id: str
    text: str
    category: str
    pair: str = ""
    group: str = ""
    source: str = field(default="", compare=False, repr=False)

    @property
    def topic(self) -> str:
        """Its group, else its category; "" where it has neither."""
        return self.group or (self.category if self.category != UNCATEGORISED else "")


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

        Raises:
            RefusalLensError: A text is empty or not a string, or there are none.
        """
        if isinstance(texts, str):
            raise RefusalLensError(
                f"The set {name!r} needs a list of texts, but a single string came. "
                "Put it in brackets."
            )
        records = [Record(f"{name}[{index}]", text) for index, text in enumerate(texts)]
        return cls(name, check_records(name, Origin(name), records, []))

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

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of all that prompts hold, in order; the name and places do not count."""
        # That of one JSON list of them all, written row by row: prompts may be many. JSON keeps
        # field borders apart, so ("ab", "c") and ("a", "bc") differ.
        digest = hashlib.sha256(b"[")
        for number, prompt in enumerate(self.prompts):
            shared = [prompt.pair, prompt.group] if prompt.pair or prompt.group else []
            row = json.dumps([prompt.id, prompt.text, prompt.category, *shared])
            digest.update(f"{', ' if number else ''}{row}".encode())
        digest.update(b"]")
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ContrastSet:
    """Harmful and harmless prompts, whose difference is the refusal direction.

    Fewer than 30 prompts a side only warn: a try-out with ten is fine, a finding is not.

    Args:
        harmful: Prompts that the model refuses.
        harmless: Prompts that it answers, alike in length and form.
        grouping: Where pairs and groups come from, see `groups.find_groups`.

    Raises:
        RefusalLensError: A side is empty, or a text stands in both.
    """

    harmful: PromptSet
    harmless: PromptSet
    grouping: Grouping = "found"

    def __post_init__(self) -> None:
        _check_sizes(self.harmful, self.harmless)
        _check_overlap(self.harmful, self.harmless)

    @classmethod
    def from_texts(cls, harmful: Sequence[str], harmless: Sequence[str]) -> "ContrastSet":
        """Make a contrast set from two lists of texts, as in a notebook.

        Raises:
            RefusalLensError: A text is empty, not a string or on both sides, or a side is empty.
        """
        return cls(
            PromptSet.from_texts("harmful", harmful), PromptSet.from_texts("harmless", harmless)
        )

    def __len__(self) -> int:
        return len(self.harmful) + len(self.harmless)

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts, harmful first, then harmless."""
        return self.harmful.prompts + self.harmless.prompts

    @cached_property
    def is_harmful(self) -> tuple[bool, ...]:
        """The class of each prompt, in the order of `prompts`."""
        return (True,) * len(self.harmful) + (False,) * len(self.harmless)

    def counts(self, rows: Sequence[int] | None = None) -> dict[str, int]:
        """Count the prompts of each class, of all of them or of some rows.

        Example:
            >>> ContrastSet.from_texts(["Steal?"], ["Paint?", "Sing?"]).counts([0, 2])
            {'harmful': 1, 'harmless': 1}
        """
        chosen = range(len(self)) if rows is None else rows
        n_harmful = sum(row < len(self.harmful) for row in chosen)
        return {"harmful": n_harmful, "harmless": len(chosen) - n_harmful}

    def reword(self, text: str) -> str:
        """Write what is said of harmful and harmless prompts of what these sides are called.

        Prompts' own ids, such as `harmful-012`, stay as they are.
        """
        names = {"harmful": self.harmful.name, "harmless": self.harmless.name}
        return re.sub(r"\b(harmful|harmless)\b(?![-_\d])", lambda word: names[word[1]], text)


@dataclass(frozen=True, eq=False)
class Borderline(ContrastSet):
    """Prompts that sound harmful and are not: read and answered as a contrast set is.

    They are its harmless side, and nothing is harmful: there is no contrast to fit to.
    """

    def __post_init__(self) -> None:
        """Check nothing: one side is meant to be empty, and `of` has seen the prompts."""

    @classmethod
    def of(cls, prompts: PromptSet, contrast: ContrastSet) -> "Borderline":
        """Take prompts of neither class; a text that the contrast set holds too is refused."""
        for side in (contrast.harmful, contrast.harmless):
            _check_overlap(side, prompts)
        return cls(PromptSet("harmful", ()), prompts, contrast.grouping)

    def counts(self, rows: Sequence[int] | None = None) -> dict[str, int]:
        """Count the prompts, of all of them or of some rows."""
        return {"borderline": len(self if rows is None else rows)}


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
            f"A prompt is either {harmful.name} or {harmless.name}, but these texts stand in both "
            "sets. "
            f"Remove each from one of them.\n{_first_ones(shared)}"
        )


def _place(prompt: Prompt) -> str:
    """Where to find a prompt: its source or, made by hand, its id."""
    return prompt.source or prompt.id


def _same_text_key(text: str) -> str:
    """Give what texts share that differ in white space and case alone."""
    return " ".join(text.split()).casefold()


# ---- from raw records to prompts ----


class Record(NamedTuple):
    """One entry of a file, not yet checked: a string, a dict or something wrong."""

    place: str
    value: object


class Origin(NamedTuple):
    """The file (or set) that records came from and the text fields looked for, the first first.

    `setting` is the setting that names the field, `is_named` whether it does.
    """

    place: str
    wanted: Sequence[str] = TEXT_FIELDS
    setting: str = "text_field"
    is_named: bool = False


class Text(NamedTuple):
    """A prompt, and what its record holds beside it that would have been sent by its makers."""

    prompt: Prompt
    companions: Mapping[str, str]


def check_records(
    name: str,
    origin: Origin,
    records: Sequence[Record],
    faults: list[str],
    columns: Sequence[str] | None = None,
) -> tuple[Prompt, ...]:
    """Turn records into prompts, or raise all faults: those given and those found.

    `columns` are all fields there are, where records hold only those that may be wanted.
    """
    text_fields = None
    if any(isinstance(record.value, dict) for record in records):
        present = field_names(records) if columns is None else columns
        text_fields = choose_text_fields(origin, present, faults)
    elif origin.is_named and records:
        faults.append(
            f"{origin.place}: the text is looked for in the field {either(origin.wanted)}, but the "
            f"prompts are plain strings without fields. Leave {origin.setting} out."
        )
    texts = _make_prompts(name, records, text_fields, faults)
    if not records and not faults:
        faults.append(f"{origin.place}: holds no prompts. Add some.")
    if faults:
        raise RefusalLensError(_first_ones(faults))
    _warn_of_companions(origin, text_fields or [], texts)
    return _drop_repeats(origin, texts)


def field_names(records: Sequence[Record]) -> list[str]:
    """List the fields of all records, in the order they are met."""
    tables = [record.value for record in records if isinstance(record.value, dict)]
    return list(dict.fromkeys(str(key) for table in tables for key in table))


def choose_text_fields(
    origin: Origin, present: Sequence[str], faults: list[str]
) -> list[str] | None:
    """Choose the field with the text, or the fields that are joined; tell `faults` if none fits."""
    for wanted in origin.wanted:
        found = find_fields(wanted, present)
        if found is not None:
            if not origin.is_named:
                _warn_of_other_texts(origin, found[0], present)
            return found
    faults.append(
        f"{origin.place}: the text is looked for in the field {either(origin.wanted)}, but the "
        f"fields are {_some(present)}. Set {origin.setting} to the one that holds the text."
    )
    return None


def _warn_of_other_texts(origin: Origin, chosen: str, present: Sequence[str]) -> None:
    """Warn where a file has several fields that usually hold the text.

    Beside a goal, the behavior is its label (JailbreakBench).
    """
    usual = set(TEXT_FIELDS) - ({"behavior"} if chosen.casefold() == "goal" else set())
    others = [name for name in present if name != chosen and name.casefold() in usual]
    if others:
        warnings.warn(
            f"{origin.place}: the text is taken from the field {chosen}; the file has "
            f"{_some(others)} too. Set {origin.setting} to the one that is to be sent.",
            RefusalLensWarning,
            stacklevel=6,
        )


def find_fields(wanted: str, present: Sequence[str]) -> list[str] | None:
    """Find a field by its name, or all of those that the name joins; None where one is missing.

    Example:
        >>> find_fields("instruction + input", ["Instruction", "input", "output"])
        ['Instruction', 'input']
    """
    if wanted in present:
        return [wanted]
    found = [_same_name(part.strip(), present) for part in wanted.split(JOINED)]
    names = [name for name in found if name is not None]
    return names if len(names) == len(found) else None


def _same_name(wanted: str, present: Sequence[str]) -> str | None:
    """Return the field of this name, or of this name in another case."""
    alike = [name for name in present if name.casefold() == wanted.casefold()]
    return wanted if wanted in present else next(iter(alike), None)


def _make_prompts(
    name: str, records: Sequence[Record], text_fields: Sequence[str] | None, faults: list[str]
) -> list[Text]:
    """Turn each sound record into a prompt and add a line to `faults` for each other one."""
    texts: list[Text] = []
    place_of_id: dict[str, str] = {}
    for number, record in enumerate(records, start=1):
        prompt_id = _label(record, "id", f"{name}-{number:03d}", faults)
        if prompt_id in place_of_id:
            faults.append(
                f"{record.place}: the id {reprlib.repr(prompt_id)} is taken by "
                f"{place_of_id[prompt_id]}. Give each prompt its own."
            )
        place_of_id.setdefault(prompt_id, record.place)
        text = _text_of(record, text_fields, faults)
        if text is not None:
            category = _label(record, "category", UNCATEGORISED, faults)
            pair, group = (_label(record, key, "", faults) for key in ("pair", "group"))
            prompt = Prompt(prompt_id, text, category, pair, group, record.place)
            texts.append(Text(prompt, _companions(record.value, text_fields or [])))
    return texts


def _label(record: Record, key: str, default: str, faults: list[str]) -> str:
    """Read an optional label; numbers are fine, missing and blank give the default."""
    label = record.value.get(key) if isinstance(record.value, dict) else None
    if isinstance(label, (dict, list, tuple)):
        faults.append(f"{record.place}: the {key} needs to be a text or a number, no list.")
        return default
    written = default if label is None else str(label).strip() or default
    fault = _half_character(written, key)
    if fault is not None:
        faults.append(f"{record.place}: {fault}")
        return default
    return written


def _companions(value: object, text_fields: Sequence[str]) -> dict[str, str]:
    """Return the filled fields of a record that belong to the prompt and are not its text."""
    if not isinstance(value, dict):
        return {}
    return {
        key: reprlib.repr(each) if not isinstance(each, str) else each
        for key, each in value.items()
        if key.casefold() in COMPANION_FIELDS
        and key not in text_fields
        and each not in (None, [], {})
        and not (isinstance(each, str) and not each.strip())
    }


def _text_of(record: Record, text_fields: Sequence[str] | None, faults: list[str]) -> str | None:
    """Take the text out of a record, or None after adding to `faults`."""
    if not isinstance(record.value, dict):
        parts: list[object] = [record.value]
    elif text_fields is None:
        return None  # told once for the whole file
    elif text_fields[0] not in record.value:
        faults.append(
            f"{record.place}: has no field {text_fields[0]}, only {_some(list(record.value))}."
        )
        return None
    else:
        # What is joined to the text may be missing or empty.
        rest = [record.value.get(name) for name in text_fields[1:]]
        parts = [record.value[text_fields[0]], *(each for each in rest if each not in (None, ""))]
    for part in parts:
        fault = _text_fault(part)
        if fault is not None:
            faults.append(f"{record.place}: {fault}")
            return None
    return "\n\n".join(str(part) for part in parts)


def _text_fault(text: object) -> str | None:
    """Say what is wrong with a text, or None."""
    if not isinstance(text, str):
        kind = type(text).__name__
        return f"the text needs to be a string, but {reprlib.repr(text)} came ({kind})."
    if not text.strip():
        return "the text is empty. Fill it in or remove the prompt."
    return _half_character(text, "text")


def _half_character(text: str, what: str) -> str | None:
    """Tell of half a character, which JSON can spell; no tokenizer and no file takes one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("ascii", "backslashreplace").decode()
        return f"character {error.start + 1} of the {what} is {half}, half of one. Write it whole."
    return None


def _warn_of_companions(origin: Origin, text_fields: Sequence[str], texts: Sequence[Text]) -> None:
    """Warn of parts of prompts that are not read, and count them."""
    counts = Counter(key for text in texts for key in text.companions)
    for key, count in counts.items():
        joined = f" {JOINED} ".join([*text_fields, key])
        warnings.warn(
            f"{origin.place}: {count} of {len(texts)} prompts have a field {key} that is filled "
            f"and not read: they are sent without it. Set {origin.setting} to {joined!r} to send "
            "both, or remove these prompts.",
            RefusalLensWarning,
            stacklevel=5,
        )


def _drop_repeats(origin: Origin, texts: Sequence[Text]) -> tuple[Prompt, ...]:
    """Keep the first of each text and warn of the others.

    Texts that differ in a companion are different prompts, though the same is sent of them: that
    is told with the companions.
    """
    kept: dict[tuple[str, ...], Prompt] = {}
    repeats: list[str] = []
    for prompt, companions in texts:
        key = (_same_text_key(prompt.text), *map(_same_text_key, companions.values()))
        first = kept.setdefault(key, prompt)
        if first is not prompt:
            repeats.append(f"{prompt.source} repeats {first.source}")
    if repeats:
        warnings.warn(
            f"{origin.place}: repeated texts were dropped, {len(kept)} of {len(texts)} prompts "
            f"are left. Remove the repeats.\n{_first_ones(repeats)}",
            RefusalLensWarning,
            stacklevel=4,
        )
    return tuple(kept.values())


def _some(names: Sequence[str]) -> str:
    """List names for a message, of many and of long ones the beginning."""
    n = _N_SHOWN_CHARS
    shown = [name if len(name) <= n else f"{name[:n]}..." for name in names]
    more = f" and {len(names) - _N_SHOWN} more" if len(names) > _N_SHOWN else ""
    return ", ".join(shown[:_N_SHOWN]) + more if names else "none"


def _first_ones(lines: Sequence[str]) -> str:
    """Join the first ten lines and count the rest."""
    n_more = len(lines) - _N_SHOWN
    return "\n".join([*lines[:_N_SHOWN], *([f"... and {n_more} more"] if n_more > 0 else [])])


def either(words: Iterable[str]) -> str:
    """Join words as in `a, b or c`."""
    *head, last = words
    return f"{', '.join(head)} or {last}" if head else last
