"""What a whole Hessian-free step costs, over one value_and_grad on the same batch; and the work of simpleNN."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import hfopt
from experiments.benchmarks.measuring import Row, flops, interleaved
from experiments.benchmarks.networks import NETWORKS, Network
from experiments.benchmarks.products import arithmetic
from experiments.problems.digits import load_digits
from experiments.problems.models import CNN

TITLE = "One Hessian-free step / one value_and_grad"
NOTE = (
    "The defaults, with k CG iterations. The target is 1.2 (k + 2). Products and losses are what a step reports to "
    "have computed besides its own value_and_grad; arithmetic is the ratio of operations that these make."
)
SIMPLENN_TITLE = (
    "The work of simpleNN: digits at 28×28, its CNN, squared loss, 288 of 1,437 images for the curvature, C = 1"
)
SIMPLENN_NOTE = (
    "Ratios to one value_and_grad over all images. presets.simplenn() from one start; a product is one of the CG loop, "
    "over 288 images."
)
_ITERATIONS = (10, 50)
_ROUNDS, _SIMPLENN_STEPS, _GN_SIZE = 15, 6, 288


def measure(rounds: int | None = None, network: Network = NETWORKS[0]) -> list[Row]:
    """A row for each number of CG iterations, with and without a warm start."""
    value_fn, params = network.bind(), network.params()
    gradient = jax.jit(lambda params, f: jax.value_and_grad(f)(params))
    programs: dict[str, Callable[[], Any]] = {"gradient": partial(gradient, params, value_fn)}
    for k in _ITERATIONS:
        # So short are the steps that the loop stays where it is: at a minimum there is nothing left to iterate.
        region = hfopt.earned_trust(radius=1e-12, initial_cg_steps=k)
        make = partial(hfopt.hessian_free, solver=hfopt.cg(max_steps=k, stop=()), trust_region=region)
        # Their first calls are not measured: from the second on there is a solution to start from and a step to judge.
        programs[f"k = {k}"] = loop(make(), params, value_fn)
        programs[f"k = {k}, from zero"] = loop(make(warm_start=None), params, value_fn)
    times = interleaved(programs, rounds or _ROUNDS)
    product, loss = arithmetic(network), flops(value_fn, params) / flops(jax.value_and_grad(value_fn), params)
    rows = []
    for name in list(programs)[1:]:
        info = programs[name]().info
        k, products, losses = int(info.cg_steps), int(info.products), int(info.evaluations)
        assert name.startswith(f"k = {k}")
        ratios = [a / b for a, b in zip(times[name], times["gradient"], strict=True)]
        counted = {"arithmetic": 1 + products * product + losses * loss, "products": products, "losses": losses}
        rows.append(Row.timed(network.name, name, ratios, 1.2 * (k + 2), **counted))
    return rows


def loop(tx: Any, params: Any, value_fn: hfopt.ValueFn) -> Callable[[], Any]:
    """A training loop, one step a call, with the buffers of the last step donated to the next."""
    step = jax.jit(partial(train_step, tx), donate_argnums=(0, 1))
    held = jax.tree.map(jnp.copy, (params, tx.init(params)))

    def program() -> Any:
        nonlocal held
        *held, _ = step(*held, value_fn)
        jax.block_until_ready(held)
        return held[1]

    return program


def measure_simplenn(
    rounds: int | None = None, precision: str = "highest", size: int = 28, steps: int = _SIMPLENN_STEPS
) -> list[Row]:
    """The first steps of simpleNN's method, and one product.

    Args:
      rounds: to take the median of, for the product and for every step.
      precision: of matrix products.
      size: of the images.
      steps: how many to take.
    """
    train = load_digits().train
    images = jax.image.resize(jnp.asarray(train.inputs) / 16, (len(train), size, size, 1), "linear")
    images -= images.mean(axis=0)
    targets = jax.nn.one_hot(jnp.asarray(train.targets), 10)
    model = CNN((32, 64, 64), (5, 3, 3), 10, nn.relu, nn.max_pool)
    loss = lambda z, y: optax.losses.squared_error(z, y).sum(-1)  # noqa: E731
    objective = hfopt.Objective(model.apply, loss, l2=1 / len(train), precision=precision)
    params = model.init(jax.random.key(0), images[:1])
    drawn = np.random.default_rng(0)
    bind = lambda rows: objective.bind((images, targets), curvature_batch=(images[rows], targets[rows]))  # noqa: E731
    sample = lambda: np.sort(drawn.choice(len(train), _GN_SIZE, replace=False))  # noqa: E731

    value_fn = bind(sample())
    gradient = jax.jit(lambda params, f: jax.value_and_grad(f)(params))
    programs = {"gradient": partial(gradient, params, value_fn)} | {
        str(count): partial(jax.jit(partial(_products, count)), params, value_fn) for count in (2, 12)
    }
    rounds = rounds or 5
    times = interleaved(programs, rounds)
    seconds = statistics.median(times["gradient"])
    products = [(many - few) / 10 for few, many in zip(times["2"], times["12"], strict=True)]
    rows = [
        Row("value_and_grad", "", 1.0, details={"seconds": seconds}),
        _in_gradients("product", products, seconds),
    ]

    tx = hfopt.presets.simplenn()
    state = tx.init(params)
    step = jax.jit(partial(train_step, tx)).lower(params, state, value_fn).compile()
    for number in range(1, steps + 1):
        value_fn = bind(sample())
        taken = interleaved({"step": partial(step, params, state, value_fn)}, rounds)["step"]
        params, state, value = step(params, state, value_fn)
        counted = {"CG iterations": int(state.info.cg_steps), "f": float(value)}
        rows.append(_in_gradients(f"step {number}", taken, seconds, **counted))
    return rows


def _in_gradients(name: str, seconds: Sequence[float], gradient: float, **details: Any) -> Row:
    ratios = [taken / gradient for taken in seconds]
    return Row.timed(name, "", ratios, seconds=statistics.median(seconds), **details)


def train_step(tx: Any, params: Any, state: Any, value_fn: hfopt.ValueFn) -> Any:
    """(new params, new state, value before): what a user's loop does each time."""
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
    return optax.apply_updates(params, updates), state, value


def _products(count: int, params: Any, value_fn: hfopt.ValueFn) -> Any:
    operator = hfopt.gauss_newton(value_fn, params)
    return hfopt.cg(count, stop=()).solve(operator, params, damping=1.0).solution
