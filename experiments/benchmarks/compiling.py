"""How long a Hessian-free step takes to compile, over value_and_grad of the same objective."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

import hfopt
from experiments.benchmarks.measuring import Row
from experiments.benchmarks.networks import NETWORKS, Network
from experiments.benchmarks.step import train_step

TITLE = "Tracing and compiling a Hessian-free step / value_and_grad"
NOTE = "A step at the defaults, its own value_and_grad included; every round compiles both anew."
_ROUNDS, _TARGET = 3, 3.0


def measure(rounds: int | None = None, networks: Sequence[Network] = NETWORKS) -> list[Row]:
    """A row for each network."""
    return [_row(network, rounds or _ROUNDS) for network in networks]


def _row(network: Network, rounds: int) -> Row:
    value_fn, params = network.bind(), network.params()
    tx = hfopt.hessian_free()
    state = tx.init(params)
    gradients, steps = [], []
    for _ in range(rounds):
        gradients.append(_seconds(lambda params, f: jax.value_and_grad(f)(params), params, value_fn))
        steps.append(_seconds(lambda *arguments: train_step(tx, *arguments), params, state, value_fn))
    ratios = [step / gradient for step, gradient in zip(steps, gradients, strict=True)]
    details = {"value_and_grad (s)": sorted(gradients)[rounds // 2], "step (s)": sorted(steps)[rounds // 2]}
    return Row.timed(network.name, "", ratios, _TARGET, **details)


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    jax.clear_caches()
    began = time.perf_counter()
    jax.jit(function).lower(*arguments).compile()
    return time.perf_counter() - began
