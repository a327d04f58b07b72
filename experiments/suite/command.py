"""The commands `tune`, and `compare` with files of comparisons."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.settings.arguments import positive_integer
from experiments.settings.errors import ConfigError
from experiments.settings.file import read_settings
from experiments.suite.execution import run_suite
from experiments.suite.page import write_page
from experiments.suite.tuning import main as tune

PAGE = Path("runs/results")


def is_suite(paths: list[str]) -> bool:
    """Whether these are files of comparisons, as in configs/compare, and not an experiment with several optimizers.

    Raises:
      ConfigError: some are, some are not; or there are several experiments.
    """
    comparisons = ["budgets" in read_settings(Path(path)) for path in paths]
    if any(comparisons) != all(comparisons) or (len(paths) > 1 and not any(comparisons)):
        other = paths[comparisons.index(False)]
        raise ConfigError(f"{other} is an experiment: give one alone, or comparisons alone (configs/compare/*.yaml)")
    return all(comparisons)


def compare_suite(arguments: argparse.Namespace) -> int:
    """Runs comparisons, and writes their page."""
    for option in ("set", "seed", "optimizers", "devices", "resume"):
        if getattr(arguments, option):
            raise ConfigError(
                f"--{option} has no use with comparisons: their files say what runs, and it always continues"
            )
    console = Console()
    suite = run_suite(arguments.configs, quick=arguments.quick, **_where(arguments, console))
    command = f"python -m experiments compare {_named(arguments.configs)}" + (" --quick" if arguments.quick else "")
    write_page(suite, arguments.out or PAGE, command, console)
    return 1 if suite.missing else 0


def _where(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """What both commands are told of places, processes and the screen."""
    options = {"runs": arguments.runs_dir, "jobs": arguments.jobs, "data_dir": arguments.data_dir}
    return {**options, "console": console}


def _named(paths: list[str]) -> str:
    """The files, or the pattern that stands for all of a folder."""
    folder = Path(paths[0]).parent
    every = {str(path) for path in folder.glob("*.yaml")}
    return f"{folder}/*.yaml" if len(paths) > 1 and every == {str(Path(path)) for path in paths} else " ".join(paths)


def require_no_suite_options(arguments: argparse.Namespace) -> None:
    """An experiment takes none of them.

    Raises:
      ConfigError: one was given.
    """
    for option, given in {"--quick": arguments.quick, "--jobs": arguments.jobs, "--out": arguments.out}.items():
        if given:
            raise ConfigError(f"{option} is for comparisons (configs/compare/*.yaml), and this is an experiment")


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """What `compare` takes for comparisons."""
    parser.add_argument("--quick", action="store_true", help="of comparisons: one seed and small budgets")
    parser.add_argument("--jobs", metavar="N", type=positive_integer, help="of comparisons: runs at a time")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help=f"of comparisons: where the page goes (default: {PAGE})"
    )


def add_tune(commands: "argparse._SubParsersAction", places: argparse.ArgumentParser) -> None:
    """`tune`."""
    parser = commands.add_parser("tune", parents=[places], help="choose the settings of baselines")
    parser.add_argument("configs", metavar="COMPARISON", nargs="+", help="YAML files, such as configs/compare/*.yaml")
    parser.add_argument(
        "--jobs", metavar="N", type=positive_integer, help="runs at a time (default: one a usable core)"
    )
    parser.set_defaults(command=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    console = Console()
    for path in tune(arguments.configs, **_where(arguments, console)):
        console.print(f"tuned: {path}", highlight=False, soft_wrap=True)
    return 0
