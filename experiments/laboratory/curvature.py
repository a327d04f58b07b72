"""The curvature of a trained model over its whole training set: the numbers of the report.

Everything is of the objective as it was trained, penalty included, at the parameters of the run's last checkpoint.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import hfopt
from experiments.problems.problem import Problem
from experiments.runs.recording import Checkpoints, read_config
from experiments.runs.runner import build_plan
from experiments.settings.config import Config
from experiments.settings.errors import RunError
from hfopt import critical_points, spectra
from hfopt.curvature.layers import layers
from hfopt.vectors import vdot

LARGEST, SMALLEST = 20, 3  # eigenpairs
MOST_DENSE = 1500  # parameters, up to which whole matrices are formed for a picture
_BASIS = 150  # Lanczos vectors of the Hessian: how sure the verdict is of having missed nothing
_PROBES, _DEPTH = 4, 50
_POINTS = 33  # of the loss along a direction


class Spectrum(NamedTuple):
    """What is computed of one matrix."""

    pairs: spectra.Eigenpairs
    density: spectra.Density
    trace: hfopt.Estimate


class Line(NamedTuple):
    """The objective along θ + t v, for a unit eigenvector v."""

    name: str
    eigenvalue: float
    steps: np.ndarray  # t
    values: np.ndarray
    slope: float  # gᵀv


class Curvature(NamedTuple):
    """The curvature of a model at its parameters."""

    value: float
    hessian: Spectrum
    gauss_newton: Spectrum
    point: critical_points.CriticalPoint
    layers: dict[str, int]  # parameters of each
    shares: np.ndarray  # (eigenvectors of H, layers): the squared norm of each part, adding up to one
    gradient_share: float  # of ‖∇f‖² along the largest eigenvectors of H
    lines: list[Line]
    matrices: dict[str, np.ndarray]  # H, G and S of small models, else none


def trained(folder: Path) -> tuple[Config, Callable[[Problem], Any]]:
    """The configuration of a run, and its last parameters as a function of the problem.

    Raises:
      RunError: the folder is not a run's, or it has no checkpoint.
    """
    if not (folder / "config.yaml").exists():
        raise RunError(f"{folder} is not a run folder: it has no config.yaml")
    config = read_config(folder)

    def restore(problem: Problem) -> Any:
        checkpoints = Checkpoints(folder)
        try:
            restored = checkpoints.restore(build_plan(config, problem).initial_state())
        finally:
            checkpoints.close()
        if restored is None:
            raise RunError(f"{folder} has no checkpoint yet; continue its run with --resume")
        return restored[0].params

    return config, restore


def compute(problem: Problem, params: Any, chunk_size: int, say: Callable[[str], None]) -> Curvature:
    """Eigenpairs, densities, traces, the kind of critical point, and the loss along the principal directions."""
    train = problem.dataset.train
    data = jax.device_put((train.inputs, train.targets))
    objective = hfopt.Objective(problem.predict, problem.loss, l2=problem.l2, precision=problem.precision)
    value_fn = objective.bind(data, chunk_size=chunk_size)
    keys = jax.random.split(jax.random.key(0), 2)

    h = hfopt.hessian(value_fn, params)
    hessian = _spectrum(h, "H", keys[0], say, smallest=SMALLEST, basis=_BASIS)
    g = hfopt.gauss_newton(value_fn, params)
    gauss_newton = _spectrum(g, "G", keys[1], say)

    began = time.perf_counter()
    point = critical_points.classify(value_fn, params, pairs=hessian.pairs)
    value, gradient = jax.jit(lambda p, f: jax.value_and_grad(f)(p))(params, value_fn)
    lines = _lines(value_fn, params, float(value), gradient, hessian.pairs)
    say(f"critical point and lines: {time.perf_counter() - began:.1f} s")
    matrices: dict[str, np.ndarray] = {}
    if h.size <= MOST_DENSE:
        matrices = {name: np.asarray(matrix.to_dense()) for name, matrix in (("H", h), ("G", g), ("S = H − G", h - g))}
    named = layers(params)
    leaves = jax.tree.leaves(params)
    return Curvature(
        float(value),
        hessian,
        gauss_newton,
        point,
        {name: sum(leaves[i].size for i in numbers) for name, numbers in named.items()},
        _shares(hessian.pairs.vectors, list(named.values())),
        _share_along(hessian.pairs.vectors, gradient),
        lines,
        matrices,
    )


def _spectrum(
    operator: hfopt.Operator, name: str, key: jax.Array, say: Callable[[str], None], smallest: int = 0, **options: Any
) -> Spectrum:
    keys = jax.random.split(key, 3)
    began = time.perf_counter()
    pairs = spectra.eigenpairs(operator, keys[0], largest=LARGEST, smallest=smallest, **options)
    say(f"eigenpairs of {name}: {pairs.products} products, {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    density = jax.block_until_ready(spectra.density(operator, keys[1], _PROBES, _DEPTH))
    trace = operator.estimate_trace(keys[2], min(40, 2 * operator.size))
    say(f"density and trace of {name}: {_PROBES * _DEPTH + 40} products, {time.perf_counter() - began:.1f} s")
    return Spectrum(pairs, density, trace)


def _shares(vectors: Any, numbers: list[tuple[int, ...]]) -> np.ndarray:
    leaves = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(vectors)]
    return np.stack([sum((leaves[i] ** 2).sum(axis=1) for i in layer) for layer in numbers], axis=1)


def _share_along(vectors: Any, gradient: Any) -> float:
    largest = jax.tree.map(lambda v: v[-LARGEST:], vectors)
    along = jax.vmap(lambda v: vdot(v, gradient))(largest)
    return float((along**2).sum() / jnp.maximum(vdot(gradient, gradient), jnp.finfo(along.dtype).tiny))


def _lines(value_fn: hfopt.ValueFn, params: Any, value: float, gradient: Any, pairs: spectra.Eigenpairs) -> list[Line]:
    """Along the two largest and the smallest eigenvalue, as far as the objective is at most half as large again."""

    @jax.jit
    def along(params: Any, direction: Any, steps: jax.Array, value_fn: hfopt.ValueFn) -> jax.Array:
        moved = lambda t: jax.tree.map(lambda p, v: p + t.astype(p.dtype) * v, params, direction)  # noqa: E731
        return jax.lax.map(lambda t: value_fn(moved(t)), steps)

    def reached(direction: Any, eigenvalue: float) -> tuple[np.ndarray, np.ndarray]:
        reach = np.sqrt(2 * max(abs(value), 1e-12) / max(abs(eigenvalue), 1e-12))  # where ½ |λ| t² is the value
        for _ in range(20):
            ends = along(params, direction, jnp.array([-reach, reach]), value_fn)
            if ends.max() <= value + abs(value) / 2:
                break
            reach /= 1.6
        steps = np.linspace(-reach, reach, _POINTS)
        return steps, np.asarray(along(params, direction, jnp.asarray(steps), value_fn))

    found = []
    last = len(pairs.values) - 1
    for name, i in (("largest", last), ("second largest", last - 1), ("smallest", 0)):
        eigenvalue = float(pairs.values[i])
        direction = jax.tree.map(lambda v, i=i: v[i], pairs.vectors)
        slope = float(vdot(gradient, direction))
        found.append(Line(f"{name} eigenvalue of H", eigenvalue, *reached(direction, eigenvalue), slope))
    return found
