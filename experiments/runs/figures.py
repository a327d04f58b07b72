"""Figures of runs: the loss against steps, against gradient-equivalents and against seconds."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.runs.recording import read_config, read_metrics
from experiments.settings.errors import ExperimentError
from experiments.training.loop import Row

# Okabe and Ito's palette without its yellow, which is too pale for lines; told apart in every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")
GREY = "#999999"
_TITLES = {
    "hessian_free": "Hessian-free",
    "adam": "Adam",
    "adamw": "AdamW",
    "muon": "Muon",
    "sgd": "SGD",
    "lbfgs": "L-BFGS",
    "somax": "somax",
}
_AXES = {
    "step": "steps",
    "gradient_equivalents": "gradient-equivalents\n(gradients of the whole training set)",
    "seconds": "training time (s)",
}
_INCHES = (10.0, 3.9)  # at 80 dots per inch this is 800 pixels wide, and the text still 10 pixels high
_DOTS_PER_INCH = 160


def draw_run(folder: Path) -> Path:
    """Draws `loss.png` in a run folder: the objective on each step's batch and on the whole training set.

    Raises:
      ExperimentError: Matplotlib is not installed.
    """
    rows, config = read_metrics(folder), read_config(folder)
    figure, panels = _panels()
    on_batches = config.training.batches.gradient != "full"
    for panel, quantity in zip(panels, _AXES, strict=True):
        if on_batches:
            _draw(panel, rows, quantity, "loss", label="on the step's batch", color=GREY, linewidth=0.8)
        _draw(panel, rows, quantity, "train_loss", label="on the training set", color=COLOURS[0], linewidth=1.8)
    figure.suptitle(f"{config.name}: {_TITLES[config.optimizer]}, seed {config.seed}")
    return _finish(figure, panels, folder / "loss.png", "objective" if on_batches else "objective on the training set")


def draw_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Draws the training loss of several runs, one line a run, into the PNG file `path`.

    Raises:
      ExperimentError: Matplotlib is not installed.
    """
    figure, panels = _panels()
    configs = [read_config(folder) for folder in folders]
    optimizers = [config.optimizer for config in configs]
    for i, (folder, config) in enumerate(zip(folders, configs, strict=True)):
        rows = read_metrics(folder)
        label = _TITLES[config.optimizer]
        if optimizers.count(config.optimizer) > 1:
            label = f"{label} ({folder.name})"
        style: dict[str, Any] = {
            "label": label,
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[i % len(DASHES)],
            "linewidth": 1.8,
        }
        for panel, quantity in zip(panels, _AXES, strict=True):
            _draw(panel, rows, quantity, "train_loss", **style)
    # The whole run of one optimizer may be a hundredth of another's. Step 0 has no place on such an axis.
    for panel in panels:
        panel.set_xscale("log", nonpositive="mask")
    figure.suptitle(", ".join(dict.fromkeys(config.name for config in configs)))
    return _finish(figure, panels, path, "objective on the training set")


def blank(inches: tuple[float, float]) -> Any:
    """An empty Matplotlib figure.

    Raises:
      ExperimentError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExperimentError(
            "no figure was drawn: Matplotlib is missing; install it with the extra 'plots' (pip install 'hfopt[plots]')"
        ) from error
    # A Figure of its own, not pyplot: nothing global, no display needed.
    figure = Figure(figsize=inches, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(panel: Any) -> None:
    """A thin grid, and no frame above and to the right."""
    panel.grid(True, which="major", linewidth=0.5, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Any, panels: Any, columns: int | None = None) -> None:
    """One legend below the panels, with an entry for every label that any of them has; none for a single line."""
    entries: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if len(entries) > 1:
        columns = len(entries) if columns is None else columns
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns, frameon=False)


def _panels() -> tuple[Any, Any]:
    figure = blank(_INCHES)
    return figure, figure.subplots(1, len(_AXES), sharey=True)


def _draw(panel: Any, rows: Sequence[Row], quantity: str, loss: str, **style: Any) -> None:
    """One line through the rows that have this loss; values that cannot stand on a log axis leave a gap."""
    points = [(row[quantity], row[loss]) for row in rows if loss in row]
    panel.plot([x for x, _ in points], [y if y > 0 and math.isfinite(y) else math.nan for _, y in points], **style)


def _finish(figure: Any, panels: Any, path: Path, y_label: str) -> Path:
    panels[0].set_ylabel(y_label)
    for panel, label in zip(panels, _AXES.values(), strict=True):
        panel.set_yscale("log")
        panel.set_xlabel(label)
        tidy(panel)
        panel.margins(x=0.02)
    legend_below(figure, panels)
    figure.savefig(path)
    return path
