"""Damping: how λ in (G + λI)s = −g follows the quality of the quadratic model."""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class Damping(Protocol):
    """A rule for λ: λ₀, the λ of a step, and the next one from what became of the step."""

    @property
    def initial(self) -> float:
        """λ₀."""

    def current(self, damping: jax.Array, trust_level: Any) -> jax.Array:
        """The λ to solve with, from the λ carried along and the level of trust μ."""

    def update(self, damping: jax.Array, reduction_ratio: jax.Array, accepted: jax.Array) -> jax.Array:
        """The next λ to carry along, a scalar like ``damping``."""


@dataclass(frozen=True)
class Constant:
    """λ stays what it is. ``hfopt.constant_damping``."""

    initial: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("damping", initial=self.initial)

    def current(self, damping: jax.Array, trust_level: Any) -> jax.Array:
        """λ as carried along."""
        return damping

    def update(self, damping: jax.Array, reduction_ratio: jax.Array, accepted: jax.Array) -> jax.Array:
        """λ unchanged."""
        return damping


@dataclass(frozen=True)
class ByTrust(Constant):
    """λ = λ₀ / μ, with μ the level of trust of the trust region. ``hfopt.trust_damping``.

    λ and the bound κ ∝ μ then move together: the step gets longer and more like Newton's as trust is earned. Without
    a trust region that learns (`hfopt.earned_trust`) it is constant.
    """

    initial: float = 0.01

    def current(self, damping: jax.Array, trust_level: Any) -> jax.Array:
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

    def __post_init__(self) -> None:
        _require_positive("levenberg_marquardt", initial=self.initial, ceiling=self.ceiling)
        if not (0 < self.decrease <= 1 <= self.increase):
            raise ValueError(
                "levenberg_marquardt: need 0 < `decrease` <= 1 <= `increase`, "
                f"got decrease={self.decrease}, increase={self.increase}."
            )
        if not self.lower <= self.upper:
            raise ValueError(f"levenberg_marquardt: need `lower` <= `upper`, got {self.lower} and {self.upper}.")
        if self.floor is not None and not self.floor <= self.ceiling:
            raise ValueError(f"levenberg_marquardt: need `floor` <= `ceiling`, got {self.floor} and {self.ceiling}.")

    def update(self, damping: jax.Array, reduction_ratio: jax.Array, accepted: jax.Array) -> jax.Array:
        """The next λ, a scalar like ``damping``."""
        poor = ~(reduction_ratio >= self.lower) | ~accepted
        good = accepted & (reduction_ratio > self.upper)
        factor = jnp.where(poor, self.increase, jnp.where(good, self.decrease, 1.0)).astype(damping.dtype)
        floor = float(jnp.finfo(damping.dtype).eps) ** 2 if self.floor is None else self.floor
        return jnp.clip(damping * factor, floor, self.ceiling)


def _require_positive(where: str, **values: Any) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{where}: `{name}` must be positive, got {value}.")
