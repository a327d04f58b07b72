"""`python -m experiments bench …`: what a curvature product costs, what preconditioners save, how Newton converges.

Machines are shared and noisy, so no time stands alone: every number of `products` is a time over that of
`value_and_grad` on the same batch, the two measured in turns, and the median over the turns. `preconditioners` counts
iterations.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import hfopt
from experiments import convergence, preconditioning
from experiments.problems.models import CNN, MLP
from hfopt.batch import examples
from hfopt.losses import output_hessian

_LOSS = optax.softmax_cross_entropy_with_integer_labels
# CG iterations of the two solves whose difference is timed: what a solve costs once cancels. The plain path of a CNN
# costs some twenty gradients a product on CPU, so a few products measure it well enough.
_ITERATIONS = {"hfopt": (2, 12), "plain": (1, 3)}

Product = Callable[[Any], Any]
Curvature = Callable[[hfopt.ValueFn, Any], Product]


class Case(NamedTuple):
    """A model and a batch of random data for it; `targets` are the ratios aimed at on CPU, by path."""

    name: str
    model: nn.Module
    input_shape: tuple[int, ...]
    batch_size: int
    targets: dict[str, float]
    rounds: int  # interleaved rounds to take the median of, unless --rounds says otherwise


CASES = (
    Case("MLP 784-500-250-10, batch 512", MLP((500, 250), 10, nn.relu), (784,), 512, {"hfopt": 1.20}, rounds=41),
    Case(
        "CNN of simpleNN, batch 256",
        CNN((32, 64, 64), (5, 3, 3), 10, nn.relu, nn.max_pool),
        (28, 28, 1),
        256,
        {"hfopt": 1.05},
        rounds=5,
    ),
)


def main(argv: Sequence[str]) -> int:
    """Run a benchmark and print its table; returns the exit code."""
    if argv and argv[0] == "convergence":
        return convergence.main(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m experiments bench", description=__doc__)
    parser.add_argument(
        "what",
        choices=["products", "preconditioners", "convergence"],
        help="products: one curvature product / one value_and_grad; preconditioners: CG iterations each one saves; "
        "convergence: Newton's method step by step, against scikit-learn",
    )
    parser.add_argument("--rounds", type=int, help="interleaved rounds to take the median of")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args(argv)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    if arguments.what == "preconditioners":
        rows = preconditioning.rows()
    else:
        rows = [row for case in CASES for row in product_ratios(case, arguments.rounds or case.rounds)]
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=2))
    elif arguments.what == "preconditioners":
        preconditioning.print_table(rows, machine())
    else:
        _print_products(rows)
    return 0


def product_ratios(case: Case, rounds: int) -> list[dict[str, Any]]:
    """The cost of one product inside the CG loop over that of one value_and_grad, for each path to a product.

    `hfopt` is the package's operator. `plain` is the same linearisation and the same B without the rewriting of
    convolutions; a model without convolutions has no such path.
    """
    key = jax.random.key(0)
    inputs = jax.random.normal(key, (case.batch_size, *case.input_shape))
    labels = jax.random.randint(key, (case.batch_size,), 0, 10)
    params = case.model.init(key, inputs[:1])
    value_fn = hfopt.Objective(case.model.apply, _LOSS).bind((inputs, labels))
    paths: dict[str, Curvature] = {"hfopt": lambda f, p: hfopt.gauss_newton(f, p).product}
    if isinstance(case.model, CNN):
        paths["plain"] = _plain_gauss_newton

    gradient = jax.jit(lambda params, value_fn: jax.value_and_grad(value_fn)(params))
    programs = {"gradient": gradient} | {
        f"{path} {steps}": jax.jit(partial(_solve, curvature, steps))
        for path, curvature in paths.items()
        for steps in _ITERATIONS[path]
    }
    times = _interleaved({name: partial(program, params, value_fn) for name, program in programs.items()}, rounds)
    rows = []
    for path in paths:
        few, many = _ITERATIONS[path]
        rounds_of = zip(times[f"{path} {few}"], times[f"{path} {many}"], times["gradient"], strict=True)
        ratios = [(long - short) / (many - few) / gradient for short, long, gradient in rounds_of]
        rows.append(
            {
                "case": case.name,
                "path": path,
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "target": case.targets.get(path),
                "gradient_ms": 1e3 * statistics.median(times["gradient"]),
            }
        )
    return rows


def _solve(curvature: Curvature, steps: int, params: Any, value_fn: hfopt.ValueFn) -> Any:
    _, gradient = jax.value_and_grad(value_fn)(params)
    return hfopt.cg(steps, stop=()).solve(curvature(value_fn, params), gradient, damping=1.0).solution


def _plain_gauss_newton(value_fn: hfopt.ValueFn, params: Any) -> Product:
    """The textbook product: linearise once, transpose once; convolutions as the model wrote them."""
    rows = examples(value_fn.batch)
    with jax.default_matmul_precision(value_fn.objective.precision):
        outputs, jvp = jax.linearize(lambda p: value_fn.objective.predict(p, rows.inputs), params)
        vjp = jax.linear_transpose(jvp, params)
        loss_hessian = output_hessian(_LOSS, outputs, rows)
        return lambda v: vjp(loss_hessian(jvp(v)))[0]


def _interleaved(programs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each program in each round, the programs taking turns; compiled and run once before."""
    for program in programs.values():
        jax.block_until_ready(program())
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[name].append(time.perf_counter() - start)
    return times


def machine() -> str:
    """One line: processor or accelerator, cores, versions."""
    device = jax.devices()[0]
    kind = platform.machine() if device.platform == "cpu" else device.device_kind
    return (
        f"{jax.device_count()} × {device.platform} ({kind}), {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


def _print_products(rows: list[dict[str, Any]]) -> None:
    table = Table(title="One product inside the CG loop / one value_and_grad", caption=machine(), box=box.SIMPLE_HEAD)
    table.add_column("model")
    table.add_column("path")
    for name in ("ratio", "range", "target on CPU", "value_and_grad"):
        table.add_column(name, justify="right")
    on_cpu = jax.default_backend() == "cpu"
    for row in rows:
        target = "" if row["target"] is None else f"≤ {row['target']:.2f}"
        if target and on_cpu:
            target += " met" if row["ratio"] <= row["target"] else " MISSED"
        spread = f"{row['lowest']:.2f} … {row['highest']:.2f}"
        table.add_row(row["case"], row["path"], f"{row['ratio']:.2f}", spread, target, f"{row['gradient_ms']:.1f} ms")
    Console().print(table)
