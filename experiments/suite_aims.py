"""What was hoped of hessian_free at its defaults, held against what was measured.

Aims are written down in a comparison before it runs, and the page says of each whether it was met.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from experiments.peer_optimizers import PEERS
from experiments.suite_measures import Outcome, less_is_better, measure_text, measure_title, seconds_text


class Judged(NamedTuple):
    """An aim as a person reads it, whether it was met, and the numbers that say so."""

    aim: str
    met: bool
    found: str


def judged(outcome: Outcome) -> list[Judged]:
    """Every aim of a comparison, in the order of `Aims`."""
    return [*_reached(outcome), *_ahead(outcome), *_sooner(outcome), *_solved(outcome), *_from_fewer_examples(outcome)]


def _reached(outcome: Outcome) -> Iterator[Judged]:
    """The median at the end of whole runs, of hessian_free and of baselines that are to stay behind."""
    comparison, aims = outcome.comparison, outcome.comparison.aims
    name = measure_title(comparison)
    text = lambda value: measure_text(comparison, value)  # noqa: E731
    if aims.reach is None:
        return
    bound, ours = less_is_better(aims.reach, comparison.higher_is_better), outcome.ours
    took = ours.median_cost(bound, "seconds")
    yield Judged(f"{name} {text(bound)} or better", ours.median <= bound, f"{text(ours.median)}{_after(took)}")
    for label, value in aims.behind.items():
        limit, entry = less_is_better(value, comparison.higher_is_better), outcome.entry(label)
        aim = f"{label} still worse than {text(limit)} when hessian_free is there"
        met = entry.median > limit and entry.seconds >= took
        yield Judged(aim, met, f"{text(entry.median)} after {seconds_text(entry.seconds)} s")


def _after(seconds: float) -> str:
    return f", there after {seconds_text(seconds)} s" if math.isfinite(seconds) else ""


def _ahead(outcome: Outcome) -> Iterator[Judged]:
    comparison, aims, ours = outcome.comparison, outcome.comparison.aims, outcome.ours
    name, best = measure_title(comparison), outcome.best_baseline
    text = lambda value: measure_text(comparison, value)  # noqa: E731
    if aims.ahead_of_all:
        ahead = [entry for entry in outcome.baselines if ours.median_at(entry.seconds) < entry.median]
        found = f"ahead of {len(ahead)} of {len(outcome.baselines)}; {text(ours.median_at(best.seconds))} against "
        found += f"{text(best.median)} of {best.row.label}"
        aim = f"{name} better than that of every baseline at equal time"
        yield Judged(aim, len(ahead) == len(outcome.baselines), found)
    if aims.as_good_as_any:
        found = f"{text(ours.median)} in {seconds_text(ours.seconds)} s, {best.row.label} {text(best.median)} in "
        found += f"{seconds_text(best.seconds)} s"
        yield Judged(f"{name} at least that of every baseline, in its own time", ours.median <= best.median, found)


def _sooner(outcome: Outcome) -> Iterator[Judged]:
    """Against first-order baselines; one that never reached the target would need more than the seconds it had."""
    comparison, factor = outcome.comparison, outcome.comparison.aims.times_sooner
    if factor is None:
        return
    ours = outcome.ours.median_cost(outcome.target, "seconds")
    ratios = {}
    for entry in outcome.baselines:
        if entry.row.optimizer not in ("lbfgs", *PEERS):
            ratios[entry.row.label] = min(entry.median_cost(outcome.target, "seconds"), entry.seconds) / ours
    least = min(ratios, key=lambda label: ratios[label])
    found = f"{ratios[least]:.1f} times, {least}" if math.isfinite(ours) else "hessian_free does not reach it"
    aim = f"{measure_title(comparison)} {measure_text(comparison, outcome.target)} {factor:g} times sooner"
    yield Judged(f"{aim} than every first-order baseline", ratios[least] >= factor, found)


def _solved(outcome: Outcome) -> Iterator[Judged]:
    seeds, ours = outcome.comparison.aims.seeds, outcome.ours
    if seeds is not None:
        count = len(ours.curves)
        there = ours.arrivals(outcome.target)
        yield Judged(f"solved from at least {seeds} of {count} seeds", there >= seeds, f"{there} of {count}")


def _from_fewer_examples(outcome: Outcome) -> Iterator[Judged]:
    """Of the last of the seeds asked for; a baseline that solves nothing needs more examples than it has seen."""
    aims = outcome.comparison.aims
    for label, share in aims.examples_of.items():
        costs = sorted(curve.cost_of(outcome.target, "examples") for curve in outcome.ours.curves)
        ours, entry = costs[(aims.seeds or len(costs)) - 1], outcome.entry(label)
        theirs = entry.median_cost(outcome.target, "examples")
        seen = max(float(curve.costs["examples"][-1]) for curve in entry.curves)
        never = not math.isfinite(theirs)
        found = f"{ours:,.0f}" if math.isfinite(ours) else "never"
        found += f"; {label} not within {seen:,.0f}" if never else f"; {label} {theirs:,.0f}"
        met = ours <= share * (seen if never else theirs)
        yield Judged(f"with at most {share:g} of the examples that {label} needs", met, found)
