"""Calibration: a λ₀ made for the problem at hand, before the first step is taken."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hfopt.control.damping import Damping, LevenbergMarquardt
from hfopt.control.outcome import Outcome


class _Bracket(NamedTuple):
    damping: jax.Array  # λ of the next trial
    too_small: jax.Array  # the largest λ known to give ρ < lower; 0: none
    too_large: jax.Array  # the least λ known to give ρ > upper; ∞: none
    products: jax.Array
    trials: jax.Array
    found: jax.Array


@dataclass(frozen=True)
class Calibrated:
    """Another rule, whose λ₀ is first set on the problem itself. ``hfopt.calibrated_damping``.

    Before the first step is taken, λ is changed tenfold, then by bisection of its logarithm, until the step it makes
    has lower ≤ ρ ≤ upper: a λ with which the model is right, but not because the step is nothing. Every trial is a
    solve, and is counted in ``state.info.products``. From there on the rule goes its own way.

    Args:
      rule: the rule to calibrate; its ``initial`` is where the search begins.
      lower, upper: the band for ρ.
      max_trials: the most solves; the last λ tried is used when none lands in the band.

    Raises:
      ValueError: not 0 < lower < upper, or no trials.

    Source: Martens, "Deep learning via Hessian-free optimization", ICML 2010, and his published code, whose λ₀ is set
    by hand to this end.
    """

    rule: Damping = LevenbergMarquardt()  # noqa: RUF009 - immutable
    lower: float = 0.75
    upper: float = 0.95
    max_trials: int = 20

    _FACTOR = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.lower < self.upper:
            raise ValueError(f"calibrated_damping: need 0 < `lower` < `upper`, got {self.lower} and {self.upper}.")
        if self.max_trials < 1:
            raise ValueError(f"calibrated_damping: `max_trials` must be at least 1, got {self.max_trials}.")

    @property
    def initial(self) -> float:
        """Where the search begins."""
        return self.rule.initial

    def current(self, damping: jax.Array, trust_level: Any, step: jax.Array) -> jax.Array:
        """As the rule has it."""
        return self.rule.current(damping, trust_level, step)

    def update(self, damping: jax.Array, outcome: Outcome) -> jax.Array:
        """As the rule has it."""
        return self.rule.update(damping, outcome)

    def calibrate(
        self, damping: jax.Array, trial: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    ) -> tuple[jax.Array, jax.Array]:
        """λ₀ and the products spent on finding it; ``trial`` maps λ to ρ of its step (−∞: rejected) and products."""

        def attempt(b: _Bracket) -> _Bracket:
            ratio, products = trial(b.damping)
            small, large = ~(ratio >= self.lower), ratio > self.upper
            too_small = jnp.where(small, b.damping, b.too_small)
            too_large = jnp.where(large, b.damping, b.too_large)
            bracketed = (too_small > 0) & jnp.isfinite(too_large)
            outward = jnp.where(small, b.damping * self._FACTOR, b.damping / self._FACTOR)
            inward = jnp.sqrt(too_small) * jnp.sqrt(jnp.where(bracketed, too_large, 1))
            found = ~small & ~large
            next_damping = jnp.where(found, b.damping, jnp.where(bracketed, inward, outward))
            trials = b.trials + 1
            last = jnp.where(trials < self.max_trials, next_damping, b.damping)
            return _Bracket(last, too_small, too_large, b.products + products, trials, found)

        none = jnp.int32(0)
        unknown = jnp.zeros_like(damping), jnp.full_like(damping, jnp.inf)
        start = _Bracket(damping, *unknown, none, none, jnp.bool_(False))
        end = jax.lax.while_loop(lambda b: ~b.found & (b.trials < self.max_trials), attempt, start)
        return end.damping, end.products
