"""`python -m experiments sweep`: every setting on every problem from several seeds, and one table of medians.

A run is an ordinary run, in a process that has one core to itself: times then compare across cells whatever the number
of processes, and the numbers do not depend on it. The seeds of a cell share their compiled programs through a cache on
disk. Finished runs are reused and begun ones continued, so an interrupted sweep goes on where it was.
"""

import math
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.config import Config
from experiments.errors import ExperimentError, RunError
from experiments.recording import read_metrics
from experiments.runner import Result, run
from experiments.sweep_file import Cell, Sweep, cells

_COMPILED = ".compiled"


class Task(NamedTuple):
    """One run of a cell."""

    cell: Cell
    config: Config

    @property
    def title(self) -> str:
        return f"{self.cell.title}, seed {self.config.seed}"


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
    # Seed by seed: the first one compiles each program, and the others find it compiled.
    held_out = settings.validation_fraction
    tuning = [Task(cell, cell.config(seed, held_out)) for seed in settings.tuning_seeds for cell in tuned]
    for cell in every:
        cell.candidates()[0].config(settings.seeds[0])  # a mistake in a file shows now, not after the tuning

    jobs = len(_usable_cores()) if jobs is None else jobs
    folder = runs / settings.name
    try:
        with _workers(jobs, runs / _COMPILED) as pool, _progress(console, settings.name) as progress:
            progress.expect(len(tuning) + len(every) * len(settings.seeds))
            submit = lambda task: _submit(pool, run_quietly, task.config, folder, data_dir)  # noqa: E731
            tried = _by_cell(tuning, _run_all(tuning, submit, jobs, progress))
            lines = [_tuned(cell, tried, settings.tune_by) for cell in every]
            tasks = [Task(line.cell, line.cell.config(seed)) for seed in settings.seeds for line in lines]
            results = _by_cell(tasks, _run_all(tasks, submit, jobs, progress))
    except KeyboardInterrupt:
        console.print("\nInterrupted; the same command continues the sweep", soft_wrap=True)
        raise
    return [line._replace(results=results[line.cell.title]) for line in lines]


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


def _by_cell(tasks: Sequence[Task], results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each cell in the order of their seeds, by the cell's title."""
    grouped: dict[str, list[Result]] = {}
    for task, result in zip(tasks, results, strict=True):
        grouped.setdefault(task.cell.title, []).append(result)
    return grouped


def _median(results: Sequence[Result], name: str) -> float:
    values = (math.inf if has_diverged(result) else result.summary[name] for result in results)
    return statistics.median(values)


def _run_all(
    tasks: Sequence[Task], submit: Callable[[Task], "Future[Result]"], jobs: int, progress: "_Progress"
) -> list[Result]:
    """The results of all tasks in their order; `jobs` of them are under way at a time."""
    waiting = iter(enumerate(tasks))
    under_way: dict[Future[Result], int] = {}
    results: dict[int, Result] = {}
    while len(results) < len(tasks):
        under_way |= {submit(task): index for index, task in islice(waiting, jobs - len(under_way))}
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            task = tasks[index := under_way.pop(future)]
            try:
                results[index] = future.result()
            except ExperimentError as error:
                raise RunError(f"{task.title}: {error}") from None
            except BrokenProcessPool:
                suspects = "; ".join([task.title, *(tasks[index].title for index in under_way.values())])
                raise RunError(f"a process died, perhaps for want of memory; it ran one of: {suspects}") from None
            except Exception as error:
                error.add_note(f"in the run of {task.title}")
                raise
            progress.done(task.title, results[index].summary)
    return [results[index] for index in range(len(tasks))]


def run_quietly(config: Config, runs: Path, data_dir: str | None) -> Result:
    """What a worker does for one task."""
    return run(config, runs=runs, console=Console(quiet=True), data_dir=data_dir, resume=True)


@contextmanager
def _workers(jobs: int, compiled: Path) -> Iterator[ProcessPoolExecutor]:
    """Processes for one run at a time each; an exception, Ctrl-C included, stops them at once.

    Run folders stand being killed, so that no run has to be waited for.
    """
    context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads may hang
    cores = context.SimpleQueue()
    usable = _usable_cores()
    for job in range(jobs):
        cores.put(usable[job % len(usable)])
    with ProcessPoolExecutor(jobs, context, _start_worker, (cores, compiled)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start_worker(cores: Any, compiled: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    core = cores.get()
    if sys.platform == "linux":
        os.sched_setaffinity(0, {core})  # before JAX starts its backend, which makes one thread a usable core
    jax.config.update("jax_compilation_cache_dir", str(compiled.resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _end_with_parent() -> None:
    """Leaves no worker behind where the sweep itself is killed, and cannot stop them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _submit(pool: ProcessPoolExecutor, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":
    """`pool.submit`, which may start a process: with Ctrl-C blocked, so that the process, which inherits this, leaves
    it to the one that started it."""
    if sys.platform == "win32":
        return pool.submit(function, *arguments)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, *arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _usable_cores() -> list[int]:
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class _Progress:
    """A live line on a terminal, a plain line for each run anywhere else."""

    def __init__(self, bar: Progress, name: str) -> None:
        self._bar, self._task = bar, bar.add_task(name, total=None, status="starting")
        self._began = time.monotonic()

    def expect(self, runs: int) -> None:
        self._bar.update(self._task, total=runs)

    def done(self, title: str, summary: Mapping[str, Any]) -> None:
        status = f"{title}: train {summary['train_loss']:.3g}, test {summary['test_accuracy']:.2%}"
        self._bar.update(self._task, advance=1, status=status)
        if not self._bar.console.is_terminal:
            task = self._bar.tasks[self._task]
            line = f"{task.completed:.0f}/{task.total:.0f}  {time.monotonic() - self._began:.0f} s  {status}"
            self._bar.console.print(line, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def _progress(console: Console, name: str) -> Iterator[_Progress]:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield _Progress(bar, name)
