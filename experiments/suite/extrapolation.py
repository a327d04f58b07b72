"""`python -m experiments extrapolate RUN`: when a run would reach a target if it went on as it did.

Late training often falls like a power of its cost, v(c) = a c^-b: a straight line in logarithms. It is fitted to the
end of the run twice, over the last factor of two in cost and over the last factor of four, and where the two disagree
there is no telling. What it says is a guess, and is marked as one.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from experiments.runs.figures import COLOURS, blank, legend_below, tidy
from experiments.runs.readable import duration, words
from experiments.runs.recording import is_run, read_config, read_metrics
from experiments.settings.config import Config
from experiments.settings.errors import RunError

TAILS = (2.0, 4.0)  # factors in cost
_FEWEST = 3  # evaluations that a line is fitted to
_MOST = 100.0  # the logarithm of a cost that is as good as never
AXES = ("seconds", "gradient_equivalents", "examples")


class PowerLaw(NamedTuple):
    """v(c) = scale · c^-exponent, fitted to the last factor of ``tail`` in cost."""

    scale: float
    exponent: float
    tail: float

    def at(self, cost: np.ndarray) -> np.ndarray:
        return self.scale * cost**-self.exponent

    def cost_of(self, target: float) -> float:
        """∞ if the values do not fall, or hardly."""
        if self.exponent <= 0:
            return math.inf
        logarithm = math.log(self.scale / target) / self.exponent
        return math.exp(logarithm) if logarithm < _MOST else math.inf


def fit(costs: Sequence[float], values: Sequence[float], tail: float) -> PowerLaw:
    """Least squares in logarithms over the last factor of ``tail`` in cost.

    Raises:
      RunError: fewer than three evaluations lie there, or a value has no logarithm.
    """
    cost, value = np.asarray(costs, float), np.asarray(values, float)
    late = cost >= cost[-1] / tail
    if late.sum() < _FEWEST:
        raise RunError(f"{late.sum()} evaluations in the last factor of {tail:g} of the run; {_FEWEST} are needed")
    if not (np.isfinite(value[late]).all() and (value[late] > 0).all()):
        raise RunError("there are values that are not positive, which have no logarithm")
    slope, offset = np.polyfit(np.log(cost[late]), np.log(value[late]), 1)
    return PowerLaw(float(np.exp(offset)), -float(slope), tail)


def extrapolate(folder: Path, measure: str, target: float, axis: str, path: Path | None, console: Console) -> None:
    """Prints when the run would reach the target, and draws it if a path is given.

    Raises:
      RunError: it is no run, its learning rate falls along a schedule, the measure is not recorded or does not fall
        to the target, or there is too little of it.
      ExperimentError: Matplotlib is not installed.
    """
    if not is_run(folder):
        raise RunError(f"{folder} is not a run folder")
    recorded = [row for row in read_metrics(folder) if measure in row]
    if not recorded:
        there = sorted({name for row in read_metrics(folder) for name in row if name.startswith(("train_", "test_"))})
        raise RunError(f"{folder}: '{measure}' is not recorded; there are {', '.join(there)}")
    config = read_config(folder)
    if getattr(config.training, "schedule", "constant") != "constant":
        raise RunError(f"{folder}: its learning rate falls to zero over its budget, and then nothing goes on as before")
    if recorded[0][measure] <= target:
        raise RunError(
            f"{measure} was {recorded[0][measure]:.4g} at first, which is not above the target {target:g}; "
            "what is extrapolated must fall to its target"
        )
    rows = [row for row in recorded if row[axis] > 0]
    costs, values = [row[axis] for row in rows], [row[measure] for row in rows]
    text = lambda cost: duration(cost) if axis == "seconds" else f"{cost:,.0f} {words(axis)}"  # noqa: E731
    reached = [cost for cost, value in zip(costs, values, strict=True) if value <= target]
    laws = []
    if reached:
        console.print(f"{words(measure)} {target:g} was reached after {text(reached[0])}: measured", highlight=False)
    else:
        laws = [fit(costs, values, tail) for tail in TAILS]
        console.print(f"measured: {words(measure)} {values[-1]:.4g} after {text(costs[-1])}", highlight=False)
        for law in laws:
            when = law.cost_of(target)
            says = f"{target:g} after {text(when)}, {when / costs[-1]:.3g} times as far" if when < math.inf else "never"
            if when <= costs[-1]:
                says = "no telling, for its fit lies below what was measured"
            console.print(
                f"extrapolated, not measured: {says}, going on as over the last factor of {law.tail:g} (like the power "
                f"{-law.exponent:.3g} of {words(axis)})",
                highlight=False,
                soft_wrap=True,
            )
    if path is not None:
        _draw(config, costs, values, laws, target, measure, axis, path)
        console.print(f"figure: {path}", highlight=False, soft_wrap=True)


def _draw(
    config: Config,
    costs: Sequence[float],
    values: Sequence[float],
    laws: Sequence[PowerLaw],
    target: float,
    measure: str,
    axis: str,
    path: Path,
) -> None:
    figure = blank((7.0, 4.2))
    panel = figure.subplots()
    panel.plot(costs, values, color=COLOURS[0], linewidth=2, label="measured")
    for law, style in zip(laws, ("--", ":"), strict=False):
        if costs[-1] < (end := law.cost_of(target)) < math.inf:
            cost = np.geomspace(costs[-1], end, 50)
            label = f"extrapolated from the last factor of {law.tail:g}"
            panel.plot(cost, law.at(cost), color=COLOURS[1], linestyle=style, linewidth=1.6, label=label)
    panel.axhline(target, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("training time (s)" if axis == "seconds" else words(axis))
    panel.set_ylabel(words(measure))
    tidy(panel)
    figure.suptitle(f"{config.name}, seed {config.seed}: {words(measure)} on the way to {target:g}")
    legend_below(figure, [panel], columns=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def add_parser(commands: "argparse._SubParsersAction") -> None:
    """`extrapolate`."""
    parser = commands.add_parser("extrapolate", help="when a run would reach a target if it went on as it did")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, finished or not")
    parser.add_argument("--measure", metavar="NAME", default="train_loss", help="as recorded (default: train_loss)")
    parser.add_argument("--target", metavar="VALUE", type=_positive, required=True, help="above zero")
    parser.add_argument("--axis", choices=AXES, default=AXES[0], help=f"(default: {AXES[0]})")
    parser.add_argument("--figure", metavar="FILE", type=Path, help="also draw it")
    parser.set_defaults(command=_extrapolate)


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(text)
    return value


def _extrapolate(arguments: argparse.Namespace) -> int:
    console = Console()
    extrapolate(arguments.run, arguments.measure, arguments.target, arguments.axis, arguments.figure, console)
    return 0
