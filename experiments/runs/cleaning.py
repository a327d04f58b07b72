"""`python -m experiments clean`: removes unfinished runs, and the checkpoints of finished ones, which take the space.

Without `--yes` nothing is removed: what would be is listed, with the space it takes. What is never removed:

- anything that is not a run folder, or the folder of checkpoints inside one;
- a run touched within the last ten minutes, which may be being written right now, unless `--force` says so;
- a run that cannot be read.

What a finished run loses with its checkpoints is the trained parameters: its numbers and its figure stay, `--resume`
and `sweep` go on finding it finished, but `curvature` has nothing to look at.
"""

import argparse
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from experiments.runs.catalogue import Entry, add_filters, bounded, entries, entry_of
from experiments.runs.readable import age, count_of_runs
from experiments.settings.arguments import positive_number
from experiments.settings.errors import RunError

BEING_WRITTEN = 600.0  # seconds since it was touched, within which a run may be under way
_DAY = 86400.0


class Removal(NamedTuple):
    """Something to remove: the folder of an unfinished run, or that of the checkpoints of a finished one."""

    entry: Entry
    folder: Path
    what: str


def add_parser(commands: Any, recorded: argparse.ArgumentParser) -> None:
    """Adds `clean` to the command line; `recorded` is the parser of `--runs-dir`."""
    parser = commands.add_parser(
        "clean", parents=[recorded], help="remove unfinished runs, or the checkpoints of finished ones, to free space"
    )
    add_filters(parser)
    parser.add_argument("--unfinished", action="store_true", help="remove unfinished runs")
    parser.add_argument("--checkpoints", action="store_true", help="remove the checkpoints of finished runs")
    parser.add_argument(
        "--older-than", metavar="DAYS", type=positive_number, default=0.0, help="only of runs not touched for so long"
    )
    parser.add_argument("--force", action="store_true", help="also of runs touched within the last ten minutes")
    parser.add_argument("--yes", action="store_true", help="remove; without it, only say what would be removed")
    parser.set_defaults(command=_clean)


def removals(found: Iterable[Entry], *, unfinished: bool, checkpoints: bool) -> list[Removal]:
    """What these runs can do without."""
    chosen = []
    for entry in found:
        inside = entry.folder / "checkpoints"
        if unfinished and entry.status == "unfinished":
            chosen.append(Removal(entry, entry.folder, "unfinished run"))
        elif checkpoints and entry.status in ("finished", "diverged") and inside.is_dir() and not inside.is_symlink():
            chosen.append(Removal(entry, inside, "checkpoints"))
    return chosen


def remove(removal: Removal) -> bool:
    """Removes it, unless its run has been touched since it was chosen; whether it did.

    Under another name first: killed halfway, this leaves no run that lacks a part.
    """
    entry = removal.entry
    if not entry.folder.is_dir() or entry_of(entry.folder, entry.folder.parent)[2:] != entry[2:]:
        return False
    shutil.rmtree(removal.folder.rename(removal.folder.with_name(f".removed-{uuid4().hex}")))
    return True


def size_of(folder: Path) -> int:
    """Bytes in all files below a folder."""
    return sum(os.lstat(Path(parent, name)).st_size for parent, _, names in os.walk(folder) for name in names)


def _clean(arguments: argparse.Namespace) -> int:
    asked = arguments.unfinished or arguments.checkpoints
    if arguments.yes and not asked:
        raise RunError("what is to be removed? Say --unfinished, --checkpoints or both")
    now, console = time.time(), bounded(Console())
    chosen = removals(
        entries(arguments.runs_dir, arguments.filters),
        unfinished=arguments.unfinished or not asked,
        checkpoints=arguments.checkpoints or not asked,
    )
    old = [removal for removal in chosen if now - removal.entry.touched >= arguments.older_than * _DAY]
    idle = [removal for removal in old if arguments.force or now - removal.entry.touched >= BEING_WRITTEN]
    sized = [(removal, size_of(removal.folder)) for removal in idle]
    if arguments.yes:
        sized = [(removal, size) for removal, size in sized if remove(removal)]
        end = "removed"
    elif sized:
        flags = "--yes" if asked else "--yes and --unfinished, --checkpoints or both"
        end = f"would be removed; to remove them, add {flags}"
    else:
        end = "would be removed"
    if sized:
        console.print(_table(sized, now))
    freed = decimal(sum(size for _, size in sized))
    console.print(f"{count_of_runs(len(sized))}, {freed}, {end}", highlight=False, soft_wrap=True)
    if left := len(old) - len(idle):
        reason = "touched within the last 10 minutes, so perhaps under way; --force takes them too"
        console.print(f"left alone: {count_of_runs(left)} {reason}", style="yellow", highlight=False, soft_wrap=True)
    return 0


def _table(sized: Sequence[tuple[Removal, int]], now: float) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("what", no_wrap=True)
    table.add_column("size", no_wrap=True, justify="right")
    table.add_column("touched", no_wrap=True, justify="right")
    for removal, size in sized:
        entry = removal.entry
        table.add_row(Text(str(entry.folder)), removal.what, decimal(size), age(now - entry.touched))
    return table
