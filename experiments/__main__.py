"""The command line: `python -m experiments run | compare | tune | sweep | list | show | clean | tensorboard |
extrapolate | cartpole | frameworks | approximations | curvature | bench`.

Exit codes: 0 done, 1 a run diverged or missed what it was to show, 2 asked for something impossible (one message says
what), 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from experiments.runs import catalogue, cleaning, tensorboard
from experiments.runs.page import show_run
from experiments.runs.readable import metric_title, metric_value
from experiments.runs.runner import run
from experiments.settings.arguments import positive_integer
from experiments.settings.config import Config, OptimizerName
from experiments.settings.config_file import dump_config, load_config
from experiments.settings.errors import ExperimentError, RunError
from experiments.suite import extrapolation
from experiments.suite.command import add_suite_options, add_tune, compare_suite, is_suite, require_no_suite_options
from experiments.suite.comparison import compare
from experiments.suite.sweep import sweep
from experiments.suite.sweep_file import load_sweep
from experiments.suite.sweep_report import report

_OPTIMIZERS = get_args(OptimizerName)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments, rest = _parser().parse_known_args(argv)
    if rest and arguments.command is not _bench:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    try:
        return arguments.command(arguments)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    console = Console()
    result = run(
        config,
        runs=arguments.runs_dir,
        console=console,
        data_dir=arguments.data_dir,
        resume=arguments.resume,
        devices=arguments.devices,
    )
    summary = result.summary
    console.print(
        f"{config.optimizer}: train loss {summary['train_loss']:.4g}, {metric_title(summary)} {metric_value(summary)} "
        f"after {summary['steps']} steps, {summary['products']} products, {summary['seconds']:.1f} s of training "
        f"(and {summary['compile_seconds']:.1f} s of compiling, {summary['evaluation_seconds']:.1f} s of evaluating)",
        highlight=False,
        soft_wrap=True,
    )
    return 1 if result.diverged else 0


def _compare(arguments: argparse.Namespace) -> int:
    if is_suite(arguments.configs):
        return compare_suite(arguments)
    require_no_suite_options(arguments)
    (arguments.config,) = arguments.configs
    results = compare(
        _config(arguments),
        arguments.optimizers,
        runs=arguments.runs_dir,
        console=Console(),
        data_dir=arguments.data_dir,
        resume=arguments.resume,
        devices=arguments.devices,
    )
    return 1 if any(result.diverged for result in results) else 0


def _sweep(arguments: argparse.Namespace) -> int:
    settings, console = load_sweep(arguments.sweep), Console()
    runs = arguments.runs_dir
    lines = sweep(settings, runs=runs, console=console, jobs=arguments.jobs, data_dir=arguments.data_dir)
    report(settings, lines, runs=runs, console=console)
    return 1 if any(line.diverged for line in lines) else 0


def _cartpole(arguments: argparse.Namespace) -> int:
    # Imported late: the other commands need none of it.
    from experiments.examples.policy_gradient import main as cartpole

    return 0 if cartpole(arguments.seeds, arguments.iterations, Console()) else 1


def _frameworks(arguments: argparse.Namespace) -> int:
    import jax

    from experiments.examples.frameworks import main as frameworks
    from experiments.problems.cifar10 import load_cifar10

    jax.config.update("jax_enable_x64", arguments.float64)
    data = load_cifar10(arguments.data_dir)
    return 0 if frameworks(data, arguments.examples, arguments.steps, Console()) else 1


def _approximations(arguments: argparse.Namespace) -> int:
    from experiments.laboratory.approximations import main as approximations

    return 0 if approximations(arguments.out, arguments.seed, Console()) else 1


def _curvature(arguments: argparse.Namespace) -> int:
    from experiments.laboratory.report import main as curvature

    curvature(
        Path(arguments.config),
        _overrides(arguments),
        runs=arguments.runs_dir,
        data_dir=arguments.data_dir,
        console=Console(),
    )
    return 0


def _show(arguments: argparse.Namespace) -> int:
    if (folder := Path(arguments.config)).is_dir():
        if _overrides(arguments):
            raise RunError(f"{folder} is a folder: --set and --seed are for the configuration in a YAML file")
        show_run(folder, Console())
        return 0
    print(dump_config(_config(arguments)), end="")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from experiments.benchmarks.command import main as bench  # imported late: training needs none of it

    return bench(arguments.rest) or 0


def _config(arguments: argparse.Namespace) -> Config:
    return load_config(arguments.config, _overrides(arguments))


def _overrides(arguments: argparse.Namespace) -> list[str]:
    overrides = list(arguments.set)
    if getattr(arguments, "optimizer", None) is not None:
        overrides.append(f"optimizer={arguments.optimizer}")
    if arguments.seed is not None:
        overrides.append(f"seed={arguments.seed}")
    return overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description="Train models and compare optimizers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    overriding = argparse.ArgumentParser(add_help=False)
    overriding.add_argument("--seed", help="shorthand for --set seed=…")
    overriding.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override any field, e.g. --set optimizers.adam.learning_rate=3e-3 problem.l2=1e-4",
    )

    recorded = argparse.ArgumentParser(add_help=False)
    recorded.add_argument(
        "--runs-dir", metavar="DIR", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)"
    )
    settings = argparse.ArgumentParser(add_help=False, parents=[overriding])
    settings.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/digits_cnn.yaml")

    places = argparse.ArgumentParser(add_help=False, parents=[recorded])
    places.add_argument(
        "--data-dir", metavar="DIR", help="folder of the data sets (default: $HFOPT_DATA, else a cache)"
    )

    resuming = argparse.ArgumentParser(add_help=False)
    resuming.add_argument("--resume", action="store_true", help="continue the latest run of the same configuration")

    sharing = argparse.ArgumentParser(add_help=False)
    sharing.add_argument(
        "--devices",
        metavar="N",
        type=positive_integer,
        help="split every batch over N devices; on CPU they are simulated",
    )

    one = commands.add_parser("run", parents=[settings, places, resuming, sharing], help="train with one optimizer")
    one.add_argument("--optimizer", help=f"shorthand for --set optimizer=…: {', '.join(_OPTIMIZERS)}")
    one.set_defaults(command=_run)

    several = commands.add_parser(
        "compare", parents=[overriding, places, resuming, sharing], help="train with several, one table and figure"
    )
    several.add_argument("--optimizers", metavar="NAME", nargs="+", help="which (default: all that CONFIG configures)")
    several.add_argument(
        "configs", metavar="CONFIG", nargs="+", help="one experiment, or comparisons: configs/compare/*.yaml"
    )
    add_suite_options(several)
    several.set_defaults(command=_compare)

    add_tune(commands, places)

    many = commands.add_parser(
        "sweep", parents=[places], help="train with many settings from many seeds, one table of medians"
    )
    many.add_argument("sweep", metavar="SWEEP", help="a YAML file, such as configs/sweeps/digits.yaml")
    many.add_argument("--jobs", metavar="N", type=positive_integer, help="runs at a time (default: one a usable core)")
    many.set_defaults(command=_sweep)

    catalogue.add_parser(commands, recorded)
    show = commands.add_parser(
        "show", parents=[settings], help="print a configuration with all its defaults, or what is recorded of a run"
    )
    show.set_defaults(command=_show)
    cleaning.add_parser(commands, recorded)
    tensorboard.add_parser(commands)
    extrapolation.add_parser(commands)

    cartpole = commands.add_parser("cartpole", help="balance a pole by natural policy gradient, from several seeds")
    cartpole.add_argument("--seeds", metavar="N", type=positive_integer, default=5, help="seeds 0 … N−1 (default: 5)")
    cartpole.add_argument(
        "--iterations", metavar="N", type=positive_integer, default=60, help="of 32 episodes each (default: 60)"
    )
    cartpole.set_defaults(command=_cartpole)

    both = commands.add_parser("frameworks", parents=[places], help="train one network in linen and in NNX, CIFAR-10")
    both.add_argument("--examples", metavar="N", type=positive_integer, default=128, help="images (default: 128)")
    both.add_argument("--float64", action="store_true", help="in double precision, where rounding is not seen")
    both.add_argument("--steps", metavar="N", type=positive_integer, default=30, help="(default: 30)")
    both.set_defaults(command=_frameworks)

    which = commands.add_parser("approximations", help="when Hessian, Fisher and empirical Fisher agree with G")
    which.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs/approximations"), help="folder of the figures"
    )
    which.add_argument("--seed", metavar="N", type=int, default=0, help="of networks and data (default: 0)")
    which.set_defaults(command=_approximations)

    curvature = commands.add_parser(
        "curvature", parents=[settings, places], help="eigenvalues, densities and a report page of a trained model"
    )
    curvature.add_argument("--optimizer", help="of a configuration that has several")
    curvature.set_defaults(command=_curvature)

    bench = commands.add_parser("bench", add_help=False, help="measure hfopt itself; see bench --help")
    bench.set_defaults(command=_bench)
    return parser


if __name__ == "__main__":
    sys.exit(main())
