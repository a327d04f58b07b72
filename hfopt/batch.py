"""Batches: examples, their weights, and sums over chunks of them.

The one place where a mean over examples is taken: every example carries a coefficient c_i (1/N, or w_i / Σ w), so that
a loss, a gradient or a curvature product is a plain sum Σ c_i (…)_i. Such a sum can be cut into chunks of any size,
also unequal ones, without changing what it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


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


def chunk_count(rows: Any, chunk_size: int | None) -> int:
    """How many chunks of at most ``chunk_size`` examples it takes."""
    return 1 if chunk_size is None else -(-size(rows) // chunk_size)


def sum_over_chunks(function: Callable[..., Any], rows: Examples, chunk_size: int | None, *per_chunk: Any) -> Any:
    """Σ_j function(chunk j, *(entry j of each of ``per_chunk``)), with the memory of one chunk at a time.

    The chunks are of equal length, at most ``chunk_size`` examples; where N does not divide, some examples are repeated
    with coefficient zero.
    """
    count, number = size(rows), chunk_count(rows, chunk_size)
    if number == 1:
        return function(rows, *(x[0] for x in per_chunk))

    def term(j: jax.Array, *entries: Any) -> Any:
        chunk = _chunk(rows, number, j)
        if count % number:
            present = _row_numbers(count, number, j) < count
            chunk = chunk._replace(coefficients=jnp.where(present, chunk.coefficients, 0))
        return function(chunk, *entries)

    def add(total: Any, turn: tuple[Any, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, term(*turn)), None

    turns = (jnp.arange(number, dtype=jnp.int32), *per_chunk)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(term, *(x[0] for x in turns)))
    return jax.lax.scan(add, zero, turns)[0]


def in_chunks(function: Callable[[Any], Any], chunk_size: int) -> Callable[[Any], Any]:
    """``function`` of a pytree with a leading axis, evaluated at most ``chunk_size`` rows at a time: the same outputs,
    row by row, if the function treats every row on its own."""

    def evaluate(inputs: Any) -> Any:
        count, number = size(inputs), chunk_count(inputs, chunk_size)
        outputs = jax.lax.map(lambda j: function(_chunk(inputs, number, j)), jnp.arange(number, dtype=jnp.int32))
        # Row i of chunk j is row j + number · i; rows beyond the last are repeated ones.
        return jax.tree.map(lambda z: jnp.swapaxes(z, 0, 1).reshape(-1, *z.shape[2:])[:count], outputs)

    return evaluate


def _chunk(rows: Any, number: int, j: jax.Array) -> Any:
    """The rows j, j + number, j + 2 number, …, taken without a copy of all of them.

    With this stride a batch that is sharded over devices stays sharded inside every chunk.
    """
    count = size(rows)
    if count % number:
        # Real rows, not zeros: a model may return NaN at zero inputs, and 0·NaN is NaN.
        present = _row_numbers(count, number, j) % count
        return jax.tree.map(lambda x: jnp.asarray(x)[present], rows)
    split = lambda x: jnp.reshape(x, (count // number, number, *jnp.shape(x)[1:]))  # noqa: E731
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(split(x), j, axis=1, keepdims=False), rows)


def _row_numbers(count: int, number: int, j: jax.Array) -> jax.Array:
    """Which rows chunk j has; those from ``count`` on are not there."""
    return j + number * jnp.arange(-(-count // number), dtype=j.dtype)
