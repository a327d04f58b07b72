"""What a person sees while a run goes on: a live line on a terminal, plain lines anywhere else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.problems.problem import Metric
from experiments.training.loop import Row

_SECONDS_BETWEEN_LINES = 5.0


class Display(Protocol):
    """Shows the rows of a run as they come."""

    def show(self, row: Row) -> None: ...


@contextmanager
def display(console: Console, title: str, steps: int, metric: Metric, first_step: int = 0) -> Iterator[Display]:
    """The display that suits the console, for a run of `steps` steps that starts after `first_step` of them."""
    if not console.is_terminal:
        yield _Lines(console, title, steps, metric, first_step)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        yield _Live(progress, title, steps, metric, first_step)


class _Live:
    def __init__(self, progress: Progress, title: str, steps: int, metric: Metric, first_step: int) -> None:
        self._progress, self._metric = progress, metric
        self._task = progress.add_task(title, total=steps, completed=first_step, status="compiling")
        self._evaluated: Row = {}

    def show(self, row: Row) -> None:
        self._evaluated |= _evaluation(row, self._metric)
        self._progress.update(self._task, completed=row["step"], status=describe(row | self._evaluated, self._metric))


class _Lines:
    """Every evaluated row, but at most one line in five seconds, and always the first and the last."""

    def __init__(self, console: Console, title: str, steps: int, metric: Metric, first_step: int) -> None:
        self._metric = metric
        self._console, self._title, self._steps, self._first_step = console, title, steps, first_step
        self._began = time.monotonic()
        self._last_line = -float("inf")
        self._evaluated: Row = {}

    def show(self, row: Row) -> None:
        self._evaluated |= _evaluation(row, self._metric)
        now = time.monotonic()
        if row["step"] not in (0, self._steps) and now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        done = row["step"] - self._first_step
        left = (now - self._began) / done * (self._steps - row["step"]) if done else None
        remaining = "" if left is None else f"  left {left:.0f} s"
        text = describe(row | self._evaluated, self._metric)
        line = f"{self._title}  step {row['step']}/{self._steps}  {text}{remaining}"
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def describe(row: Row, metric: Metric) -> str:
    """One line of the row's numbers, in the order of their interest; those the optimizer does not report are left out.

    `loss` is the objective on the step's batch; `train` and `test` come from the last evaluation of the whole sets.
    """
    formats = {
        "epoch": "epoch {:.4g}",
        "loss": "loss {:.4g}",
        "train_loss": "train {:.4g}",
        f"test_{metric.name}": "test " + metric.format,
        "reduction_ratio": "ρ {:.2f}",
        "damping": "λ {:.2g}",
        "cg_steps": "CG {}",
        "step_size": "α {:.2g}",
        "seconds": "{:.1f} s",
    }
    parts = [text.format(row[name]) for name, text in formats.items() if name in row]
    if row.get("accepted") is False:
        parts.append("rejected")
    return "  ".join(parts)


def _evaluation(row: Row, metric: Metric) -> Row:
    return {name: row[name] for name in ("train_loss", f"test_{metric.name}") if name in row}
