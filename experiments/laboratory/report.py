"""`python -m experiments curvature`: the curvature of a trained model, as numbers, figures and a page.

<run>/curvature/
  curvature.json   eigenvalues, residuals, traces, verdict
  *.png            the figures
  report.html      all of it in one file, pictures included
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.laboratory import figures
from experiments.laboratory.curvature import LARGEST, MOST_DENSE, Curvature, Spectrum, compute, trained
from experiments.problems.build import build_problem, numerics
from experiments.problems.problem import Problem
from experiments.runs.document import Page
from experiments.runs.environment import environment
from experiments.runs.recording import read_metrics
from experiments.runs.runner import run
from experiments.runs.strict_json import to_json
from experiments.settings.config import Config
from experiments.settings.config_file import load_config
from experiments.settings.errors import ExperimentError, RunError

_FOLDER = "curvature"


def main(target: Path, overrides: list[str], *, runs: Path, data_dir: str | None, console: Console) -> Path:
    """Reports on a run folder; of a configuration file on its run, which is made or finished first.

    Returns:
      The path of the page.

    Raises:
      ExperimentError: the target is neither; or as `experiments.runs.runner.run`.
    """
    if not target.is_dir():
        config = load_config(target, overrides)
        result = run(config, runs=runs, console=console, data_dir=data_dir, resume=True)
        if result.diverged:
            raise RunError(f"{result.folder} has diverged: there is no curvature where the loss is not finite")
        target = result.folder
    elif overrides:
        raise ExperimentError(f"{target} is a run with settings of its own: leave out --set, --optimizer and --seed")
    config, parameters = trained(target)
    with numerics(config.problem):
        return _report(target, config, parameters, data_dir, console)


def _report(
    target: Path, config: Config, parameters: Callable[[Problem], Any], data_dir: str | None, console: Console
) -> Path:
    began = time.perf_counter()
    problem = build_problem(config.problem, data_dir)
    say = lambda text: console.print(f"  {text}", highlight=False)  # noqa: E731
    count = len(problem.dataset.train)
    console.print(f"Curvature of {target} over {count:,} training examples", highlight=False, soft_wrap=True)
    curvature = compute(problem, parameters(problem), config.recording.evaluation_chunk_size, say)
    folder = target / _FOLDER
    folder.mkdir(exist_ok=True)
    numbers = _numbers(curvature)
    (folder / "curvature.json").write_text(to_json(numbers, indent=2) + "\n", encoding="utf-8")
    console.print(_table(curvature))
    console.print(str(curvature.point), highlight=False)
    page = _page(config, problem, curvature, target, time.perf_counter() - began)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return page


def _numbers(curvature: Curvature) -> dict[str, Any]:
    point = curvature.point
    return {
        "parameters": sum(curvature.layers.values()),
        "objective": curvature.value,
        "gradient_norm": point.gradient_norm,
        "gradient_share_along_largest": curvature.gradient_share,
        "verdict": str(point.verdict),
        "reason": point.reason,
        "smallest_eigenvalue": list(point.smallest),
        "largest_eigenvalue": list(point.largest),
        "hessian": _spectrum_numbers(curvature.hessian),
        "gauss_newton": _spectrum_numbers(curvature.gauss_newton),
        "layers": curvature.layers,
        "eigenvectors_by_layer": curvature.shares.tolist(),
    }


def _spectrum_numbers(spectrum: Spectrum) -> dict[str, Any]:
    pairs = spectrum.pairs
    return {
        "eigenvalues": np.asarray(pairs.values).tolist(),
        "residuals": np.asarray(pairs.residuals).tolist(),
        "converged": np.asarray(pairs.converged).tolist(),
        "products": pairs.products,
        "trace": float(spectrum.trace.value),
        "trace_standard_error": float(spectrum.trace.standard_error),
        "share_of_negative_eigenvalues": float(spectrum.density.below(-_resolution(spectrum))),
    }


def _resolution(spectrum: Spectrum) -> float:
    """Nodes of a quadrature nearer to zero than this may be rounding."""
    return 1e-5 * float(np.abs(np.asarray(spectrum.pairs.values)).max())


def _rows(curvature: Curvature) -> list[list[str]]:
    """Number, λ and residual of H, λ and residual of G, from the largest; then the smallest of H alone."""
    h, g = (
        [x[::-1] for x in map(np.asarray, s.pairs[:1] + s.pairs[2:4])]
        for s in (curvature.hessian, curvature.gauss_newton)
    )
    rows = []
    for i in range(len(h[0])):
        number = str(i + 1) if i < len(g[0]) else f"n − {len(h[0]) - i - 1}" if i < len(h[0]) - 1 else "n"
        both = [*_cells(h, i), *(_cells(g, i) if i < len(g[0]) else ["", ""])]
        rows.append([number, *both])
    return rows


def _cells(spectrum: list[np.ndarray], i: int) -> list[str]:
    values, residuals, converged = spectrum
    return [f"{values[i]:.6g}", f"{residuals[i]:.1e}" + ("" if converged[i] else " (not converged)")]


_COLUMNS = ("number", "λ of H", "residual", "λ of G", "residual")


def _table(curvature: Curvature) -> Table:
    table = Table(title="Extreme eigenvalues, with ‖A v − λ v‖", box=box.SIMPLE_HEAD)
    for i, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in _rows(curvature):
        table.add_row(*row)
    return table


def _page(config: Config, problem: Problem, curvature: Curvature, run_folder: Path, seconds: float) -> Path:
    folder, point = run_folder / _FOLDER, curvature.point
    count = len(problem.dataset.train)
    title = f"Curvature of {config.name}, trained by {config.optimizer}, seed {config.seed}"
    parameters = sum(curvature.layers.values())
    page = Page(
        title, f"{parameters:,} parameters; the objective over all {count:,} training examples, penalty included."
    )
    page.paragraph(f"{str(point.verdict).capitalize()}: {point.reason}.", kind="verdict")
    page.table(
        ("", "Hessian H", "Gauss-Newton G"),
        [
            ["objective", f"{curvature.value:.6g}", ""],
            ["norm of its gradient (tolerance)", f"{point.gradient_norm:.3g} ({point.gradient_tolerance:.3g})", ""],
            [f"share of its square along the {LARGEST} largest", f"{curvature.gradient_share:.1%}", ""],
            ["largest eigenvalue (sharpness)", *(f"{s.pairs.values[-1]:.4g}" for s in _both(curvature))],
            ["trace ± standard error", *(_estimate(s.trace) for s in _both(curvature))],
            ["share of eigenvalues below zero", *(_negative(s) for s in _both(curvature))],
        ],
    )
    page.paragraph(
        "H = G + S, where G is positive semi-definite for a loss that is convex in the outputs, and S, the curvature "
        "of the model weighted by the residuals, has either sign. Where the two spectra part is where S matters."
    )
    page.heading("Extreme eigenvalues")
    picture = figures.draw_spectrum(curvature, folder / "spectrum.png")
    page.figure(picture, "Eigenvalues with their residuals as error bars; most bars are smaller than the markers.")
    page.table(_COLUMNS, _rows(curvature))
    page.heading("Density of all eigenvalues")
    picture = figures.draw_density(curvature, folder / "density.png")
    page.figure(
        picture,
        "By stochastic Lanczos quadrature, every eigenvalue widened to a normal; the triangles are eigenpairs that "
        "stand out from the bulk around zero. Heights of single eigenvalues are uncertain, their places are not.",
    )
    page.heading("Eigenvectors by layer")
    page.figure(
        figures.draw_layers(curvature, folder / "layers.png"),
        "Where the directions of large and of negative curvature live: the share of the squared norm of every "
        "eigenvector of H in each layer. Shares of 10 % and more are written out.",
    )
    page.table(("layer", "parameters"), [[name, f"{size:,}"] for name, size in curvature.layers.items()])
    page.heading("The objective along principal directions")
    page.figure(
        figures.draw_lines(curvature, folder / "directions.png"),
        f"As far as the objective is at most half as large again as {curvature.value:.3g}, its value here. Where the "
        "two lines agree the quadratic model may be trusted; with ReLU or max-pooling it is that of the piece the "
        "parameters are in, which may be too small to see here.",
    )
    page.heading("The matrices")
    if curvature.matrices:
        picture = figures.draw_matrices(curvature, folder / "matrices.png")
        page.figure(picture, "Every entry; lines part the layers. The diagonal blocks of S vanish in ReLU networks.")
    else:
        page.paragraph(f"Matrices are drawn for models of at most {MOST_DENSE:,} parameters.")
    page.heading("Sharpness over training")
    rows = read_metrics(run_folder)
    if any(math.isfinite(row.get("sharpness", math.nan)) for row in rows):
        picture = figures.draw_sharpness(rows, folder / "sharpness.png")
        page.figure(picture, "The largest eigenvalue of H on the training set at every evaluation, and the objective.")
    else:
        page.paragraph("Not recorded in this run; train with --set recording.sharpness=true.")
    made = environment(problem.dataset)
    packages = ", ".join(f"{name} {made['packages'][name]}" for name in ("hfopt", "jax"))
    footer = f"python -m experiments curvature; {seconds:.0f} s on {made['cpus']} cores, {made['device']}; {packages}"
    return page.write(folder / "report.html", footer)


def _both(curvature: Curvature) -> tuple[Spectrum, Spectrum]:
    return curvature.hessian, curvature.gauss_newton


def _estimate(trace: Any) -> str:
    return f"{trace.value:.4g} ± {trace.standard_error:.1g}"


def _negative(spectrum: Spectrum) -> str:
    return f"{float(spectrum.density.below(-_resolution(spectrum))):.1%} (below {-_resolution(spectrum):.1g})"
