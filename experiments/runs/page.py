"""`python -m experiments show RUN`: what is recorded of one run, on one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.runs.catalogue import bounded, entry_of, last_evaluated, run_folders
from experiments.runs.readable import number, words
from experiments.runs.recording import is_run, read_metrics, read_summary
from experiments.runs.strict_json import read_json
from experiments.settings.errors import RunError

_COSTS = (
    "steps",
    "epochs",
    "rejected",
    "gradients",
    "products",
    "gradient_equivalents",
    "seconds",
    "compile_seconds",
    "evaluation_seconds",
)
# What the title says, or nobody asks for.
_ELSEWHERE = ("name", "optimizer", "seed", "status", "metric_format", "metric_higher_is_better")


def show_run(folder: Path, console: Console) -> None:
    """Prints summary, accounts, last evaluation and environment of a run, finished or not.

    Raises:
      RunError: it is not a run folder, or what it holds is damaged.
    """
    if not is_run(folder):
        inside = len(run_folders(folder))
        hint = f"; there are {inside} below it: python -m experiments list --runs-dir {folder}" if inside else ""
        raise RunError(f"{folder} is not a run folder{hint}")
    rows = read_metrics(folder)
    try:
        summary, environment = read_summary(folder), read_json(folder / "environment.json")
    except ValueError as error:
        raise RunError(f"{folder}: damaged: {error}") from None
    evaluated = last_evaluated(rows)
    entry = entry_of(folder, folder.parent)
    status = entry.status if summary is not None else f"unfinished, after step {number(entry.step)}"

    step = number(evaluated.get("step"))
    packages, data = environment.pop("packages", {}), environment.pop("data", {})
    sections = {
        "results": _without((*_ELSEWHERE, *_COSTS), summary or {}),
        "accounts": {name: summary[name] for name in _COSTS if name in summary} if summary else _costs(rows),
        f"step {step}, the last evaluated": _without(("step", "epoch", "examples", *_COSTS), evaluated),
        "data": {name: str(value)[:12] if name == "sha256" else value for name, value in data.items()},
        "environment": environment,
        "packages": packages,
    }
    console = bounded(console)
    console.print(Text(f"{folder}: {status}", style="bold"), soft_wrap=True)
    tables = [_section(title, values) for title, values in sections.items() if values]
    console.print(Columns(tables, padding=(1, 4)))
    configuration = f"its configuration: python -m experiments show {folder / 'config.yaml'}"
    console.print(configuration, highlight=False, soft_wrap=True)


def _without(names: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _costs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the metrics of an unfinished run say of its costs."""
    last = {"steps": rows[-1]["step"], "epochs": rows[-1].get("epoch"), **rows[-1]} if rows else {}
    return {name: last[name] for name in _COSTS if name in last}


def _section(title: str, values: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 1))
    table.min_width = len(title)  # so that the title stays on one line
    table.add_column(style="dim")
    table.add_column(justify="right", overflow="fold")
    for name, value in values.items():
        table.add_row(words(name), Text(number(value)))
    return table
