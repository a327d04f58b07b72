"""The Jacobian J = ∂z/∂θ of all outputs on a batch as a linear map, and its transpose."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from hfopt.batch import Batch, Examples, chunks, examples, size, sum_over_chunks
from hfopt.convolutions import canonical, specialize
from hfopt.curvature.average import check_params, check_value_fn
from hfopt.curvature.flat import flatten
from hfopt.curvature.linearize import linearize
from hfopt.objective import ValueFn
from hfopt.outputs import coordinates
from hfopt.vectors import abstract


@dataclass(frozen=True, eq=False)
class Jacobian:
    """A linear map between two kinds of pytrees, and its transpose ``J.T``.

    Attributes:
      product: v ↦ J v.
      transposed: u ↦ Jᵀ u.
      example: a pytree of ``jax.ShapeDtypeStruct`` like what it multiplies.
      image: one like the products.
    """

    product: Callable[[Any], Any]
    transposed: Callable[[Any], Any]
    example: Any
    image: Any

    def __matmul__(self, vector: Any) -> Any:
        """J v. Raises ValueError when ``vector`` is not shaped like what J multiplies."""
        shapes = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)  # noqa: E731
        if shapes(vector) != shapes(self.example):
            raise ValueError(f"Jacobian: it multiplies {shapes(self.example)}, got {shapes(vector)}.")
        return self.product(vector)

    @property
    def T(self) -> "Jacobian":
        """The transpose."""
        return Jacobian(self.transposed, self.product, self.image, self.example)

    def to_dense(self) -> jax.Array:
        """J as an array, rows and columns in the order of ``jax.flatten_util.ravel_pytree``; one product a column."""
        return flatten(self.product, self.example).to_dense()


def jacobian(value_fn: ValueFn, params: Any) -> Jacobian:
    """J = ∂z/∂θ at ``params``: of the outputs of every example in the curvature batch of ``value_fn``.

    ``J @ v`` is shaped like the outputs of the whole batch, ``J.T @ u`` like the parameters. Weights, loss and targets
    do not enter. A complex output is a pair of reals, with leaves ``real`` and ``imag``, one without a derivative is
    ``None``. With N examples of equal weight `outer_product` is ``(1/N) JᵀJ`` and I/C. A chunked batch is gone
    through chunk by chunk, with the memory of one and the outputs of all.

    Args:
      value_fn: from `Objective.bind`. With a ``curvature_batch`` the outputs are of that one.
      params: a pytree of floating arrays.

    Returns:
      A `Jacobian`. ``J @ v`` costs one jvp, ``J.T @ u`` one vjp.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.
    """
    check_value_fn(value_fn)
    check_params(params)
    objective, batch = value_fn.objective.for_curvature, value_fn.averaged

    def model(inputs: Any) -> Callable[[Any], Any]:
        return lambda p: objective.predict(p, inputs)

    with objective.matmul_precision():
        outputs = jax.eval_shape(lambda p: coordinates(objective.predict(p, batch.inputs)), params)
        if not value_fn.is_chunked(batch):
            whole = linearize(model(batch.inputs), params)
            jvp, vjp = specialize(whole.jvp, params), specialize(whole.vjp, outputs)
            return Jacobian(jvp, vjp, abstract(params), outputs)
    length = value_fn.chunk_size

    def product(v: Any) -> Any:
        with objective.matmul_precision():
            chunked = chunks(examples(Batch(batch.inputs, ())), length)
            one = canonical(lambda rows: linearize(model(rows.inputs), params).jvp(v))
            parts = jax.lax.map(lambda j: one(chunked.take(j)), jnp.arange(chunked.number))
            return jax.tree.map(lambda x: _in_order(x)[: size(batch)], parts)

    def transposed(u: Any) -> Any:
        with objective.matmul_precision():
            chunked = chunks(examples(Batch(batch.inputs, u)), length)
            one = lambda rows: linearize(model(rows.inputs), params).vjp(_without_repeats(rows))  # noqa: E731
            return sum_over_chunks(canonical(one), chunked)

    return Jacobian(product, transposed, abstract(params), outputs)


def _in_order(parts: jax.Array) -> jax.Array:
    """What `Chunks` took apart, (chunks, length, …), as rows: row j of chunk i is number j · chunks + i."""
    return jnp.swapaxes(parts, 0, 1).reshape(-1, *parts.shape[2:])


def _without_repeats(rows: Examples) -> Any:
    """The targets, zero for the rows that only fill the last chunk."""
    real = rows.coefficients > 0
    return jax.tree.map(lambda u: jnp.where(real.reshape((-1,) + (1,) * (u.ndim - 1)), u, 0), rows.targets)
