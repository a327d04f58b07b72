"""Eigenvalues and eigenvectors of operators, and what they make of a vector: extreme ones, all of them, densities.

A network's matrices are far too large to hold. Their extreme eigenpairs, and how the others are distributed, take a few
hundred products. Every pair comes with its residual ‖A v − λ v‖, computed by a product of its own: some eigenvalue is
within the residual of λ.
"""

import itertools
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hfopt.analysis.density import Density, density
from hfopt.analysis.krylov import Krylov, empty, extend
from hfopt.arguments import require_key
from hfopt.curvature.flat import Flat, mapped
from hfopt.curvature.operator import Operator
from hfopt.vectors import norms, vdot

__all__ = ["Density", "Eigenpairs", "contributions", "decompose", "density", "eigenpairs", "lanczos", "sharpness"]

_MOST_DENSE = 10_000  # rows: 800 MB in float64


class Eigenpairs(NamedTuple):
    """Eigenvalues and -vectors of a symmetric A, ascending.

    Attributes:
      values: (k,).
      vectors: a stack of unit vectors shaped like the parameters; every leaf has a leading axis of length k.
      residuals: (k,), ‖A v − λ v‖: there is an eigenvalue of A in [λ − residual, λ + residual].
      converged: (k,), whether the residual is within the tolerance.
      products: how many were taken, those for the residuals included.
      basis: Lanczos steps before the first restart, what the certainty of having missed nothing grows with.
      smallest: how many, the first, are from the lower end of the spectrum; the others are from the upper end.
    """

    values: jax.Array
    vectors: Any
    residuals: jax.Array
    converged: jax.Array
    products: int
    basis: int
    smallest: int


def eigenpairs(
    operator: Operator,
    key: jax.Array,
    *,
    largest: int = 0,
    smallest: int = 0,
    tolerance: float | None = None,
    basis: int | None = None,
    max_products: int | None = None,
) -> Eigenpairs:
    """The extreme eigenpairs of a symmetric operator, by Lanczos with thick restarts and full reorthogonalisation.

    When the pairs have converged, the search goes on once from a new random vector orthogonal to them, and again as
    long as that changes them: one Krylov space holds one vector of an eigenvalue that is there several times.

    Args:
      operator: see `hfopt.Operator`. Call this outside ``jax.jit``: how long it takes depends on the numbers.
      key: of the random vectors.
      largest, smallest: how many of each end of the spectrum, by value and not by size; at least one in all.
      tolerance: of residuals, relative to the largest |λ| found; ``None``: ε^⅔ of the dtype, 4e-11 in float64 and 2e-5
        in float32. No residual is asked to be below 100 ε, the rounding of a product. Errors of values are of the order
        of squared residuals over gaps.
      basis: vectors to hold; ``None``: twice as many as pairs, and 20, at least 60.
      max_products: when to stop whatever has converged, looked at between restarts; ``None``: 30 times ``basis``. What
        has not converged is returned too, and says so.

    Returns:
      `Eigenpairs`, ascending: the smallest, then the largest; all n of them where so many or more are asked for.

    Raises:
      ValueError: no pairs are asked for; ``basis`` is too small for them.
      FloatingPointError: a product is not finite.

    References:
      Wu & Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", 2000; Parlett, "The symmetric
      eigenvalue problem", 1998, chapters 4 (residuals) and 13.
    """
    if largest < 0 or smallest < 0 or largest + smallest < 1:
        raise ValueError(
            f"eigenpairs: ask for at least one pair, got `largest` = {largest} and `smallest` = {smallest}."
        )
    require_key("eigenpairs", key)
    flat = operator.flat
    if largest + smallest >= flat.size:
        largest, smallest = flat.size, 0
    wanted = largest + smallest
    size = min(flat.size, max(2 * wanted + 20, 60) if basis is None else basis)
    if size < min(flat.size, wanted + 2):
        raise ValueError(f"eigenpairs: `basis` must be at least {wanted + 2} for {wanted} pairs, got {basis}.")
    limit = 30 * size if max_products is None else max_products
    eps = machine_epsilon(operator)
    tolerance = eps ** (2 / 3) if tolerance is None else tolerance

    keys = map(partial(jax.random.fold_in, key), itertools.count())
    krylov, filled, products = empty(_normal(next(keys), flat), size), 0, 0
    confirmed: np.ndarray | None = None
    while True:
        krylov = extend(flat.product, flat.captured, krylov, filled, next(keys))
        products += size - filled
        values, vectors, coupling = _ritz(krylov)
        ends = np.r_[:smallest, size - largest : size]
        scale = float(abs(values).max())
        done = bool((abs(coupling[ends]) <= tolerance * scale / 4).all()) or size == flat.size
        unchanged = confirmed is not None and np.allclose(values[ends], confirmed, rtol=0, atol=tolerance * scale)
        if (done and (unchanged or size == flat.size)) or products >= limit:
            break
        confirmed = values[ends] if done else confirmed
        spare = 0 if done else (size - wanted) // 2 - 1
        krylov, filled = _restart(krylov, values, vectors, coupling, smallest, largest, spare)
        if done:  # on from a vector that is not in the space, without what still was on its way to convergence
            krylov = _renewed(krylov, filled, _normal(next(keys), flat))
    return _pairs(flat, krylov, vectors[:, ends], max(tolerance, 100 * eps) * scale, products, smallest)


def decompose(operator: Operator) -> Eigenpairs:
    """The eigen-decomposition A = Q Λ Qᵀ in full, for small problems: all n pairs, from the dense matrix.

    Raises:
      ValueError: more than 10,000 rows; take `eigenpairs`.
    """
    flat = operator.flat
    if flat.size > _MOST_DENSE:
        raise ValueError(f"decompose: {flat.size} rows are too many for a dense matrix; take eigenpairs or density.")
    matrix = operator.to_dense()
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    residuals = norms(_combined(matrix, vectors) - vectors * values[None], axis=0)
    bound = flat.size * jnp.finfo(flat.dtype).eps * jnp.abs(values).max()
    return Eigenpairs(values, jax.vmap(flat.unravel)(vectors.T), residuals, residuals <= bound, flat.size, flat.size, 0)


def contributions(pairs: Eigenpairs, x: Any) -> jax.Array:
    """(vᵢᵀx)² λᵢ, shape (k,): what every eigenpair contributes to the quadratic form xᵀAx.

    Over all n pairs they add up to it.
    """
    along = jax.vmap(lambda v: vdot(v, x))(pairs.vectors)
    return along**2 * pairs.values.astype(along.dtype)


def sharpness(operator: Operator, key: jax.Array, steps: int = 20) -> tuple[jax.Array, jax.Array]:
    """λmax of a curvature operator and its residual, from a fixed number of Lanczos steps; usable inside ``jax.jit``.

    Gradient descent with learning rate η is stable on a quadratic while λmax < 2/η. The value is the largest Ritz
    value, so never more than λmax up to rounding.

    Args:
      operator: such as ``hfopt.hessian(value_fn, params)``.
      key: of the random start.
      steps: products; more bring the value closer.

    Returns:
      The value and the residual |β y_m|, scalars.
    """
    krylov = lanczos(operator, key, steps)
    size = krylov.projected.shape[1]
    square = krylov.projected[:size]
    values, vectors = jnp.linalg.eigh((square + square.T) / 2)
    return values[-1], jnp.abs(krylov.projected[size, size - 1] * vectors[-1, -1])


def lanczos(operator: Operator, key: jax.Array, steps: int, start: Any = None) -> Krylov:
    """``steps`` steps of Lanczos, at most n, as they are: the basis, and A projected on it.

    Where the space is exhausted it goes on from a random vector: the values stay finite and right, the off-diagonal
    entry there is zero.

    Args:
      operator: see `hfopt.Operator`.
      key: of random vectors.
      steps: products.
      start: the first vector, shaped like the parameters; ``None``: a random one.

    Returns:
      A `Krylov`, whose ``projected[:steps]`` is tridiagonal up to rounding.

    Raises:
      ValueError: ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"lanczos: `steps` must be at least 1, got {steps}.")
    require_key("lanczos", key)
    flat = operator.flat
    first, second = jax.random.split(key)
    vector = _normal(first, flat) if start is None else flat.ravel(start)
    return extend(flat.product, flat.captured, empty(vector, min(steps, flat.size)), 0, second)


def machine_epsilon(operator: Operator) -> float:
    """That of the coarsest dtype among the parameters: what products are rounded to."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(operator.example))


def _normal(key: jax.Array, flat: Flat) -> jax.Array:
    return jax.random.normal(key, (flat.size,), flat.dtype)


def _ritz(krylov: Krylov) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ritz values, ascending, their vectors in the basis, and their residuals' coefficients along its last row."""
    projected = np.asarray(krylov.projected, np.float64)
    if not np.isfinite(projected).all():
        raise FloatingPointError("eigenpairs: a product with the operator is not finite; look at the parameters.")
    size = projected.shape[1]
    square = projected[:size]
    values, vectors = np.linalg.eigh((square + square.T) / 2)
    return values, vectors, projected[size, size - 1] * vectors[-1]


def _restart(
    krylov: Krylov,
    values: np.ndarray,
    vectors: np.ndarray,
    coupling: np.ndarray,
    smallest: int,
    largest: int,
    spare: int,
) -> tuple[Krylov, int]:
    """The space of the wanted Ritz vectors, ``spare`` more beside them, and the last direction; how many vectors."""
    size = len(values)
    share = math.ceil(spare * smallest / (smallest + largest))
    low, high = smallest + share if smallest else 0, largest + spare - share if largest else 0
    kept = np.r_[:low, size - high : size]
    dtype, count = krylov.basis.dtype, low + high
    rotated = _combined(jnp.asarray(vectors[:, kept].T, dtype), krylov.basis[:size])
    basis = jnp.zeros_like(krylov.basis).at[:count].set(rotated)
    basis = basis.at[count].set(krylov.basis[size])
    projected = np.zeros(krylov.projected.shape)
    projected[:count, :count] = np.diag(values[kept])
    projected[count, :count] = coupling[kept]
    return Krylov(basis, jnp.asarray(projected, dtype)), count


def _renewed(krylov: Krylov, row: int, vector: jax.Array) -> Krylov:
    """With the part of ``vector`` that is orthogonal to the rows above for the row to go on from."""
    above = krylov.basis[:row]
    vector = vector / norms(vector)
    for _ in range(2):
        vector = vector - _combined(_combined(above, vector), above)
        vector = vector / norms(vector)
    return Krylov(krylov.basis.at[row].set(vector), krylov.projected.at[row].set(0))


def _pairs(
    flat: Flat, krylov: Krylov, wanted: np.ndarray, tolerance: float, products: int, smallest: int
) -> Eigenpairs:
    vectors = _combined(jnp.asarray(wanted.T, flat.dtype), krylov.basis[: len(wanted)])
    vectors = vectors / norms(vectors, axis=1)[:, None]
    images = mapped(flat.product, flat.captured, vectors)
    values = jnp.sum(vectors * images, axis=1)
    residuals = norms(images - values[:, None] * vectors, axis=1)
    order = jnp.argsort(values)
    values, vectors, residuals = values[order], vectors[order], residuals[order]
    vectors = jax.vmap(flat.unravel)(vectors)
    return Eigenpairs(values, vectors, residuals, residuals <= tolerance, products + len(values), len(wanted), smallest)


def _combined(coefficients: jax.Array, vectors: jax.Array) -> jax.Array:
    """A matrix product in full precision, also on a device whose default is less."""
    return jnp.matmul(coefficients, vectors, precision="highest")
