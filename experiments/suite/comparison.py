"""Several optimizers on one problem, side by side: a table, a figure, and the table again in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.runs.figures import draw_comparison
from experiments.runs.readable import metric_title, metric_value
from experiments.runs.runner import Result, run
from experiments.settings.config import Config, OptimizerName
from experiments.settings.errors import ConfigError, ExperimentError


def compare(
    config: Config,
    optimizers: Sequence[OptimizerName] | None,
    *,
    runs: Path,
    console: Console,
    data_dir: str | None = None,
    resume: bool = False,
    devices: int | None = None,
) -> list[Result]:
    """Runs each optimizer (None: all that the file has settings for), prints one table and writes two files.

    The files, `comparison-seed<k>.png` and `.md` beside the run folders, are drawn from the runs just made and replace
    those of an earlier comparison.

    Raises:
      ExperimentError: as `run`; or an optimizer has no settings in the file.
    """
    configured = config.optimizers.configured()
    chosen = configured if optimizers is None else tuple(dict.fromkeys(optimizers))
    for name in chosen:
        if name not in configured:
            raise ConfigError(f"optimizers.{name} is missing from this configuration (it has {', '.join(configured)})")
    results = [
        run(config.only(name), runs=runs, console=console, data_dir=data_dir, resume=resume, devices=devices)
        for name in chosen
    ]

    console.print(_table(config, results))
    stem = runs / config.name / f"comparison-seed{config.seed}"
    report = stem.with_name(stem.name + ".md")
    report.write_text(markdown_table(results), encoding="utf-8")
    console.print(f"table: {report}", highlight=False, soft_wrap=True)
    try:
        figure = draw_comparison([result.folder for result in results], stem.with_name(stem.name + ".png"))
        console.print(f"figure: {figure}", highlight=False, soft_wrap=True)
    except ExperimentError as error:
        console.print(str(error), soft_wrap=True)
    return results


def markdown_table(results: Sequence[Result]) -> str:
    """The results as a Markdown table, one row a run."""
    columns = _columns(results)
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(_cells(result.summary)) + " |" for result in results]
    return "\n".join(lines) + "\n"


def _table(config: Config, results: Sequence[Result]) -> Table:
    title = f"{config.name}, seed {config.seed}: {results[0].summary['parameters']:,} parameters"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for i, name in enumerate(_columns(results)):
        table.add_column(name, justify="left" if i == 0 else "right")
    for result in results:
        table.add_row(*_cells(result.summary), style="red" if result.diverged else None)
    return table


def _columns(results: Sequence[Result]) -> tuple[str, ...]:
    return ("optimizer", "train loss", metric_title(results[0].summary), "steps", "products", "seconds")


def _cells(summary: Mapping[str, Any]) -> list[str]:
    return [
        summary["optimizer"] + (" (diverged)" if summary["status"] == "diverged" else ""),
        f"{summary['train_loss']:.3g}",
        metric_value(summary),
        f"{summary['steps']:,}",
        f"{summary['products']:,}",
        f"{summary['seconds']:.1f}",
    ]
