"""Damping: how λ in (G + λM)s = −g follows the quality of the quadratic model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from hfopt.arguments import require_positive
from hfopt.control.outcome import Outcome


class Damping(Protocol):
    """A rule for λ: λ₀, the λ of a step, and the next one from what became of the step."""

    @property
    def initial(self) -> Any:
        """λ₀, a scalar."""

    def current(self, damping: jax.Array, trust_level: Any, step: jax.Array) -> jax.Array:
        """The λ to solve with, from the λ carried along, the level of trust μ and the number of steps taken."""

    def update(self, damping: jax.Array, outcome: Outcome) -> jax.Array:
        """The next λ to carry along, a scalar like ``damping``, the λ of the step."""


@dataclass(frozen=True)
class Constant:
    """λ stays what it is. ``hfopt.constant_damping``."""

    initial: float = 1.0

    def __post_init__(self) -> None:
        require_positive("damping", initial=self.initial)

    def current(self, damping: jax.Array, trust_level: Any, step: jax.Array) -> jax.Array:
        """λ as carried along."""
        return damping

    def update(self, damping: jax.Array, outcome: Outcome) -> jax.Array:
        """λ unchanged."""
        return damping


@dataclass(frozen=True)
class Scheduled:
    """λ by the number of steps taken. ``hfopt.scheduled_damping``.

    Args:
      schedule: from the number of steps taken (an int32 scalar, rejected ones included) to λ ≥ 0, such as an Optax
        schedule.

    Raises:
      TypeError: ``schedule`` is not callable.
    """

    schedule: Callable[[jax.Array], Any]

    def __post_init__(self) -> None:
        if not callable(self.schedule):
            raise TypeError(
                f"scheduled_damping: `schedule` must be callable, got {self.schedule!r}; "
                "for a number use hfopt.constant_damping."
            )

    @property
    def initial(self) -> Any:
        """λ of the first step."""
        return self.schedule(jnp.zeros((), jnp.int32))

    def current(self, damping: jax.Array, trust_level: Any, step: jax.Array) -> jax.Array:
        """λ of this step."""
        return jnp.asarray(self.schedule(step), damping.dtype)

    def update(self, damping: jax.Array, outcome: Outcome) -> jax.Array:
        """Nothing is learned."""
        return damping


@dataclass(frozen=True)
class ByTrust(Constant):
    """λ = λ₀ / μ, with μ the level of trust of the trust region. ``hfopt.trust_damping``.

    λ and the bound κ ∝ μ then move together: the step gets longer and more like Newton's as trust is earned. Without
    a trust region that learns (`hfopt.earned_trust`) it is constant.
    """

    initial: float = 0.01

    def current(self, damping: jax.Array, trust_level: Any, step: jax.Array) -> jax.Array:
        """λ₀ / μ."""
        return jnp.asarray(self.initial / trust_level, damping.dtype)


@dataclass(frozen=True)
class LevenbergMarquardt(Constant):
    """λ grows when the model promised too much and shrinks when it was right. ``hfopt.levenberg_marquardt``.

    ρ = (f(θ+s) − f(θ)) / (gᵀs + ½ sᵀGs). A rejected step, and a ρ that is not a number, counts as ρ = −∞.

        λ ← increase · λ  if ρ < lower,    λ ← decrease · λ  if ρ > upper,    then clipped to [floor, ceiling]

    Args:
      initial: λ₀ > 0.
      increase, decrease: factors, above and below 1.
      lower, upper: the thresholds on ρ.
      floor: the least λ; ``None`` takes the square of the dtype's machine epsilon: far below what λ must be to matter
        beside any curvature that the arithmetic resolves, and far above underflow.
      ceiling: the largest λ.
      damped_ratio: let ρ compare with the damped model gᵀs + ½ sᵀ(G + λM)s, as some codes do. It promises less, so λ
        falls sooner. ``state.info`` reports ρ without the damping in either case.

    Raises:
      ValueError: a factor, threshold or bound on the wrong side.

    Source: Moré, "The Levenberg-Marquardt algorithm", 1978; the constants of Martens 2010, section 4.1.
    """

    initial: float = 1.0
    increase: float = 3 / 2
    decrease: float = 2 / 3
    lower: float = 0.25
    upper: float = 0.75
    floor: float | None = None
    ceiling: float = 1e10
    damped_ratio: bool = False

    def __post_init__(self) -> None:
        require_positive("levenberg_marquardt", initial=self.initial, ceiling=self.ceiling)
        if not (0 < self.decrease <= 1 <= self.increase):
            raise ValueError(
                "levenberg_marquardt: need 0 < `decrease` <= 1 <= `increase`, "
                f"got decrease={self.decrease}, increase={self.increase}."
            )
        if not self.lower <= self.upper:
            raise ValueError(f"levenberg_marquardt: need `lower` <= `upper`, got {self.lower} and {self.upper}.")
        if self.floor is not None and not self.floor <= self.ceiling:
            raise ValueError(f"levenberg_marquardt: need `floor` <= `ceiling`, got {self.floor} and {self.ceiling}.")

    def update(self, damping: jax.Array, outcome: Outcome) -> jax.Array:
        """The next λ, a scalar like ``damping``."""
        ratio = outcome.damped_ratio if self.damped_ratio else outcome.reduction_ratio
        poor = ~(ratio >= self.lower) | ~outcome.accepted
        good = outcome.accepted & (ratio > self.upper)
        factor = jnp.where(poor, self.increase, jnp.where(good, self.decrease, 1.0)).astype(damping.dtype)
        floor = float(jnp.finfo(damping.dtype).eps) ** 2 if self.floor is None else self.floor
        return jnp.where(outcome.informative, jnp.clip(damping * factor, floor, self.ceiling), damping)
