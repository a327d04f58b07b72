"""The table of a sweep: printed, and as Markdown together with what it takes to read it and to make it again."""

import math
import statistics
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.runs.environment import described_environment
from experiments.suite.sweep import Line
from experiments.suite.sweep_file import Sweep

_COLUMNS = ("setting", "train loss", "test metric", "diverged", "steps", "products", "seconds")
_WIDTH = 120


def report(settings: Sweep, lines: Sequence[Line], *, runs: Path, console: Console) -> Path:
    """Prints the table, and writes it to `<runs>/<name of the sweep>/table.md`; returns that path."""
    if not console.is_terminal:  # where no window bounds the lines
        console = Console(file=console.file, quiet=console.quiet, width=_WIDTH)
    console.print(_table(settings, lines))
    for warning in [*_edges(lines), *_mixture(lines)]:
        console.print(warning, style="yellow", highlight=False, soft_wrap=True)
    path = runs / settings.name / "table.md"
    path.write_text(markdown(settings, lines), encoding="utf-8")
    console.print(f"table: {path}", highlight=False, soft_wrap=True)
    return path


def markdown(settings: Sweep, lines: Sequence[Line]) -> str:
    """The table, the scores of the tuning, seeds and versions."""
    table = [(line.cell.problem.label, _name(line), *_numbers(line)) for line in lines]
    parts = [
        f"# Sweep {settings.name}",
        _grid(("problem", *_COLUMNS), table),
        f"Medians over the seeds {_listed(settings.seeds)}, with (least … greatest) in brackets. Train loss is the "
        "objective over the whole training set after the last step. Diverged are runs that end with a loss that is not "
        "finite or above their first one. Products are curvature-vector products. Seconds are those of the training "
        "steps alone, with one core for each run.",
    ]
    if any(line.trials for line in lines):
        held_out = f", with {settings.validation_fraction:.0%} held out" if settings.validation_fraction else ""
        rows = [(line.cell.problem.label, line.cell.row.label, _scores(line)) for line in lines if line.trials]
        parts += [
            "## Tuning",
            _grid(("problem", "setting", f"median {settings.tune_by.replace('_', ' ')}"), rows),
            f"Over the seeds {_listed(settings.tuning_seeds)}{held_out}; the least is chosen.",
            *_edges(lines),
        ]
    return "\n\n".join([*parts, "## Versions", *_versions(lines), *_mixture(lines)]) + "\n"


def _table(settings: Sweep, lines: Sequence[Line]) -> Table:
    caption = f"medians (least … greatest) over the seeds {_listed(settings.seeds)}"
    table = Table(title=f"Sweep {settings.name}", caption=caption, box=box.SIMPLE_HEAD)
    for i, name in enumerate(_COLUMNS):
        table.add_column(name, justify="left" if i == 0 else "right")
    for problem, members in groupby(lines, key=lambda line: line.cell.problem.label):
        table.add_section()
        table.add_row(problem, style="bold")
        for line in members:
            cells = (cell.replace(" (", "\n(") for cell in (_name(line), *_numbers(line)))
            table.add_row(*cells, style="red" if line.diverged else None)
    return table


def _name(line: Line) -> str:
    """The setting, with the values it was tuned to."""
    return f"{line.cell.row.label} ({line.cell.chosen})" if line.cell.values else line.cell.row.label


def _edges(lines: Sequence[Line]) -> list[str]:
    """One warning for each number that was tuned to an edge of what was tried."""
    cells = [line.cell for line in lines]
    edges = [(cell, edge) for cell in cells for edge in cell.edges()]
    return [f"Warning: {cell.problem.label}, {cell.row.label}: {edge}; extend the grid" for cell, edge in edges]


def _numbers(line: Line) -> list[str]:
    return [
        _spread(line, "train_loss", "{:.3g}"),
        _spread(line, f"test_{line.results[0].summary['metric']}", line.results[0].summary["metric_format"]),
        f"{line.diverged} of {len(line.results)}",
        f"{_median(line, 'steps'):,.0f}",
        f"{_median(line, 'products'):,.0f}",
        f"{_median(line, 'seconds'):.1f}",
    ]


def _spread(line: Line, name: str, text: str) -> str:
    values = _values(line, name)
    return f"{text} ({text} … {text})".format(statistics.median(values), min(values), max(values))


def _median(line: Line, name: str) -> float:
    return statistics.median(_values(line, name))


def _values(line: Line, name: str) -> list[float]:
    """One number a run; ∞ stands for those that are not finite, so that they are the worst in every order."""
    values = [result.summary[name] for result in line.results]
    return [value if math.isfinite(value) else math.inf for value in values]


def _scores(line: Line) -> str:
    """Every value tried with its score, the chosen one in bold."""
    scores = {trial.cell.chosen: f"{trial.cell.chosen}: {trial.score:.3g}" for trial in line.trials}
    return "; ".join(f"**{text}**" if name == line.cell.chosen else text for name, text in scores.items())


def _versions(lines: Sequence[Line]) -> list[str]:
    """A paragraph for each environment that the runs were made in, those of the tuning included."""
    results = [
        result for line in lines for runs in (line.results, *(t.results for t in line.trials)) for result in runs
    ]
    return list(dict.fromkeys(described_environment(result.folder) for result in results))


def _mixture(lines: Sequence[Line]) -> list[str]:
    """A warning where finished runs of earlier code or packages were reused beside new ones."""
    count = len(_versions(lines))
    if count <= 1:
        return []
    return [
        f"Warning: these runs were made in {count} environments, since finished runs are reused whatever made them; "
        "delete their folders to make them anew"
    ]


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    texts = sum(name in ("problem", "setting") for name in header)
    rule = "|---" * texts + "|---:" * (len(header) - texts) + "|"
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def _listed(seeds: Sequence[int]) -> str:
    """'0 … 9' for a range, else each of them."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} … {seeds[-1]}"
    return ", ".join(map(str, seeds))
