"""What a model writes down as it is called, such as the running statistics of BatchNorm: moved once a step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.batch import chunks, examples, sum_over_chunks
from hfopt.objective import ValueFn


def averaged(value_fn: ValueFn, run: Callable[[Any], Any]) -> Any:
    """``run(inputs)`` on the batch of ``value_fn``, where that is chunked the mean over its chunks.

    Running averages are linear in the statistics of a batch, so the mean over equal chunks is one movement by the mean
    of their statistics. Counters, which have no mean, are taken from the first chunk. Unchunked it costs nothing under
    ``jax.jit``: the gradient's forward pass is the same.
    """
    with value_fn.objective.matmul_precision():
        if not value_fn.is_chunked(value_fn.batch):
            return run(value_fn.batch.inputs)
        chunked = chunks(examples(value_fn.batch), value_fn.chunk_size)
        leaves, structure = jax.tree.flatten(run(chunked.take(0).inputs))
        floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

        def shares(rows: Any) -> list[jax.Array]:
            every = zip(jax.tree.leaves(run(rows.inputs)), floating, strict=True)
            return [leaf / chunked.number for leaf, keep in every if keep]

        means = iter(sum_over_chunks(shares, chunked))
        moved = [next(means) if keep else leaf for leaf, keep in zip(leaves, floating, strict=True)]
        return jax.tree.unflatten(structure, moved)


def accepted(opt_state: Any) -> Any:
    """Whether the optimizer took its last step: true for all that do not say."""
    said = optax.tree.get_all_with_path(opt_state, "accepted")
    return jnp.all(jnp.stack([value for _, value in said])) if said else jnp.bool_(True)
