"""Diagonals for about the price of a gradient: squared gradients of examples, and the diagonal of G by probes.

Both are sums of squares, hence non-negative without any clamp. `hfopt.Operator.diagonal` is exact for every operator,
at n products.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hfopt.batch import Chunks, Examples, chunks, examples, size, sum_over_chunks
from hfopt.convolutions import canonical
from hfopt.curvature.average import check_value_fn
from hfopt.curvature.linearize import linearize
from hfopt.curvature.roots import random_signs, root_pairs
from hfopt.objective import ValueFn
from hfopt.placement import placed_as, weighted_sum
from hfopt.vectors import wide_dtype

# Example gradients held at once: enough to fill the matrix products, few enough that they are no memory to speak of.
_EXAMPLES_AT_ONCE = 16

# Probes of a batch that cannot be cut into groups or single examples; each costs a backward pass over all of it.
_SIGNS_OF_A_WHOLE, _PROBES_OF_A_WHOLE = 4, 16


def squared_gradients(value_fn: ValueFn, params: Any) -> Any:
    """Σ c_i g_i² per parameter: g_i the gradient of the loss of example i alone, without the l2 term.

    Exact, over the gradient batch of ``value_fn``: one pass over it, and the memory of a few gradients. ``predict`` is
    applied to one example at a time, so it must not mix examples (BatchNorm in training mode does). A model that cannot
    be (one of the nodes of a graph, or of a batch of one size) is probed sixteen times as a whole instead, with random
    signs z: E[(Σ_i z_i √c_i g_i)²] is the same.

    Returns:
      A pytree shaped like ``params``, in float32 or wider.
    """
    check_value_fn(value_fn)
    objective = value_fn.objective.for_curvature
    at_once = _EXAMPLES_AT_ONCE if value_fn.chunk_size is None else min(_EXAMPLES_AT_ONCE, value_fn.chunk_size)

    def gradient(inputs: Any, targets: Any) -> Any:
        inputs, targets = jax.tree.map(lambda x: x[None], (inputs, targets))
        one = Examples(inputs, targets, jnp.ones(1))
        return jax.grad(objective.mean_loss)(params, one)

    def total(rows: Examples) -> Any:
        gradients = jax.vmap(gradient)(rows.inputs, rows.targets)
        return jax.tree.map(lambda g: _weighted_sum(rows.coefficients, jnp.square(_wide(g))), gradients)

    with objective.matmul_precision():
        try:
            return sum_over_chunks(canonical(total), chunks(examples(value_fn.batch), at_once))
        except Exception:  # whatever a model raises that takes its batch as a whole only
            if value_fn.chunk_size is not None:
                raise
    return probed_squares(value_fn, params, jax.random.key(0), _PROBES_OF_A_WHOLE)


def probed_squares(value_fn: ValueFn, params: Any, key: jax.Array, probes: int) -> Any:
    """An unbiased estimate of Σ c_i g_i² for a pass over the whole batch a probe; see `squared_gradients`."""
    objective, rows = value_fn.objective.for_curvature, examples(value_fn.batch)

    def square(key: jax.Array) -> Any:
        signs = jax.random.rademacher(key, rows.coefficients.shape, rows.coefficients.dtype)
        signed = rows._replace(coefficients=placed_as(signs, rows.coefficients) * jnp.sqrt(rows.coefficients))
        return jax.tree.map(lambda g: jnp.square(_wide(g)), jax.grad(objective.mean_loss)(params, signed))

    with objective.matmul_precision():
        squares = jax.lax.map(canonical(square), jax.random.split(key, probes))
    return jax.tree.map(lambda s: s.mean(axis=0), squares)


def probed_diagonal(
    value_fn: ValueFn, params: Any, key: jax.Array, probes: int, coordinates: Callable[[Any], Any] = lambda tree: tree
) -> Any:
    """An unbiased estimate of the diagonal of Σ c_i J_iᵀ B_i J_i, without the l2 term, for one pass over the examples.

    With B_i = L_i L_iᵀ and random signs z, E[(Σ_i √c_i J_iᵀ L_i z_i)²] is the diagonal. The examples are cut into
    ``probes`` groups, each with its own sum and square: as many probes for the price of one. The relative error of
    *every* entry is about √(2 / probes). The textbook estimate z ∘ (G z) has an error in entry j of the size of all
    other entries in its row, which is useless for just the small entries a preconditioner is for.

    L is in closed form for the losses whose B is. For others the estimate is E[(Jᵀ z) ∘ (Jᵀ B z)]: unbiased too, at two
    backward passes, but noisier and not sure to be positive; negative entries become zero.

    Args:
      value_fn: from `Objective.bind`; its curvature batch is used when it has one.
      params: a pytree of floating arrays.
      key: of the random signs.
      probes: groups of examples; at most as many as there are examples. A model that cannot be applied to a part of its
        batch (one of the nodes of a graph) is probed four times as a whole instead.
      coordinates: tree like the parameters -> its coordinates in an orthonormal basis, in which the diagonal is taken.

    Returns:
      A pytree shaped like the coordinates of ``params``, in float32 or wider.

    References:
      Bekas, Kokiopoulou & Saad, "An estimator for the diagonal of a matrix", 2007, for z ∘ (G z); Martens, Sutskever &
      Swersky, "Estimating the Hessian by back-propagating curvature", ICML 2012, for the factored form.
    """
    check_value_fn(value_fn)
    objective = value_fn.objective.for_curvature
    rows = examples(value_fn.averaged)
    length = -(-size(rows) // probes)
    length = length if value_fn.chunk_size is None else min(length, value_fn.chunk_size)

    def probe(rows: Examples, keys: jax.Array) -> Any:
        model = linearize(lambda p: objective.predict(p, rows.inputs), params)
        pair = root_pairs(model.seen_by(objective.loss), model.outputs, rows)

        def square(key: jax.Array) -> Any:
            u, w = pair(random_signs(key, model.outputs))
            left = coordinates(model.vjp(u))
            right = left if w is u else coordinates(model.vjp(w))
            return jax.tree.map(lambda a, b: _wide(a) * _wide(b), left, right)

        if keys.size == 1:
            return square(keys[0])
        return jax.tree.map(lambda squares: squares.mean(axis=0), jax.lax.map(square, keys))

    def estimate(chunked: Chunks, signs: int) -> Any:
        keys = jax.random.split(key, (chunked.number, signs))
        return sum_over_chunks(canonical(probe), chunked, keys)

    with objective.matmul_precision():
        try:
            diagonal = estimate(chunks(rows, length), 1)
        except Exception:
            if value_fn.chunk_size is not None or length == size(rows):
                raise
            # Whatever a model raises that takes its batch as a whole only, such as one of the nodes of a graph.
            diagonal = estimate(chunks(rows, None), _SIGNS_OF_A_WHOLE)
    return jax.tree.map(lambda d: jnp.maximum(d, 0), diagonal)


def _weighted_sum(coefficients: jax.Array, rows: jax.Array) -> jax.Array:
    return weighted_sum(coefficients.astype(rows.dtype), rows)


def _wide(x: jax.Array) -> jax.Array:
    """Low-precision values are widened before they are squared: squares of bf16 gradients underflow in sums."""
    return x.astype(wide_dtype(x))
