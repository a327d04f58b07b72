"""Who wins a comparison: at equal time, or by the seconds to a target."""

import math
from typing import NamedTuple

from experiments.suite.file import OURS
from experiments.suite.measures import AXES, ROUNDING, Entry, Outcome, measure_text, measure_title, seconds_text

TIE = "tie"
# Values within this share of each other are called equal, and any two that only rounding tells from zero.
_EQUAL = 0.02
# Times within this factor of each other are too near for machines that are shared.
_NEAR = 1.1


class Verdict(NamedTuple):
    """winner: a label, or `TIE`. text: a sentence or two. sooner: whether times to a target decided."""

    winner: str
    text: str
    sooner: bool = False


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
    near = _EQUAL * max(abs(a), abs(b)) + ROUNDING
    return a == b or (math.isfinite(a) and math.isfinite(b) and abs(a - b) <= near)
