"""What the runs of a comparison say: values at equal time, costs of reaching a target, performance profiles.

A curve is one run seen at its evaluations. All values are made so that less is better (an accuracy a counts as 1 − a),
and one that is not finite is ∞.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.runs.recording import read_metrics
from experiments.runs.runner import Result
from experiments.suite.file import OURS, Comparison
from experiments.suite.rows import Row

AXES = {
    "examples": "examples seen",
    "gradient_equivalents": "gradient-equivalents",
    "seconds": "seconds",
}
ROUNDING = 1e-15  # what is less than this may be zero


class Curve(NamedTuple):
    """One run at its evaluations, from step 0 on.

    costs: by the names of `AXES`, arrays (m,). values: (m,), less is better.
    """

    costs: dict[str, np.ndarray]
    values: np.ndarray

    @property
    def final(self) -> float:
        return float(self.values[-1])

    @property
    def seconds(self) -> float:
        """Of all its steps."""
        return float(self.costs["seconds"][-1])

    def at(self, seconds: float) -> float:
        """The value at the last evaluation that was there by then."""
        reached = np.flatnonzero(self.costs["seconds"] <= seconds)
        return float(self.values[reached[-1]])

    def cost_of(self, target: float, axis: str) -> float:
        """What it took to be at the target or below for the first time; ∞ if it never was, or if there is none (∞).

        Between two evaluations the value's logarithm is taken to fall linearly (the value itself, where it falls to
        zero), so that whoever is evaluated seldom is not charged for it.
        """
        reached = np.flatnonzero((self.values <= target) & math.isfinite(target))
        if not len(reached):
            return math.inf
        i, costs = reached[0], self.costs[axis]
        before, after = self.values[i - 1], self.values[i]
        if i == 0 or not math.isfinite(before):
            return float(costs[i])
        if after > 0:
            share = math.log(before / target) / math.log(before / after)
        else:
            share = (before - target) / (before - after)
        return float(costs[i - 1] + share * (costs[i] - costs[i - 1]))


class Entry(NamedTuple):
    """One row of a comparison, with a run from each seed."""

    row: Row
    results: list[Result]
    curves: list[Curve]

    @property
    def finals(self) -> list[float]:
        return [curve.final for curve in self.curves]

    @property
    def median(self) -> float:
        return statistics.median(self.finals)

    @property
    def seconds(self) -> float:
        return self.spent("seconds")

    def median_at(self, seconds: float) -> float:
        return statistics.median(curve.at(seconds) for curve in self.curves)

    def median_cost(self, target: float, axis: str) -> float:
        """Median over the seeds; ∞ where half of them or more never reach the target."""
        return statistics.median_high([curve.cost_of(target, axis) for curve in self.curves])

    def spent(self, axis: str) -> float:
        """The cost of whole runs, median over the seeds."""
        return statistics.median(float(curve.costs[axis][-1]) for curve in self.curves)

    def arrivals(self, target: float) -> int:
        """From how many seeds the target is reached."""
        return sum(math.isfinite(curve.cost_of(target, "seconds")) for curve in self.curves)


class Outcome(NamedTuple):
    """A comparison whose runs are there; entries: hessian_free first."""

    comparison: Comparison
    entries: list[Entry]

    @property
    def ours(self) -> Entry:
        return self.entry(OURS)

    def entry(self, label: str) -> Entry:
        """The row with this label."""
        return next(entry for entry in self.entries if entry.row.label == label)

    @property
    def baselines(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.row.optimizer != OURS]

    @property
    def contenders(self) -> list[Entry]:
        """hessian_free at its defaults and the baselines: a second row of hessian_free is there to be looked at."""
        return [self.ours, *self.baselines]

    @property
    def best_baseline(self) -> Entry:
        """That of the least median at the end of its budget."""
        return min(self.baselines, key=lambda entry: (entry.median, entry.seconds))

    @property
    def target(self) -> float:
        """The given one, or what the best baseline reached from every seed that did not diverge; ∞ if all did."""
        given = self.comparison.target
        if given is not None:
            return less_is_better(given, self.comparison.higher_is_better)
        return max(filter(math.isfinite, self.best_baseline.finals), default=math.inf)


def less_is_better(value: float, higher_is_better: bool) -> float:
    """``value``, or 1 − value of a share that is to be large; ∞ for what is not finite."""
    if not math.isfinite(value):
        return math.inf
    return 1 - value if higher_is_better else value


def curve_of(result: Result, comparison: Comparison, measure: str | None = None) -> Curve:
    """The evaluations of a run by the comparison's measure, or by this one, which is good in the same direction.

    A run that diverged ends at ∞, whatever is left of its measure.
    """
    measure = comparison.measure if measure is None else measure
    rows = [row for row in read_metrics(result.folder) if measure in row]
    values = [less_is_better(row[measure], comparison.higher_is_better) for row in rows]
    if result.diverged:
        values[-1] = math.inf
    return Curve({axis: np.array([row[axis] for row in rows], float) for axis in AXES}, np.array(values))


def measure_title(comparison: Comparison) -> str:
    """The measure as a person reads it: 'test accuracy'."""
    return comparison.measure.replace("_", " ")


def measure_text(comparison: Comparison, value: float) -> str:
    """A value of a curve as a person reads it: shares in percent, as they were before they became less-is-better."""
    if math.isinf(value):
        return "diverged"
    if comparison.higher_is_better:
        return f"{1 - value:.2%}"
    return "< 1e-15" if abs(value) < ROUNDING else f"{value:.3g}"


def seconds_text(value: float) -> str:
    """Seconds as a person reads them."""
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def profile(outcomes: Sequence[Outcome], axis: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Performance profiles: for each label, ratios τ and the share of problems solved within τ times the least cost.

    A problem counts for the optimizers that took part in it; one that nobody solved counts for all of them as unsolved.
    Source: Dolan & Moré, "Benchmarking optimization software with performance profiles", Mathematical Programming 2002.

    Returns:
      label -> (ratios (k,), ascending and finite, shares (k,)).
    """
    ratios: dict[str, list[float]] = {}
    for outcome in outcomes:
        costs = {entry.row.label: entry.median_cost(outcome.target, axis) for entry in outcome.contenders}
        least = min(costs.values())
        for label, cost in costs.items():
            ratio = 1.0 if cost == least else cost / least if least > 0 else math.inf
            ratios.setdefault(label, []).append(ratio if math.isfinite(cost) else math.inf)
    found = {}
    for label, values in ratios.items():
        solved = np.sort([value for value in values if math.isfinite(value)])
        found[label] = (solved, np.arange(1, len(solved) + 1) / len(values))
    return found
