"""Numbers of runs as a person reads them: times, counts, names, and what is measured besides the loss."""

from collections.abc import Mapping
from typing import Any


def duration(seconds: float) -> str:
    """'42 s', '12 min' or '3 h 05 min'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def age(seconds: float) -> str:
    """'now', '12 min', '3 h' or '6 d'."""
    for unit, length in {"d": 86400, "h": 3600, "min": 60}.items():
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return "now"


def number(value: Any) -> str:
    """Counts with separators, other numbers to four digits, '–' for None, and anything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def count_of_runs(count: int) -> str:
    """'1 run', '2 runs'."""
    return f"{count:,} run" + ("" if count == 1 else "s")


def words(name: str) -> str:
    """'gradient equivalents', from the name of a field."""
    return name.replace("_", " ")


def metric_of(record: Mapping[str, Any]) -> tuple[str, Any]:
    """The metric of a summary or of an evaluated row, ('accuracy', 0.975): its name and its value on the test set.

    ('', None) if none was recorded.
    """
    names = (name.removeprefix("test_") for name in record if name.startswith("test_") and name != "test_loss")
    name = record.get("metric") or next(names, "")
    return name, record.get(f"test_{name}")


def metric_title(record: Mapping[str, Any]) -> str:
    """'test accuracy', from a summary."""
    return f"test {metric_of(record)[0].replace('_', ' ')}"


def metric_value(record: Mapping[str, Any]) -> str:
    """The metric on the test set, from a summary: '98.06%'."""
    value = metric_of(record)[1]
    text: str = record.get("metric_format", "{:.4g}")
    return "–" if value is None else text.format(value)
