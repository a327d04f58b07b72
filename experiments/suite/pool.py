"""Many runs at a time: processes with a core of their own, a cache of compiled programs, and one line of progress.

A run is an ordinary run. On the CPU its process has one core to itself: times then compare whatever the number of
processes, and the numbers do not depend on it. With more jobs than cores, the cores are shared in turn. Where JAX finds
an accelerator, which the processes share, they are free to use every core, and take the accelerator's memory as they
need it, not most of it at their start; how many runs fit at a time is then for `--jobs` to say.

Runs of one shape share their compiled programs through a cache on disk. Finished runs are reused and begun ones
continued, so what is interrupted goes on where it was.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.extend.backend import clear_backends
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.runs.readable import duration, metric_title, metric_value
from experiments.runs.runner import Result, run
from experiments.settings.config import Config
from experiments.settings.errors import ExperimentError, RunError

# Makes a process take an accelerator's memory as it needs it; read when JAX's backend starts.
LEAVE_MEMORY = ("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
COMPILED = ".compiled"  # the folder of the compiled programs, beside those of the runs


class Task(NamedTuple):
    """One run: what errors and progress call it, its experiment, and the folder its run folder is made in."""

    title: str
    config: Config
    folder: Path


class Timed(NamedTuple):
    """A result, and the seconds until it was there."""

    result: Result
    seconds: float

    @property
    def cost(self) -> float:
        """Seconds the whole run took, also where most of it or all was done earlier."""
        recorded = ("seconds", "compile_seconds", "evaluation_seconds")
        return max(self.seconds, sum(self.result.summary.get(name, 0.0) for name in recorded))


class Workers:
    """Runs lists of tasks; made by `pool`."""

    def __init__(self, executor: ProcessPoolExecutor, jobs: int, progress: "_Progress", data_dir: str | None) -> None:
        self._executor, self._jobs, self._progress, self._data_dir = executor, jobs, progress, data_dir
        self._expected = 0  # runs that `expect` told of and that are yet to come

    def expect(self, runs: int) -> None:
        """Announces runs of later calls of `run`, so that progress counts them from now on."""
        self._expected += runs
        self._progress.grow(runs)

    def run(self, tasks: Sequence[Task]) -> list[Result]:
        """The results of all tasks, in their order.

        Raises:
          ExperimentError: as `experiments.runs.runner.run`, for one task, which the message names; or a process died.
            Then the pool must be left, which stops the runs in progress.
        """
        self._progress.grow(max(0, len(tasks) - self._expected))
        self._expected = max(0, self._expected - len(tasks))
        waiting = iter(enumerate(tasks))
        under_way: dict[Future[Timed], int] = {}
        results: dict[int, Result] = {}
        while len(results) < len(tasks):
            for index, task in islice(waiting, self._jobs - len(under_way)):
                under_way[_submit(self._executor, run_quietly, task.config, task.folder, self._data_dir)] = index
            for future in sorted(wait(under_way, return_when=FIRST_COMPLETED).done, key=under_way.__getitem__):
                index = under_way.pop(future)
                also = [tasks[other].title for other in under_way.values()]
                done = _outcome(future, tasks[index].title, also)
                results[index] = done.result
                self._progress.done(tasks[index].title, done)
        return [results[index] for index in range(len(tasks))]


@contextmanager
def pool(
    jobs: int | None,
    *,
    compiled: Path,
    console: Console,
    name: str,
    kind: str = "sweep",
    data_dir: str | None = None,
) -> Iterator[Workers]:
    """Workers that run `jobs` tasks at a time; leaving it by an exception, Ctrl-C included, stops them at once.

    Args:
      jobs: how many runs at a time; None: one a usable core.
      compiled: the folder of the compiled programs.
      console: where progress is shown.
      name: what the line of progress begins with.
      kind: what the same command continues after Ctrl-C: 'sweep', 'comparison', …
      data_dir: the root of the data sets; see `problems/storage.py`.
    """
    jobs = len(_usable_cores()) if jobs is None else jobs
    try:
        with _processes(jobs, compiled) as executor, _progress(console, name, jobs) as progress:
            yield Workers(executor, jobs, progress, data_dir)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted; the same command continues the {kind}", soft_wrap=True)
        raise


def run_quietly(config: Config, runs: Path, data_dir: str | None) -> Timed:
    """What a worker does for one task."""
    began = time.monotonic()
    result = run(config, runs=runs, console=Console(quiet=True), data_dir=data_dir, reuse=True)
    return Timed(result, time.monotonic() - began)


def _outcome(future: "Future[Timed]", title: str, also: Sequence[str]) -> Timed:
    """The result of a task; `also` are the titles of those under way, for a process that died does not say which."""
    try:
        return future.result()
    except ExperimentError as error:
        raise RunError(f"{title}: {error}") from None
    except BrokenProcessPool:
        suspects = "; ".join([title, *also])
        raise RunError(f"a process died, perhaps for want of memory; it ran one of: {suspects}") from None
    except Exception as error:
        error.add_note(f"in the run of {title}")
        raise


@contextmanager
def _processes(jobs: int, compiled: Path) -> Iterator[ProcessPoolExecutor]:
    """Processes for one run at a time each. Run folders stand being killed, so that no run has to be waited for."""
    context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads may hang
    cores = context.SimpleQueue()
    usable = _usable_cores()
    for job in range(jobs):
        cores.put(usable[job % len(usable)])
    with ProcessPoolExecutor(jobs, context, _start_worker, (cores, compiled)) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _start_worker(cores: Any, compiled: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault(*LEAVE_MEMORY)
    jax.config.update("jax_compilation_cache_dir", str(compiled.resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    _take_core(cores.get())


def _take_core(core: int) -> None:
    """Binds this process to the core, unless an accelerator does its work."""
    if sys.platform == "linux" and jax.default_backend() == "cpu":
        clear_backends()  # having told its name, it starts again, and then makes one thread a usable core
        os.sched_setaffinity(0, {core})


def _end_with_parent() -> None:
    """Leaves no worker behind where the parent itself is killed, and cannot stop them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _submit(executor: ProcessPoolExecutor, function: Callable[..., Timed], *arguments: Any) -> "Future[Timed]":
    """`executor.submit`, which may start a process: with Ctrl-C blocked, so that the process, which inherits this,
    leaves it to the one that started it."""
    if sys.platform == "win32":
        return executor.submit(function, *arguments)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(function, *arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _usable_cores() -> list[int]:
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class _Progress:
    """A live line on a terminal, a plain line for each run anywhere else."""

    def __init__(self, bar: Progress, name: str, jobs: int) -> None:
        self._bar, self._task = bar, bar.add_task(name, total=0, status="starting", left="")
        self._jobs, self._cost, self._began = jobs, 0.0, time.monotonic()

    def grow(self, runs: int) -> None:
        self._bar.update(self._task, total=(self._bar.tasks[self._task].total or 0) + runs)

    def done(self, title: str, timed: Timed) -> None:
        summary = timed.result.summary
        status = f"{title}: train loss {summary['train_loss']:.3g}, {metric_title(summary)} {metric_value(summary)}"
        self._bar.update(self._task, advance=1, status=status)
        task = self._bar.tasks[self._task]
        self._cost += timed.cost
        left = f"left {duration(self._cost / task.completed * task.remaining / self._jobs)}" if task.remaining else ""
        self._bar.update(self._task, left=left)
        if not self._bar.console.is_terminal:
            counts = f"{task.completed:.0f}/{task.total:.0f}  {duration(time.monotonic() - self._began)}"
            line = "  ".join(part for part in (counts, left, status) if part)
            self._bar.console.print(line, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def _progress(console: Console, name: str, jobs: int) -> Iterator[_Progress]:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[status]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield _Progress(bar, name, jobs)
