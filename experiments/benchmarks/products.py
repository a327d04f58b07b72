"""What one curvature product costs inside the CG loop, over one value_and_grad on the same batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
    "plain: one linearisation, and convolutions as the model wrote them. A product is timed as the difference of two "
    "solves of different length."
)
_FEW = 2  # CG iterations of the shorter solve

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


def _ratios(network: Network, rounds: int, peers: Sequence[str]) -> list[Row]:
    value_fn, whole, params = network.bind(), network.bind(chunked=False), network.params()
    paths: dict[str, tuple[Curvature, int]] = {"hfopt": (_ours, 12)}
    if network.key == "cnn":
        paths["plain"] = (_plain, 4)  # a few products of many gradients each measure it well enough
    if network.key in ("mlp", "cnn"):
        paths |= {peer: (PEERS[peer], 4 if network.key == "cnn" else 12) for peer in peers}

    gradient = jax.jit(lambda params, f: jax.value_and_grad(f)(params))
    programs = {"gradient": partial(gradient, params, whole)}
    if network.chunk_size is not None:
        programs["chunked gradient"] = partial(gradient, params, value_fn)
    for path, (curvature, many) in paths.items():
        for steps in (_FEW, many):
            solve = jax.jit(partial(_solve, curvature, steps))
            programs[f"{path} {steps}"] = partial(solve, params, value_fn)
    times = interleaved(programs, rounds)

    milliseconds = 1e3 * sorted(times["gradient"])[rounds // 2]
    rows = []
    for path, (_, many) in paths.items():
        turns = zip(times[f"{path} {_FEW}"], times[f"{path} {many}"], times["gradient"], strict=True)
        ratios = [(long - short) / (many - _FEW) / gradient for short, long, gradient in turns]
        if path == "hfopt":
            details = {"arithmetic": _arithmetic(network), "value_and_grad (ms)": milliseconds}
            rows.append(Row.timed(network.name, path, ratios, network.target, **details))
        else:
            rows.append(Row.timed(network.name, path, ratios))
    ours = [long - short for short, long in zip(times[f"hfopt {_FEW}"], times["hfopt 12"], strict=True)]
    for peer in set(peers) & set(paths):
        _, many = paths[peer]
        theirs = [long - short for short, long in zip(times[f"{peer} {_FEW}"], times[f"{peer} {many}"], strict=True)]
        ratios = [(a / 10) / (b / (many - _FEW)) for a, b in zip(ours, theirs, strict=True)]
        target = 0.1 if network.key == "cnn" else 1.0
        rows.append(Row.timed(network.name, f"hfopt / {peer}", ratios, target))
    if network.chunk_size is not None:
        ratios = [a / b for a, b in zip(times["chunked gradient"], times["gradient"], strict=True)]
        rows.append(Row.timed(network.name, "its value_and_grad", ratios, 1.15))
    return rows


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


def _arithmetic(network: Network) -> float:
    """Operations of one product, over those of one value_and_grad, from compiled programs."""
    value_fn, params = network.bind(chunked=False, countable=True), network.params()

    def products(count: int, params: Any, vectors: list[Any]) -> Any:
        operator = hfopt.gauss_newton(value_fn, params)
        return [operator @ vector for vector in vectors[:count]]

    vectors = [params, jax.tree.map(lambda x: 2 * x + 1, params)]
    one, two = (flops(partial(products, count), params, vectors) for count in (1, 2))
    return (two - one) / flops(jax.value_and_grad(value_fn), params)
