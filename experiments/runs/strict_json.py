"""JSON of records: NaN and infinities, for which it has no numbers, as strings."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """What a file holds that `to_json` wrote."""
    return from_json(path.read_text(encoding="utf-8"))


# JSON has no NaN and no infinities: they are written as these strings and read back as numbers.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(values: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON of nested mappings and numbers, with the strings above for what JSON has no number for."""

    def encoded(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: encoded(nested) for key, nested in value.items()}
        if isinstance(value, list):
            return [encoded(nested) for nested in value]
        if isinstance(value, float) and not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return value

    return json.dumps(encoded(values), allow_nan=False, ensure_ascii=False, indent=indent)


def from_json(text: str) -> Any:
    """What `to_json` wrote."""

    def decoded(pairs: Mapping[str, Any]) -> dict[str, Any]:
        return {k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in pairs.items()}

    return json.loads(text, object_hook=decoded)
