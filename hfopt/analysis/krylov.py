"""Lanczos with full reorthogonalisation: an orthonormal basis of a Krylov space, and the matrix projected on it.

Differences from the textbook's recurrence: every new vector is orthogonalised against all earlier ones, twice, and the
projected matrix is taken from the coefficients of that, so that the basis may begin with kept Ritz vectors (a thick
restart); where nothing is left of a product the basis goes on from a random vector, so that a space that A maps into
itself is no end and nothing is divided by zero.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hfopt.curvature.flat import FlatProduct
from hfopt.vectors import norms


class Krylov(NamedTuple):
    """An orthonormal basis V of m rows, and A V's coefficients in it.

    Attributes:
      basis: (m + 1, n), the last row the direction in which the space would grow; zero rows are not filled yet.
      projected: (m + 1, m); column j holds V A v_j. Its first m rows are, up to rounding, a symmetric matrix T with
        A Vᵀ = Vᵀ T + β v_{m+1} e_mᵀ, and β is ``projected[m, m - 1]``.
    """

    basis: jax.Array
    projected: jax.Array


def empty(start: jax.Array, size: int) -> Krylov:
    """Room for ``size`` vectors, the first of which is along ``start``, of any length but zero."""
    basis = jnp.zeros((size + 1, start.size), start.dtype).at[0].set(start / norms(start))
    return Krylov(basis, jnp.zeros((size + 1, size), start.dtype))


@partial(jax.jit, static_argnums=0)
def extend(
    product: FlatProduct, captured: list[jax.Array], krylov: Krylov, filled: jax.Array | int, key: jax.Array
) -> Krylov:
    """``krylov`` with its columns from ``filled`` on computed, one product each; rows up to ``filled`` must be there.

    A product that is not finite makes the coefficients so.
    """
    with jax.default_matmul_precision("highest"):
        return _extended(product, captured, krylov, filled, key)


def _extended(
    product: FlatProduct, captured: list[jax.Array], krylov: Krylov, filled: jax.Array | int, key: jax.Array
) -> Krylov:
    size, length = krylov.projected.shape[1], krylov.basis.shape[1]

    def fresh(basis: jax.Array, number: jax.Array) -> jax.Array:
        """A random direction orthogonal to the basis; zero when that spans the whole space."""
        v = jax.random.normal(jax.random.fold_in(key, number), (length,), basis.dtype)
        v = v / norms(v)
        for _ in range(2):
            v = v - (basis @ v) @ basis
        left = norms(v)
        none = (number + 1 >= length) | (left == 0)
        v = jnp.where(none, 0, v / jnp.where(none, 1, left))
        return v - (basis @ v) @ basis

    def turn(j: jax.Array, krylov: Krylov) -> Krylov:
        basis, projected = krylov
        w = product(captured, basis[j])
        first = basis @ w
        w = w - first @ basis
        left = norms(w)
        w = w / jnp.where(left > 0, left, 1)
        second = basis @ w
        w = w - second @ basis
        kept = norms(w)
        # What the second pass takes most of was rounding: the product lies in the space.
        inside = (left == 0) | (kept < 0.5)
        w = jax.lax.cond(inside, lambda: fresh(basis, j), lambda: w / kept)
        coefficients = (first + left * second).at[j + 1].set(jnp.where(inside, 0, left * kept))
        return Krylov(basis.at[j + 1].set(w), projected.at[:, j].set(coefficients))

    return jax.lax.fori_loop(jnp.asarray(filled, jnp.int32), size, turn, krylov)
