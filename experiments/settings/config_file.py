"""YAML file + command-line overrides -> `Config`, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from experiments.settings.config import Config
from experiments.settings.file import load_settings, plain, to_yaml

_ADAPTER = TypeAdapter(Config)


def load_config(path: str | Path, overrides: Sequence[str] = (), *, origin: str = "command line") -> Config:
    """Reads and checks one experiment; arguments and errors are those of `load_settings`."""
    return load_settings(_ADAPTER, Path(path), overrides, origin=origin)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain dicts, lists and scalars, every default written out."""
    return plain(_ADAPTER, config)


def dump_config(config: Config) -> str:
    """The whole configuration as YAML that `load_config` reads back to an equal one."""
    return to_yaml(config_to_dict(config))


def differing_keys(old: Config, new: Config) -> list[str]:
    """Dotted keys at which two configurations differ, with both values, for messages."""
    flat_old, flat_new = _flatten(config_to_dict(old)), _flatten(config_to_dict(new))
    keys = sorted(flat_old.keys() | flat_new.keys())
    return [
        f"{key}: {flat_old.get(key)!r} -> {flat_new.get(key)!r}"
        for key in keys
        if flat_old.get(key) != flat_new.get(key)
    ]


def _flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {prefix: settings}
    return {
        flat_key: value
        for key, nested in settings.items()
        for flat_key, value in _flatten(nested, f"{prefix}.{key}" if prefix else key).items()
    }
