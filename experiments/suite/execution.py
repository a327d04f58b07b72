"""`python -m experiments compare configs/compare/*.yaml`: hessian_free at its defaults beside tuned baselines.

Every row of every comparison runs from every seed, each run in a process with a core of its own, and what the runs say
becomes one page. Finished runs are reused and begun ones continued, so the same command goes on after an interruption
and ends with the same page.
"""

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from experiments.problems.build import build_problem
from experiments.runs.runner import Result
from experiments.settings.errors import ConfigError, DataError, NotTunedError
from experiments.suite.file import Comparison, load_baselines, load_comparison, taking_part
from experiments.suite.measures import Entry, Outcome, curve_of
from experiments.suite.pool import COMPILED, LEAVE_MEMORY, Task, pool
from experiments.suite.rows import TUNED, Row, config_of, load_tuned, ours

_QUICK_SEEDS = 1


class Suite(NamedTuple):
    """What a page is made of. missing: comparisons that could not run, with the reason."""

    outcomes: list[Outcome]
    missing: dict[str, str]
    quick: bool


def run_suite(
    paths: Sequence[str],
    *,
    runs: Path,
    console: Console,
    quick: bool = False,
    jobs: int | None = None,
    data_dir: str | None = None,
    tuned: Path = TUNED,
) -> Suite:
    """Runs every comparison.

    Args:
      paths: files of comparisons, in the order of the page.
      runs: the folder of all runs; those of a comparison go into the folder of its name.
      quick: one seed, and a small share of every budget.
      jobs: how many runs at a time; None: one a usable core.

    Raises:
      ExperimentError: a file is wrong, or a run failed; the message names it.
    """
    comparisons, baselines = [load_comparison(path) for path in paths], load_baselines()
    if len({one.name for one in comparisons}) < len(comparisons):
        raise ConfigError("two of these comparisons have the same name, and would share their runs")
    parts = [taking_part(one, baselines) for one in comparisons]
    os.environ.setdefault(*LEAVE_MEMORY)  # to the workers: this process computes nothing
    rows: dict[str, list[Row]] = {}
    missing = {}
    for one, part in zip(comparisons, parts, strict=True):
        try:
            tuned_rows = load_tuned(one, part, tuned)
            _require_measures(one, build_problem(one.problem, data_dir).metric.name)
            rows[one.name] = [ours(one), *tuned_rows]
        except (DataError, NotTunedError) as error:
            missing[one.title] = str(error)
            console.print(f"{one.title}: not run: {error}", style="yellow", highlight=False, soft_wrap=True)
    ready = [one for one in comparisons if one.name in rows]
    folder = runs / ("quick" if quick else "compare")
    tasks = {one.name: _tasks(one, rows[one.name], folder / one.name, quick) for one in ready}
    with pool(
        jobs, compiled=runs / COMPILED, console=console, name="compare", kind="comparison", data_dir=data_dir
    ) as workers:
        # All at once, so that no core waits for the last run of a comparison.
        results = iter(workers.run([task for several in tasks.values() for task in several]))
    outcomes = [_outcome(one, rows[one.name], list(islice(results, len(tasks[one.name])))) for one in ready]
    return Suite(outcomes, missing, quick)


def _require_measures(comparison: Comparison, metric: str) -> None:
    sets = ("train", "test")
    recorded = [f"{part}_{name}" for part in sets for name in ("loss", metric)]
    if comparison.measure not in recorded:
        there = ", ".join(recorded)
        raise ConfigError(f"{comparison.name}: measure '{comparison.measure}' is not recorded; there are {there}")


def _seeds(comparison: Comparison, quick: bool) -> tuple[int, ...]:
    return comparison.seeds[:_QUICK_SEEDS] if quick else comparison.seeds


def _tasks(comparison: Comparison, rows: Sequence[Row], folder: Path, quick: bool) -> list[Task]:
    """Seed by seed: the first one compiles each program, and the others find it compiled."""
    share = comparison.quick_share if quick else 1.0
    return [
        Task(f"{comparison.name}: {row.label}, seed {seed}", config_of(comparison, row, seed, share=share), folder)
        for seed in _seeds(comparison, quick)
        for row in rows
    ]


def _outcome(comparison: Comparison, rows: Sequence[Row], results: Sequence[Result]) -> Outcome:
    """``results`` in the order of the tasks: of all rows from one seed, then from the next."""
    entries = []
    for i, row in enumerate(rows):
        own = list(results[i :: len(rows)])
        entries.append(Entry(row, own, [curve_of(result, comparison) for result in own]))
    return Outcome(comparison, entries)
