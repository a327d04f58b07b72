"""`python -m experiments tensorboard`: event files of runs, for TensorBoard and what else reads its format.

Every number of metrics.jsonl becomes a scalar at its step, in one of three groups: `evaluation` (losses and metrics of
whole sets), `cost` (what it took so far) and `step` (what the optimizer tells). True and false are 1 and 0; words, such
as why CG stopped, have no curve and are left out. The wall time of an event is when the run folder got its
configuration plus the seconds of training, so that TensorBoard's relative axis is the training time without
compilation, evaluation and interruptions. Configuration and environment are texts.

An event file is a sequence of records, each the length of its data, the data, and a checksum (CRC-32C) of either; the
data are a protocol buffer. tensorboardX writes them, without TensorFlow.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.runs.catalogue import run_folders
from experiments.runs.readable import count_of_runs
from experiments.runs.recording import read_metrics
from experiments.settings.errors import ExperimentError, RunError
from experiments.training.loop import Row

_COSTS = ("epoch", "examples", "gradients", "products", "gradient_equivalents", "seconds")
_EVALUATED = ("train_", "test_", "validation_", "sharpness")
_TEXTS = {"configuration": "config.yaml", "environment": "environment.json"}


def add_parser(commands: Any) -> None:
    """Adds `tensorboard` to the command line."""
    parser = commands.add_parser("tensorboard", help="export runs for TensorBoard")
    parser.add_argument(
        "runs", metavar="RUN_OR_FOLDER", nargs="+", type=Path, help="a run folder, or a folder with runs below it"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="what `tensorboard --logdir` is given")
    parser.set_defaults(command=_tensorboard)


def export(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Writes event files of all runs at or below the paths; those of an earlier export of the same runs are replaced.

    Returns:
      Run folder -> folder of its events, `<out>/<name>/<optimizer>-seed<k>[-n]`, where what the names of all runs
      begin with is left out.

    Raises:
      RunError: a path has no run at or below it, or the metrics of a run are damaged.
      ExperimentError: tensorboardX is not installed.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in _runs_at(path)))
    parents = Path(os.path.commonpath([folder.absolute().parent.parent for folder in folders]))
    exported = {folder: out / folder.absolute().relative_to(parents) for folder in folders}
    for folder, events in exported.items():
        _write(folder, events)
    return exported


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """(group/name, value) of every number of a row but its step."""
    for name, value in row.items():
        if isinstance(value, (bool, int, float)) and name != "step":
            yield f"{_group(name)}/{name}", float(value)


def _tensorboard(arguments: argparse.Namespace) -> int:
    console = Console()
    exported = export(arguments.runs, arguments.out)
    for folder, events in exported.items():
        console.print(f"{folder} -> {events}", highlight=False, soft_wrap=True)
    hint = f"{count_of_runs(len(exported))}; look at them with: tensorboard --logdir {arguments.out}"
    console.print(hint, highlight=False, soft_wrap=True)
    return 0


def _runs_at(path: Path) -> list[Path]:
    if not path.is_dir():
        raise RunError(f"{path} is not a folder")
    if not (folders := run_folders(path)):
        raise RunError(f"{path} is not a run folder, and there is none below it")
    return folders


def _write(folder: Path, events: Path) -> None:
    try:
        from tensorboardX import FileWriter
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import text
    except ImportError:
        raise ExperimentError(
            "exporting for TensorBoard needs tensorboardX: pip install 'hfopt[tensorboard]', "
            "or tensorboardX into this environment"
        ) from None

    rows = read_metrics(folder)
    for earlier in events.glob("events.out.tfevents.*"):
        earlier.unlink()
    began = (folder / _TEXTS["configuration"]).stat().st_mtime
    writer = FileWriter(str(events))
    for name, source in _TEXTS.items():
        writer.add_summary(text(name, _as_code((folder / source).read_text(encoding="utf-8"))), 0, began)
    for row in rows:
        # One event a row: `SummaryWriter.add_scalar` makes one of every number, and logs a warning of every NaN.
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row)]
        writer.add_summary(Summary(value=values), row["step"], began + row.get("seconds", 0.0))
    writer.close()


def _as_code(text: str) -> str:
    """Markdown that shows the text as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _group(name: str) -> str:
    if name in _COSTS:
        return "cost"
    return "evaluation" if name.startswith(_EVALUATED) else "step"
