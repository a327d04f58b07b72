"""Metrics: the norm ‖s‖²_M = sᵀMs in which damping keeps a step small, (G + λM)s = −m.

With M = I every parameter is damped alike. A diagonal M damps a parameter by the size of its gradients, noise included;
`hfopt.solve.kronecker` does so in a basis of its own, and `hfopt.solve.structural` damps what the step does to the
hidden states of a recurrent network.

A metric follows the gradients, and averages them where there is momentum, since some know a cheaper form to do it in.
What it knows at one step is its geometry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from hfopt.curvature.operator import Operator
from hfopt.objective import ValueFn
from hfopt.vectors import Diagonal, vdot, wide_dtype, widened, widest_dtype

Product = Callable[[Any], Any]


class Scaled(NamedTuple):
    """The solution of λM x = m, for which no product with the curvature is needed."""

    solution: Any  # x, shaped like the parameters, in at least float32
    form: jax.Array  # xᵀ(λM)x


class Coordinates(NamedTuple):
    """An orthonormal basis of the parameters: x = Qᵀθ."""

    into: Product  # tree like the parameters -> its coordinates, any pytree
    back: Product
    average: Any  # m in them


class Geometry(Protocol):
    """M at one step, and the average m of the gradients."""

    @property
    def state(self) -> Any:
        """What the next step starts from: a pytree of arrays."""

    @property
    def products(self) -> Any:
        """int32: operator products' worth of work spent on it."""

    @property
    def average(self) -> Any:
        """m, shaped like the parameters."""

    @property
    def coordinates(self) -> Coordinates | None:
        """Those that systems are best solved in; ``None``: the parameters'. ``product`` and ``inverse`` are in them."""

    @property
    def product(self) -> Product | None:
        """v ↦ M v; ``None``: the identity."""

    def form(self, vector: Any) -> jax.Array:
        """vᵀMv, of a tree like the parameters."""

    def scaled(self, damping: jax.Array) -> Scaled:
        """(λM)⁻¹m, for metrics that are ``invertible``."""

    def curved(self, operator: Operator, value_fn: ValueFn, params: Any) -> "Geometry":
        """The same with what it makes of the curvature; called where its ``inverse`` is to precondition a system."""

    def inverse(self, damping: Any) -> Product | None:
        """r ↦ P⁻¹r, where it has a preconditioner of G + λM to offer."""


class Metric(Protocol):
    """How to measure steps."""

    invertible: ClassVar[bool]  # whether a geometry has `Geometry.scaled`

    def init(self, params: Any, *, momentum: bool, curved: bool) -> Any:
        """The state before the first step: a pytree of arrays.

        momentum: whether gradients will be averaged. curved: whether `Geometry.curved` will ever be called.
        """

    def geometry(self, state: Any, gradient: Any, momentum: Any, value_fn: ValueFn, params: Any) -> Geometry:
        """What it is at a step with this gradient, in which numbers that are not finite may occur.

        m ← momentum · m + (1 − momentum) · gradient, bias-corrected; with ``None`` m is the gradient.
        """


class AverageState(NamedTuple):
    """A running average of gradients."""

    weight: jax.Array  # of the gradients in it: m = total / weight
    total: Any


def start(like: Any, momentum: bool) -> Any:
    """Before the first gradient, () without momentum; ``like``: a pytree in the form that the average is kept in."""
    return AverageState(jnp.zeros((), widest_dtype(like)), optax.tree.zeros_like(like)) if momentum else ()


def averaged(state: Any, gradient: Any, momentum: Any, sound: Any = None) -> tuple[Any, Any]:
    """The state after one gradient more, and m. Without momentum, nothing is kept.

    A gradient that is not sound (``None``: finite) is not averaged, and m is then what it was.
    """
    if momentum is None:
        return state, gradient
    decay = jnp.asarray(momentum, state.weight.dtype)
    sound = finite(gradient) if sound is None else sound
    total = jax.tree.map(
        lambda t, g: decay.astype(t.dtype) * t + (1 - decay).astype(t.dtype) * g, state.total, gradient
    )
    after = optax.tree.where(sound, AverageState(decay * state.weight + (1 - decay), total), state)
    # Before the first sound one m is the gradient as it is, for the step to be rejected by.
    weight = jnp.where(after.weight > 0, after.weight, 1)
    mean = jax.tree.map(lambda t, g: jnp.where(after.weight > 0, t / weight.astype(t.dtype), g), after.total, gradient)
    return after, mean


def finite(tree: Any) -> jax.Array:
    """Whether every number in it is."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)] or [jnp.bool_(True)]).all()


@dataclass(frozen=True)
class DiagonalGeometry:
    """A diagonal M; without entries the identity."""

    state: Any
    average: Any
    entries: Any | None
    products: Any = 0
    coordinates: None = None

    @property
    def product(self) -> Product | None:
        """v ↦ M v."""
        return None if self.entries is None else Diagonal(self.entries)

    def form(self, vector: Any) -> jax.Array:
        """vᵀMv."""
        return vdot(vector, vector if self.entries is None else Diagonal(self.entries)(vector))

    def scaled(self, damping: jax.Array) -> Scaled:
        """(λM)⁻¹m."""
        mean, inverse = widened(self.average), self.inverse(damping)
        solution = optax.tree.scale(1 / damping, mean if inverse is None else inverse(mean))
        return Scaled(solution, vdot(mean, solution))

    def curved(self, operator: Operator, value_fn: ValueFn, params: Any) -> "DiagonalGeometry":
        """It makes nothing of the curvature."""
        return self

    def inverse(self, damping: Any) -> Product | None:
        """r ↦ M⁻¹r."""
        return None if self.entries is None else Diagonal(jax.tree.map(lambda d: 1 / d, self.entries))


@dataclass(frozen=True)
class Euclidean:
    """M = I: what damping means without a metric."""

    invertible: ClassVar[bool] = True

    def init(self, params: Any, *, momentum: bool, curved: bool) -> Any:
        """Nothing to remember but the average."""
        return start(widened(params), momentum)

    def geometry(self, state: Any, gradient: Any, momentum: Any, value_fn: ValueFn, params: Any) -> DiagonalGeometry:
        """See `Metric.geometry`."""
        state, mean = averaged(state, gradient, momentum)
        return DiagonalGeometry(state, mean, None)


class SecondMomentState(NamedTuple):
    """State of `SecondMoment`."""

    seen: jax.Array  # int32: gradients
    moment: Any  # the running average of g², shaped like the parameters, float32 or wider
    average: Any  # an `AverageState`; () without momentum


@dataclass(frozen=True)
class SecondMoment:
    """M = diag(max(√v̂ / mean(√v̂), floor)), with v̂ the running average of g²; ``hfopt.second_moment``.

    v̂ is Adam's (bias-corrected), so λM damps as Adam scales: parameters whose gradients are large, by signal or by
    noise, are damped more. The mean over all parameters keeps the unit of λ. This is noise-aware damping for
    mini-batches; CG also runs in this metric, which makes few iterations go a long way.

    Args:
      decay: of the running average, in [0, 1).
      floor: the least entry of M; without it a parameter with a vanishing gradient is not damped at all.

    Raises:
      ValueError: an argument out of its range.
    """

    decay: float = 0.95
    floor: float = 1e-3

    invertible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"second_moment: `decay` must lie in [0, 1), got {self.decay}.")
        if not self.floor > 0:
            raise ValueError(f"second_moment: `floor` must be positive, got {self.floor}.")

    def init(self, params: Any, *, momentum: bool, curved: bool) -> SecondMomentState:
        """No gradients seen."""
        moment = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide_dtype(p)), params)
        return SecondMomentState(jnp.zeros((), jnp.int32), moment, start(moment, momentum))

    def geometry(
        self, state: SecondMomentState, gradient: Any, momentum: Any, value_fn: ValueFn, params: Any
    ) -> DiagonalGeometry:
        """One gradient more; one whose square is not finite is passed over."""
        moment = optax.tree.update_moment(gradient, state.moment, self.decay, 2)
        average, mean = averaged(state.average, gradient, momentum)
        after = SecondMomentState(optax.safe_increment(state.seen), moment, state.average)
        after = optax.tree.where(jnp.isfinite(optax.tree.sum(moment)), after, state)
        return DiagonalGeometry(after._replace(average=average), mean, self._entries(after))

    def _entries(self, state: SecondMomentState) -> Any:
        """The entries of M, shaped like the parameters; 1 before the first gradient, or when all were zero."""
        root = jax.tree.map(jnp.sqrt, state.moment)  # the bias correction cancels in the quotient
        mean = optax.tree.sum(root) / optax.tree.size(root)
        entry = lambda r: jnp.where(mean > 0, jnp.maximum(r / jnp.where(mean > 0, mean, 1), self.floor), 1)  # noqa: E731
        return jax.tree.map(lambda r: entry(r).astype(r.dtype), root)
