"""Metrics: the norm ‖s‖²_M = sᵀMs in which damping keeps a step small, (G + λM)s = −g.

With M = I every parameter is damped alike. A diagonal M damps a parameter by the size of its gradients, noise
included; a structural M damps what the step does to the hidden states of a recurrent network.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from hfopt.batch import Examples
from hfopt.curvature import outer_product
from hfopt.curvature.diagonal import wide_dtype
from hfopt.curvature.sandwich import sandwich
from hfopt.losses import Loss, output_hessian
from hfopt.objective import Objective, ValueFn
from hfopt.vectors import Diagonal

Product = Callable[[Any], Any]


class Metric(Protocol):
    """How to multiply by M, a symmetric positive definite matrix."""

    def init(self, params: Any) -> Any:
        """The state before the first step: a pytree of arrays."""

    def update(self, state: Any, grad: Any) -> Any:
        """The state for this step, from its gradient, in which numbers that are not finite may occur."""

    def product(self, state: Any, value_fn: ValueFn, params: Any) -> Product:
        """v ↦ M v on trees like the parameters."""

    def inverse(self, state: Any) -> Product | None:
        """r ↦ M⁻¹ r where that is cheap: CG is preconditioned by it when it has no other preconditioner."""


class SecondMomentState(NamedTuple):
    """State of `SecondMoment`."""

    seen: jax.Array  # int32: gradients
    moment: Any  # the running average of g², shaped like the parameters, float32 or wider


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

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"second_moment: `decay` must lie in [0, 1), got {self.decay}.")
        if not self.floor > 0:
            raise ValueError(f"second_moment: `floor` must be positive, got {self.floor}.")

    def init(self, params: Any) -> SecondMomentState:
        """No gradients seen."""
        moment = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide_dtype(p)), params)
        return SecondMomentState(jnp.zeros((), jnp.int32), moment)

    def update(self, state: SecondMomentState, grad: Any) -> SecondMomentState:
        """One gradient more; one whose square is not finite is passed over."""
        moment = optax.tree.update_moment(grad, state.moment, self.decay, 2)
        after = SecondMomentState(optax.safe_increment(state.seen), moment)
        return optax.tree.where(jnp.isfinite(optax.tree.sum(moment)), after, state)

    def diagonal(self, state: SecondMomentState) -> Any:
        """The entries of M, shaped like the parameters; 1 before the first gradient, or when all were zero."""
        root = jax.tree.map(jnp.sqrt, state.moment)  # the bias correction cancels in the quotient
        mean = optax.tree.sum(root) / optax.tree.size(root)
        entry = lambda r: jnp.where(mean > 0, jnp.maximum(r / jnp.where(mean > 0, mean, 1), self.floor), 1)  # noqa: E731
        return jax.tree.map(lambda r: entry(r).astype(r.dtype), root)

    def product(self, state: SecondMomentState, value_fn: ValueFn, params: Any) -> Product:
        """v ↦ M v."""
        return Diagonal(self.diagonal(state))

    def inverse(self, state: SecondMomentState) -> Product:
        """r ↦ M⁻¹ r."""
        return Diagonal(jax.tree.map(lambda d: 1 / d, self.diagonal(state)))


@dataclass(frozen=True)
class Structural:
    """M = I + weight · S, with S the Gauss-Newton matrix of a distance between hidden states; ``hfopt.structural``.

    A small step in the parameters of a recurrent network may change its hidden states without bound. With h_i(θ) the
    hidden states of example i, S = (1/N) Σ (∂h_i/∂θ)ᵀ D_i (∂h_i/∂θ), over the curvature batch, damps that change: D = I
    for the distance ½‖h − h(θ)‖², summed over units and time, or the Hessian of another distance.

    The model exposes the states among its outputs, and the loss ignores them:

        predict = lambda params, x: {"logits": …, "hidden": …}
        loss = lambda outputs, y: optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], y)
        hfopt.hessian_free(metric=hfopt.structural(lambda outputs: outputs["hidden"], weight=0.1))

    A product with S costs as much as one with G, less what the two share.

    Args:
      states: outputs -> hidden states, an array or pytree with a leading batch axis.
      weight: of S beside I; μ in the source, where μλ is to be small beside λ.
      distance: ``distance(states, targets) -> losses``, as a loss of `hfopt.Objective`, averaged as those are; the
        targets are the states at θ. ``None``: ½‖·‖², summed.

    Raises:
      TypeError: ``states`` is not callable. ValueError: ``weight`` is not positive.

    Source: Martens & Sutskever, "Learning recurrent neural networks with Hessian-free optimization", ICML 2011.
    """

    states: Callable[[Any], Any]
    weight: float = 0.1
    distance: Loss | None = None

    def __post_init__(self) -> None:
        if not callable(self.states):
            raise TypeError(f"structural: `states` must map outputs to hidden states, got {self.states!r}.")
        if not self.weight > 0:
            raise ValueError(f"structural: `weight` must be positive, got {self.weight}.")

    def init(self, params: Any) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def update(self, state: tuple[()], grad: Any) -> tuple[()]:
        """Nothing to learn."""
        return state

    def product(self, state: tuple[()], value_fn: ValueFn, params: Any) -> Product:
        """v ↦ v + weight · S v."""
        objective, (inputs, _, weights) = value_fn.objective.for_curvature, value_fn.averaged
        hidden = replace(
            objective,
            predict=lambda p, x: self.states(objective.predict(p, x)),
            loss=optax.losses.l2_loss if self.distance is None else self.distance,
            l2=0.0,
        )
        # There are no targets: a distance is taken from the states themselves.
        bound = hidden.bind((inputs, inputs, weights), chunk_size=value_fn.chunk_size, memory=value_fn.memory)
        operator = outer_product(bound, params) if self.distance is None else sandwich(bound, params, _at_distance_zero)

        def product(v: Any) -> Any:
            narrow = optax.tree.cast_like(v, operator.example)
            return jax.tree.map(lambda x, s: x + (self.weight * s).astype(x.dtype), v, operator.product(narrow))

        return product

    def inverse(self, state: tuple[()]) -> None:
        """Not cheap."""


def _at_distance_zero(objective: Objective, states: Any, rows: Examples) -> Product:
    return output_hessian(objective.loss, states, rows._replace(targets=states))
