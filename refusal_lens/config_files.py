"""Config files: read, overridden, checked all at once, written; and what ships with the package.

Knows YAML and where files lie. What the keys mean stands in `config`.
"""

import difflib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from refusal_lens.config import Config
from refusal_lens.errors import RefusalLensError


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
        faults += [_describe(detail, str(path), origins) for detail in error.errors()]
    if faults or config is None:
        raise RefusalLensError("\n".join(faults))
    return config


def dump_config(config: Config) -> str:
    """Write the settings as YAML that `load_config` reads back.

    Args:
        config: The settings.

    Returns:
        YAML with every key, in the order of the classes.
    """
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True, width=100)


def find_resource(path: str | Path) -> Path | None:
    """Find a file or folder named as in the configs, such as `data/tiny-refuser`.

    The current folder comes first, so that a project can have its own `data/`.

    Args:
        path: The path; only `data/` and `configs/` are also looked for among the shipped files.

    Returns:
        Where it is, or None.
    """
    return next((place for place in resource_places(path) if place.exists()), None)


def resource_places(path: str | Path) -> tuple[Path, ...]:
    """List where `find_resource` looks, for messages that say so.

    Args:
        path: The path as in the configs.

    Returns:
        One or two places, the first to be taken first; none for an empty path.
    """
    if not str(path).strip():
        return ()
    own = Path(path).expanduser()
    is_shippable = not own.is_absolute() and own.parts[:1] in {("data",), ("configs",)}
    shipped = _shipped_root() / own
    if not is_shippable or shipped == own.absolute():
        return (own,)
    return (own, shipped)


def _shipped_root() -> Path:
    """Give the folder that holds `data/` and `configs/`."""
    package = Path(__file__).resolve().parent
    # A wheel carries them inside the package, a source checkout beside it. The folder beside an
    # installed package is site-packages, where a `data/` would be someone else's.
    is_checkout = not (package / "configs").is_dir() and (package.parent / "configs").is_dir()
    return package.parent if is_checkout else package


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
        f"A config is a YAML file or one of the shipped {known}, but {name!r} is neither "
        f"(current folder: {Path.cwd()}). Correct the path or the name."
    )


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Make the mapping unless a key repeats."""
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key} stands twice", problem_mark=mark
                )
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a file that must hold a mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RefusalLensError(f"{place}: not valid YAML: {error.problem}.") from error
    except OSError as error:
        raise RefusalLensError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RefusalLensError(
            f"{path}: not a text file in UTF-8: {error}. Save it as UTF-8."
        ) from error
    if content is not None and not isinstance(content, dict):
        raise RefusalLensError(
            f"{path}: a config needs keys such as `output: outputs`, but holds "
            f"{_show(content)}. See the shipped default.yaml."
        )
    return content or {}


def _apply_override(
    override: str, content: dict[str, Any], origins: dict[str, str], faults: list[str]
) -> None:
    """Set one key of `content`, or add what is wrong with the override to `faults`."""
    blamed = f"override {override!r}"
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
        content[last] = yaml.load(value, _StrictLoader)
    except yaml.YAMLError:
        faults.append(f"{blamed}: the value {value!r} is not valid YAML. Put it in quotes.")
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

    return f"{key} is not a known key; the closest is {max(_known_keys(), key=likeness)}."


def _describe(detail: ErrorDetails, path: str, origins: dict[str, str]) -> str:
    """Turn one fault that pydantic found into a line for the user."""
    key = ".".join(str(part) for part in detail["loc"] if isinstance(part, str))
    where = "".join(f"[{part}]" for part in detail["loc"] if isinstance(part, int))
    section = key.split(".")[0]
    place = origins.get(key) or origins.get(section) or path
    if detail["type"] == "extra_forbidden":
        return f"{place}: {_unknown_key(key)}"
    if detail["type"] == "missing":
        return f"{place}: {key} is missing. Add it."
    if detail["type"] == "invalid_key":
        return f"{place}: the key {_show(detail['input'])} needs to be a text. Remove it."
    return f"{place}: {key}{where} {_need(detail)}, but {_show(detail['input'])} came."


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
    shown = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=1000)
    shown = shown.removesuffix("...\n").strip()
    return f"{shown[:57]}..." if len(shown) > 60 else shown
