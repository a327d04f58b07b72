"""`python -m experiments bench preconditioners`: CG iterations saved at equal accuracy of the solution.

For a problem at fixed parameters and a fixed λ, each solve of (G + λI) d = −g runs until the quadratic model φ is
within 1e-3 of its minimum, φ(d) − φ* ≤ 1e-3 |φ*|: the same accuracy for all, since φ − φ* is half the squared error of
d in the norm of G + λI. φ* comes from a tight solve in float64; the solves are in float32, as users run them.
Iterations do not depend on the machine's speed, the seconds of set-up and solve together do. A set-up of 1 product is
one pass over the batch, forth and back; it pays after the number of steps that have to share it before the iterations
saved are more than its products.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console
from rich.table import Table

import hfopt
from experiments.benchmarks.measuring import machine
from experiments.benchmarks.networks import NETWORKS
from experiments.problems.digits import load_digits
from experiments.problems.models import CNN, MLP
from hfopt.solve.nystrom import Nystrom
from hfopt.solve.preconditioners import Jacobi, Preconditioner, SquaredGradients
from hfopt.solve.stopping import Progress

ACCURACY = 1e-3
_MAX_STEPS = 3000
_TRAINING_STEPS = 20


class _KroneckerState(NamedTuple):
    geometry: Any
    setup_products: Any


@dataclass(frozen=True)
class _Kronecker:
    """Q (D + λ)⁻¹ Qᵀ, in the bases of the gradients of parts of the batch: what training knows after as many steps."""

    metric: hfopt.kronecker
    parts: int = 20

    def init(self, params: Any) -> Any:
        return self.metric.init(params, momentum=False, curved=True)

    def update(self, state: Any, operator: hfopt.Operator, value_fn: hfopt.ValueFn, params: Any) -> _KroneckerState:
        inputs, targets, _ = value_fn.batch
        count = len(jax.tree.leaves(targets)[0]) // self.parts
        for i in range(self.parts):
            part = jax.tree.map(lambda x: x[i * count : (i + 1) * count], (inputs, targets))  # noqa: B023
            gradient = jax.grad(value_fn.objective.bind(part))(params)
            geometry = self.metric.geometry(state, gradient, None, value_fn, params)
            state = geometry.state
        geometry = geometry.curved(operator, value_fn, params)
        return _KroneckerState(geometry, 1 + geometry.products)

    def inverse(self, state: _KroneckerState, damping: Any) -> Callable[[Any], Any]:
        into, back, _ = state.geometry.coordinates
        damped = [1 / (d + damping) for d in state.geometry.curvature]
        return lambda r: back([d * x for d, x in zip(damped, into(r), strict=True)])


CHOICES: dict[str, Preconditioner | None] = {
    "none": None,
    "squared gradients, ¾": SquaredGradients(),
    "squared gradients, 1": SquaredGradients(power=1.0),
    "Jacobi, ¾": Jacobi(power=0.75),
    "Jacobi, 1": Jacobi(),
    "Nyström 32": Nystrom(32),
    "Nyström 128": Nystrom(128),
    "Kronecker": _Kronecker(hfopt.kronecker(decay=0.9, every=4, probes=2)),
}


class Case(NamedTuple):
    """A problem; ``steps`` of training by the default Hessian-free method before it is looked at a second time."""

    name: str
    objective: hfopt.Objective
    params: Any
    batch: tuple[Any, Any]
    damping: float
    steps: int


@dataclass(frozen=True)
class _Reaches:
    """Stop when φ ≤ target. The target is traced, so that both stages of a case share a program."""

    target: Any
    reason: ClassVar[hfopt.Stop] = hfopt.Stop.PROGRESS

    def __call__(self, progress: Progress) -> Any:
        return progress.values[progress.step] <= self.target


def main(as_json: bool) -> None:
    """Measures all cases and prints them."""
    found = rows()
    if as_json:
        print(json.dumps({"machine": machine(), "rows": found}, indent=2))
    else:
        print_table(found, machine())


def rows(cases: tuple[Callable[[], Case], ...] | None = None) -> list[dict[str, Any]]:
    """One dict for each case, stage and preconditioner."""
    return [row for make in cases or CASES for row in _case_rows(make())]


def _case_rows(case: Case) -> list[dict[str, Any]]:
    value_fn = case.objective.bind(jax.tree.map(jnp.asarray, case.batch))
    stages = {"start": case.params}
    if case.steps:
        stages[f"{case.steps} steps"] = _trained(case.params, value_fn, case.steps)
    solves = {name: jax.jit(partial(_solve, choice)) for name, choice in CHOICES.items()}
    found = []
    for stage, params in stages.items():
        target = (1 - ACCURACY) * _minimum(case, params)
        plain = None
        for name, solve in solves.items():
            arguments = params, value_fn, case.damping, target
            steps, reached, setup = (int(x) for x in solve(*arguments))
            began = time.perf_counter()
            jax.block_until_ready(solve(*arguments))
            seconds = time.perf_counter() - began
            if name == "none":
                plain = steps if reached else None
            saved = plain - steps if reached and plain is not None else None
            row = {
                "case": case.name,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "damping": case.damping,
                "stage": stage,
                "preconditioner": name,
                "iterations": steps if reached else None,
                "setup_products": setup,
                "seconds": seconds,
                "pays_after": math.ceil(setup / saved) if saved is not None and saved > 0 else None,
                "fewer": plain / max(steps, 1) if reached and plain is not None else None,
            }
            found.append(row)
    return found


def _solve(
    choice: Preconditioner | None, params: Any, value_fn: hfopt.ValueFn, damping: Any, target: Any
) -> tuple[Any, Any, Any]:
    """Iterations, whether φ reached the target, and products' worth of set-up."""
    operator = hfopt.gauss_newton(value_fn, params)
    rhs = optax.tree.scale(-1, jax.grad(value_fn)(params))
    inverse, setup = None, jnp.int32(0)
    if choice is not None:
        state = choice.update(choice.init(params), operator, value_fn, params)
        inverse, setup = choice.inverse(state, damping), state.setup_products
    solver = hfopt.cg(_MAX_STEPS, _Reaches(target))
    result = solver.solve(operator, rhs, damping=damping, preconditioner=inverse)
    return result.steps, result.model_value <= target, setup


def _minimum(case: Case, params: Any) -> float:
    """φ* in float64; preconditioned, so that it is the minimum for the ill-conditioned cases too."""
    with jax.enable_x64(True):
        wide = lambda x: jnp.asarray(x, jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else None)  # noqa: E731
        params, batch = jax.tree.map(wide, (params, case.batch))

        @jax.jit
        def solve(params: Any, value_fn: hfopt.ValueFn) -> tuple[Any, Any]:
            choice = SquaredGradients(power=0.5 if case.steps else 1.0)
            operator = hfopt.gauss_newton(value_fn, params)
            rhs = optax.tree.scale(-1, jax.grad(value_fn)(params))
            inverse = choice.inverse(choice.update(choice.init(params), operator, value_fn, params), case.damping)
            solver = hfopt.cg(_MAX_STEPS, (hfopt.relative_residual(1e-9), hfopt.relative_progress(1e-8)))
            result = solver.solve(operator, rhs, damping=case.damping, preconditioner=inverse)
            return result.model_value, result.stop

        minimum, stop = solve(params, case.objective.bind(batch))
        if int(stop) not in (hfopt.Stop.RESIDUAL, hfopt.Stop.PROGRESS, hfopt.Stop.SOLVED):
            raise RuntimeError(f"{case.name}: the tight solve ended with {hfopt.Stop(int(stop)).name}")
        return float(minimum)


def _trained(params: Any, value_fn: hfopt.ValueFn, steps: int) -> Any:
    tx = hfopt.hessian_free()

    @jax.jit
    def step(carry: tuple[Any, Any], value_fn: hfopt.ValueFn) -> tuple[Any, Any]:
        params, state = carry
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    carry = params, tx.init(params)
    for _ in range(steps):
        carry = step(carry, value_fn)
    return carry[0]


def _digits() -> tuple[Any, Any]:
    """Images (1437, 8, 8, 1) in [0, 1], labels (1437,)."""
    train = load_digits().train
    return np.asarray(train.inputs, np.float32) / 16, train.targets


def _classifier(name: str, model: nn.Module, examples: int | None = None) -> Case:
    images, labels = _digits()
    batch = images[:examples], labels[:examples]
    objective = hfopt.Objective(model.apply, optax.losses.softmax_cross_entropy_with_integer_labels)
    params = jax.jit(model.init)(jax.random.key(0), images[:1])
    return Case(name, objective, params, batch, damping=1e-4, steps=_TRAINING_STEPS)


def _mlp() -> Case:
    return _classifier("digits MLP 64-128-10", MLP((128,), 10, nn.tanh))


def _cnn() -> Case:
    return _classifier("digits CNN 8-16", CNN((8, 16), (3, 3), 10, nn.relu, nn.max_pool), examples=512)


def _autoencoder() -> Case:
    """64-32-16-8-4-8-16-32-64, logistic units and cross-entropy summed over the pixels, as in Martens 2010."""
    images, _ = _digits()
    model = MLP((32, 16, 8, 4, 8, 16, 32), 64, nn.sigmoid)
    pixels = images.reshape(len(images), -1)
    params = jax.jit(model.init)(jax.random.key(0), pixels[:1])
    # Three times Flax's weights: with its own, eight logistic layers pass hardly anything on.
    params = jax.tree.map(lambda p: 3 * p, params)
    loss = lambda z, y: optax.losses.sigmoid_binary_cross_entropy(z, y).sum(axis=-1)  # noqa: E731
    return Case(
        "digits autoencoder 64-…-4-…-64", hfopt.Objective(model.apply, loss), params, (pixels, pixels), 1e-3, 20
    )


def _regression() -> Case:
    """100 correlated features with scales over three decades, in random order: condition number of G about 1e6."""
    rng = np.random.default_rng(0)
    mixing = np.eye(100) + 0.05 * rng.normal(size=(100, 100))
    scales = rng.permutation(np.geomspace(1e-3, 1, 100) * 30)
    inputs = rng.normal(size=(1000, 100)) @ mixing * scales
    targets = inputs @ (rng.normal(size=100) / scales) + 0.1 * rng.normal(size=1000)
    objective = hfopt.Objective(lambda w, x: x @ w, optax.losses.l2_loss)
    batch = inputs.astype(np.float32), targets.astype(np.float32)
    # Linear: the curvature is the same everywhere, so there is nothing to train.
    return Case("regression, scales over 3 decades", objective, jnp.zeros(100), batch, damping=1e-5, steps=0)


def _network(key: str) -> Case:
    """One of those that products are measured on, with random data that it can learn by heart."""
    network = next(one for one in NETWORKS if one.key == key)
    value_fn = network.bind()
    batch = jax.tree.map(np.asarray, tuple(value_fn.batch)[:2])
    return Case(network.name, value_fn.objective, network.params(), batch, damping=1e-3, steps=_TRAINING_STEPS)


def _lstm() -> Case:
    return _network("lstm")


def _transformer() -> Case:
    return _network("transformer")


CASES: tuple[Callable[[], Case], ...] = (_mlp, _cnn, _autoencoder, _regression, _lstm, _transformer)


def print_table(rows: list[dict[str, Any]], caption: str) -> None:
    """The rows as a table; a star marks the fewest iterations of a case and stage."""
    table = Table(
        title=f"CG iterations until φ − φ* ≤ {ACCURACY:g} |φ*|",
        caption=f"pays after: steps that must share a set-up. {caption}",
    )
    table.add_column("preconditioner", min_width=max(map(len, CHOICES)) + 2)
    for name in ("iterations", "times fewer", "set-up", "pays after", "seconds"):
        table.add_column(name, justify="right")
    groups = dict.fromkeys((row["case"], row["parameters"], row["damping"], row["stage"]) for row in rows)
    for case, parameters, damping, stage in groups:
        members = [row for row in rows if (row["case"], row["stage"]) == (case, stage)]
        least = min((row["iterations"] for row in members if row["iterations"] is not None), default=None)
        table.add_section()
        table.add_row(f"[bold]{case}[/bold], {stage}\nn = {parameters}, λ = {damping:g}")
        for row in members:
            iterations = f"> {_MAX_STEPS}" if row["iterations"] is None else str(row["iterations"])
            table.add_row(
                f"  {row['preconditioner']}",
                f"{iterations} *" if row["iterations"] == least else f"{iterations}  ",
                "" if row["fewer"] is None else f"{row['fewer']:.1f}",
                str(row["setup_products"]),
                "" if not row["pays_after"] else str(row["pays_after"]),
                f"{row['seconds']:.2f}",
            )
    Console().print(table)
