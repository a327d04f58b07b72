"""Figures of a suite: each comparison against examples, gradient-equivalents and seconds; and performance profiles."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs.figures import COLOURS, DASHES, GREY, blank, legend_below, tidy
from experiments.suite.file import OURS
from experiments.suite.measures import AXES, Entry, Outcome, measure_title, profile

_INCHES = (10.0, 4.3)
_TITLES = {
    "examples": "examples seen",
    "gradient_equivalents": "gradient-equivalents\n(passes over the training set)",
    "seconds": "training time (s, one core)",
}


def draw_comparison(outcome: Outcome, labels: Sequence[str], path: Path) -> Path:
    """Draws the measure against the three costs: medians over the seeds as lines, ranges as bands.

    Args:
      labels: of all baselines of the suite, which fixes their colours.

    Raises:
      ExperimentError: Matplotlib is not installed.
    """
    figure = blank(_INCHES)
    panels = figure.subplots(1, len(AXES), sharey=True)
    within = _least_drawn(outcome), _greatest_drawn(outcome)
    for entry in outcome.entries:
        style = _style(entry.row.label, labels)
        for panel, axis in zip(panels, AXES, strict=True):
            x, middle, low, high = band(entry, axis, *within)
            panel.plot(x, middle, **style)
            panel.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    for panel, axis in zip(panels, AXES, strict=True):
        target = outcome.target
        if target > 0 and math.isfinite(target):
            panel.axhline(target, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
        _logarithmic(panel)
        panel.set_yscale("log")
        panel.set_xlabel(_TITLES[axis])
        tidy(panel)
    title = measure_title(outcome.comparison)
    panels[0].set_ylabel(f"1 − {title}" if outcome.comparison.higher_is_better else title)
    figure.suptitle(outcome.comparison.title)
    legend_below(figure, [panels[0]], columns=4)
    figure.savefig(path)
    return path


def draw_profiles(outcomes: Sequence[Outcome], labels: Sequence[str], path: Path) -> Path:
    """Draws the share of problems whose target is reached within τ times the least cost.

    Raises:
      ExperimentError: Matplotlib is not installed.
    """
    figure = blank(_INCHES)
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, axis in zip(panels, AXES, strict=True):
        curves = profile(outcomes, axis)
        greatest = max((ratios[-1] for ratios, _ in curves.values() if len(ratios)), default=1.0)
        for label, (ratios, shares) in curves.items():
            last = shares[-1] if len(shares) else 0.0
            x = np.concatenate([[1.0], ratios, [2 * greatest]])
            y = np.concatenate([[0.0], shares, [last]])
            panel.step(x, y, where="post", **_style(label, labels))
        _logarithmic(panel)
        panel.set_ylim(-0.02, 1.02)
        panel.set_xlabel(f"τ, times the least\n{AXES[axis]}")
        tidy(panel)
    panels[0].set_ylabel("share of problems solved")
    legend_below(figure, [panels[0]], columns=4)
    figure.savefig(path)
    return path


def _least_drawn(outcome: Outcome) -> float:
    """Where values at or near zero are drawn, which have no place on a logarithmic axis: at half the least error that a
    share had, below the target in any case; or at the rounding of double precision."""
    values = np.concatenate([curve.values for entry in outcome.entries for curve in entry.curves])
    positive = values[np.isfinite(values) & (values > 1e-16)]
    least = float(positive.min()) if len(positive) else 1e-16
    if not outcome.comparison.higher_is_better:
        return least
    return min(least, outcome.target or least) / 2


def _greatest_drawn(outcome: Outcome) -> float:
    """Where higher values are drawn: a run on its way to infinity would leave no room for the others."""
    return 100 * max(float(curve.values[0]) for entry in outcome.entries for curve in entry.curves)


def _logarithmic(panel: Any) -> None:
    """A logarithmic axis of costs, whose labels do not run into each other where it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.xaxis.set_minor_formatter(NullFormatter())
    if high < 30 * low:
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def band(entry: Entry, axis: str, least: float = 0.0, greatest: float = math.inf) -> tuple[np.ndarray, ...]:
    """Costs (m,), and there the median, the least and the greatest value over the seeds, drawn within bounds.

    Seeds are evaluated after the same steps; where their costs differ, as seconds do, the median cost stands for all. A
    run that ended early, having diverged, keeps its last value.
    """
    length = max(len(curve.values) for curve in entry.curves)
    extended = lambda array: np.concatenate([array, np.repeat(array[-1:], length - len(array))])  # noqa: E731
    longest = [curve.costs[axis] for curve in entry.curves if len(curve.values) == length]
    values = np.array([extended(curve.values) for curve in entry.curves])
    costs = np.median(longest, axis=0)
    shown = costs > 0  # step 0 has no place on a logarithmic axis
    reduced = (reduce(values[:, shown], axis=0) for reduce in (np.median, np.min, np.max))
    middle, low, high = (np.where(np.isfinite(line), np.clip(line, least, greatest), np.nan) for line in reduced)
    return costs[shown], middle, low, high


def _style(label: str, labels: Sequence[str]) -> dict[str, Any]:
    if label == OURS:
        return {"label": label, "color": "#000000", "linestyle": "-", "linewidth": 2.4, "zorder": 3}
    if label.startswith(OURS):
        return {"label": label, "color": "#000000", "linestyle": (0, (2, 1)), "linewidth": 1.5, "zorder": 3}
    i = list(labels).index(label)
    colours = [*(colour for colour in COLOURS if colour != "#000000"), GREY]
    return {
        "label": label,
        "color": colours[i % len(colours)],
        "linestyle": DASHES[i % len(DASHES)],
        "linewidth": 1.5,
    }
