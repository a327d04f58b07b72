"""An operator as a matrix that multiplies flat arrays: what algorithms on vectors of one kind work with."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hfopt.convolutions import hoisted

# captured arrays, flat vector -> flat vector
FlatProduct = Callable[[list[jax.Array], jax.Array], jax.Array]


class Flat(NamedTuple):
    """A linear map on arrays of shape (n,), in the order of ``jax.flatten_util.ravel_pytree``.

    The product is a function of the arrays it has captured, the data among them. A jitted program that takes these as
    an argument does not hold the data as constants, which take XLA longer to compile than the program itself.

    Attributes:
      product: (captured, v) ↦ A v; equal for all operators that compute it alike, so that programs which have it as a
        static argument are compiled once for a shape.
      captured: what the product has captured.
      ravel: a tree like the parameters -> a flat array.
      unravel: a flat array -> a tree like the parameters.
      size: n.
      dtype: of flat arrays, the widest of the parameters' and at least float32.
    """

    product: FlatProduct
    captured: list[jax.Array]
    ravel: Callable[[Any], jax.Array]
    unravel: Callable[[jax.Array], Any]
    size: int
    dtype: Any

    def to_dense(self) -> jax.Array:
        """The matrix, one product a column."""
        return mapped(self.product, self.captured, jnp.eye(self.size, dtype=self.dtype)).T


@partial(jax.jit, static_argnums=0)
def applied(product: FlatProduct, captured: list[jax.Array], vector: jax.Array) -> jax.Array:
    """A v."""
    return product(captured, vector)


@partial(jax.jit, static_argnums=0)
def mapped(product: FlatProduct, captured: list[jax.Array], vectors: jax.Array) -> jax.Array:
    """A v for every row of ``vectors``, one after the other."""
    return jax.lax.map(partial(product, captured), vectors)


@partial(jax.jit, static_argnums=(0, 1, 2))
def diagonal_of_forms(form: FlatProduct, size: int, dtype: Any, captured: list[jax.Array]) -> jax.Array:
    """eᵢᵀAeᵢ for every i, from v ↦ vᵀAv."""
    zeros = jnp.zeros(size, dtype)
    return jax.lax.map(lambda i: form(captured, zeros.at[i].set(1))[0], jnp.arange(size))


def flatten(product: Callable[[Any], Any], example: Any) -> Flat:
    """``product``, of trees like ``example`` to trees of any structure, as a `Flat` with ``ravel`` for its results."""
    leaves, structure = jax.tree.flatten(example)
    dtype = _widest(leaves)
    ends = [0]
    for leaf in leaves:
        ends.append(ends[-1] + leaf.size)

    def unravel(vector: jax.Array) -> Any:
        parts = [
            vector[a:b].reshape(leaf.shape).astype(leaf.dtype)
            for a, b, leaf in zip(ends, ends[1:], leaves, strict=False)
        ]
        return jax.tree.unflatten(structure, parts)

    def ravel(tree: Any) -> jax.Array:
        return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)])

    zeros = jax.ShapeDtypeStruct((ends[-1],), dtype)
    function, captured = hoisted(lambda v: ravel(product(unravel(v))), zeros)
    return Flat(function, captured, ravel, unravel, ends[-1], dtype)


def _widest(leaves: list[Any]) -> Any:
    dtypes = [jnp.dtype(jnp.float32), *(leaf.dtype for leaf in leaves)]
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
