"""Config files: read, overridden, checked all at once, written; and what ships with the package.

Knows YAML and where files lie. What the keys mean stands in `config`.

Tested in tests/test_config.py.
"""

import copy
import difflib
import json
from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from refusal_lens.config import Config
from refusal_lens.errors import RefusalLensError
from refusal_lens.files import refuse_lfs_pointer


def load_config(path_or_name: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config and lay overrides over it.

    Args:
        path_or_name: A YAML file, or the name of a shipped config such as `qwen2.5-0.5b`; None is
            the shipped `default`. Keys that the file leaves out have their defaults.
        overrides: Settings such as `model.dtype=float32`; the value is read as YAML.

    Returns:
        The checked settings.

    Raises:
        RefusalLensError: There is no such config, or it or an override has faults; all are told.
    """
    path = _find_config(path_or_name)
    content = _read_yaml(path)
    # For each overridden key, the words to blame; all other keys come from the file.
    origins: dict[str, str] = {}
    faults: list[str] = []
    for override in overrides:
        _apply_override(override, content, origins, faults)
    config = None
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        found = error.errors()
        faults += [_describe(detail, str(path), origins) for detail in found[:N_FAULTS_SHOWN]]
        n_more = len(found) - N_FAULTS_SHOWN
        faults += [f"... and {n_more} more"] if n_more > 0 else []
    if faults or config is None:
        raise RefusalLensError("\n".join(faults))
    return config


def dump_config(config: Config) -> str:
    """Write the settings as YAML that `load_config` reads back, in the order of the classes."""
    # Through JSON: a list that stands in two places is written twice, and not as an alias.
    plain = json.loads(config.model_dump_json())
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def find_resource(path: str | Path) -> Path | None:
    """Find a file or folder named as in the configs, such as `data/tiny-refuser`, or None.

    The current folder comes first, so that a project can have its own `data/`; only `data/` and
    `configs/` are also looked for among the shipped files.
    """
    return next((place for place in resource_places(path) if place.exists()), None)


def resource_places(path: str | Path) -> tuple[Path, ...]:
    """List where `find_resource` looks, the first to be taken first; nowhere for an empty path."""
    if not str(path).strip():
        return ()
    given = Path(path).expanduser()
    is_shippable = not given.is_absolute() and given.parts[:1] in {("data",), ("configs",)}
    shipped = _shipped_root() / given
    if not is_shippable or shipped == given.absolute():
        return (given,)
    return (given, shipped)


def _shipped_root() -> Path:
    """Give the folder that holds `data/` and `configs/`."""
    package = Path(__file__).resolve().parent
    # A wheel carries them inside the package, a source checkout beside it. The folder beside an
    # installed package is site-packages, where a `data/` would be someone else's.
    is_checkout = not (package / "configs").is_dir() and (package.parent / "configs").is_dir()
    return package.parent if is_checkout else package


def shipped_text(name: str) -> str:
    """Return a shipped config as it is written, with its comments."""
    return (_shipped_root() / "configs" / f"{name}.yaml").read_text(encoding="utf-8")


def _find_config(path_or_name: str | Path | None) -> Path:
    """Find a config file by path or by shipped name."""
    # Shipped names are not looked for below the current folder: many projects have a
    # configs/default.yaml that is not ours.
    shipped = _shipped_root() / "configs"
    name = "default" if path_or_name is None else str(path_or_name)
    found = None if path_or_name is None else find_resource(path_or_name)
    if found is not None and found.is_file():
        return found
    named = shipped / f"{name.removesuffix('.yaml')}.yaml"
    if Path(name).name == name and named.is_file():
        return named
    known = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
    raise RefusalLensError(
        f"A config is a YAML file or one of the shipped {known}, but {name} is neither "
        f"(current folder: {Path.cwd()}). Correct the path or the name."
    )


MAX_BYTES, MAX_DEPTH = 2**16, 20
"""Of a config: the longest that ships has 7,000 bytes, and is 3 deep."""

N_FAULTS_SHOWN, MAX_SHOWN = 20, 200
"""Lines of a message, and characters of what it repeats from a file."""


class _StrictLoader(yaml.SafeLoader):
    """YAML as configs need it: no key twice, no merged or repeated parts, not deep.

    PyYAML silently takes the last of two keys; a few merge keys of merge keys (`<<: [*a, *a]`)
    keep it busy for hours; and it fails at deep nesting in its own way.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Make one part of the document unless it stands too deep, or is another one again."""
        event = self.peek_event()
        if self.check_event(yaml.AliasEvent) or self.depth > MAX_DEPTH:
            what = "*aliases are not read" if self.depth <= MAX_DEPTH else "nested too deep"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make a value; PyYAML's own makers fail at 2026-02-30 and !!bool maybe in their way."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(
                problem=f"a value cannot be read ({error!r:.100})", problem_mark=node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Make the mapping unless a key repeats."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} stands twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def _load_yaml(text: str) -> Any:
    """Read YAML; whatever is wrong with it is a YAMLError."""
    if len(text) > MAX_BYTES:
        raise yaml.MarkedYAMLError(problem=f"more than {MAX_BYTES:,} characters")
    return copy.deepcopy(_parse(text))


@lru_cache(maxsize=16)
def _parse(text: str) -> Any:
    # A report asks for its run's settings fifty times, and PyYAML takes 4 ms for them.
    return yaml.load(text, _StrictLoader)


def _cut(text: str) -> str:
    """Keep a message short that repeats what stood in a file."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _read_yaml(path: Path) -> dict[Any, Any]:
    """Read a file that must hold a mapping; its keys may be anything that YAML has."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RefusalLensError(
                f"{path} has {path.stat().st_size:,} bytes; a config has a few thousand, and "
                f"{MAX_BYTES:,} at most. Give another file."
            )
        refuse_lfs_pointer(path)
        content = _load_yaml(path.read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = f"{error.problem}".removesuffix(".")
        raise RefusalLensError(f"{place}: not valid YAML: {_cut(problem)}.") from error
    except OSError as error:
        raise RefusalLensError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RefusalLensError(
            f"{path}: not a text file in UTF-8: {_cut(str(error))}. Save it as UTF-8."
        ) from error
    if content is not None and not isinstance(content, dict):
        raise RefusalLensError(
            f"{path}: a config needs keys such as `output: outputs`, but holds "
            f"{_show(content)}. See the shipped default.yaml."
        )
    return content or {}


def _apply_override(
    override: str, content: dict[Any, Any], origins: dict[str, str], faults: list[str]
) -> None:
    """Set one key of `content`, or add what is wrong with the override to `faults`."""
    blamed = f"override {_cut(repr(override))}"
    key, equals, value = override.partition("=")
    key = key.strip()
    if not equals:
        faults.append(f"{blamed}: needs the form key=value, such as model.dtype=float32.")
        return
    if key not in _known_keys():
        faults.append(f"{blamed}: {_unknown_key(key)}")
        return
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    if not isinstance(content, dict):
        return  # the section itself is wrong in the file, which the check will tell
    try:
        content[last] = loaded = _load_yaml(value)
        if isinstance(loaded, str) and " #" in value and " #" not in loaded:
            faults.append(f"{blamed}: YAML takes ' #' for a comment. Put the value in quotes.")
    except yaml.YAMLError:
        faults.append(
            f"{blamed}: the value {_cut(repr(value))} is not valid YAML. Put it in quotes."
        )
    origins[key] = blamed


def _known_keys() -> list[str]:
    """List every key, sections included, with dots."""
    keys: list[str] = []
    for section, info in Config.model_fields.items():
        keys.append(section)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += [f"{section}.{key}" for key in info.annotation.model_fields]
    return keys


def _unknown_key(key: str) -> str:
    """Say that a key is unknown, and name the closest known one of any section."""

    def likeness(known: str) -> list[float]:
        # The last part first: a right key in a wrong section is the commonest fault.
        pairs = ((key.rpartition(".")[2], known.rpartition(".")[2]), (key, known))
        return [difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs]

    known = max(_known_keys(), key=likeness) if len(key) <= MAX_SHOWN else _known_keys()[0]
    return f"{_cut(key)} is not a known key; the closest is {known}."


def _describe(detail: ErrorDetails, path: str, origins: dict[str, str]) -> str:
    """Turn one fault that pydantic found into a line for the user."""
    key = ".".join(str(part) for part in detail["loc"] if isinstance(part, str))
    indices = "".join(f"[{part}]" for part in detail["loc"] if isinstance(part, int))
    section = key.split(".")[0]
    place = origins.get(key) or origins.get(section) or path
    if detail["type"] == "extra_forbidden":
        return f"{place}: {_unknown_key(key)}"
    if detail["type"] == "missing":
        return f"{place}: {key} is missing. Add it."
    if detail["type"] == "invalid_key":
        return f"{place}: the key {_show(detail['input'])} needs to be a text. Remove it."
    return f"{place}: {_cut(key + indices)} {_need(detail)}, but {_show(detail['input'])} came."


def _need(detail: ErrorDetails) -> str:
    """Say in one clause what a value needs to be."""
    known = {
        "list_type": "needs to be a list such as [a, b]",
        "model_type": "needs to be a section with keys",
        "int_type": "needs to be a whole number",
        "too_short": "needs at least 1 item",
    }
    message = detail["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "needs to be").replace("a valid", "a")
    return known.get(detail["type"], message)


def _show(value: object) -> str:
    """Show a value that came as YAML, cut when long."""
    shown = yaml.safe_dump(_trim(value), allow_unicode=True, default_flow_style=True, width=1000)
    shown = shown.removesuffix("...\n").strip()
    return f"{shown[:57]}..." if len(shown) > 60 else shown


def _trim(value: object) -> object:
    """Take the beginning of a value: what is written out in full takes seconds, and is cut."""
    if isinstance(value, str):
        return value[:MAX_SHOWN]
    if isinstance(value, list):
        return [_trim(each) for each in value[:MAX_SHOWN]]
    if isinstance(value, dict):
        return {key: _trim(each) for key, each in list(value.items())[:MAX_SHOWN]}
    return value
