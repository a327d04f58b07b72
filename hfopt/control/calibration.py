"""Calibration: a λ₀ made for the problem at hand, before the first step is taken."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hfopt.control.damping import ByTrust, Damping, LevenbergMarquardt, Scheduled
from hfopt.control.outcome import Outcome


class _Bracket(NamedTuple):
    damping: jax.Array  # λ of the next trial
    too_small: jax.Array  # the largest λ known to give ρ < lower; 0: none
    too_large: jax.Array  # the least λ known to give ρ > upper; ∞: none
    products: jax.Array
    evaluations: jax.Array
    trials: jax.Array
    found: jax.Array
    hopeless: jax.Array  # the step changes the loss by less than its rounding


@dataclass(frozen=True)
class Calibrated:
    """Another rule, whose λ₀ is first set on the problem itself. ``hfopt.calibrated_damping``.

    Before the first step is taken, λ is changed tenfold, then by bisection of its logarithm, until the step it makes
    has lower ≤ ρ ≤ upper: a λ with which the model is right, but not because the step is nothing. The trust region is
    left out of the trials: a bound makes ρ good at every λ. Every trial is a solve, and counted in ``state.info``. From
    there on the rule goes its own way. Where no λ lands in the band (a quadratic has ρ = 1 for all of them, and on an
    evaluation batch of other examples ρ may stay below it) the rule keeps its own λ₀.

    Args:
      rule: the rule to calibrate; its ``initial`` is where the search begins.
      lower, upper: the band for ρ.
      max_trials: the most solves.

    Raises:
      ValueError: not 0 < lower < upper, or no trials.
      TypeError: the rule does not carry a λ along (`hfopt.trust_damping`, `hfopt.scheduled_damping`).

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
        if isinstance(self.rule, ByTrust | Scheduled):
            raise TypeError(
                f"calibrated_damping: {type(self.rule).__name__} has no λ of its own to calibrate; "
                "give hfopt.levenberg_marquardt or hfopt.constant_damping."
            )
        if self.max_trials < 1:
            raise ValueError(f"calibrated_damping: `max_trials` must be at least 1, got {self.max_trials}.")

    @property
    def initial(self) -> Any:
        """Where the search begins."""
        return self.rule.initial

    def current(self, damping: jax.Array, trust_level: Any, step: jax.Array) -> jax.Array:
        """As the rule has it."""
        return self.rule.current(damping, trust_level, step)

    def update(self, damping: jax.Array, outcome: Outcome) -> jax.Array:
        """As the rule has it."""
        return self.rule.update(damping, outcome)

    def calibrate(
        self, damping: jax.Array, trial: Callable[[jax.Array], Any]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """λ₀, and the products and evaluations spent on finding it.

        ``trial`` maps λ to what came of it: an ``outcome``, and an ``info`` that says what it cost.
        """

        def attempt(b: _Bracket) -> _Bracket:
            made = trial(b.damping)
            ratio = made.outcome.reduction_ratio
            small, large = ~(ratio >= self.lower), ratio > self.upper
            too_small = jnp.where(small, b.damping, b.too_small)
            too_large = jnp.where(large, b.damping, b.too_large)
            bracketed = (too_small > 0) & jnp.isfinite(too_large)
            outward = jnp.where(small, b.damping * self._FACTOR, b.damping / self._FACTOR)
            inward = jnp.sqrt(too_small) * jnp.sqrt(jnp.where(bracketed, too_large, 1))
            found = ~small & ~large
            next_damping = jnp.where(found, b.damping, jnp.where(bracketed, inward, outward))
            spent = b.products + made.info.products, b.evaluations + made.info.evaluations
            return _Bracket(next_damping, too_small, too_large, *spent, b.trials + 1, found, ~made.outcome.informative)

        none = jnp.int32(0)
        unknown = jnp.zeros_like(damping), jnp.full_like(damping, jnp.inf)
        start = _Bracket(damping, *unknown, none, none, none, jnp.bool_(False), jnp.bool_(False))
        going = lambda b: ~b.found & ~b.hopeless & (b.trials < self.max_trials)  # noqa: E731
        end = jax.lax.while_loop(going, attempt, start)
        return jnp.where(end.found & ~end.hopeless, end.damping, damping), end.products, end.evaluations
