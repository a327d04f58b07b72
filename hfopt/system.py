"""The linear system of a step, (A + λM) x = b: all of it that does not depend on λ.

`Assembly` holds the choices that make it; once a step it shows the gradient to the metric, and where the curvature is
to be used, linearises the model and refreshes the preconditioner. That gives a `System`, which can be solved for as
many λ as there are attempts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hfopt.choices import Curvature, takes_key
from hfopt.curvature.operator import Halves, Operator
from hfopt.curvature.straight import of_steps
from hfopt.objective import ValueFn
from hfopt.solve.cg import CGResult, ConjugateGradient
from hfopt.solve.metrics import Coordinates, Euclidean, Geometry, Metric
from hfopt.solve.preconditioners import Preconditioner
from hfopt.state import Carried
from hfopt.vectors import vdot, widened


class Solution(NamedTuple):
    """What CG ends with, shaped like the parameters, and x ↦ bᵀx."""

    result: CGResult
    along: Callable[[Any], jax.Array]


@dataclass(frozen=True)
class System:
    """A, M and P at θ, and where CG starts."""

    operator: Operator  # A
    geometry: Geometry  # M
    inverse: Callable[[Any], Callable[[Any], Any] | None]  # λ ↦ (r ↦ P⁻¹ r), in the coordinates of the geometry
    start: Any  # x₀, or None
    solver: ConjugateGradient
    products: jax.Array  # int32: spent on metric and preconditioner
    carried: Carried  # with the last solution still in it

    def solve(self, damping: Any, step_limit: Any = None, rhs: Any = None) -> Solution:
        """Solve with λ = ``damping`` in at most ``step_limit`` iterations; see `hfopt.cg`.

        b is ``rhs``, shaped like the parameters, or −m.
        """
        options = {"damping": damping, "metric": self.geometry.product, "step_limit": step_limit}
        if (basis := self.geometry.coordinates) is None:
            b = optax.tree.scale(-1, widened(self.geometry.average)) if rhs is None else rhs
            result = self.solver.solve(self.operator, b, self.start, preconditioner=self.inverse(damping), **options)
            return Solution(result, lambda x: vdot(b, x))

        b = optax.tree.scale(-1, basis.average) if rhs is None else basis.into(rhs)
        start = None if self.start is None else basis.into(self.start)
        result = self.solver.solve(
            _rotated(self.operator, basis, b), b, start, preconditioner=self.inverse(damping), **options
        )
        kept = result.kept
        converted = result._replace(
            solution=basis.back(result.solution),
            direction=basis.back(result.direction),
            kept=kept and kept._replace(iterates=jax.vmap(basis.back)(kept.iterates)),
        )
        # The last iterate is in the coordinates already; one that was walked back to is not.
        return Solution(converted, lambda x: vdot(b, result.solution if x is converted.solution else basis.into(x)))


@dataclass(frozen=True)
class Assembly:
    """The choices that make a system; see `hfopt.hessian_free` for what they are."""

    curvature: Curvature
    solver: ConjugateGradient
    preconditioner: Preconditioner | None
    metric: Metric | None
    momentum: float | Callable[[jax.Array], Any] | None
    warm_start: float | Callable[[jax.Array], Any] | None
    seed: int

    @property
    def solves(self) -> bool:
        """Whether CG may ever run."""
        return self.solver.max_steps > 0

    @property
    def _metric(self) -> Metric:
        return Euclidean() if self.metric is None else self.metric

    def init(self, params: Any) -> Carried:
        """What the first system starts from."""
        warm = self.warm_start is not None and self.solves
        preconditioned = self.preconditioner is not None and self.solves
        return Carried(
            solution=widened(optax.tree.zeros_like(params)) if warm else (),
            metric=self._metric.init(
                params, momentum=self.momentum is not None, curved=self.solves and self.preconditioner is None
            ),
            preconditioner=self.preconditioner.init(params) if preconditioned else (),  # type: ignore[union-attr]
        )

    def geometry(self, state: Any, value_fn: ValueFn, params: Any, gradient: Any) -> Geometry:
        """The metric after this gradient.

        Args:
          state: of the transformation: the number of steps taken, for schedules, and the fields of `Carried`.
          value_fn: the objective on the batch.
          params: θ.
          gradient: in at least float32.
        """
        momentum = self.momentum(state.step) if callable(self.momentum) else self.momentum
        return self._metric.geometry(state.metric, gradient, momentum, value_fn, params)

    def assemble(self, state: Any, geometry: Geometry, value_fn: ValueFn, params: Any) -> System:
        """The system at ``params``; ``geometry`` from this step."""
        key = {"key": jax.random.fold_in(jax.random.key(self.seed), state.step)} if takes_key(self.curvature) else {}
        operator = of_steps(self.curvature)(value_fn, params, **key)
        if (preconditioner := self.preconditioner) is None:
            geometry = geometry.curved(operator, value_fn, params)
            inverse, left, products = geometry.inverse, (), jnp.asarray(geometry.products, jnp.int32)
        else:
            left = preconditioner.update(state.preconditioner, operator, value_fn, params)
            inverse = lambda damping: _in(geometry.coordinates, preconditioner.inverse(left, damping))  # noqa: E731
            products = left.setup_products
        start = None
        if self.warm_start is not None:
            decay = self.warm_start(state.step) if callable(self.warm_start) else self.warm_start
            start = jax.tree.map(lambda x: jnp.asarray(decay, x.dtype) * x, state.solution)
        carried = Carried(state.solution, geometry.state, left)
        return System(operator, geometry, inverse, start, self.solver, products, carried)


def _rotated(operator: Operator, basis: Coordinates, like: Any) -> Operator:
    """Qᵀ A Q, on trees like ``like``."""
    back = lambda x: optax.tree.cast_like(basis.back(x), operator.example)  # noqa: E731
    rotated = Operator.of(lambda x: basis.into(operator.product(back(x))), like, operator.indefinite)
    if (halves := operator.halves) is None:
        return rotated
    return replace(
        rotated,
        halves=Halves(
            lambda x: halves.forward(back(x)),
            lambda x, middle: halves.form(back(x), middle),
            lambda x, middle: basis.into(halves.backward(back(x), middle)),
        ),
    )


def _in(basis: Coordinates | None, inverse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``inverse``, of trees like the parameters, in the coordinates of a basis."""
    return inverse if basis is None else lambda x: basis.into(inverse(basis.back(x)))
