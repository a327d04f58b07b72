"""What every curvature operator shares: I/C plus a mean over examples, taken at once or chunk by chunk.

An operator of this package is I/C + Σ c_i A_i, with c_i the coefficient of example i in the mean and A_i that example's
own matrix. Its file says what A_i is; this one sums, adds the penalty, and keeps convolutions fast inside loops.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hfopt.batch import Chunks, Examples, chunks, examples, size, sum_over_chunks
from hfopt.convolutions import canonical, specialize
from hfopt.curvature.operator import Halves, Operator
from hfopt.objective import Memory, Objective, ValueFn
from hfopt.vectors import abstract


class Products(NamedTuple):
    """What can be done with Σ c_i A_i over some rows."""

    product: Callable[[Any], Any]  # v ↦ Σ c_i A_i v
    quadratic: Callable[[Any], jax.Array]  # v ↦ Σ c_i vᵀ A_i v
    halves: Halves | None = None  # see `Operator`
    probe: Callable[[jax.Array], tuple[Any, ...]] | None = None  # see `Operator`


# What calls a curvature with a number of steps; hence ``params`` may be missing there.
_OF_SCHEDULES = (
    " optax.inject_hyperparams takes every callable for a schedule: give it static_args=('curvature',), as in "
    "optax.inject_hyperparams(hfopt.hessian_free, static_args=('curvature',))(...)."
)

KEPT_RESIDUALS = 2**30  # bytes; above it, memory="auto" recomputes


def average(
    value_fn: ValueFn,
    params: Any,
    products: Callable[[Examples], Products],
    indefinite: bool = False,
    regularised: bool = True,
) -> Operator:
    """I/C + Σ c_i A_i over the curvature batch of ``value_fn``.

    Args:
      value_fn: from `Objective.bind`.
      params: a pytree of floating arrays.
      products: rows -> the product and the quadratic form of Σ c_i A_i over these rows. Called once for the whole
        batch; for a chunked one, inside a loop over the chunks.
      indefinite: see `Operator`.
      regularised: whether I/C is a term.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.
    """
    check_value_fn(value_fn)
    check_params(params)
    objective = value_fn.objective.for_curvature
    example = abstract(params)

    def quadratic_form(v: Any) -> jax.Array:
        with objective.matmul_precision():  # traced at the call, after the block below
            return canonical(quadratic)(v)

    with objective.matmul_precision():
        if value_fn.is_chunked(value_fn.averaged):
            chunked = chunks(examples(value_fn.averaged), value_fn.chunk_size)
            # A chunk is linearised anew in every product: the memory of one chunk, at the price of its forward pass.
            product = lambda v: sum_over_chunks(lambda rows: products(rows).product(v), chunked)  # noqa: E731
            quadratic = lambda v: sum_over_chunks(lambda rows: products(rows).quadratic(v), chunked)  # noqa: E731
            halves = probe = None
            if _keeps_residuals(value_fn.memory, products, chunked, example):
                # The sum is linear in v: its linear part is what is left when all that does not depend on v has been
                # computed, chunk by chunk, and kept. That runs in a loop too, so its convolutions are rewritten first.
                product = jax.linearize(canonical(product), jax.tree.map(jnp.zeros_like, params))[1]
        else:
            product, quadratic, halves, probe = products(examples(value_fn.averaged))
        # A step multiplies at several places, so the product is traced once, here; the quadratic form only if used.
        if halves is None:
            product = specialize(product, params)
        else:
            halves = _specialized(halves, params)
            product = _joined(halves)

    def drawn(key: jax.Array) -> tuple[Any, ...]:
        assert probe is not None
        with objective.matmul_precision():
            return canonical(probe)(key)

    mean = Operator(product, quadratic_form, example, indefinite)
    if objective.is_penalised and regularised:
        penalty = _penalty(objective, example)
        halves = halves and _added(halves, penalty)
        mean = mean + penalty
    return replace(mean, halves=halves, probe=None if probe is None else drawn)


def _specialized(halves: Halves, params: Any) -> Halves:
    """Either half traced once."""
    forward = specialize(halves.forward, params)
    middle = jax.eval_shape(forward, params)
    backward = specialize(lambda middle: halves.backward(None, middle), middle)
    return halves._replace(forward=forward, backward=lambda v, middle: backward(middle))


def _joined(halves: Halves) -> Callable[[Any], Any]:
    return lambda v: halves.backward(v, halves.forward(v))


def _added(halves: Halves, penalty: Operator) -> Halves:
    """Those of the sum."""

    def form(v: Any, middle: Any) -> jax.Array:
        quadratic = halves.form(v, middle)
        return quadratic + penalty.quadratic(v).astype(quadratic.dtype)

    def backward(v: Any, middle: Any) -> Any:
        return jax.tree.map(jnp.add, halves.backward(v, middle), penalty.product(v))

    return Halves(halves.forward, form, backward)


def penalty_hessian(value_fn: ValueFn, params: Any) -> Operator:
    """I/C: the Hessian of the penalty ½ l2 ‖θ‖² alone, zero for parameters that ``l2_mask`` leaves out.

    It is a term of every curvature operator, so that ``gauss_newton(f, p) - penalty_hessian(f, p)`` is the Gauss-Newton
    matrix of the data.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.
    """
    check_value_fn(value_fn)
    check_params(params)
    return _penalty(value_fn.objective, abstract(params))


def _penalty(objective: Objective, example: Any) -> Operator:
    scaled = lambda x: jnp.asarray(objective.l2, x.dtype) * x  # noqa: E731
    product = lambda v: jax.tree.map(scaled, objective.penalised(v))  # noqa: E731
    return Operator(product, lambda v: jnp.asarray(2 * objective.penalty(v)), example)


def _keeps_residuals(memory: Memory, products: Callable[[Examples], Products], chunked: Chunks, example: Any) -> bool:
    if memory != "auto":
        return memory == "keep"
    return size(chunked.rows) * _bytes_per_row(products, chunked, example) <= KEPT_RESIDUALS


def _bytes_per_row(products: Callable[[Examples], Products], chunked: Chunks, example: Any) -> float:
    """What a product keeps for one more example; parameters that it keeps do not count."""
    length = size(chunked.rows) // chunked.number

    def kept(count: int) -> int:
        rows = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((count, *jnp.shape(x)[1:]), jnp.result_type(x)), chunked.rows
        )
        pullback = jax.eval_shape(lambda v, rows: jax.vjp(lambda u: products(rows).product(u), v)[1], example, rows)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    return (kept(2 * length) - kept(length)) / length


def check_value_fn(value_fn: Any) -> None:
    """Raise TypeError unless ``value_fn`` can be taken apart into predict and loss."""
    if not isinstance(value_fn, ValueFn):
        raise TypeError(
            "Curvature needs the model and the loss apart: pass value_fn = hfopt.Objective(predict, loss).bind(batch), "
            f"got {type(value_fn).__name__}."
            + (_OF_SCHEDULES if isinstance(value_fn, jax.Array) and value_fn.ndim == 0 else "")
        )


def check_params(params: Any) -> None:
    """Raise TypeError unless every parameter is a real floating array."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, float | int | complex):
            raise TypeError(
                f"Parameters must be arrays; params{jax.tree_util.keystr(path)} is {_described(leaf)}. Take such "
                "leaves out, as params, rest = eqx.partition(model, eqx.is_inexact_array) does, and let `predict` put "
                "them back: eqx.combine(params, rest)."
            )
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"Parameters must be real floating arrays; params{jax.tree_util.keystr(path)} has dtype {dtype}. "
                "Keep counters and flags out of the parameters, or cast them."
            )


def _described(leaf: Any) -> str:
    if isinstance(leaf, str):
        return f"the string {leaf!r}"
    return f"{getattr(leaf, '__name__', 'an object')} of type {type(leaf).__name__}"
