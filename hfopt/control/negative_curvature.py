"""Negative curvature: a direction p with pᵀAp < 0 that CG came across, and the step that makes use of it.

Along p the quadratic model has no minimum, so the length of such a step comes from elsewhere. With u = p/‖p‖ it is the
one at which the model, seen from a stationary point, would have lowered a non-negative objective to zero:

    ½ |uᵀAu| τ² = |f|.

The trust region and the line search shorten it as they do every step, although |dᵀ(A + λM)d| of an indefinite A may be
small for a long d. Where the gradient vanishes CG has nothing to solve; there it is given a random right-hand side,
only to look for negative curvature.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hfopt.curvature.operator import Operator
from hfopt.solve.cg import CGResult
from hfopt.solve.stopping import Stop
from hfopt.vectors import norm, vdot


class Course(NamedTuple):
    """The direction of a step."""

    direction: Any  # d, shaped like the parameters
    damped_form: jax.Array  # dᵀ(A + λM)d
    products: jax.Array  # int32: products spent on finding it, beyond those of CG
    evaluations: jax.Array  # int32: losses computed


def probe(rhs: Any, stationary: jax.Array, step: jax.Array) -> Any:
    """``rhs``, or random normal numbers where the point is stationary; other ones at every step."""
    key = jax.random.fold_in(jax.random.key(0), step)
    return optax.tree.where(stationary, optax.tree.random_like(key, rhs, jax.random.normal), rhs)


def follow(
    course: Course,
    result: CGResult,
    operator: Operator,
    damped: Callable[[Any], jax.Array],
    descent: Any,
    loss: jax.Array,
    loss_after: Callable[[Any, jax.Array], jax.Array],
) -> Course:
    """Go on from the solution of CG along a direction of negative curvature, where that lowers the objective more.

    Args:
      course: the solution of CG.
      result: how CG ended.
      operator: A.
      damped: v ↦ vᵀ(A + λM)v.
      descent: −g.
      loss: f(θ).
      loss_after: f after the step along a direction d that the trust region allows, given d and dᵀ(A + λM)d.

    Source: the idea of Steihaug, "The conjugate gradient method and trust regions in large scale optimization", 1983,
    to continue from the last iterate along p; the length and the comparison by the objective are ours.
    """
    stationary = vdot(descent, descent) == 0
    # What CG did with a random right-hand side is no step.
    here = optax.tree.where(stationary, jax.tree.map(jnp.zeros_like, course), course)

    def further() -> Course:
        length = norm(result.direction)
        unit = jax.tree.map(lambda p: p / jnp.where(length > 0, length, 1).astype(p.dtype), result.direction)
        curvature = operator.quadratic(optax.tree.cast_like(unit, operator.example)).astype(loss.dtype)
        tau = jnp.sqrt(2 * jnp.abs(loss) / jnp.where(curvature < 0, -curvature, jnp.inf))
        beyond = jax.tree.map(lambda x, u: x + jnp.asarray(tau, x.dtype) * u, here.direction, unit)
        form = damped(beyond).astype(loss.dtype)
        resting = norm(here.direction) == 0
        gain, rest = loss_after(beyond, form), loss_after(here.direction, here.damped_form)
        # From a point that CG could not leave, the line search may look along p in any case. Uphill it never does, and
        # from a warm start p may lead there.
        better = (tau > 0) & (resting | (gain < jnp.where(jnp.isnan(rest), jnp.inf, rest)))
        better &= vdot(descent, beyond) >= 0
        chosen = optax.tree.where(better, Course(beyond, form, course.products, course.evaluations), here)
        return chosen._replace(products=course.products + 2, evaluations=course.evaluations + 2)

    keep = here._replace(products=course.products, evaluations=course.evaluations)
    return jax.lax.cond(result.stop == Stop.NEGATIVE_CURVATURE, further, lambda: keep)
