"""Batches: examples, their weights, and sums over chunks of them.

The one place where a mean over examples is taken: every example carries a coefficient c_i (1/N, or w_i / Σ w), so that
a loss, a gradient or a curvature product is a plain sum Σ c_i (…)_i. Such a sum can be cut into chunks of any size,
also unequal ones, without changing what it is.
"""

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import JAXSparse

from hfopt.arguments import is_traced
from hfopt.placement import split_evenly, whole

# What a part of a batch needs at least to judge a step.
_FEWEST_LABELS = 32


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
      ValueError: not such a tuple, no examples, a leaf without a batch axis, leaves that disagree on N, or weights
        that are negative, not finite or all zero.
      TypeError: a sparse array.
    """
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        what = f"a tuple of length {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(
            f"Objective.bind: `{argument}` must be (inputs, targets) or (inputs, targets, weights), got {what}."
        )
    batch = Batch(*batch)
    if isinstance(batch.weights, list | tuple):
        raise ValueError(f"Objective.bind: weights in `{argument}` must be an array of shape (N,), got a list.")
    _refuse_sparse(batch, argument)
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
    _check_weights(batch.weights, argument)
    return batch


def part_of(batch: Batch, part: Any, argument: str) -> Batch | None:
    """The examples that a user means by ``part``: other ones, a share of ``batch``, or ``"auto"``; ``None`` for all.

    Raises:
      ValueError: a share outside (0, 1], a string other than "auto", or as `as_batch`.
    """
    if isinstance(part, str) and part == "auto":
        labels = [leaf for leaf in jax.tree.leaves(batch.targets) if jnp.issubdtype(jnp.result_type(leaf), jnp.integer)]
        per_example = max((jnp.size(leaf) // size(batch) for leaf in labels), default=1)
        count = max(-(-size(batch) // 4), -(-_FEWEST_LABELS // max(1, per_example)))
    elif isinstance(part, Real) and not isinstance(part, bool) and 0 < float(part) <= 1:
        count = math.ceil(float(part) * size(batch) - 1e-9)  # 0.1 · 30 is above 3
    elif isinstance(part, Real | str):
        raise ValueError(
            f'Objective.bind: `{argument}` must be examples, a share in (0, 1], "auto" or None, got {part!r}.'
        )
    else:
        return None if part is None else as_batch(part, argument)
    if count >= size(batch):
        return None
    first = jax.tree.map(lambda leaf: leaf[:count], batch)
    _check_weights(first.weights, f"{argument} (the first {count} of batch)")
    return first


def _refuse_sparse(batch: Batch, argument: str) -> None:
    """Raise TypeError for a sparse array: its leaves are not one row an example."""
    is_sparse = lambda node: isinstance(node, JAXSparse)  # noqa: E731
    for path, node in jax.tree.leaves_with_path(batch, is_leaf=is_sparse):
        if is_sparse(node):
            raise TypeError(
                f"Objective.bind: `{argument}{jax.tree_util.keystr(path)}` is a sparse {type(node).__name__} of shape "
                f"{node.shape}, whose rows cannot be taken apart. Give .todense(), or the columns and values of every "
                "row, padded to one length; a sparse matrix that all examples share belongs in `predict`, by closure."
            )


def _check_weights(weights: Any, argument: str) -> None:
    """Raise ValueError for weights that are negative, not finite, or all zero; of traced ones that is not known."""
    if weights is None or is_traced(weights):
        return
    if isinstance(weights, jax.Array) and not weights.is_fully_addressable:
        return
    known = np.asarray(weights, np.float64)
    wrong = np.flatnonzero(~(np.isfinite(known) & (known >= 0)))
    if wrong.size:
        raise ValueError(
            f"Objective.bind: weights in `{argument}` must be finite and at least 0, got {known[wrong[0]]:.6g} for "
            f"example {wrong[0]}."
        )
    if not known.any():
        raise ValueError(f"Objective.bind: weights in `{argument}` are all 0, so there is no mean over the examples.")


def size(batch: Any) -> int:
    """N, the number of examples."""
    return jnp.shape(jax.tree.leaves(batch)[0])[0]


def examples(batch: Batch) -> Examples:
    """Give every example its coefficient: 1/N, or w_i / Σ w.

    An example of weight 0 does not count, whatever its numbers are. As 0 · NaN is NaN, also in a derivative that a
    ``where`` cuts off, what is not finite in it is replaced by what the first example that counts has there.
    """
    if batch.weights is None:
        count = size(batch)
        return Examples(batch.inputs, batch.targets, jnp.full(count, 1.0 / count))
    weights = jnp.asarray(batch.weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating) or jnp.finfo(weights.dtype).bits < 32:
        weights = weights.astype(jnp.result_type(float))  # counts, masks, and sums that low precision would lose
    mend = partial(_mended, counts=weights > 0)
    inputs, targets = jax.tree.map(mend, (batch.inputs, batch.targets))
    return Examples(inputs, targets, weights / weights.sum())


def _mended(leaf: Any, counts: jax.Array) -> Any:
    """``leaf`` with the rows that do not count, where not finite, replaced by the first that does."""
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return leaf
    leaf = jnp.asarray(leaf)
    of_rows = lambda mask: mask.reshape((-1,) + (1,) * (leaf.ndim - 1))  # noqa: E731
    numbers = jnp.arange(counts.size)
    first = numbers == jnp.where(counts, numbers, counts.size).min()
    # A sum and not an index, so that rows on several devices stay where they are.
    stand_in = jnp.where(of_rows(first), leaf, 0).sum(axis=0, keepdims=True)
    return jnp.where(of_rows(counts) | jnp.isfinite(leaf), leaf, stand_in)


class Chunks(NamedTuple):
    """Examples, to be taken in ``number`` chunks of equal length: chunk j has the rows j, j + number, …

    With this stride a batch that is sharded over devices stays sharded inside every chunk.
    """

    rows: Examples
    number: int

    def take(self, j: Any) -> Examples:
        """Chunk j, without a copy of the others."""
        shape = size(self.rows) // self.number, self.number

        def chunk(x: Any) -> jax.Array:
            x = x if split_evenly(x, self.number) else whole(x)
            parts = jnp.reshape(x, (*shape, *jnp.shape(x)[1:]))
            return jax.lax.dynamic_index_in_dim(parts, j, axis=1, keepdims=False)

        return jax.tree.map(chunk, self.rows)


def chunks(rows: Examples, chunk_size: int | None) -> Chunks:
    """Cut the rows into equal chunks of at most ``chunk_size``.

    Up to twice as many chunks are made as it takes, where that divides N. Where nothing does, the rows are copied with
    some of them repeated, with coefficient zero.
    """
    count = size(rows)
    number = 1 if chunk_size is None else -(-count // chunk_size)
    if count % number == 0:
        return Chunks(rows, number)
    divisors = [n for n in range(number, min(2 * number, count) + 1) if count % n == 0]
    if divisors:
        return Chunks(rows, divisors[0])
    missing = -count % number
    # Real rows, not zeros: a model may return NaN at zero inputs, and 0·NaN is NaN.
    filled = jax.tree.map(lambda x: jnp.concatenate([whole(x), whole(x)[:missing]]), rows)
    return Chunks(filled._replace(coefficients=filled.coefficients.at[count:].set(0)), number)


def sum_over_chunks(function: Callable[..., Any], chunked: Chunks, *per_chunk: Any) -> Any:
    """Σ_j function(chunk j, *(entry j of each of ``per_chunk``)), with the memory of one chunk at a time."""
    term = lambda j, *entries: function(chunked.take(j), *entries)  # noqa: E731
    if chunked.number == 1:
        return function(chunked.rows, *(x[0] for x in per_chunk))

    def add(total: Any, turn: tuple[Any, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, term(*turn)), None

    turns = (jnp.arange(chunked.number, dtype=jnp.int32), *per_chunk)
    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), jax.eval_shape(term, *(x[0] for x in turns))
    )
    return jax.lax.scan(add, zero, turns)[0]
