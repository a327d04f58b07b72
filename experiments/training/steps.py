"""The one jitted step of all optimizers, and queues of it: many steps in one compiled program.

A small step of a first-order method takes less time than its call from Python and its report's way back. In a queue
neither is paid: the program takes the rows of all steps at once, and gives back their reports.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hfopt
from experiments.problems.problem import Params, Problem
from experiments.training.batches import Rows
from experiments.training.optimizers import Optimizer
from experiments.training.placement import Share
from hfopt import convolutions
from hfopt.objective import Memory

Report = dict[str, Any]  # of a step: scalars by name, or of a queue: arrays with an element for each step


class TrainState(NamedTuple):
    """What a step reads and replaces, all arrays."""

    params: Params
    opt_state: optax.OptState


def make_queue(problem: Problem, optimizer: Optimizer, chunk_size: int | None, memory: Memory, length: int) -> Any:
    """The jitted queue (state, data, rows, count) -> (state, reports, taken): `count` steps, `length` at the most.

    rows: of as many steps, by `queue_rows`. It ends early after a step that diverged, so that the state is that step's.
    reports: arrays (length,) of which the first `taken` are told. The state's buffers are donated.
    """
    step = make_step(problem, optimizer, chunk_size, memory)

    def train_steps(state: TrainState, data: Any, rows: Rows, count: Any) -> tuple[TrainState, Report, Any]:
        if length == 1:
            state, report = step(state, data, rows)
            return state, jax.tree.map(lambda value: value[None], report), 1
        first = jax.tree.map(lambda leaf: leaf[0], rows)
        _, shapes = jax.eval_shape(step, state, data, first)
        reports = jax.tree.map(lambda value: jnp.zeros((length, *value.shape), value.dtype), shapes)
        fast = convolutions.specialize(step, state, data, first)  # plain ones are slow in loops on CPU

        def goes_on(carry: tuple[TrainState, Report, jax.Array, jax.Array]) -> jax.Array:
            _, _, taken, diverged = carry
            return (taken < count) & ~diverged

        def body(carry: tuple[TrainState, Report, jax.Array, jax.Array]) -> Any:
            state, reports, taken, _ = carry
            state, report = fast(state, data, jax.tree.map(lambda leaf: leaf[taken], rows))
            reports = jax.tree.map(lambda several, one: several.at[taken].set(one), reports, report)
            # What `has_diverged` says of a report that was fetched.
            diverged = ~jnp.isfinite(report["loss"]) & jnp.asarray(report.get("accepted", True))
            return state, reports, taken + 1, diverged

        carry = (state, reports, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        state, reports, taken, _ = jax.lax.while_loop(goes_on, body, carry)
        return state, reports, taken

    return jax.jit(train_steps, donate_argnums=0)


def queue_rows(rows: Sequence[Rows], length: int) -> Rows:
    """The rows of several steps as `make_queue` takes them: stacked, and repeated up to its length."""
    if length == 1:
        return rows[0]
    padded = [*rows, *[rows[-1]] * (length - len(rows))]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded)


def has_diverged(report: Report) -> bool:
    """Whether a step was taken from a loss that is not finite.

    An optimizer that reports such a step as rejected has left the parameters where they were, and may go on.
    """
    return not math.isfinite(report.get("loss", 0.0)) and report.get("accepted", True)


def make_step(problem: Problem, optimizer: Optimizer, chunk_size: int | None, memory: Memory = "auto") -> Any:
    """The step (state, data, rows) -> (state, report).

    data: (inputs, targets) of the whole training set. rows: `Rows` of it. report: scalars, `loss` (the objective on the
    gradient's batch, before the step) and what the optimizer tells; the loss it compares its `new_loss` with is
    `evaluation_loss` where there is an evaluation batch.
    """
    objective = hfopt.Objective(problem.predict, problem.loss, l2=problem.l2, precision=problem.precision)

    def step(state: TrainState, data: Any, rows: Rows) -> tuple[TrainState, Report]:
        params, opt_state = state
        batch = _take(data, rows.gradient)
        value_fn = objective.bind(
            batch,
            curvature_batch=_curvature_batch(data, batch, rows),
            evaluation_batch=None if rows.evaluation is None else _take(data, rows.evaluation),
            chunk_size=chunk_size,
            memory=memory,
        )
        value, grad = optimizer.value_and_grad(value_fn, params, opt_state)
        updates, opt_state = optimizer.transformation.update(
            grad, opt_state, params, value=value, grad=grad, value_fn=value_fn
        )
        report = optimizer.report(opt_state)
        if rows.evaluation is not None and "loss" in report:
            report["evaluation_loss"] = report["loss"]
        return TrainState(optax.apply_updates(params, updates), opt_state), {**report, "loss": value}

    return step


def _curvature_batch(data: Any, batch: Any, rows: Rows) -> Any:
    if rows.curvature is None:
        return None
    return _take(data if isinstance(rows.curvature, Share) else batch, rows.curvature)


def _take(data: Any, rows: Any) -> Any:
    """A batch of the data: all of them, or the rows of these numbers, with weights where they have some."""
    if isinstance(rows, Share):
        return (*_take(data, rows.rows), rows.weights)
    return data if rows is None else jax.tree.map(lambda leaf: leaf[rows], data)
