"""Tables of benchmarks, as JSON where asked for, and their comparison with a stored baseline."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.measuring import Row, machine
from experiments.settings.errors import ExperimentError

BASELINE = Path(__file__).with_name("baseline.json")
# A regression is a value above the baseline by more than this share: of what is timed, and of what is counted.
_TIMED, _COUNTED = 0.15, 0.01
_WIDTH = 160


class Baseline(NamedTuple):
    """Earlier values by name and path of the row, and the machine they are from."""

    machine: str
    values: dict[tuple[str, str], float]


def to_json(what: str, rows: Sequence[Row]) -> str:
    """The rows with the machine they were measured on."""
    return json.dumps({"benchmark": what, "machine": machine(), "rows": [asdict(row) for row in rows]}, indent=2)


def print_table(title: str, note: str, rows: Sequence[Row], baseline: Baseline | None, console: Console) -> None:
    """One line a row; with a baseline also what it says, and the change."""
    if not console.is_terminal:  # where no window bounds the lines
        console = Console(file=console.file, width=_WIDTH)
    details = list(dict.fromkeys(name for row in rows for name in row.details))
    shown = {
        "range": any(row.lowest is not None for row in rows),
        "target": any(row.target is not None for row in rows),
        "baseline": baseline is not None,
        "change": baseline is not None,
    }
    caption = [machine(), note]
    if baseline is not None:
        caption.insert(1, f"baseline: {baseline.machine}")
    table = Table(title=title, caption="\n".join(caption), box=box.SIMPLE_HEAD)
    table.add_column("")
    if paths := any(row.path for row in rows):
        table.add_column("")
    for column in ("value", *(name for name, present in shown.items() if present), *details):
        table.add_column(column, justify="right")
    for row in rows:
        before = None if baseline is None else baseline.values.get((row.name, row.path))
        cells = {
            "range": "" if row.lowest is None else f"{_number(row.lowest)} … {_number(row.highest)}",
            "target": _target(row),
            "baseline": "" if before is None else _number(before),
            "change": "new" if before is None else f"{row.value / before - 1:+.0%}",
        }
        table.add_row(
            row.name,
            *([row.path] if paths else []),
            _number(row.value),
            *(cells[name] for name, present in shown.items() if present),
            *(_number(row.details.get(name)) for name in details),
            style="red" if row.met is False or is_regression(row, before) else None,
        )
    console.print(table)


def is_regression(row: Row, before: float | None) -> bool:
    """Whether the value is worse than ``before`` by more than its measurement is uncertain."""
    return before is not None and row.value > before * (1 + (_COUNTED if row.lowest is None else _TIMED))


def load_baseline(what: str, path: Path = BASELINE) -> Baseline:
    """What is stored of a benchmark.

    Raises:
      ExperimentError: nothing is.
    """
    stored = _stored(path).get(what)
    if stored is None:
        raise ExperimentError(f"{path.name} holds no baseline of '{what}'; make one with --save")
    return Baseline(stored["machine"], {(row["name"], row["path"]): row["value"] for row in stored["rows"]})


def save_baseline(what: str, rows: Sequence[Row], path: Path = BASELINE) -> None:
    """Replace what is stored of these rows, and of all rows where it comes from another machine."""
    stored = _stored(path)
    values = {(row.name, row.path): float(f"{row.value:.4g}") for row in rows}
    if what in stored and stored[what]["machine"] == machine():
        values = load_baseline(what, path).values | values
    stored[what] = {
        "machine": machine(),
        "rows": [{"name": name, "path": way, "value": value} for (name, way), value in values.items()],
    }
    path.write_text(json.dumps(stored, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _stored(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    verdict = ("met" if row.met else "MISSED") if jax.default_backend() == "cpu" else "of CPUs"
    return f"≤ {_number(row.target)} {verdict}"


def _number(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.2g}"
