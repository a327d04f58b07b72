"""The linear system of a step, (A + λM) x = b: all of it that does not depend on λ and b.

`Assembly` holds the choices that make it; once a step it linearises the model and refreshes metric and preconditioner,
and gives a `System` that can be solved for as many λ as there are attempts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.choices import Curvature, takes_key
from hfopt.curvature.operator import Operator
from hfopt.curvature.straight import of_steps
from hfopt.objective import ValueFn
from hfopt.solve.cg import CGResult, ConjugateGradient
from hfopt.solve.metrics import Metric
from hfopt.solve.preconditioners import Preconditioner
from hfopt.state import Carried
from hfopt.vectors import vdot, widened


@dataclass(frozen=True)
class System:
    """A, M and P at θ, and where CG starts."""

    operator: Operator  # A
    metric: Callable[[Any], Any] | None  # v ↦ M v; None: the identity
    inverse: Callable[[Any], Callable[[Any], Any] | None]  # λ ↦ (r ↦ P⁻¹ r)
    start: Any  # x₀, or None
    solver: ConjugateGradient
    products: jax.Array  # int32: spent on the preconditioner
    carried: Carried  # with the last solution still in it

    def solve(self, rhs: Any, damping: Any, step_limit: Any = None) -> CGResult:
        """Solve with λ = ``damping`` and b = ``rhs``, in at most ``step_limit`` iterations; see `hfopt.cg`."""
        return self.solver.solve(
            self.operator,
            rhs,
            self.start,
            damping=damping,
            metric=self.metric,
            preconditioner=self.inverse(damping),
            step_limit=step_limit,
        )

    def metric_form(self, vector: Any) -> jax.Array:
        """vᵀMv."""
        return vdot(vector, vector if self.metric is None else self.metric(vector))

    def carry(self, solution: Any, keep: Any) -> Carried:
        """What the next system starts from: ``solution``, or zero where ``keep`` is false."""
        if self.start is None:
            return self.carried
        return self.carried._replace(solution=optax.tree.where(keep, solution, optax.tree.zeros_like(solution)))


@dataclass(frozen=True)
class Assembly:
    """The choices that make a system; see `hfopt.hessian_free` for what they are."""

    curvature: Curvature
    solver: ConjugateGradient
    preconditioner: Preconditioner | None
    metric: Metric | None
    warm_start: float | Callable[[jax.Array], Any] | None
    seed: int

    def init(self, params: Any) -> Carried:
        """What the first system starts from."""
        return Carried(
            solution=() if self.warm_start is None else widened(optax.tree.zeros_like(params)),
            metric=() if self.metric is None else self.metric.init(params),
            preconditioner=() if self.preconditioner is None else self.preconditioner.init(params),
        )

    def assemble(self, state: Any, value_fn: ValueFn, params: Any, gradient: Any) -> System:
        """The system at ``params``.

        Args:
          state: of the transformation: the number of steps taken, for keys and schedules, and the fields of `Carried`.
          value_fn: the objective on the batch.
          params: θ.
          gradient: what the metric follows; in at least float32.
        """
        key = {"key": jax.random.fold_in(jax.random.key(self.seed), state.step)} if takes_key(self.curvature) else {}
        operator = of_steps(self.curvature)(value_fn, params, **key)
        metric, measuring, unmeasure = None, state.metric, None
        if self.metric is not None:
            measuring = self.metric.update(state.metric, gradient)
            metric, unmeasure = self.metric.product(measuring, value_fn, params), self.metric.inverse(measuring)
        inverse: Callable[[Any], Any] = lambda damping: unmeasure  # noqa: E731
        preconditioning, products = state.preconditioner, jnp.int32(0)
        if (preconditioner := self.preconditioner) is not None:
            preconditioning = preconditioner.update(state.preconditioner, operator, value_fn, params)
            inverse = lambda damping: preconditioner.inverse(preconditioning, damping)  # noqa: E731
            products = preconditioning.setup_products
        start = None
        if self.warm_start is not None:
            decay = self.warm_start(state.step) if callable(self.warm_start) else self.warm_start
            start = jax.tree.map(lambda x: jnp.asarray(decay, x.dtype) * x, state.solution)
        left = Carried(state.solution, measuring, preconditioning)
        return System(operator, metric, inverse, start, self.solver, products, left)
