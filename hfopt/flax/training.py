"""What training states of both frameworks do: statistics that move once a step, reports, extra arguments."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.batch import chunks, examples, sum_over_chunks
from hfopt.objective import ValueFn
from hfopt.state import DirectionInfo, StepInfo


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


def evaluated(value_fn: ValueFn, params: Any) -> jax.Array:
    """f(params) by a forward pass that shares nothing with the rest of the program.

    The compiler forms one program's sums in an order that depends on what else it computes of the same values, so the
    f of ``jax.value_and_grad`` and that of ``value_fn(params)`` may differ in their last place. Kept apart, the pass is
    compiled as it is when it is all there is.
    """
    value_fn, params = jax.lax.optimization_barrier((value_fn, params))
    return jax.lax.optimization_barrier(value_fn(params))


def may_move(opt_state: Any, moved: Any) -> Any:
    """Whether the optimizer took its last step, true for all that do not say; and ``moved`` is finite."""
    infos = [info for info in _infos(opt_state) if isinstance(info, StepInfo)]
    floats = [leaf for leaf in jax.tree.leaves(moved) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.array([*(info.accepted for info in infos), *(jnp.isfinite(x).all() for x in floats), True]))


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """The report of the first transformation of this package in ``opt_state``; empty if there is none."""
    infos = _infos(opt_state)
    return infos[0]._asdict() if infos else {}


def extended(tx: Any) -> optax.GradientTransformationExtraArgs:
    """``tx`` with an update that takes any extra argument; also for ``optax.MultiSteps``, which hides that it does."""
    kinds = [parameter.kind for parameter in inspect.signature(tx.update).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return optax.GradientTransformationExtraArgs(tx.init, tx.update)
    return optax.with_extra_args_support(tx)


def _infos(opt_state: Any) -> list[Any]:
    known = lambda node: isinstance(node, StepInfo | DirectionInfo)  # noqa: E731
    return [node for node in jax.tree.leaves(opt_state, is_leaf=known) if known(node)]
