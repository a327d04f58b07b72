"""The command line of the benchmarks: `python -m experiments bench …`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from experiments import benchmarks
from experiments.benchmarks import compiling, convergence, memory, metric, preconditioning, products, scaling, step
from experiments.benchmarks.measuring import Row
from experiments.benchmarks.networks import NETWORKS, Network
from experiments.benchmarks.peers import PEERS
from experiments.benchmarks.report import is_regression, load_baseline, print_table, save_baseline, to_json
from experiments.settings.arguments import positive_integer, positive_number
from experiments.settings.errors import ConfigError

_BENCHMARKS = {
    "products": "one curvature product / one value_and_grad",
    "step": "one Hessian-free step / one value_and_grad",
    "memory": "temporary memory of a product over a whole data set",
    "scaling": "work and collectives on 1 to 8 simulated devices",
    "compile": "compiling a step / compiling value_and_grad",
    "preconditioners": "CG iterations that each preconditioner saves",
    "convergence": "Newton's method step by step, against scikit-learn",
}


def main(argv: Sequence[str]) -> int:
    """Runs a benchmark and prints its table; the exit code is 1 if there is a regression, or the optima differ."""
    arguments = _parser().parse_args(argv)
    if arguments.what == "convergence":
        return convergence.main(arguments.C)
    if arguments.what == "preconditioners":
        preconditioning.main(arguments.json)
        return 0

    if arguments.what == "step" and arguments.case != "metric" and arguments.network:
        raise ConfigError("bench step --network: only --case metric has more than one network; leave it out")
    name = f"step {arguments.case}" if arguments.what == "step" and arguments.case else arguments.what
    baseline = load_baseline(name) if arguments.compare else None
    title, note, rows = _measured(name, arguments)
    if arguments.json:
        print(to_json(name, rows))
    else:
        print_table(title, note, rows, baseline, Console())
    if arguments.save:
        save_baseline(name, rows)
    worse = baseline is not None and any(is_regression(row, baseline.values.get((row.name, row.path))) for row in rows)
    return int(worse)


def _measured(name: str, arguments: argparse.Namespace) -> tuple[str, str, list[Row]]:
    """Title, note and rows."""
    match name:
        case "products":
            rows = products.measure(arguments.rounds, arguments.peer, _networks(arguments))
            return products.TITLE, products.NOTE, rows
        case "step simplenn":
            return step.SIMPLENN_TITLE, step.SIMPLENN_NOTE, step.measure_simplenn(arguments.rounds, arguments.precision)
        case "step metric":
            return metric.TITLE, metric.NOTE, metric.measure(arguments.rounds, _networks(arguments))
        case "step":
            return step.TITLE, step.NOTE, step.measure(arguments.rounds, _networks(arguments)[0])
        case "memory":
            return memory.TITLE, memory.NOTE, memory.measure()
        case "scaling":
            return scaling.TITLE, scaling.NOTE, scaling.measure()
        case _:
            rows = compiling.measure(arguments.rounds, _networks(arguments))
            return compiling.TITLE, compiling.NOTE, rows


def _networks(arguments: argparse.Namespace) -> list[Network]:
    """The networks asked for, with matrix products of the precision asked for."""
    keys = getattr(arguments, "network", None)
    chosen = [network for network in NETWORKS if keys is None or network.key in keys]
    return [replace(network, precision=arguments.precision) for network in chosen]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments bench", description=benchmarks.__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, summary in _BENCHMARKS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == "convergence":
            command.add_argument("--C", type=positive_number, default=1.0, help="inverse weight of the penalty")
            continue
        command.add_argument("--json", action="store_true", help="print the rows as JSON")
        if name == "preconditioners":
            continue
        command.add_argument(
            "--compare", action="store_true", help="show the stored baseline; exit code 1 if it is better"
        )
        command.add_argument("--save", action="store_true", help="store the values as the baseline")
        if name in ("products", "step", "compile"):
            command.add_argument("--rounds", type=positive_integer, help="interleaved rounds to take the median of")
            command.add_argument(
                "--precision",
                choices=["highest", "high", "default"],
                default="highest",
                help="of matrix products; the default keeps float32 out of TF32 and bf16 passes on GPU and TPU",
            )
        if name in ("products", "step", "compile"):
            keys = [network.key for network in NETWORKS]
            command.add_argument("--network", choices=keys, action="append", help="only this one (default: all)")
        if name == "products":
            command.add_argument(
                "--peer", choices=sorted(PEERS), action="append", default=[], help="also measure this package's product"
            )
        if name == "step":
            command.add_argument(
                "--case",
                choices=["metric", "simplenn"],
                help="steps in the metric of the gradients, or the work of simpleNN",
            )
    return parser
