"""Batches: examples, their weights, and sums over chunks of them.

The one place where a mean over examples is taken: every example carries a coefficient c_i (1/N, or w_i / Σ w), so that
a loss, a gradient or a curvature product is a plain sum Σ c_i (…)_i. Such a sum can be cut into chunks of any size,
also unequal ones, without changing what it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Batch(NamedTuple):
    """Examples as the user gives them: pytrees whose leaves share their first axis, of length N."""

    inputs: Any
    targets: Any
    weights: jax.Array | None = None  # (N,), non-negative; None: all equal


class Examples(NamedTuple):
    """Examples with their coefficients in the mean: shape (N,), summing to one."""

    inputs: Any
    targets: Any
    coefficients: jax.Array


def as_batch(batch: Any, argument: str) -> Batch:
    """Check a user's ``(inputs, targets)`` or ``(inputs, targets, weights)``.

    Raises:
      ValueError: not such a tuple, no examples, a leaf without a batch axis, or leaves that disagree on N.
    """
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        what = f"a tuple of length {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(
            f"Objective.bind: `{argument}` must be (inputs, targets) or (inputs, targets, weights), got {what}."
        )
    batch = Batch(*batch)
    if isinstance(batch.weights, list | tuple):
        raise ValueError(f"Objective.bind: weights in `{argument}` must be an array of shape (N,), got a list.")
    lengths: dict[int, str] = {}
    for part in batch._fields:
        for path, leaf in jax.tree.leaves_with_path(getattr(batch, part)):
            name = f"{part}{jax.tree_util.keystr(path)}"
            if jnp.ndim(leaf) == 0:
                raise ValueError(
                    f"Objective.bind: `{name}` in `{argument}` is a scalar; every leaf needs a leading batch axis. "
                    "Values shared by all examples (a key, a step count) belong in `predict`, by closure."
                )
            lengths.setdefault(jnp.shape(leaf)[0], name)
    if not lengths:
        raise ValueError(f"Objective.bind: `{argument}` holds no arrays, so it has no examples.")
    if len(lengths) > 1:
        sizes = ", ".join(f"{name} has {length}" for length, name in lengths.items())
        raise ValueError(f"Objective.bind: the parts of `{argument}` disagree on the number of examples: {sizes}.")
    if 0 in lengths:
        raise ValueError(f"Objective.bind: `{argument}` is empty (0 examples).")
    if batch.weights is not None and jnp.ndim(batch.weights) != 1:
        raise ValueError(
            f"Objective.bind: weights in `{argument}` must have shape (N,), got {jnp.shape(batch.weights)}."
        )
    return batch


def size(batch: Any) -> int:
    """N, the number of examples."""
    return jnp.shape(jax.tree.leaves(batch)[0])[0]


def examples(batch: Batch) -> Examples:
    """Give every example its coefficient: 1/N, or w_i / Σ w."""
    if batch.weights is None:
        count = size(batch)
        return Examples(batch.inputs, batch.targets, jnp.full(count, 1.0 / count))
    weights = jnp.asarray(batch.weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating) or jnp.finfo(weights.dtype).bits < 32:
        weights = weights.astype(jnp.result_type(float))  # counts, masks, and sums that low precision would lose
    return Examples(batch.inputs, batch.targets, weights / weights.sum())


def chunks(rows: Examples, chunk_size: int | None) -> Examples:
    """Add a leading axis: (chunks, examples of a chunk, …), at most ``chunk_size`` examples in each.

    The chunks are of equal length; where N does not divide, rows are repeated with coefficient zero. Chunk j takes the
    rows j, j + chunks, …, so that a batch sharded over devices stays sharded inside every chunk.
    """
    count = size(rows)
    number = 1 if chunk_size is None else -(-count // chunk_size)
    filled = _filled(rows, number)
    if size(filled) > count:
        filled = filled._replace(coefficients=filled.coefficients.at[count:].set(0))
    return _split(filled, number)


def in_chunks(function: Callable[[Any], Any], chunk_size: int) -> Callable[[Any], Any]:
    """``function`` of a pytree with a leading axis, evaluated at most ``chunk_size`` rows at a time: the same outputs,
    row by row, if the function treats every row on its own."""

    def evaluate(inputs: Any) -> Any:
        count = size(inputs)
        number = -(-count // chunk_size)
        outputs = jax.lax.map(function, _split(_filled(inputs, number), number))
        # The inverse of the split; the repeated rows are the last.
        return jax.tree.map(lambda z: jnp.swapaxes(z, 0, 1).reshape(-1, *z.shape[2:])[:count], outputs)

    return evaluate


def _filled(rows: Any, number: int) -> Any:
    """The rows, with some of the first repeated at the end so that ``number`` chunks are of equal length."""
    missing = -size(rows) % number
    # Real rows, not zeros: a model may return NaN at zero inputs, and 0·NaN is NaN.
    return rows if missing == 0 else jax.tree.map(lambda x: jnp.concatenate([x, x[:missing]]), rows)


def _split(rows: Any, number: int) -> Any:
    """(n, …) -> (number, n / number, …): chunk j has the rows j, j + number, …"""
    return optax.microbatching.reshape_batch_axis(jax.tree.map(jnp.asarray, rows), size(rows) // number)


def sum_over_chunks(function: Callable[[Examples], Any], rows: Examples) -> Any:
    """Σ_j function(chunk j) for rows with a leading chunk axis; the memory of one chunk at a time."""
    first = jax.tree.map(lambda x: x[0], rows)
    if size(rows) == 1:
        return function(first)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, first))

    def add(total: Any, chunk: Examples) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(chunk)), None

    return jax.lax.scan(add, zero, rows)[0]
