"""What every curvature operator shares: I/C plus a mean over examples, taken at once or chunk by chunk.

An operator of this package is I/C + Σ c_i A_i, with c_i the coefficient of example i in the mean and A_i that example's
own matrix. Its file says what A_i is; this one sums, adds the penalty, and keeps convolutions fast inside loops.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.batch import Examples, examples, in_chunks, size, sum_over_chunks
from hfopt.convolutions import canonical, specialize
from hfopt.curvature.operator import Operator
from hfopt.objective import Objective, ValueFn

# v ↦ Σ c_i A_i v, and v ↦ Σ c_i vᵀ A_i v
Products = tuple[Callable[[Any], Any], Callable[[Any], jax.Array]]

KEPT_RESIDUALS = 2**30  # bytes; above it, memory="auto" recomputes


def average(
    value_fn: ValueFn, params: Any, products: Callable[[Objective, Examples], Products], indefinite: bool = False
) -> Operator:
    """I/C + Σ c_i A_i over the curvature batch of ``value_fn``.

    Args:
      value_fn: from `Objective.bind`.
      params: a pytree of floating arrays.
      products: objective, rows -> the product and the quadratic form of Σ c_i A_i over these rows. Called once for the
        whole batch, with a model that runs chunk by chunk where the batch is chunked; to save the memory of the
        residuals, once a chunk inside every product.
      indefinite: see `Operator`.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.
    """
    check_value_fn(value_fn)
    check_params(params)
    objective = value_fn.objective
    batch = value_fn.averaged
    rows = examples(batch)

    def quadratic_form(v: Any) -> jax.Array:
        with objective.matmul_precision():  # traced at the call, after the block below
            return canonical(quadratic)(v)

    with objective.matmul_precision():
        if not value_fn.is_chunked(batch):
            product, quadratic = products(objective, rows)
        elif _keeps_residuals(value_fn, params):
            product, quadratic = products(_in_chunks(objective, value_fn.chunk_size), rows)
        else:
            # A chunk is linearised anew in every product: the memory of one chunk, at the price of its forward pass.
            sum_over = partial(sum_over_chunks, rows=rows, chunk_size=value_fn.chunk_size)
            product = lambda v: sum_over(lambda chunk: products(objective, chunk)[0](v))  # noqa: E731
            quadratic = lambda v: sum_over(lambda chunk: products(objective, chunk)[1](v))  # noqa: E731
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


def _in_chunks(objective: Objective, chunk_size: Any) -> Objective:
    """The same objective with a model that runs chunk by chunk."""
    return replace(
        objective, predict=lambda params, x: in_chunks(lambda y: objective.predict(params, y), chunk_size)(x)
    )


def _keeps_residuals(value_fn: ValueFn, params: Any) -> bool:
    if value_fn.memory != "auto":
        return value_fn.memory == "keep"
    batch = value_fn.averaged
    return size(batch) * _residual_bytes(value_fn.objective, params, batch.inputs) <= KEPT_RESIDUALS


def _residual_bytes(objective: Objective, params: Any, inputs: Any) -> int:
    """What the backward pass of one more example keeps of the forward pass; parameters it keeps do not count."""

    def kept(examples: int) -> int:
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((examples, *jnp.shape(x)[1:]), jnp.result_type(x)), inputs)
        pullback = jax.eval_shape(lambda p, x: jax.vjp(lambda q: objective.predict(q, x), p)[1], params, rows)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    return kept(2) - kept(1)


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
