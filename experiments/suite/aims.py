"""What was hoped of hessian_free at its defaults, held against what was measured: the `aims` of a comparison."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from experiments.suite.measures import Entry, Outcome, less_is_better, measure_text, measure_title, seconds_text
from experiments.suite.verdicts import is_ahead
from experiments.training.peers import PEERS


class Judged(NamedTuple):
    """An aim as a person reads it, whether it was met, and the numbers that say so."""

    aim: str
    met: bool
    found: str


def judged(outcome: Outcome) -> list[Judged]:
    """Every aim of a comparison."""
    return [*_reached(outcome), *_ahead(outcome), *_sooner(outcome), *_solved(outcome), *_from_fewer_examples(outcome)]


def _reached(outcome: Outcome) -> Iterator[Judged]:
    comparison, aims, ours = outcome.comparison, outcome.comparison.aims, outcome.ours
    if aims.reach is None:
        return
    bound, took = _cost(outcome, ours, aims.reach)
    there = ours.median <= bound
    when = f", there after {seconds_text(took)} s" if there else ""
    aim = f"{measure_title(comparison)} {measure_text(comparison, bound)} or better"
    yield Judged(aim, there, measure_text(comparison, ours.median) + when)
    for label, value in aims.behind.items():
        entry = outcome.entry(label)
        limit, arrived = _cost(outcome, entry, value)
        aim = f"{label} never better than {measure_text(comparison, limit)} in that time"
        found = f"{measure_text(comparison, entry.median)} after {seconds_text(entry.seconds)} s"
        behind, long_enough = arrived > entry.seconds, entry.seconds >= took
        if there and behind and not long_enough:
            found += ", where its schedule ends, too soon to tell"
        yield Judged(aim, there and behind and long_enough, found)


def _cost(outcome: Outcome, entry: Entry, value: float) -> tuple[float, float]:
    """A value so that less is better, and the seconds in which an entry gets there."""
    bound = less_is_better(value, outcome.comparison.higher_is_better)
    return bound, entry.median_cost(bound, "seconds")


def _ahead(outcome: Outcome) -> Iterator[Judged]:
    comparison, aims, ours = outcome.comparison, outcome.comparison.aims, outcome.ours
    name, best = measure_title(comparison), outcome.best_baseline
    text = lambda value: measure_text(comparison, value)  # noqa: E731
    rival = f"{text(best.median)} of {best.row.label}"
    if aims.ahead_of_all:
        ahead = sum(is_ahead(outcome, entry) for entry in outcome.baselines)
        found = f"ahead of {ahead} of {len(outcome.baselines)}: {text(ours.median_at(best.seconds))} against {rival}"
        aim = f"{name} better than that of every baseline at equal time"
        yield Judged(aim, ahead == len(outcome.baselines), found)
    if aims.as_good_as_any:
        met = math.isfinite(ours.median) and ours.median <= best.median
        found = f"{text(ours.median)} in {seconds_text(ours.seconds)} s against {rival}"
        found += f" in {seconds_text(best.seconds)} s"
        yield Judged(f"{name} no worse than that of any baseline, each in its own time", met, found)


def _sooner(outcome: Outcome) -> Iterator[Judged]:
    """Of a baseline that does not reach the target, all its seconds are a lower bound; one that diverged is out."""
    comparison, factor = outcome.comparison, outcome.comparison.aims.times_sooner
    if factor is None:
        return
    ours = outcome.ours.median_cost(outcome.target, "seconds")
    rivals = [entry for entry in outcome.baselines if entry.row.optimizer not in ("lbfgs", *PEERS)]
    rivals = [entry for entry in rivals if math.isfinite(entry.median)]
    took = {entry.row.label: min(entry.median_cost(outcome.target, "seconds"), entry.seconds) for entry in rivals}
    aim = f"{measure_title(comparison)} {measure_text(comparison, outcome.target)} in at most 1/{factor:g} of the "
    aim += "seconds of any first-order baseline (L-BFGS is none)"
    found = "hessian_free does not get there" if math.isinf(ours) else "none of them is left to compare with"
    if took and math.isfinite(ours):
        least = min(took, key=lambda label: took[label])
        bound = "" if outcome.entry(least).median_cost(outcome.target, "seconds") < math.inf else " at least"
        found = f"{seconds_text(ours)} s; {least}{bound} {seconds_text(took[least])} s"
    yield Judged(aim, bool(took) and math.isfinite(ours) and factor * ours <= min(took.values()), found)


def _solved(outcome: Outcome) -> Iterator[Judged]:
    seeds = outcome.comparison.aims.seeds
    if seeds is not None:
        best = max(outcome.baselines, key=lambda entry: entry.arrivals(outcome.target))
        text = lambda entry: f"{entry.arrivals(outcome.target)} in {seconds_text(entry.seconds)} s"  # noqa: E731
        found = f"{text(outcome.ours)}; {best.row.label} {text(best)}"
        met = outcome.ours.arrivals(outcome.target) >= seeds
        yield Judged(f"solved from {seeds} of {len(outcome.ours.curves)} seeds", met, found)


def _from_fewer_examples(outcome: Outcome) -> Iterator[Judged]:
    """Of the last of the seeds asked for; a baseline that solves nothing needs more examples than it has seen."""
    aims = outcome.comparison.aims
    for label, share in aims.examples_of.items():
        costs = sorted(curve.cost_of(outcome.target, "examples") for curve in outcome.ours.curves)
        seeds = aims.seeds or len(costs)
        ours, entry = costs[seeds - 1], outcome.entry(label)
        theirs, seen = entry.median_cost(outcome.target, "examples"), entry.spent("examples")
        found = f"{ours:,.0f}" if math.isfinite(ours) else f"not from {seeds} seeds"
        found += f"; {label} {theirs:,.0f}" if math.isfinite(theirs) else f"; {label} not within {seen:,.0f}"
        aim = f"solved from {seeds} seeds with at most {share:g} times the examples that {label} needs"
        yield Judged(aim, ours <= share * min(theirs, seen), found)
