"""Preconditioned conjugate gradients, truncated: the inner solver of a Hessian-free step.

Minimises φ(x) = ½ xᵀ(A + λM)x − bᵀx on pytrees, with M the identity unless a metric is given, and P the preconditioner.
How it differs from the textbook:

1. it stops when a rule says that φ has stopped falling, not only by the residual: in float32 the recursive residual
   keeps shrinking long after the true one has floored;
2. φ_i costs neither a product nor a pass over the parameters: an iteration lowers φ by ½ α rᵀP⁻¹r, and at the start
   φ_0 = ½ x₀ᵀ(A + λM)x₀ − bᵀx₀;
3. pᵀAp ≤ 0 ends the iteration; the divisor is guarded by the sign and the smallest normal number, never clamped, since
   late in training the right-hand side and with it pᵀAp are legitimately tiny;
4. a non-finite number ends it too, and the last finite iterate is returned;
5. where the product comes in two halves, a jvp and a vjp, the last iteration that is allowed makes only the first: α
   and φ need no more. It ends by the cap then, even where the residual, which it does not form, would have ended it;
6. the residual of x₀ is formed by the loop itself, in an opening turn that moves r and not x: a product is by far the
   largest part of the program, and is compiled once.
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
from hfopt.vectors import Packing, axpy, norm, vdot, widened


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
    values: jax.Array  # (max_steps + 1,): φ_0 … φ_steps, then zeros
    kept: Kept | None  # with ``keep_ratio``
    direction: Any  # p, the last search direction; with `Stop.NEGATIVE_CURVATURE` the one where pᵀ(A + λM)p ≤ 0


class _State(NamedTuple):  # vectors are packed
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
      max_steps: the most iterations. None at all is a legal number: the solution is then the start, and a step of
        `hfopt.hessian_free` is one in its metric alone.
      stop: a stop rule, or a tuple of them of which the first to hold ends the iteration. An empty tuple runs to
        ``max_steps``.
      keep_ratio: keep the iterates of the iterations ⌈5 · keep_ratioʲ⌉, j = 0, 1, … for backtracking over them; one
        vector of memory each. Martens has 1.3: iterations 5, 7, 9, 11, 15, … ``None`` keeps none.

    Raises:
      ValueError: ``max_steps`` is negative or no integer, or ``keep_ratio`` is not above 1.
    """

    max_steps: int = 250
    stop: StopRule | tuple[StopRule, ...] = RelativeProgress()  # noqa: RUF009 - immutable
    keep_ratio: float | None = None

    def __post_init__(self) -> None:
        if type(self.max_steps) is not int or self.max_steps < 0:
            raise ValueError(f"cg: `max_steps` must be an integer of at least 0, got {self.max_steps!r}.")
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
        packing = Packing.of(widened(rhs))
        narrowed = lambda v: optax.tree.cast_like(v, narrow)  # noqa: E731
        multiply = packing.linear(lambda v: apply(narrowed(v)))
        halves = operator.halves if isinstance(operator, Operator) else None
        measure = packing.linear(metric) if metric else lambda v: v
        precondition = packing.linear(preconditioner) if preconditioner else lambda r: r
        product = lambda v: axpy(damping, measure(v), multiply(v))  # noqa: E731
        rhs, start = packing.pack(rhs), None if start is None else packing.pack(start)
        cap = self.max_steps if step_limit is None else jnp.minimum(step_limit, self.max_steps)
        rules = self.stop if isinstance(self.stop, tuple) else (self.stop,)

        # Without x₀ the loop begins at r = b, p = P⁻¹b; with it in an opening turn of p = x₀, α = 0.
        warm = start is not None
        p = start if warm else precondition(rhs)
        first = vdot(rhs, p)
        x, ry = (start, jnp.zeros_like(first)) if warm else (optax.tree.zeros_like(rhs), first)
        rhs_norm, tiny = norm(rhs), jnp.finfo(first.dtype).tiny
        stop = jnp.where((ry == 0) & (not warm), Stop.SOLVED, Stop.NONE)
        stop = jnp.where(jnp.isfinite(first), stop, Stop.NONFINITE)
        stop = jnp.where(cap < 1, Stop.CAP, stop)

        def bend(p: Any, last: jax.Array) -> tuple[Any, jax.Array]:
            """(A + λM)p and pᵀ(A + λM)p; in the last iteration only this: r, which takes the other, is for the next."""
            if halves is None:
                ap = product(p)
                return ap, vdot(p, ap)
            v, mp = narrowed(packing.unpack(p)), measure(p)
            middle = halves.forward(v)

            def half() -> tuple[Any, jax.Array]:
                form = halves.form(v, middle).astype(first.dtype)
                return optax.tree.zeros_like(p), form + jnp.asarray(damping, first.dtype) * vdot(p, mp)

            def whole() -> tuple[Any, jax.Array]:
                ap = axpy(damping, mp, packing.pack(halves.backward(v, middle)))
                return ap, vdot(p, ap)

            return jax.lax.cond(last, half, whole)

        def iterate(state: _State) -> _State:
            opening = jnp.bool_(warm) & (state.products == 0)
            step, p = state.step + jnp.where(opening, 0, 1), state.p
            ap, curvature = bend(p, (step >= cap) & ~opening)
            alpha = state.ry / jnp.maximum(curvature, tiny)
            x = axpy(alpha, p, state.x)
            r = axpy(-jnp.where(opening, 1, alpha), ap, state.r)
            y = precondition(r)
            ry = vdot(r, y)
            phi = jnp.where(opening, 0.5 * curvature - first, state.values[state.step] - 0.5 * alpha * state.ry)
            values = state.values.at[step].set(phi)
            p = axpy(jnp.where(opening, 0, ry / state.ry), p, y)

            progress = Progress(step, norm(r), rhs_norm, values)
            stop = jnp.where(step >= cap, Stop.CAP, Stop.NONE)
            for rule in reversed(rules):
                stop = jnp.where(rule(progress), rule.reason, stop)
            stop = jnp.where(ry == 0, Stop.SOLVED, jnp.where(opening, Stop.NONE, stop))

            finite = jnp.isfinite(curvature) & jnp.isfinite(ry) & jnp.isfinite(phi)
            sound = finite & (opening | (curvature >= tiny))
            negative = (finite | (curvature < tiny)) & ~opening
            kept = None if state.kept is None else _keep(state.kept, step, x, sound)
            done = _State(step, state.products + 1, x, r, p, ry, values, stop.astype(jnp.int32), kept)
            # A failed iteration leaves what is read after the loop as it was; r and the slots of `kept` are not.
            reason = jnp.where(negative, Stop.NEGATIVE_CURVATURE, Stop.NONFINITE).astype(jnp.int32)
            failed = done._replace(step=state.step, x=state.x, p=state.p, values=state.values, stop=reason)
            return optax.tree.where(sound, done, failed)

        values = jnp.zeros(self.max_steps + 1, ry.dtype).at[0].set(jnp.nan if warm else 0.0)
        kept = self._empty_kept(rhs)
        state = _State(jnp.int32(0), jnp.int32(0), x, rhs, p, ry, values, stop.astype(jnp.int32), kept)
        state = jax.lax.while_loop(lambda s: s.stop == Stop.NONE, iterate, state)
        return CGResult(
            solution=packing.unpack(state.x),
            steps=state.step,
            stop=state.stop,
            residual_norm=norm(optax.tree.sub(rhs, product(state.x))),
            model_value=state.values[state.step],
            products=state.products,
            values=state.values,
            kept=state.kept and state.kept._replace(iterates=jax.vmap(packing.unpack)(state.kept.iterates)),
            direction=packing.unpack(state.p),
        )

    def _empty_kept(self, rhs: Any) -> Kept | None:
        if self.keep_ratio is None:
            return None
        # The unrounded number is multiplied on: 5, 7, 9, 11, … and not 5, 7, 10, 13, …
        ends = (5.0 * self.keep_ratio**j for j in count())
        series = [math.ceil(end) for end in takewhile(lambda end: math.ceil(end) <= self.max_steps, ends)]
        steps = jnp.array(series or [self.max_steps + 1], jnp.int32)  # one unused slot where the series is empty
        iterates = jax.tree.map(lambda b: jnp.broadcast_to(jnp.zeros_like(b), (steps.size, *b.shape)), rhs)
        return Kept(iterates, steps, jnp.int32(0))


def _keep(kept: Kept, step: jax.Array, x: Any, sound: jax.Array) -> Kept:
    """Write x into the next free slot; it counts only when this is the iteration the slot is for, and did not fail."""
    slot = jnp.minimum(kept.filled, kept.steps.size - 1)
    free = kept.filled < kept.steps.size
    write = lambda slots, x: slots.at[slot].set(jnp.where(free, x, slots[slot]))  # noqa: E731
    due = sound & free & (step == kept.steps[slot])
    return Kept(jax.tree.map(write, kept.iterates, x), kept.steps, kept.filled + due.astype(jnp.int32))
