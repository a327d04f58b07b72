"""`python -m experiments tune`: the settings of the baselines of a comparison, by successive halving.

Every candidate of a baseline's grid trains with a ninth of the budget; the best third of them with a third of it; the
best third of those with all of it, and the best of these is chosen. A run with a share of the budget is a whole run,
its learning rate falling to zero in that share. As long as the best learning rate of the first round is the least or
the greatest tried, the grid grows there. Seeds are not those of the comparison, and the criterion is the same for
all.

Source: Jamieson & Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.runs.environment import described_environment
from experiments.runs.runner import Result
from experiments.settings.errors import RunError
from experiments.settings.file import to_yaml
from experiments.settings.section import slug
from experiments.suite.file import Baseline, Comparison, Value, load_baselines, load_comparison, taking_part
from experiments.suite.measures import curve_of, less_is_better
from experiments.suite.pool import COMPILED, Task, Workers, pool
from experiments.suite.rows import TUNED, config_of, folder_of, row_of, row_tuned_for, title_of, tuned_file, tuned_for

SHARES = (1 / 9, 1 / 3, 1.0)
_KEPT, _FEWEST = 3, 2  # one in so many goes on, and no fewer than two, for no other to have a say
_EXTENSIONS = 4  # at most, of one grid
_RATE, _EFFORT = "learning_rate", "gradient_equivalents"
_RUNS = "tuning"  # the folder of the runs


@dataclass(frozen=True)
class Trial:
    """One candidate with one share of the budget; score: median over the tuning seeds, less is better."""

    values: dict[str, Value]
    share: float
    score: float


@dataclass(frozen=True)
class Search:
    """What is known of a baseline so far."""

    baseline: Baseline
    trials: tuple[Trial, ...] = ()
    extensions: int = 0

    def best(self, share: float, count: int = 1) -> list[Trial]:
        """The best trials with this share of the budget."""
        return sorted((t for t in self.trials if t.share == share), key=lambda trial: trial.score)[:count]

    @property
    def rates(self) -> list[float]:
        """The learning rates tried, ascending."""
        return sorted({float(trial.values[_RATE]) for trial in self.trials if _RATE in trial.values})

    def survivors(self, share: float) -> list[dict[str, Value]]:
        """The candidates that go on from this share."""
        tried = sum(trial.share == share for trial in self.trials)
        return [trial.values for trial in self.best(share, max(_FEWEST, math.ceil(tried / _KEPT)))]

    @property
    def chosen(self) -> Trial:
        """The best with the whole budget.

        Raises:
          RunError: all of them diverged.
        """
        best = self.best(SHARES[-1])[0]
        if not math.isfinite(best.score):
            raise RunError(
                f"{self.baseline.label}: every candidate with the whole budget diverged; give it another grid"
            )
        return best

    @property
    def at_edge(self) -> bool:
        """Whether the chosen learning rate is the least or the greatest tried."""
        return len(self.rates) > 1 and self.chosen.values[_RATE] in (self.rates[0], self.rates[-1])

    def beyond(self) -> list[dict[str, Value]]:
        """Candidates beyond the edge that the best learning rate of the first round lies at, if it does."""
        rates = self.rates
        if len(rates) < 2 or self.extensions == _EXTENSIONS:
            return []
        best = self.best(SHARES[0])[0]
        if not math.isfinite(best.score):
            return self._with_rate(rates[0] / (rates[1] / rates[0]))  # all diverged: smaller steps
        if best.values[_RATE] == rates[-1]:
            return self._with_rate(rates[-1] * (rates[-1] / rates[-2]))
        if best.values[_RATE] == rates[0]:
            return self._with_rate(rates[0] / (rates[1] / rates[0]))
        return []

    def _with_rate(self, rate: float) -> list[dict[str, Value]]:
        """The candidates with this learning rate, to two digits."""
        return replace(self.baseline, tune={**self.baseline.tune, _RATE: (float(f"{rate:.2g}"),)}).candidates()


def main(
    paths: Sequence[str],
    *,
    runs: Path,
    console: Console,
    jobs: int | None = None,
    data_dir: str | None = None,
    tuned: Path = TUNED,
) -> list[Path]:
    """Tunes the baselines of each comparison, and stores what was found; returns the files.

    Raises:
      ExperimentError: a file is wrong, or a run failed; the message names it.
    """
    comparisons, baselines = [load_comparison(path) for path in paths], load_baselines()
    written = []
    with pool(
        jobs, compiled=runs / COMPILED, console=console, name="tune", kind="tuning", data_dir=data_dir
    ) as workers:
        for path, comparison in zip(paths, comparisons, strict=True):
            file = tuned_file(comparison, tuned)
            folder = runs / _RUNS / comparison.name
            searches = search(comparison, taking_part(comparison, baselines), workers, folder)
            environment = described_environment(next(path.parent for path in folder.glob("*/*/environment.json")))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_yaml(path, comparison, searches, environment), encoding="utf-8")
            written.append(file)
            for found in searches:
                console.print(f"{comparison.name}: {describe(found)}", highlight=False, soft_wrap=True, markup=False)
    return written


def search(comparison: Comparison, baselines: Sequence[Baseline], workers: Workers, folder: Path) -> list[Search]:
    """The search of every baseline, side by side so that all workers have something to do."""
    searches = _tried(comparison, [(Search(one), one.candidates()) for one in baselines], SHARES[0], workers, folder)
    while any(grown := [found.beyond() for found in searches]):
        searches = _tried(comparison, list(zip(searches, grown, strict=True)), SHARES[0], workers, folder)
        searches = [
            replace(found, extensions=found.extensions + bool(new)) for found, new in zip(searches, grown, strict=True)
        ]
    for before, share in pairwise(SHARES):
        going_on = [(found, found.survivors(before)) for found in searches]
        searches = _tried(comparison, going_on, share, workers, folder)
    return searches


def describe(found: Search) -> str:
    """What was chosen, and from how many."""
    edge = "; its learning rate is at an edge of what was tried" if found.at_edge else ""
    best = found.chosen
    return f"{found.baseline.label}: {title_of(best.values)} scores {best.score:.4g}, of {len(found.trials)} runs{edge}"


def _tried(
    comparison: Comparison,
    candidates: Sequence[tuple[Search, list[dict[str, Value]]]],
    share: float,
    workers: Workers,
    folder: Path,
) -> list[Search]:
    """The searches with a trial more for each of their candidates."""
    cells = [(found, values) for found, several in candidates for values in several]
    # Seed by seed: the first one compiles each program, and the others find it compiled.
    tasks = [_task(comparison, found, v, share, seed, folder) for seed in comparison.tuning_seeds for found, v in cells]
    results = workers.run(tasks)
    of_cell = [results[i :: len(cells)] for i in range(len(cells))]
    trials = [Trial(values, share, score(comparison, of_cell[i])) for i, (_, values) in enumerate(cells)]
    remaining = iter(trials)
    return [replace(found, trials=(*found.trials, *islice(remaining, len(new)))) for found, new in candidates]


def _task(
    comparison: Comparison, found: Search, values: dict[str, Value], share: float, seed: int, folder: Path
) -> Task:
    row = row_of(comparison, found.baseline, values)
    name = f"{slug(row.label)}-{folder_of(values)}-{share:.2f}"
    if comparison.target is None:
        comparison = replace(comparison, evaluations=2)  # only the end counts
    config = config_of(comparison, row, seed, share=share, name=name, held_out=comparison.validation_fraction)
    return Task(f"{comparison.name}: {row.label} ({title_of(values)}), {share:.0%}, seed {seed}", config, folder)


def score(comparison: Comparison, results: Sequence[Result]) -> float:
    """Median over the seeds of what the comparison tunes by, so that less is better; ∞ for a run that diverged.

    Where the comparison has a target, what matters is how soon it is reached on the training set: a run that reaches it
    has the share of its gradient-equivalents that this took, less two, which is below every other value.
    """
    return statistics.median(_score(comparison, result) for result in results)


def _score(comparison: Comparison, result: Result) -> float:
    name, higher_is_better = comparison.score
    value = result.summary[name]
    if result.diverged or not math.isfinite(value):
        return math.inf
    if comparison.target is not None:
        curve = curve_of(result, comparison, comparison.seen_in_training)
        soon = curve.cost_of(less_is_better(comparison.target, comparison.higher_is_better), _EFFORT)
        if math.isfinite(soon):
            return soon / float(curve.costs[_EFFORT][-1]) - 2
    return -value if higher_is_better else value


def _yaml(path: str, comparison: Comparison, searches: Sequence[Search], environment: str) -> str:
    name, higher_is_better = comparison.score
    sooner = "; below -1: the target was reached, and the sooner the less" if comparison.target is not None else ""
    found: dict[str, Any] = {
        "comparison": comparison.name,
        "command": f"python -m experiments tune {path}",
        "date": date.today().isoformat(),
        "environment": environment,
        "score": f"median {'-' if higher_is_better else ''}{name}, less is better{sooner}",
        "tuned_for": tuned_for(comparison),
        "baselines": [
            {
                "label": search.baseline.label,
                "tuned_for": row_tuned_for(comparison, search.baseline),
                "chosen": search.chosen.values,
                "at_edge": search.at_edge,
                "trials": [
                    {"share": round(trial.share, 4), **trial.values, "score": float(f"{trial.score:.6g}")}
                    for trial in search.trials
                ],
            }
            for search in searches
        ],
    }
    return "# Written by the command below; read by `python -m experiments compare`.\n" + to_yaml(found)
