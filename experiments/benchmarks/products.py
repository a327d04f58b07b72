"""What one curvature product costs inside the CG loop, over one value_and_grad on the same batch."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

import hfopt
from experiments.benchmarks.measuring import Row, flops, interleaved
from experiments.benchmarks.networks import NETWORKS, Network
from experiments.benchmarks.peers import PEERS
from hfopt.batch import examples
from hfopt.losses import output_hessian

TITLE = "One product inside the CG loop / one value_and_grad"
NOTE = (
    "arithmetic: the same ratio of operations as XLA counts them, for a product where the model is linearised already. "
    "plain: one linearisation, convolutions as the model wrote them. keep, recompute: the memory of Objective.bind. "
    "A product is timed as the difference of two solves of different length."
)
_FEW = 1  # CG iterations of the shorter solve

Product = Callable[[Any], Any]
Curvature = Callable[[hfopt.ValueFn, Any], Product]


def measure(rounds: int | None = None, peers: Sequence[str] = (), networks: Sequence[Network] = NETWORKS) -> list[Row]:
    """A row for each network and path to its product.

    Args:
      rounds: interleaved rounds to take the median of; ``None``: those of the network.
      peers: packages whose product is measured beside ours, on the unchunked MLP and CNN.
      networks: what to measure.
    """
    return [row for network in networks for row in _ratios(network, rounds or network.rounds, peers)]


class _Path(NamedTuple):
    """A way to the product, and the CG iterations of the longer of the two solves that are timed."""

    curvature: Curvature
    value_fn: hfopt.ValueFn
    iterations: int = 11


def _ratios(network: Network, rounds: int, peers: Sequence[str]) -> list[Row]:
    whole, params = network.bind(chunked=False), network.params()
    paths = _paths(network, whole, peers)
    gradient = jax.jit(lambda params, f: jax.value_and_grad(f)(params))
    programs = {"gradient": partial(gradient, params, whole)}
    if network.chunk_size is not None:
        programs["chunked gradient"] = partial(gradient, params, network.bind())
    for name, path in paths.items():
        for steps in (_FEW, path.iterations):
            solve = jax.jit(partial(_solve, path.curvature, steps))
            programs[f"{name} {steps}"] = partial(solve, params, path.value_fn)
    times = interleaved(programs, rounds)

    def seconds(name: str) -> list[float]:
        """Of one product, in each round."""
        few, many = times[f"{name} {_FEW}"], times[f"{name} {paths[name].iterations}"]
        return [(long - short) / (paths[name].iterations - _FEW) for short, long in zip(few, many, strict=True)]

    def over(some: Sequence[float], others: Sequence[float]) -> list[float]:
        return [a / b for a, b in zip(some, others, strict=True)]

    main, *others = paths
    details = {"arithmetic": arithmetic(network), "value_and_grad (ms)": 1e3 * statistics.median(times["gradient"])}
    rows = [Row.timed(network.name, main, over(seconds(main), times["gradient"]), network.target, **details)]
    rows += [Row.timed(network.name, name, over(seconds(name), times["gradient"])) for name in others]
    for peer in (name for name in others if name in PEERS):
        target = 0.1 if network.key == "cnn" else 1.0
        rows.append(Row.timed(network.name, f"hfopt / {peer}", over(seconds(main), seconds(peer)), target))
    if network.chunk_size is not None:
        ratios = over(times["chunked gradient"], times["gradient"])
        rows.append(Row.timed(network.name, "its value_and_grad", ratios, 1.15))
    return rows


def _paths(network: Network, whole: hfopt.ValueFn, peers: Sequence[str]) -> dict[str, _Path]:
    """The ways to a product of the network; the first is the one that has a target."""
    if network.chunk_size is not None:
        return {f"hfopt, {kind}": _Path(_ours, network.bind(memory=kind)) for kind in ("keep", "recompute")}
    paths = {"hfopt": _Path(_ours, whole)}
    slow = 2 if network.key == "cnn" else 11  # one product of many gradients measures it well enough
    if network.key == "cnn":
        paths["plain"] = _Path(_plain, whole, slow)
    if network.key in ("mlp", "cnn"):
        paths |= {peer: _Path(PEERS[peer], whole, slow) for peer in dict.fromkeys(peers)}
    return paths


def _solve(curvature: Curvature, steps: int, params: Any, value_fn: hfopt.ValueFn) -> Any:
    _, gradient = jax.value_and_grad(value_fn)(params)
    return hfopt.cg(steps, stop=()).solve(curvature(value_fn, params), gradient, damping=1.0).solution


def _ours(value_fn: hfopt.ValueFn, params: Any) -> Product:
    return hfopt.gauss_newton(value_fn, params).product


def _plain(value_fn: hfopt.ValueFn, params: Any) -> Product:
    """The textbook product: linearise once, transpose once; convolutions as the model wrote them."""
    rows = examples(value_fn.batch)
    objective = value_fn.objective
    with jax.default_matmul_precision(objective.precision):
        outputs, jvp = jax.linearize(lambda p: objective.predict(p, rows.inputs), params)
        vjp = jax.linear_transpose(jvp, params)
        loss_hessian = output_hessian(objective.loss, outputs, rows)
        return lambda v: vjp(loss_hessian(jvp(v)))[0]


def arithmetic(network: Network) -> float:
    """Operations of one product, over those of one value_and_grad, as XLA counts them."""
    value_fn, params = network.bind(chunked=False, countable=True), network.params()

    def products(count: int, params: Any, vectors: list[Any]) -> Any:
        operator = hfopt.gauss_newton(value_fn, params)
        return [operator @ vector for vector in vectors[:count]]

    vectors = [params, jax.tree.map(lambda x: 2 * x + 1, params)]
    one, two = (flops(partial(products, count), params, vectors) for count in (1, 2))
    return (two - one) / flops(jax.value_and_grad(value_fn), params)
