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
      product: (captured, v) ↦ A v.
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
        run = jax.jit(lambda captured, basis: jax.lax.map(partial(self.product, captured), basis))
        return run(self.captured, jnp.eye(self.size, dtype=self.dtype)).T


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
