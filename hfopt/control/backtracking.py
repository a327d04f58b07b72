"""CG backtracking: the iterate of CG that the objective likes best, not the one the model likes best.

Late CG iterates fit the quadratic model ever better and the objective, at some point, worse. CG keeps some iterates on
the way; after the solve one walks back over them, from the last, for as long as the objective does not rise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hfopt.solve.cg import CGResult, Kept


class Choice(NamedTuple):
    """The chosen iterate, and what is known about it."""

    direction: Any
    cg_step: jax.Array  # int32: the CG iteration it is of
    model_value: jax.Array  # φ of the damped model there
    loss: jax.Array | None  # f(θ + direction), where it was computed
    evaluations: jax.Array  # int32: losses computed


class _Walk(NamedTuple):
    slot: jax.Array
    loss: jax.Array
    evaluations: jax.Array
    falling: jax.Array


def last_iterate(result: CGResult) -> Choice:
    """No backtracking: what CG ended with."""
    return Choice(result.solution, result.steps, result.model_value, None, jnp.int32(0))


def walk_back(result: CGResult, kept: Kept, loss_after: Callable[[Any], jax.Array]) -> Choice:
    """Walk from the last iterate towards the first kept one while ``loss_after`` does not rise.

    Of equal iterates the earlier is taken; nothing beyond the first rise is looked at. A loss that is not a number
    counts as +∞, so the walk leaves it behind.

    Source: Martens, "Deep learning via Hessian-free optimization", ICML 2010, section 4.6.
    """

    def measured(direction: Any) -> jax.Array:
        loss = loss_after(direction)
        return jnp.where(jnp.isnan(loss), jnp.inf, loss)

    def iterate(slot: jax.Array) -> Any:
        return jax.tree.map(lambda x: x[jnp.minimum(slot, kept.steps.size - 1)], kept.iterates)

    def back(walk: _Walk) -> _Walk:
        loss = measured(iterate(walk.slot - 1))
        falling = loss <= walk.loss
        return _Walk(
            jnp.where(falling, walk.slot - 1, walk.slot),
            jnp.where(falling, loss, walk.loss),
            walk.evaluations + 1,
            falling,
        )

    # Slot `candidates` stands for the last iterate. That one may be in the series too: its copy is passed over.
    copies = (kept.filled > 0) & (kept.steps[kept.filled - 1] == result.steps)
    candidates = kept.filled - copies.astype(jnp.int32)
    walk = _Walk(candidates, measured(result.solution), jnp.int32(1), jnp.bool_(True))
    walk = jax.lax.while_loop(lambda w: w.falling & (w.slot > 0), back, walk)

    is_last = walk.slot == candidates
    cg_step = jnp.where(is_last, result.steps, kept.steps[jnp.minimum(walk.slot, kept.steps.size - 1)])
    direction = optax.tree.where(is_last, result.solution, iterate(walk.slot))
    return Choice(direction, cg_step, result.values[cg_step], walk.loss, walk.evaluations)
