"""What the runs of a comparison say: values at equal time, costs of reaching a target, verdicts, performance profiles.

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
from experiments.suite.file import OURS, Comparison, Row

AXES = {
    "examples": "examples seen",
    "gradient_equivalents": "gradient-equivalents",
    "seconds": "seconds",
}
TIE = "tie"
# Values within this share of each other are called equal, and any two that only rounding tells from zero.
_EQUAL, _ROUNDING = 0.02, 1e-15
# Times within this factor of each other are too near for machines that are shared.
_NEAR = 1.1


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


class Verdict(NamedTuple):
    """winner: a label, or `TIE`. text: a sentence or two. sooner: whether times to a target decided."""

    winner: str
    text: str
    sooner: bool = False


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
    return "< 1e-15" if abs(value) < _ROUNDING else f"{value:.3g}"


def verdict(outcome: Outcome) -> Verdict:
    """Who reaches a given target first; without one, or where nobody does, who has the least value at equal time.

    At equal time each baseline is taken at the end of its schedule, and hessian_free at that time or at its own end,
    whichever is earlier: a baseline is never cut off.
    """
    if outcome.comparison.target is not None and (reached := _sooner(outcome)) is not None:
        return reached
    comparison, ours, best = outcome.comparison, outcome.ours, outcome.best_baseline
    rival, here = best.row.label, ours.median_at(best.seconds)
    ranges_overlap = _ranges_overlap(ours, best)
    at_end, in_time, theirs = (measure_text(comparison, value) for value in (ours.median, here, best.median))
    seconds = f"{seconds_text(ours.seconds)} s against {seconds_text(best.seconds)} s"
    overlap = " The ranges over the seeds overlap." if ranges_overlap else ""
    name = measure_title(comparison)
    if _tied(outcome, best):
        text = f"A tie of hessian_free and {rival}: {name} {in_time} against {theirs} at equal time."
        return Verdict(TIE, f"{text} Whole runs: {at_end} against {theirs}, in {seconds}.{overlap}")
    if here < best.median:
        count = len(outcome.baselines)
        beaten = sum(is_ahead(outcome, entry) for entry in outcome.baselines)
        ahead = "every baseline" if beaten == count else f"{beaten} of {count} baselines"
        text = f"hessian_free wins: {name} {in_time} against {theirs} of {rival} at equal time, ahead of {ahead}."
        return Verdict(OURS, f"{text} Whole runs: {at_end} against {theirs}, in {seconds}.{overlap}")
    text = f"{rival} wins here: {name} {theirs} against {in_time} at equal time."
    if ours.median < best.median and not _equal(ours.median, best.median):
        times = ours.seconds / best.seconds
        return Verdict(rival, f"{text} hessian_free ends better, at {at_end}, after {times:.1f} times the seconds.")
    return Verdict(rival, f"{text} Whole runs: {at_end} against {theirs}, in {seconds}.{overlap}")


def beside(outcome: Outcome) -> list[str]:
    """A sentence on each row of hessian_free that has no say in the verdict."""
    comparison, target = outcome.comparison, outcome.target
    aim = f"{measure_title(comparison)} {measure_text(comparison, target)}"
    sentences = []
    for entry in outcome.entries:
        if entry.row.optimizer != OURS or entry.row.label == OURS:
            continue
        count, there = len(entry.curves), entry.arrivals(target)
        text = f"{entry.row.label} ends at {measure_text(comparison, entry.median)} in {seconds_text(entry.seconds)} s"
        if math.isinf(target):
            sentences.append(f"{text}.")
            continue
        text += f", and reaches {aim} from {there} of {count} seeds"
        if math.isfinite(examples := entry.median_cost(target, "examples")):
            seconds = seconds_text(entry.median_cost(target, "seconds"))
            text += f", in the median after {examples:,.0f} examples and {seconds} s"
        sentences.append(f"{text}; from its defaults {outcome.ours.arrivals(target)} of {count} do.")
    return sentences


def _sooner(outcome: Outcome) -> Verdict | None:
    """The verdict on the seconds to a given target; None if it was never reached.

    None too if hessian_free is the first, but one of the others was stopped before that: it has not had as much time.
    """
    comparison, target = outcome.comparison, outcome.target
    costs = {entry.row.label: entry.median_cost(target, "seconds") for entry in outcome.contenders}
    order = sorted(costs, key=lambda label: costs[label])
    first = order[0]
    spent = {entry.row.label: entry.seconds for entry in outcome.contenders}
    unfinished = [
        e.row.label for e in outcome.contenders if math.isfinite(e.median) and not math.isfinite(costs[e.row.label])
    ]
    hurried = any(spent[label] < costs[first] for label in unfinished)
    if not math.isfinite(costs[first]) or (first == OURS and hurried):
        return None

    def cost(label: str) -> str:
        if not math.isfinite(costs[label]):
            return f"{label} not in its {seconds_text(spent[label])} s"
        times = f" ({costs[label] / costs[first]:.3g} times)" if costs[first] > 0 else ""
        return f"{label} {seconds_text(costs[label])} s{times}"

    aim = f"{measure_title(comparison)} {measure_text(comparison, target)}"
    others = ", ".join(cost(label) for label in order[1:])
    text = f"it reaches {aim} in {seconds_text(costs[first])} s; {others}.{_other_costs(outcome)}"
    if costs[order[1]] <= _NEAR * costs[first]:
        return Verdict(TIE, f"A tie of {first} and {order[1]}, too near to tell: {text}", sooner=True)
    return Verdict(first, f"{first} wins{'' if first == OURS else ' here'}: {text}", sooner=True)


def _other_costs(outcome: Outcome) -> str:
    """What the target cost hessian_free and the best of the others in examples and in gradient-equivalents."""
    count = lambda cost: f"{cost:,.0f}" if math.isfinite(cost) else "never enough"  # noqa: E731
    text = ""
    for axis in ("examples", "gradient_equivalents"):
        costs = {entry.row.label: entry.median_cost(outcome.target, axis) for entry in outcome.contenders}
        best = min((label for label in costs if label != OURS), key=lambda label: costs[label])
        text += f" {AXES[axis].capitalize()}: hessian_free {count(costs[OURS])}, {best} {count(costs[best])}."
    return text


def is_ahead(outcome: Outcome, entry: Entry) -> bool:
    """Whether hessian_free is better than a baseline at equal time, and does not tie with it."""
    return outcome.ours.median_at(entry.seconds) < entry.median and not _tied(outcome, entry)


def _tied(outcome: Outcome, entry: Entry) -> bool:
    here = outcome.ours.median_at(entry.seconds)
    overlap = outcome.comparison.higher_is_better and _ranges_overlap(outcome.ours, entry)
    return _equal(here, entry.median) or overlap


def _ranges_overlap(entry: Entry, other: Entry) -> bool:
    """At the end of the other one."""
    ours, theirs = [curve.at(other.seconds) for curve in entry.curves], other.finals
    return max(min(ours), min(theirs)) <= min(max(ours), max(theirs))


def _equal(a: float, b: float) -> bool:
    near = _EQUAL * max(abs(a), abs(b)) + _ROUNDING
    return a == b or (math.isfinite(a) and math.isfinite(b) and abs(a - b) <= near)


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
