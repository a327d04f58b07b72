"""Structural damping: a metric that measures what a step does to the hidden states of a recurrent network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import optax

from hfopt.batch import Examples
from hfopt.curvature import outer_product
from hfopt.curvature.operator import Operator
from hfopt.curvature.sandwich import sandwich
from hfopt.losses import Loss, output_hessian
from hfopt.objective import Objective, ValueFn
from hfopt.solve.metrics import Product, Scaled, averaged, start
from hfopt.vectors import vdot, widened


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

    invertible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not callable(self.states):
            raise TypeError(f"structural: `states` must map outputs to hidden states, got {self.states!r}.")
        if not self.weight > 0:
            raise ValueError(f"structural: `weight` must be positive, got {self.weight}.")

    def init(self, params: Any, *, momentum: bool, curved: bool) -> Any:
        """Nothing to remember but the average."""
        return start(widened(params), momentum)

    def geometry(
        self, state: Any, gradient: Any, momentum: Any, value_fn: ValueFn, params: Any
    ) -> "StructuralGeometry":
        """v ↦ v + weight · S v at ``params``, from a linearisation of the states."""
        state, mean = averaged(state, gradient, momentum)
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

        return StructuralGeometry(state, mean, product)


@dataclass(frozen=True)
class StructuralGeometry:
    """M at one step, by its product."""

    state: Any
    average: Any
    product: Product
    products: Any = 0
    coordinates: None = None

    def form(self, vector: Any) -> jax.Array:
        """vᵀMv."""
        return vdot(vector, self.product(vector))

    def scaled(self, damping: jax.Array) -> Scaled:
        """Not cheap."""
        raise NotImplementedError("structural: M⁻¹ takes as many products as the whole system.")

    def curved(self, operator: Operator, value_fn: ValueFn, params: Any) -> "StructuralGeometry":
        """It makes nothing of the curvature."""
        return self

    def inverse(self, damping: Any) -> None:
        """Not cheap."""


def _at_distance_zero(objective: Objective, states: Any, rows: Examples) -> Product:
    return output_hessian(objective.loss, states, rows._replace(targets=states))
