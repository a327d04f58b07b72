"""One attempt at a step: what comes of a given λ.

Everything before it (linearising the model, metric, preconditioner, trust) is done once a step; `newton` then solves
(A + λM) d = −m, or `scaled` λM d = −m, which takes no product, and an attempt chooses a length and says what became of
it. A step makes one attempt, and more only where λ is calibrated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hfopt.control.backtracking import last_iterate, walk_back
from hfopt.control.line_search import LineSearch
from hfopt.control.negative_curvature import Course, follow, probe
from hfopt.control.outcome import Outcome
from hfopt.solve.cg import CGResult
from hfopt.solve.metrics import Geometry
from hfopt.solve.stopping import Stop
from hfopt.state import Carried, StepInfo
from hfopt.system import System
from hfopt.vectors import vdot, widened


@dataclass(frozen=True)
class Point:
    """θ, and what is known there before λ is chosen."""

    params: Any
    loss: jax.Array  # f(θ); its dtype is that of all scalars
    descent: Any  # −g, by which a direction and the model are judged
    step_number: jax.Array  # int32: steps taken before
    evaluate: Callable[[Any], jax.Array]  # params -> f, in a form that is fast inside loops

    @property
    def stationary(self) -> jax.Array:
        """Whether gᵀg = 0 in its arithmetic: CG, which squares, then has nothing to go by."""
        return vdot(self.descent, self.descent) == 0

    def step(self, alpha: jax.Array, direction: Any) -> Any:
        """α d, in the dtypes of the parameters."""
        return jax.tree.map(lambda p, d: (alpha * d).astype(p.dtype), self.params, direction)

    def loss_after(self, step: Any) -> jax.Array:
        """f(θ + s)."""
        return self.evaluate(optax.apply_updates(self.params, step)).astype(self.loss.dtype)

    def longest(self, damped_form: jax.Array, bound: jax.Array | None) -> jax.Array:
        """The length α ≤ 1 with which ½ (αd)ᵀ(A + λM)(αd) ≤ κ; 1 without a bound."""
        if bound is None:
            return jnp.ones((), self.loss.dtype)
        radius = jnp.sqrt(bound / jnp.maximum(0.5 * jnp.abs(damped_form), jnp.finfo(self.loss.dtype).tiny))
        return jnp.minimum(radius, 1).astype(self.loss.dtype)


class Found(NamedTuple):
    """A direction, and what finding it left behind."""

    course: Course
    form: jax.Array  # dᵀAd; without CG dᵀ(λM)d, the only curvature that the model has then
    steps: jax.Array  # int32: CG iterations
    stop: jax.Array  # int32: a `Stop`
    carried: Carried  # with the solution that the next system may start from
    full_step_loss: jax.Array | None  # f(θ + d), where it is known


def newton(at: Point, system: System, damping: jax.Array, bound: jax.Array | None, step_limit: Any) -> Found:
    """The direction that CG makes of (A + λM) d = −m with λ = ``damping``, in at most ``step_limit`` iterations."""
    dtype = at.loss.dtype
    rhs = None
    if system.operator.indefinite:  # at a stationary point b is random, to look for negative curvature
        rhs = probe(optax.tree.scale(-1, widened(system.geometry.average)), at.stationary, at.step_number)
    result, along = system.solve(damping, step_limit, rhs)
    course, full_step_loss = _course(at, system, result, along, damping, bound)
    form = (course.damped_form - damping * system.geometry.form(course.direction)).astype(dtype)
    course = course._replace(products=course.products + system.products)
    carried = system.carried
    if system.start is not None:
        carried = carried._replace(solution=result.solution)
    return Found(course, form, result.steps, result.stop, carried, full_step_loss)


def scaled(at: Point, geometry: Geometry, carried: Carried, damping: jax.Array) -> Found:
    """d = −(λM)⁻¹m, the limit of a large λ: nothing is linearised, probed or multiplied.

    ``carried``: from the last step. The next system starts from zero.
    """
    none = jnp.int32(0)
    solution, form = geometry.scaled(damping)
    course = Course(optax.tree.scale(-1, solution), form.astype(at.loss.dtype), none, none)
    carried = carried._replace(solution=jax.tree.map(jnp.zeros_like, carried.solution), metric=geometry.state)
    return Found(course, course.damped_form, none, jnp.int32(Stop.NONE), carried, None)


class Attempt(NamedTuple):
    """What came of it."""

    outcome: Outcome
    info: StepInfo


def attempt(at: Point, found: Found, damping: jax.Array, bound: jax.Array | None, line_search: LineSearch) -> Attempt:
    """Choose a length for the direction, and accept or reject the step.

    Args:
      at: where.
      found: the direction.
      damping: λ it was found with.
      bound: κ, or ``None``.
      line_search: the rule for the length.
    """
    dtype, course, form, full_step_loss = at.loss.dtype, found.course, found.form, found.full_step_loss
    direction = course.direction
    length = at.longest(course.damped_form, bound)
    slope = -vdot(at.descent, direction).astype(dtype)
    trial_loss = lambda alpha: at.loss_after(at.step(alpha * length, direction))  # noqa: E731
    search = line_search.search(trial_loss, at.loss, length * slope, full_step_loss)

    # A direction that is zero though the gradient is not is a failure of CG, not a stationary point.
    moves = (slope != 0) | at.stationary
    # Nor is a start of CG whose own product is not finite, and with it φ.
    moves &= jnp.isfinite(course.damped_form)
    accepted = search.accepted & moves & jnp.isfinite(at.loss) & jnp.isfinite(search.new_loss)
    alpha = jnp.where(accepted, search.step_size * length, 0)
    # With the true gradient, also where b is something else (clipped before, a natural gradient).
    model = lambda a, form: a * slope + 0.5 * a**2 * form  # noqa: E731
    predicted = jnp.where(accepted, model(alpha, form), 0).astype(dtype)
    actual = search.new_loss - at.loss
    # Below the resolution of the loss, acceptance and ρ are noise.
    rounding = 10 * jnp.finfo(dtype).eps * jnp.abs(at.loss)
    noise = moves & (jnp.abs(model(length, form)) <= rounding) & (jnp.abs(actual) <= rounding)
    ratio = lambda m: jnp.where(accepted, jnp.where(noise, 1, actual / m), -jnp.inf).astype(dtype)  # noqa: E731

    step = at.step(alpha, direction)
    outcome = Outcome(
        step=optax.tree.where(accepted, step, optax.tree.zeros_like(step)),
        squared_norm=(alpha**2 * vdot(direction, direction)).astype(dtype),
        predicted=predicted,
        reduction_ratio=ratio(predicted),
        damped_ratio=ratio(model(alpha, course.damped_form)),
        accepted=accepted,
        informative=~noise,
    )
    info = StepInfo(
        loss=at.loss,
        new_loss=jnp.where(accepted, search.new_loss, at.loss),
        reduction_ratio=outcome.reduction_ratio,
        damping=damping,
        cg_steps=found.steps,
        cg_stop=found.stop,
        step_size=alpha,
        products=course.products,
        evaluations=search.evaluations + course.evaluations,
        accepted=accepted,
    )
    return Attempt(outcome, info)


def _course(
    at: Point, system: System, result: CGResult, along: Any, damping: jax.Array, bound: jax.Array | None
) -> tuple[Course, jax.Array | None]:
    """The direction, from the iterates of CG or along negative curvature; and f(θ + d) where it is known already."""
    one = jnp.ones((), at.loss.dtype)
    if result.kept is None:
        choice = last_iterate(result)
    else:
        choice = walk_back(result, result.kept, lambda d: at.loss_after(at.step(one, d)))
    # CG ends with φ(d) = −bᵀd + ½ dᵀ(A + λM)d, so the quadratic forms follow without another product.
    damped_form = 2 * (choice.model_value + along(choice.direction))
    course = Course(choice.direction, damped_form.astype(at.loss.dtype), result.products, choice.evaluations)
    operator = system.operator
    if not operator.indefinite:
        return course, choice.loss if bound is None else None

    def damped(v: Any) -> jax.Array:
        quadratic = operator.quadratic(optax.tree.cast_like(v, operator.example))
        return quadratic + damping * system.geometry.form(v)

    def loss_along(direction: Any, damped_form: jax.Array) -> jax.Array:
        return at.loss_after(at.step(at.longest(damped_form, bound), direction))

    return follow(course, result, operator, damped, at.descent, at.loss, loss_along), None
