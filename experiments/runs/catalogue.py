"""`python -m experiments list`: which runs there are, how far they are, and what came out.

Run folders are found wherever they lie below the folder of the runs: those of `run` and `compare` in the folder of
their name, those of a sweep in the folder of the sweep and of the cell. What is said of a run without a summary is what
its metrics hold so far. A run was touched when a file in it or a checkpoint was last written, renamed or removed.
"""

import argparse
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.runs.readable import age, count_of_runs, metric_of, number, words
from experiments.runs.recording import is_run, read_metrics, read_summary
from experiments.runs.strict_json import to_json
from experiments.settings.errors import RunError

_WIDTH = 120  # of a table where no window bounds the lines
_COLUMNS = ("run", "status", "step", "train loss", "metric", "seconds", "touched")
_GAP, _LEAST = 2, 12  # characters between columns, and for the narrowest column of names
_COLOURS = {"diverged": "red", "unfinished": "yellow", "unreadable": "red"}


class Entry(NamedTuple):
    """A run, finished or not; None where nothing is recorded yet."""

    folder: Path
    name: str  # of the folder it is in, as seen from that of all runs: 'digits_cnn', 'digits/mlp-adam'
    optimizer: str | None
    seed: int | None
    status: str  # finished, diverged, unfinished, or unreadable where a file is damaged
    step: int | None  # the last one recorded
    train_loss: float | None  # as last evaluated
    metric: str  # the name of what is measured besides the loss, '' if it is not known yet
    test: float | None  # the metric on the test set, as last evaluated
    seconds: float | None  # of training
    touched: float  # seconds since 1970


def add_parser(commands: Any, recorded: argparse.ArgumentParser) -> None:
    """Adds `list` to the command line; `recorded` is the parser of `--runs-dir`."""
    parser = commands.add_parser("list", parents=[recorded], help="the runs there are, how far they are, what came out")
    add_filters(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.set_defaults(command=_list)


def add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "filters",
        metavar="FILTER",
        nargs="*",
        help="a part of NAME/RUN, or a pattern for the whole of it such as 'digits*/adam-*' (default: all runs)",
    )


def entries(runs: Path, filters: Sequence[str] = ()) -> list[Entry]:
    """All runs below a folder that one of the filters takes, in natural order.

    Raises:
      RunError: there is no such folder.
    """
    if not runs.is_dir():
        raise RunError(f"{runs} is not a folder; name that of the runs with --runs-dir")
    folders = (folder for folder in run_folders(runs) if _takes(filters, folder.relative_to(runs).as_posix()))
    return [entry_of(folder, runs) for folder in folders]


def run_folders(root: Path) -> list[Path]:
    """The run folders below a folder, or the folder itself, in natural order: seed2 before seed10.

    Links and folders whose names begin with a dot are not looked into.
    """
    if is_run(root):
        return [root]
    found = []
    for parent, folders, _ in os.walk(root):
        inside = [Path(parent, name) for name in folders if not name.startswith(".")]
        runs = [folder for folder in inside if is_run(folder) and not folder.is_symlink()]
        found += runs
        folders[:] = [folder.name for folder in inside if folder not in runs]
    return sorted(found, key=lambda folder: [_natural(part) for part in folder.parts])


def entry_of(folder: Path, runs: Path) -> Entry:
    """What is known of a run."""
    name = folder.relative_to(runs).parent.as_posix()
    named = re.fullmatch(r"(.+)-seed(\d+)(?:-\d+)?", folder.name)
    optimizer, seed = (named[1], int(named[2])) if named else (None, None)
    try:
        summary = read_summary(folder)
        record = _so_far(folder) if summary is None else {**summary, "step": summary.get("steps")}
    except (RunError, ValueError, OSError):
        record = {"status": "unreadable"}
    metric, test = metric_of(record)
    return Entry(
        folder,
        name,
        optimizer,
        seed,
        record.get("status", "unreadable"),
        record.get("step"),
        record.get("train_loss"),
        metric,
        test,
        record.get("seconds"),
        last_touched(folder),
    )


def last_evaluated(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The last row with the losses of whole sets in it; {} if there is none."""
    return next((row for row in reversed(list(rows)) if "train_loss" in row), {})


def last_touched(folder: Path) -> float:
    """When something in the folder or among its checkpoints was last written, in seconds since 1970."""
    checkpoints = folder / "checkpoints"
    looked_at = [folder, *folder.iterdir(), *(checkpoints.iterdir() if checkpoints.is_dir() else ())]
    return max((path.stat().st_mtime for path in looked_at if path.exists()), default=0.0)


def bounded(console: Console) -> Console:
    """A console with room for a table, also where no window bounds its lines."""
    return console if console.is_terminal else Console(file=console.file, quiet=console.quiet, width=_WIDTH)


def _list(arguments: argparse.Namespace) -> int:
    found = entries(arguments.runs_dir, arguments.filters)
    if arguments.json:
        for entry in found:
            print(to_json(_as_json(entry)))
        return 0
    console = bounded(Console())
    if found:
        _print(found, arguments.runs_dir, console)
    counts = Counter(entry.status for entry in found)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    console.print(count_of_runs(len(found)) + (f": {told}" if told else ""), highlight=False)
    return 0


def _so_far(folder: Path) -> dict[str, Any]:
    """What stands in for the summary of an unfinished run."""
    rows = read_metrics(folder)
    last = rows[-1] if rows else {}
    return {**last_evaluated(rows), **last, "status": "unfinished"}


def _print(found: Sequence[Entry], runs: Path, console: Console) -> None:
    """A table in groups of one name and metric, which stand above their lines."""
    now = time.time()
    lines = [_cells(entry, now) for entry in found]
    widths = [max(map(cell_len, column)) for column in zip(_COLUMNS, *lines, strict=True)]
    room = console.width - sum(widths[1:]) - _GAP * (len(widths) - 1)
    widths[0] = min(widths[0], max(room, _LEAST))  # names are what a narrow window folds
    console.print(_grid([_COLUMNS], widths, "bold"))
    pairs = zip(found, lines, strict=True)
    for (name, metric), group in groupby(pairs, key=lambda pair: (pair[0].name, pair[0].metric)):
        heading = Text(str(runs / name), style="bold").append(f"  test {words(metric)}" if metric else "", "not bold")
        console.print(heading, soft_wrap=True)
        for entry, cells in group:
            console.print(_grid([cells], widths, _COLOURS.get(entry.status, "")))


def _grid(lines: Iterable[Sequence[str]], widths: Sequence[int], style: str) -> Table:
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    for i, width in enumerate(widths):
        grid.add_column(width=width, justify="left" if i < 2 else "right", overflow="fold")
    for line in lines:
        grid.add_row(*map(Text, line), style=style)
    return grid


def _cells(entry: Entry, now: float) -> tuple[str, ...]:
    numbers = map(number, (entry.step, entry.train_loss, entry.test))
    seconds = "–" if entry.seconds is None else f"{entry.seconds:,.1f}"
    return f"  {entry.folder.name}", entry.status, *numbers, seconds, age(now - entry.touched)


def _as_json(entry: Entry) -> dict[str, Any]:
    touched = datetime.fromtimestamp(entry.touched, UTC).isoformat(timespec="seconds")
    return {**entry._asdict(), "folder": str(entry.folder), "touched": touched}


def _takes(filters: Sequence[str], name: str) -> bool:
    """Whether a filter is a part of the name, or, with one of * ? [ in it, a pattern of the whole name."""
    return not filters or any(fnmatchcase(name, one) if re.search(r"[*?[]", one) else one in name for one in filters)


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts numbers inside names by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
