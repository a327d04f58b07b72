"""Figures of a model's curvature: spectra, densities, eigenvectors by layer, lines, matrices, sharpness."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.laboratory.curvature import Curvature, Spectrum
from experiments.runs.figures import COLOURS, DASHES, GREY, blank, legend_below, tidy
from experiments.training.loop import Row

_HESSIAN, _GAUSS_NEWTON = COLOURS[0], COLOURS[1]


def draw_spectrum(curvature: Curvature, path: Path) -> Path:
    """The computed eigenvalues of H and G in their order, on a linear axis and on one for both signs."""
    figure = blank((10.0, 4.2))
    panels = figure.subplots(1, 2)
    for panel in panels:
        _ranked(panel, curvature.hessian, "Hessian H", _HESSIAN, "o")
        _ranked(panel, curvature.gauss_newton, "Gauss-Newton G", _GAUSS_NEWTON, "x")
        panel.axhline(0, color=GREY, linewidth=0.8)
        panel.set_xlabel("number from the largest; the smallest last")
        panel.xaxis.get_major_locator().set_params(integer=True)
        tidy(panel)
    panels[0].set(ylabel="eigenvalue λ", title="linear")
    panels[1].set_yscale("symlog", linthresh=_threshold(curvature.hessian.pairs.values))
    low, *_, high = map(float, curvature.hessian.pairs.values)
    panels[1].set(title="symmetric-log", ylim=(3 * min(low, 0), 3 * max(high, 0)))
    legend_below(figure, panels)
    figure.savefig(path)
    return path


def draw_density(curvature: Curvature, path: Path) -> Path:
    """The densities of all eigenvalues of H and G, with the outliers that Lanczos found beside the bulk."""
    figure = blank((10.0, 4.2))
    panels = figure.subplots(1, 2, width_ratios=(3, 2))
    both = (("Hessian H", curvature.hessian, _HESSIAN), ("Gauss-Newton G", curvature.gauss_newton, _GAUSS_NEWTON))
    nodes = np.concatenate([np.asarray(spectrum.density.nodes).ravel() for _, spectrum, _ in both])
    values = np.asarray(curvature.hessian.pairs.values)
    edge = 1.5 * np.sort(np.abs(values))[len(values) // 2]
    for panel, low, high in ((panels[0], nodes.min(), nodes.max()), (panels[1], max(-edge, nodes.min()), edge)):
        width = (high - low) / 150
        grid = np.linspace(low - 6 * width, high + 6 * width, 1500)
        # A node of average weight in one of the probes, a hundred times thinner: where the curves are cut off.
        floor = 0.01 / (nodes.size * width * np.sqrt(2 * np.pi))
        for i, (name, spectrum, colour) in enumerate(both):
            heights = np.asarray(spectrum.density.evaluate(jnp.asarray(grid), width))
            panel.plot(grid, np.maximum(heights, floor), color=colour, linestyle=DASHES[i], linewidth=1.8, label=name)
        shown = values[(values > grid[0]) & (values < grid[-1]) & (np.abs(values) > 2 * width)]
        panel.plot(shown, np.full(shown.size, 1.8 * floor), "^", color="#000000", markersize=5, label="eigenpairs of H")
        panel.set(yscale="log", ylim=(floor, None), xlabel="eigenvalue λ")
        tidy(panel)
    panels[0].set(ylabel="density, per unit of λ", title="the whole spectrum")
    panels[1].set(title="around zero")
    legend_below(figure, panels)
    figure.savefig(path)
    return path


def draw_layers(curvature: Curvature, path: Path) -> Path:
    """How the squared norm of every eigenvector of H is shared by the layers."""
    figure = blank((10.0, 1.6 + 0.42 * len(curvature.layers)))
    panel = figure.subplots()
    shares = curvature.shares[::-1].T
    image = panel.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1)
    values = np.asarray(curvature.hessian.pairs.values)[::-1]
    panel.set_yticks(range(len(curvature.layers)), list(curvature.layers))
    panel.set_xticks(range(len(values)), [f"{value:.2g}" for value in values], rotation=60, fontsize=8)
    panel.set_xlabel("eigenvalue λ of H")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.1:
            colour = "white" if share > 0.6 else "black"
            panel.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=panel, label="share of ‖v‖²", pad=0.01)
    figure.savefig(path)
    return path


def draw_lines(curvature: Curvature, path: Path) -> Path:
    """The objective along eigenvectors of H, and the quadratic that slope and eigenvalue make of it."""
    figure = blank((10.0, 3.9))
    panels = figure.subplots(1, len(curvature.lines))
    for panel, line in zip(panels, curvature.lines, strict=True):
        model = line.slope * line.steps + 0.5 * line.eigenvalue * line.steps**2
        panel.plot(line.steps, line.values - curvature.value, color=_HESSIAN, linewidth=1.8, label="f(θ + t v) − f(θ)")
        panel.plot(line.steps, model, color=COLOURS[1], linestyle="--", linewidth=1.8, label="t gᵀv + ½ λ t²")
        panel.axvline(0, color=GREY, linewidth=0.8)
        panel.set(title=f"{line.name}\nλ = {line.eigenvalue:.3g}", xlabel="t, in units of the parameters")
        panel.title.set_fontsize(10)
        panel.ticklabel_format(axis="y", scilimits=(-2, 3))
        tidy(panel)
    panels[0].set_ylabel("change of the objective")
    legend_below(figure, panels)
    figure.savefig(path)
    return path


def draw_matrices(curvature: Curvature, path: Path) -> Path:
    """H, G and what lies between them, entry by entry, with lines between the layers."""
    from matplotlib.colors import SymLogNorm

    figure = blank((10.0, 3.9))
    panels = figure.subplots(1, len(curvature.matrices))
    largest = max(np.abs(matrix).max() for matrix in curvature.matrices.values())
    norm = SymLogNorm(linthresh=largest / 1e3, vmin=-largest, vmax=largest)
    boundaries = np.cumsum(list(curvature.layers.values()))
    for panel, (name, matrix) in zip(panels, curvature.matrices.items(), strict=True):
        image = panel.imshow(matrix, cmap="RdBu_r", norm=norm, interpolation="nearest")
        for boundary in boundaries[:-1] - 0.5:
            panel.axhline(boundary, color="black", linewidth=0.5)
            panel.axvline(boundary, color="black", linewidth=0.5)
        middles = boundaries - np.array(list(curvature.layers.values())) / 2
        names = [layer.split("/")[-1] for layer in curvature.layers]
        panel.set_xticks(middles, names, rotation=60, fontsize=8, ha="right", rotation_mode="anchor")
        panel.set_yticks(middles, names if panel is panels[0] else [""] * len(names), fontsize=8)
        panel.set_title(name)
    figure.colorbar(image, ax=panels, label="entry (symmetric-log)", pad=0.01, shrink=0.75)
    figure.savefig(path)
    return path


def draw_sharpness(rows: Sequence[Row], path: Path) -> Path:
    """The largest eigenvalue of H and the objective over the training set, along training."""
    figure = blank((10.0, 3.9))
    panels = figure.subplots(1, 2, sharex=True)
    for panel, name, label in zip(
        panels, ("sharpness", "train_loss"), ("sharpness λmax(H)", "objective on the training set"), strict=True
    ):
        points = [(row["step"], row[name]) for row in rows if name in row]
        panel.plot(*zip(*points, strict=True), color=_HESSIAN, linewidth=1.8, marker="o", markersize=3)
        panel.set(xlabel="steps", ylabel=label)
        values = [value for _, value in points]
        if 0 < min(values) < max(values) / 20:
            panel.set_yscale("log")
        else:
            panel.set_ylim(min(0, *values), None)
        tidy(panel)
    figure.savefig(path)
    return path


def _ranked(panel: Any, spectrum: Spectrum, name: str, colour: str, marker: str) -> None:
    values, residuals = (np.asarray(x)[::-1] for x in (spectrum.pairs.values, spectrum.pairs.residuals))
    ranks = np.arange(1, len(values) + 1)
    style: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 6, "capsize": 2, "label": name}
    panel.errorbar(ranks, values, yerr=residuals, markerfacecolor="none", **style)


def _threshold(values: Any) -> float:
    """Where a symmetric-log axis turns linear: below the smallest |λ| that stands out from zero."""
    size = np.abs(np.asarray(values))
    return max(size.min() / 2, size.max() / 1e6)
