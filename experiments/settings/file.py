"""YAML file + overrides -> a checked dataclass, for every kind of file the experiments read.

The file is YAML 1.2 (1e-3 is a number, a key given twice is an error). An override is `dotted.key=value` with the
value again in YAML; it replaces what the file says before anything is checked, so both are held to the same rules.
"""

import difflib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, YAMLError

from experiments.settings.errors import ConfigError

T = TypeVar("T")


def load_settings(
    kind: TypeAdapter[T], path: Path, overrides: Sequence[str] = (), *, origin: str = "command line"
) -> T:
    """Reads and checks one file.

    Args:
      kind: what the file describes.
      path: a YAML file.
      overrides: `dotted.key=value` strings, later ones win.
      origin: where the overrides come from, for messages.

    Raises:
      ConfigError: the file cannot be read or does not describe a `kind`. The message names the file or the origin of
        the override, the dotted key, what is wrong, and for an unknown key the closest valid one.
    """
    settings = read_settings(path)
    for override in overrides:
        _apply_override(settings, override, origin)
    return check_settings(kind, settings, str(path), [override.partition("=")[0] for override in overrides], origin)


def check_settings(
    kind: TypeAdapter[T], settings: Mapping[str, Any], source: str, overridden: Sequence[str] = (), origin: str = ""
) -> T:
    """Checks nested mappings, whatever they come from.

    Args:
      kind: what they describe.
      source: where they come from, for messages.
      overridden: dotted keys that come from `origin` instead.

    Raises:
      ConfigError: as `load_settings`.
    """
    try:
        # Through JSON, where strict checking still takes a mapping for a section and a list for a tuple.
        return kind.validate_json(json.dumps(settings, default=str))
    except ValidationError as error:
        problems = _problems(error, kind, settings)
        raise ConfigError("\n".join(_lines(problems, source, overridden, origin))) from None


def plain(kind: TypeAdapter[T], settings: T) -> dict[str, Any]:
    """Nested dicts, lists and scalars, every default written out: what `check_settings` takes."""
    found: dict[str, Any] = kind.dump_python(settings, mode="json")
    return found


def yaml() -> YAML:
    """Reads and writes plain dicts, lists and scalars."""
    return YAML(typ="safe", pure=True)  # the pure parser is the one that follows YAML 1.2


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Nested mappings as YAML, their keys in the order they have."""
    text = io.StringIO()
    writer = yaml()
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(settings, text)
    return text.getvalue()


def read_settings(path: Path) -> dict[str, Any]:
    """A YAML file as nested mappings, unchecked.

    Raises:
      ConfigError: the file cannot be read, or is not a mapping.
    """
    try:
        settings = yaml().load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; {path.parent} has: {', '.join(file.name for file in near)}" if near else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(settings).__name__}")
    return settings


def _yaml_problem(error: YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark is not None else f"not valid YAML: {problem}"


def _apply_override(settings: dict[str, Any], override: str, origin: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"{origin}: expected dotted.key=value, got '{override}'")
    try:
        value = yaml().load(text)
    except YAMLError as error:
        raise ConfigError(f"{origin}: {key}: '{text}' is not valid YAML: {_yaml_problem(error)}") from None
    section = settings
    for depth, part in enumerate(parts[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise ConfigError(f"{origin}: {key}: '{'.'.join(parts[:depth])}' is a value, not a section")
    section[parts[-1]] = value


def _problems(error: ValidationError, kind: TypeAdapter[Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong at each key. The alternatives of a union ('full' or a number), which pydantic reports apart, are
    joined."""
    alternatives: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for detail in error.errors():
        key = ".".join(_key_path(detail, settings))
        message, shows_value = _problem(detail, kind)
        alternatives.setdefault(key, []).append(message)
        if shows_value:
            values[key] = detail["input"]
    return {
        key: " or ".join(dict.fromkeys(messages)) + (f", got {values[key]!r}" if key in values else "")
        for key, messages in alternatives.items()
    }


def _lines(problems: Mapping[str, str], path: str, overridden: Sequence[str], origin: str) -> list[str]:
    """One line a key, which begins with where its value came from."""
    lines = []
    for key, problem in problems.items():
        source = path
        if any(f"{key}.".startswith(f"{override}.") for override in overridden):
            source = origin
        elif any(override.startswith(f"{key}.") for override in overridden):
            source = f"{path} with the {origin}"  # the section came from both
        lines.append(f"{source}: {key}: {problem}" if key else f"{source}: {problem}")
    return lines


def _key_path(detail: ErrorDetails, settings: Any) -> list[str]:
    """The keys a person wrote: pydantic's location without the names of union branches."""
    names_a_key = detail["type"] in ("missing", "unexpected_keyword_argument")
    location, path = detail["loc"], []
    for depth, part in enumerate(location):
        is_last = depth == len(location) - 1
        if (isinstance(settings, dict) and part in settings) or (isinstance(settings, list) and isinstance(part, int)):
            settings = settings[part]  # type: ignore[index]
        elif not (names_a_key and is_last):
            continue
        path.append(str(part))
    return path


def _problem(detail: ErrorDetails, kind: TypeAdapter[Any]) -> tuple[str, bool]:
    """What is wrong, and whether showing the value helps."""
    match detail["type"]:
        case "unexpected_keyword_argument":
            return _unknown_key(detail, kind), False
        case "missing":
            return "missing, and it has no default", False
        case "value_error":
            return str(detail["ctx"]["error"]), False
        case "dataclass_type":
            return "should be a section (a mapping of settings)", True
        case "union_tag_not_found":
            tag = detail["ctx"]["discriminator"].strip("'")
            near = difflib.get_close_matches(tag, [str(key) for key in detail["input"]], n=1)
            return f"missing its '{tag}'" + (
                f"; did you mean '{tag}' where it says '{near[0]}'?" if near else ""
            ), False
        case "union_tag_invalid":
            tag, context = detail["ctx"]["discriminator"].strip("'"), detail["ctx"]
            return f"unknown {tag} {context['tag']!r}; valid: {context['expected_tags']}", False
    return detail["msg"].removeprefix("Input ").replace("greater than or equal to", "at least"), True


def _unknown_key(detail: ErrorDetails, kind: TypeAdapter[Any]) -> str:
    key = str(detail["loc"][-1])
    valid = _valid_keys(detail["loc"][:-1], kind.json_schema())
    closest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    suggestion = f"did you mean '{closest[0]}'? " if closest else ""
    return f"unknown key; {suggestion}Valid here: {', '.join(valid)}"


def _valid_keys(location: Sequence[int | str], schema: Mapping[str, Any]) -> list[str]:
    """Keys of the section that pydantic's `location` leads to, read off the JSON schema."""

    def resolve(node: Mapping[str, Any]) -> Mapping[str, Any]:
        for option in (node, *node.get("anyOf", ())):
            if "$ref" in option:
                return schema["$defs"][option["$ref"].rpartition("/")[2]]
        return node

    section = schema
    for part in location:
        branches = section.get("discriminator", {}).get("mapping", {})
        if part in branches:
            section = resolve({"$ref": branches[part]})
        else:
            section = resolve(section["items"] if isinstance(part, int) else section["properties"][part])
    return list(section["properties"])
