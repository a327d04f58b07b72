"""Preconditioned conjugate gradients, truncated: the inner solver of a Hessian-free step.

Minimises φ(x) = ½ xᵀ(A + λM)x − bᵀx on pytrees, with M the identity unless a metric is given, and P the preconditioner.
How it differs from the textbook:

1. it stops when a rule says that φ has stopped falling, not only by the residual: in float32 the recursive residual
   keeps shrinking long after the true one has floored;
2. φ_i costs neither a product nor a pass over the parameters: an iteration lowers φ by ½ α rᵀP⁻¹r, and at the start
   φ_0 = −½ (bᵀx + rᵀx);
3. pᵀAp ≤ 0 ends the iteration; the divisor is guarded by the sign and the smallest normal number, never clamped, since
   late in training the right-hand side and with it pᵀAp are legitimately tiny;
4. a non-finite number ends it too, and the last finite iterate is returned.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hfopt.curvature.operator import Operator
from hfopt.solve.stopping import Progress, RelativeProgress, Stop, StopRule


class Kept(NamedTuple):
    """Iterates kept on the way, for `hfopt.control.backtracking`; slots from ``filled`` on are unused."""

    iterates: Any  # shaped like b with a leading axis of slots
    steps: jax.Array  # (slots,) int32: the iteration each slot is for
    filled: jax.Array  # int32: slots in use


class CGResult(NamedTuple):
    """What a solve ends with. ``residual_norm`` costs one product more; under ``jax.jit`` only where it is used."""

    solution: Any  # x, shaped like b, in at least float32
    steps: jax.Array  # int32: iterations that changed x
    stop: jax.Array  # int32: a `Stop`
    residual_norm: jax.Array  # ‖b − (A + λM)x‖, from a fresh product
    model_value: jax.Array  # φ(x)
    products: jax.Array  # int32: A·v products of the iteration (the one for residual_norm is not counted)
    values: jax.Array  # (max_steps + 1,): φ_0 … φ_steps, then NaN
    kept: Kept | None  # with ``keep_ratio``
    direction: Any  # p, the last search direction; with `Stop.NEGATIVE_CURVATURE` the one where pᵀ(A + λM)p ≤ 0


class _State(NamedTuple):
    step: jax.Array
    products: jax.Array
    x: Any
    r: Any  # recursive residual b − (A + λM)x
    p: Any  # search direction
    ry: jax.Array  # rᵀP⁻¹r
    values: jax.Array
    stop: jax.Array
    kept: Kept | None


@dataclass(frozen=True)
class ConjugateGradient:
    """Truncated preconditioned CG; ``hfopt.cg`` is its short name.

    Args:
      max_steps: the most iterations.
      stop: a stop rule, or a tuple of them of which the first to hold ends the iteration. An empty tuple runs to
        ``max_steps``.
      keep_ratio: keep the iterates of the iterations ⌈5 · keep_ratioʲ⌉, j = 0, 1, … for backtracking over them; one
        vector of memory each. Martens has 1.3: iterations 5, 7, 9, 11, 15, … ``None`` keeps none.

    Raises:
      ValueError: ``max_steps`` is not a positive integer, or ``keep_ratio`` is not above 1.
    """

    max_steps: int = 250
    stop: StopRule | tuple[StopRule, ...] = RelativeProgress()  # noqa: RUF009 - immutable
    keep_ratio: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise ValueError(f"cg: `max_steps` must be a positive integer, got {self.max_steps!r}.")
        if self.keep_ratio is not None and not self.keep_ratio > 1:
            raise ValueError(f"cg: `keep_ratio` must be above 1 or None, got {self.keep_ratio}.")

    def solve(
        self,
        operator: Operator | Callable[[Any], Any],
        rhs: Any,
        start: Any = None,
        *,
        damping: Any = 0.0,
        metric: Callable[[Any], Any] | None = None,
        preconditioner: Callable[[Any], Any] | None = None,
        step_limit: Any = None,
    ) -> CGResult:
        """Solve (A + λM) x = b approximately.

        Args:
          operator: A, symmetric: an `Operator` or any linear map on pytrees.
          rhs: b, a pytree of floating arrays. Vectors and sums are kept in at least float32; an `Operator` is given
            the dtypes of its parameters, any other map those of b.
          start: x₀ shaped like b; ``None`` is zero and saves the product of the first residual.
          damping: λ, a scalar.
          metric: v ↦ M v for a symmetric positive semi-definite M; ``None`` is the identity.
          preconditioner: r ↦ P⁻¹ r for a symmetric positive definite P; ``None`` is the identity.
          step_limit: an int32 scalar, possibly traced: stop there already, when it is below ``max_steps``.

        Returns:
          A `CGResult`.

        References:
          Nocedal & Wright, "Numerical Optimization", 2nd ed., algorithms 5.3 and 7.1; Martens 2010, section 4.
        """
        apply = operator.product if isinstance(operator, Operator) else operator
        narrow = operator.example if isinstance(operator, Operator) else rhs
        rhs, start = widened(rhs), None if start is None else widened(start)
        damped = metric or (lambda v: v)
        product = lambda v: _axpy(damping, damped(v), apply(optax.tree.cast_like(v, narrow)))  # noqa: E731
        precondition = preconditioner or (lambda r: r)
        cap = self.max_steps if step_limit is None else jnp.minimum(step_limit, self.max_steps)
        rules = self.stop if isinstance(self.stop, tuple) else (self.stop,)
        vdot = optax.tree.vdot

        x = optax.tree.zeros_like(rhs) if start is None else start
        r = rhs if start is None else optax.tree.sub(rhs, product(start))
        y = precondition(r)
        rhs_norm, ry, first = optax.tree.norm(rhs), vdot(r, y), -0.5 * (vdot(rhs, x) + vdot(r, x))
        tiny = jnp.finfo(ry.dtype).tiny
        spent = jnp.int32(0 if start is None else 1)
        stop = jnp.where(ry == 0, Stop.SOLVED, Stop.NONE)
        stop = jnp.where(jnp.isfinite(ry) & jnp.isfinite(first), stop, Stop.NONFINITE)

        def iterate(state: _State) -> _State:
            step, p = state.step + 1, state.p
            ap = product(p)
            curvature = vdot(p, ap)
            alpha = state.ry / jnp.maximum(curvature, tiny)
            x = _axpy(alpha, p, state.x)
            r = _axpy(-alpha, ap, state.r)
            y = precondition(r)
            ry, phi = vdot(r, y), state.values[state.step] - 0.5 * alpha * state.ry
            values = state.values.at[step].set(phi)
            p = _axpy(ry / state.ry, p, y)

            progress = Progress(step, optax.tree.norm(r), rhs_norm, values)
            stop = jnp.where(step >= cap, Stop.CAP, Stop.NONE)
            for rule in reversed(rules):
                stop = jnp.where(rule(progress), rule.reason, stop)
            stop = jnp.where(ry == 0, Stop.SOLVED, stop)

            # An iteration that failed leaves everything but the reason as it was.
            finite = jnp.isfinite(curvature) & jnp.isfinite(ry) & jnp.isfinite(phi)
            sound = finite & (curvature >= tiny)
            reason = jnp.where(finite | (curvature < tiny), Stop.NEGATIVE_CURVATURE, Stop.NONFINITE)
            kept = None if state.kept is None else _keep(state.kept, step, x)
            done = _State(step, state.products, x, r, p, ry, values, stop.astype(jnp.int32), kept)
            failed = state._replace(stop=reason.astype(jnp.int32))
            # What is kept needs no choice: a slot counts as filled only by the step it is for.
            chosen = optax.tree.where(sound, done._replace(kept=None), failed._replace(kept=None))
            if kept is not None and state.kept is not None:
                kept = kept._replace(filled=jnp.where(sound, kept.filled, state.kept.filled))
            return chosen._replace(products=state.products + 1, kept=kept)

        values = jnp.full(self.max_steps + 1, jnp.nan, ry.dtype).at[0].set(first)
        kept = self._empty_kept(rhs)
        state = _State(jnp.int32(0), spent, x, r, y, ry, values, stop.astype(jnp.int32), kept)
        state = jax.lax.while_loop(lambda s: s.stop == Stop.NONE, iterate, state)
        return CGResult(
            solution=state.x,
            steps=state.step,
            stop=state.stop,
            residual_norm=optax.tree.norm(optax.tree.sub(rhs, product(state.x))),
            model_value=state.values[state.step],
            products=state.products,
            values=state.values,
            kept=state.kept,
            direction=state.p,
        )

    def _empty_kept(self, rhs: Any) -> Kept | None:
        if self.keep_ratio is None:
            return None
        # The unrounded number is multiplied on: 5, 7, 9, 11, … and not 5, 7, 10, 13, …
        ends = (5.0 * self.keep_ratio**j for j in count())
        series = [math.ceil(end) for end in takewhile(lambda end: math.ceil(end) <= self.max_steps, ends)]
        steps = jnp.array(series or [self.max_steps + 1], jnp.int32)  # one unused slot where the series is empty
        iterates = jax.tree.map(lambda b: jnp.zeros((steps.size, *b.shape), b.dtype), rhs)
        return Kept(iterates, steps, jnp.int32(0))


def widened(tree: Any) -> Any:
    """``tree`` with every leaf in at least float32: what sums over parameters are taken in."""
    return jax.tree.map(lambda x: x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32), tree)


def _axpy(scalar: Any, x: Any, y: Any) -> Any:
    """scalar · x + y, in the dtypes of x: a float32 scalar must not promote, nor a bfloat16 product narrow."""
    return jax.tree.map(lambda x, y: jnp.asarray(scalar, x.dtype) * x + y.astype(x.dtype), x, y)


def _keep(kept: Kept, step: jax.Array, x: Any) -> Kept:
    """Write x into the next free slot; it counts only when this is the iteration the slot is for."""
    slot = jnp.minimum(kept.filled, kept.steps.size - 1)
    free = kept.filled < kept.steps.size
    write = lambda slots, x: slots.at[slot].set(jnp.where(free, x, slots[slot]))  # noqa: E731
    due = free & (step == kept.steps[slot])
    return Kept(jax.tree.map(write, kept.iterates, x), kept.steps, kept.filled + due.astype(jnp.int32))
