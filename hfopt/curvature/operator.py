"""Symmetric linear operators on pytrees shaped like the parameters, and their algebra."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax


@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric linear map v ↦ A v, for v a pytree shaped like the parameters.

    Made by `hfopt.gauss_newton` and its siblings; combined by ``A + B``, ``A - B``, ``2.0 * A``, ``-A``.

    Attributes:
      product: v ↦ A v.
      quadratic: v ↦ vᵀ A v, where that is cheaper than a product followed by a dot product.
      example: a pytree of ``jax.ShapeDtypeStruct`` like the parameters.
      indefinite: whether vᵀ A v < 0 is to be expected for some v, so that a step looks out for such directions.
    """

    product: Callable[[Any], Any]
    quadratic: Callable[[Any], jax.Array]
    example: Any
    indefinite: bool = False

    # Above NumPy's, so that ``numpy_scalar * A`` reaches __rmul__ instead of becoming an array of objects.
    __array_priority__ = 1000

    def __matmul__(self, vector: Any) -> Any:
        """A v, shaped like v. Raises ValueError when v is not shaped like the parameters."""
        return self.product(self._checked(vector))

    def quadratic_form(self, vector: Any) -> jax.Array:
        """vᵀ A v, a scalar; for a Gauss-Newton matrix one jvp and no vjp."""
        return self.quadratic(self._checked(vector))

    def to_dense(self) -> jax.Array:
        """A as an (n, n) array, rows and columns ordered as ``jax.flatten_util.ravel_pytree`` orders parameters.

        n products; for n in the thousands at most.
        """
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.example)
        flat, unravel = jax.flatten_util.ravel_pytree(zeros)
        column = lambda v: jax.flatten_util.ravel_pytree(self.product(unravel(v)))[0]  # noqa: E731
        return jax.jit(lambda basis: jax.lax.map(column, basis))(jnp.eye(flat.size, dtype=flat.dtype)).T

    def diagonal(self) -> Any:
        """The diagonal of A, shaped like the parameters. Exact; n products."""
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.example)
        flat, unravel = jax.flatten_util.ravel_pytree(zeros)
        entry = lambda i: self.quadratic(unravel(flat.at[i].set(1))).astype(flat.dtype)  # noqa: E731
        return unravel(jax.jit(lambda indices: jax.lax.map(entry, indices))(jnp.arange(flat.size)))

    def __add__(self, other: "Operator") -> "Operator":
        if not isinstance(other, Operator):
            return NotImplemented
        if self.example != other.example:
            raise ValueError(f"Operators on different parameters cannot be added: {self.example} and {other.example}.")
        return Operator(
            lambda v: jax.tree.map(jnp.add, self.product(v), other.product(v)),
            lambda v: self.quadratic(v) + other.quadratic(v),
            self.example,
            self.indefinite or other.indefinite,
        )

    def __mul__(self, scalar: Any) -> "Operator":
        if isinstance(scalar, Operator) or jnp.ndim(scalar) != 0:
            return NotImplemented
        return Operator(
            lambda v: optax.tree.scale(scalar, self.product(v)),
            lambda v: scalar * self.quadratic(v),
            self.example,
            self.indefinite or not _is_non_negative(scalar),
        )

    __rmul__ = __mul__

    def __neg__(self) -> "Operator":
        return -1 * self

    def __sub__(self, other: "Operator") -> "Operator":
        return self + -other if isinstance(other, Operator) else NotImplemented

    def _checked(self, vector: Any) -> Any:
        shapes = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)  # noqa: E731
        if shapes(vector) != shapes(self.example):
            raise ValueError(
                f"Operator: the vector must have the structure, shapes and dtypes of the parameters, "
                f"{shapes(self.example)}; got {shapes(vector)}."
            )
        return vector


def _is_non_negative(scalar: Any) -> bool:
    """Whether a scalar is known not to be negative; of one that is being traced nothing is known."""
    try:
        return bool(scalar >= 0)
    except jax.errors.ConcretizationTypeError:
        return False
