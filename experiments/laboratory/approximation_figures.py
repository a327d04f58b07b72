"""Tables and figures of `experiments.laboratory.approximations`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.runs.figures import COLOURS, DASHES, GREY, blank, legend_below, tidy

_MARKERS = ("o", "s", "^", "D")


def draw_sizes(sweeps: Mapping[str, Any], sizes: Sequence[int], path: Path) -> Path:
    """Draws the distances from G against N, one panel a setting.

    Raises:
      ExperimentError: Matplotlib is not installed.
    """
    figure = blank((10.0, 6.6))
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for panel, (name, measures) in zip(panels.flat, sweeps.items(), strict=True):
        panel.plot(sizes, 0.4 * np.sqrt(sizes[0] / np.asarray(sizes)), color=GREY, linewidth=0.8, label="∝ 1/√N")
        _line(panel, 0, sizes, measures.hessian, "Hessian")
        _line(panel, 1, sizes, measures.fisher, "Fisher, one label an example")
        _line(panel, 2, sizes, measures.empirical, "empirical Fisher")
        if not np.array_equal(measures.in_unit, measures.empirical):
            _line(panel, 3, sizes, measures.in_unit, "empirical Fisher / variance of the noise")
        panel.set(xscale="log", yscale="log")
        panel.set_title(name, fontsize=11)
        tidy(panel)
    for panel in panels[1]:
        panel.set_xlabel("examples N")
    for panel in panels[:, 0]:
        panel.set_ylabel("|A − G| / |G|")
    legend_below(figure, panels.flat, columns=3)
    figure.savefig(path)
    return path


def draw_limits(
    trained: Mapping[str, Any],
    ratios: Mapping[str, Sequence[float]],
    scales: Sequence[float],
    limit: float,
    path: Path,
) -> Path:
    """Draws what becomes of H and of EF along training, and of EF as the weights of a classifier grow.

    Raises:
      ExperimentError: Matplotlib is not installed.
    """
    left, right = blank((10.0, 4.4)).subfigures(1, 2, width_ratios=(2, 1))
    panels = left.subplots(1, 2)
    for i, (name, (measures, losses)) in enumerate(trained.items()):
        for panel, values in zip(panels, (measures.hessian, measures.trace_ratio), strict=True):
            _line(panel, i, range(len(losses)), values, name, marker=None)
    for panel, title in zip(panels, ("|H − G| / |G|", "tr EF / tr G"), strict=True):
        panel.set(yscale="log", xlabel="steps of training", xticks=range(0, len(losses), 5))
        panel.set_ylim(bottom=1e-6)  # without noise they fall to rounding
        panel.set_title(title, fontsize=11)
        tidy(panel)
    legend_below(left, panels, columns=2)

    panel = right.subplots()
    for i, (name, values) in enumerate(ratios.items()):
        _line(panel, i, scales, values, name)
    panel.axhline(limit, color=GREY, linewidth=0.8)
    panel.annotate("2 ln 2 − 1", (scales[0], limit), (0, -12), textcoords="offset points", color="#555555")
    panel.set(xlabel="weights, multiplied by", ylim=(0, None))
    panel.set_xscale("log", base=2)
    panel.set_xticks(scales, [f"{scale:g}" for scale in scales])
    panel.set_title("tr EF / tr G, growing weights", fontsize=11)
    tidy(panel)
    legend_below(right, [panel], columns=2)
    right.figure.savefig(path)
    return path


def _line(panel: Any, i: int, x: Any, y: Any, label: str, **style: Any) -> None:
    look = {"color": COLOURS[i], "linestyle": DASHES[i], "marker": _MARKERS[i], "markersize": 4.5, "linewidth": 1.6}
    panel.plot(x, y, label=label, **look | style)


def print_tables(
    console: Console,
    errors: Mapping[str, float],
    sweeps: Mapping[str, Any],
    sizes: Sequence[int],
    trained: Mapping[str, Any],
    ratios: Mapping[str, Sequence[float]],
    scales: Sequence[float],
) -> None:
    """Prints the numbers behind the figures."""
    table = _table("What holds exactly", "identity", "largest error / |G|")
    for name, error in errors.items():
        table.add_row(name, f"{error:.0e}")
    console.print(table)

    distances = ("hessian", "fisher", "empirical", "in_unit")
    heads = [f"|{A} − G| / |G|" for A in ("H", "Fisher", "EF", "EF/s²")]
    table = _table(f"Distances at N = {sizes[-1]:,}, and their exponents in N", "targets", *heads)
    for name, measures in sweeps.items():
        rows = [getattr(measures, distance) for distance in distances]
        slopes = [np.polyfit(np.log(sizes), np.log(row), 1)[0] for row in rows]
        table.add_row(name, *(f"{row[-1]:.4f} ({a:+.2f})" for row, a in zip(rows, slopes, strict=True)))
    console.print(table)

    heads = ["tr EF / tr G", "cos(EF, G)", "cos(JᵀJ, G)", *(f"λmin(H), N = {size:,}" for size in (sizes[0], sizes[-1]))]
    table = _table(f"Sizes and directions at N = {sizes[-1]:,}", "targets", *heads)
    for name, m in sweeps.items():
        row = (m.trace_ratio[-1], m.cosine[-1], m.outer_cosine[-1], m.least_eigenvalue[0], m.least_eigenvalue[-1])
        table.add_row(name, *(f"{x:.4f}" for x in row))
    console.print(table)

    heads = ["loss", "|H − G| / |G|", "tr EF / tr G", "cos(EF, G)", "λmin(H)"]
    table = _table("Training by hessian_free: before, and after the last step", "targets", *heads)
    for name, (m, losses) in trained.items():
        columns = (losses, m.hessian, m.trace_ratio, m.cosine, m.least_eigenvalue)
        table.add_row(name, *(f"{column[0]:.2g} → {column[-1]:.2g}" for column in columns))
    console.print(table)

    heads = [f"× {scale:g}" for scale in scales]
    table = _table("tr EF / tr G as weights grow: labels without noise, or drawn", "labels", *heads)
    for name, values in ratios.items():
        table.add_row(name, *(f"{value:.3f}" for value in values))
    console.print(table)


def print_claims(console: Console, claims: Sequence[Any]) -> None:
    """Prints what the numbers were to show, and whether they do."""
    table = _table("What this is to show", "claim", "found", "")
    for claim in claims:
        table.add_row(claim.text, claim.found, "holds" if claim.holds else "MISSED")
    console.print(table)


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
