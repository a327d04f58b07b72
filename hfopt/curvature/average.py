"""What every curvature operator shares: I/C plus a mean over examples, taken at once or chunk by chunk.

An operator of this package is I/C + Σ c_i A_i, with c_i the coefficient of example i in the mean and A_i that example's
own matrix. Its file says what A_i is; this one sums, adds the penalty, and keeps convolutions fast inside loops.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.batch import Examples, chunks, examples, sum_over_chunks
from hfopt.convolutions import canonical, specialize
from hfopt.curvature.operator import Operator
from hfopt.objective import ValueFn

# v ↦ Σ c_i A_i v, and v ↦ Σ c_i vᵀ A_i v
Products = tuple[Callable[[Any], Any], Callable[[Any], jax.Array]]


def average(
    value_fn: ValueFn, params: Any, products: Callable[[Examples], Products], indefinite: bool = False
) -> Operator:
    """I/C + Σ c_i A_i over the curvature batch of ``value_fn``.

    Args:
      value_fn: from `Objective.bind`.
      params: a pytree of floating arrays.
      products: rows -> the product and the quadratic form of Σ c_i A_i over these rows. Called once for the whole
        batch; for a chunked one, once a chunk inside every product.
      indefinite: see `Operator`.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.
    """
    check_value_fn(value_fn)
    check_params(params)
    objective = value_fn.objective
    batch = value_fn.averaged
    rows = chunks(examples(batch), value_fn.chunk_size)

    def quadratic_form(v: Any) -> jax.Array:
        with objective.matmul_precision():  # traced at the call, after the block below
            return canonical(quadratic)(v)

    with objective.matmul_precision():
        if value_fn.is_chunked(batch):
            # A chunk is linearised anew in every product: the memory of one chunk, at the price of its forward pass.
            product = lambda v: sum_over_chunks(lambda chunk: products(chunk)[0](v), rows)  # noqa: E731
            quadratic = lambda v: sum_over_chunks(lambda chunk: products(chunk)[1](v), rows)  # noqa: E731
        else:
            product, quadratic = products(jax.tree.map(lambda x: x[0], rows))
        # A step multiplies at several places, so the product is traced once, here; the quadratic form only if used.
        product = specialize(product, params)

    l2 = objective.l2
    if l2 == 0:
        regularised_product, regularised_quadratic = product, quadratic_form
    else:
        regularised_product = lambda v: optax.tree.add_scale(product(v), l2, objective.penalised(v))  # noqa: E731
        regularised_quadratic = lambda v: quadratic_form(v) + 2 * objective.penalty(v)  # noqa: E731
    example = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), params)
    return Operator(regularised_product, regularised_quadratic, example, indefinite)


def check_value_fn(value_fn: Any) -> None:
    """Raise TypeError unless ``value_fn`` can be taken apart into predict and loss."""
    if not isinstance(value_fn, ValueFn):
        raise TypeError(
            "Curvature needs the model and the loss apart: pass value_fn = hfopt.Objective(predict, loss).bind(batch), "
            f"got {type(value_fn).__name__}."
        )


def check_params(params: Any) -> None:
    """Raise TypeError unless every parameter is a real floating array."""
    for path, leaf in jax.tree.leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"Parameters must be real floating arrays; params{jax.tree_util.keystr(path)} has dtype {dtype}. "
                "Keep counters and flags out of the parameters, or cast them."
            )
