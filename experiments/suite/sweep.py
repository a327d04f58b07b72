"""`python -m experiments sweep`: every setting on every problem from several seeds, and one table of medians.

A run is an ordinary run, in a process of a `pool`, and the seeds of a cell share their compiled programs. Finished runs
are reused and begun ones continued, so an interrupted sweep goes on where it was.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from experiments.runs.recording import read_metrics
from experiments.runs.runner import Result
from experiments.suite.pool import COMPILED, Task, Workers, pool
from experiments.suite.sweep_file import Cell, Sweep, cells


class Trial(NamedTuple):
    """One candidate of a tuned cell, its median score over the tuning seeds (∞ if it diverged), and their runs."""

    cell: Cell
    score: float
    results: list[Result]


class Line(NamedTuple):
    """One line of the table: a cell, tuned where it is, with a run for each seed."""

    cell: Cell
    results: list[Result]
    trials: list[Trial]

    @property
    def diverged(self) -> int:
        """How many runs ended with a loss that is not finite, or above the one they began with."""
        return sum(has_diverged(result) for result in self.results)


def sweep(
    settings: Sweep, *, runs: Path, console: Console, jobs: int | None = None, data_dir: str | None = None
) -> list[Line]:
    """Tunes what is to be tuned, then runs every cell from every seed.

    Args:
      settings: the sweep.
      runs: the folder of all runs; those of the sweep go into the folder of its name.
      console: where progress is shown.
      jobs: how many runs at a time; None: one a usable core.
      data_dir: the root of the data sets; see `problems/storage.py`.

    Raises:
      ExperimentError: as `run`, for one cell, which the message names; the runs in progress are stopped.
    """
    every = list(cells(settings))
    tuned = [candidate for cell in every if cell.row.tune for candidate in cell.candidates()]
    for cell in [*tuned, *(cell.candidates()[0] for cell in every)]:
        cell.config(settings.seeds[0])  # a mistake in a file shows now, not after the tuning

    folder = runs / settings.name
    with pool(jobs, compiled=runs / COMPILED, console=console, name=settings.name, data_dir=data_dir) as workers:
        workers.expect(len(tuned) * len(settings.tuning_seeds) + len(every) * len(settings.seeds))
        held_out = settings.validation_fraction
        tried = _results(workers, folder, tuned, settings.tuning_seeds, held_out)
        lines = [_tuned(cell, tried, settings.tune_by) for cell in every]
        results = _results(workers, folder, [line.cell for line in lines], settings.seeds)
    return [line._replace(results=results[line.cell.title]) for line in lines]


def _results(
    workers: Workers, folder: Path, of: Sequence[Cell], seeds: Iterable[int], validation_fraction: float = 0.0
) -> dict[str, list[Result]]:
    """The results of each cell in the order of the seeds, by the cell's title."""
    # Seed by seed: the first one compiles each program, and the others find it compiled.
    runs = [(cell, seed) for seed in seeds for cell in of]
    tasks = [Task(f"{cell.title}, seed {seed}", cell.config(seed, validation_fraction), folder) for cell, seed in runs]
    grouped: dict[str, list[Result]] = {}
    for (cell, _), result in zip(runs, workers.run(tasks), strict=True):
        grouped.setdefault(cell.title, []).append(result)
    return grouped


def has_diverged(result: Result) -> bool:
    """Whether the run ended with a loss that is not finite, or above the one it began with."""
    return result.diverged or result.summary["train_loss"] > read_metrics(result.folder)[0]["train_loss"]


def _tuned(cell: Cell, tried: Mapping[str, list[Result]], tune_by: str) -> Line:
    """The line of a cell, still without runs, with the candidate of the least score."""
    if not cell.row.tune:
        return Line(cell, [], [])
    trials = []
    for candidate in cell.candidates():
        results = tried[candidate.title]
        trials.append(Trial(candidate, _median(results, tune_by), results))
    return Line(min(trials, key=lambda trial: trial.score).cell, [], trials)


def _median(results: Sequence[Result], name: str) -> float:
    values = (math.inf if has_diverged(result) else result.summary[name] for result in results)
    return statistics.median(values)
