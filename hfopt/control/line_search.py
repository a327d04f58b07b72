"""Line search: how far along a direction to go, decided by the objective itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from hfopt.arguments import require_positive


class LineSearchResult(NamedTuple):
    """Where a line search ended."""

    step_size: jax.Array  # α
    new_loss: jax.Array  # f(θ + αd); where not accepted, that of the last trial
    accepted: jax.Array  # bool: whether α satisfies the rule
    evaluations: jax.Array  # int32: trial losses computed


class LineSearch(Protocol):
    """A rule for the step length α."""

    def search(
        self, trial_loss: Callable[[Any], Any], loss: jax.Array, slope: jax.Array, full_step_loss: jax.Array | None
    ) -> LineSearchResult:
        """Choose α from ``trial_loss(α)`` = f(θ + αd), f(θ) and the slope gᵀd; f(θ + d) where it is known already."""


@dataclass(frozen=True)
class Armijo:
    """The first α in 1, q, q², … with f(θ + αd) ≤ f(θ) + c α gᵀd. ``hfopt.armijo``.

    The number of trials is capped, and a trial loss that is not a number fails the test, so the search always ends.
    When every trial fails, or d is no direction of descent, the step is not accepted.

    Args:
      shrink: q, in (0, 1).
      sufficient_decrease: c, in [0, 1).
      max_trials: the most trial losses to compute.

    Raises:
      ValueError: a constant out of its range.

    Source: Armijo 1966; Nocedal & Wright, algorithm 3.1. q = ½, c = 1e-4 are the usual constants.
    """

    shrink: float = 0.5
    sufficient_decrease: float = 1e-4
    max_trials: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.shrink < 1:
            raise ValueError(f"armijo: `shrink` must lie in (0, 1), got {self.shrink}.")
        if not 0 <= self.sufficient_decrease < 1:
            raise ValueError(f"armijo: `sufficient_decrease` must lie in [0, 1), got {self.sufficient_decrease}.")
        if self.max_trials < 1:
            raise ValueError(f"armijo: `max_trials` must be at least 1, got {self.max_trials}.")

    def search(
        self,
        trial_loss: Callable[[Any], Any],
        loss: jax.Array,
        slope: jax.Array,
        full_step_loss: jax.Array | None = None,
    ) -> LineSearchResult:
        """See `LineSearch.search`."""

        def judged(step_size: jax.Array, new_loss: jax.Array, evaluations: jax.Array) -> LineSearchResult:
            enough = new_loss <= loss + self.sufficient_decrease * step_size * slope
            # slope = 0 is a stationary point, where d = 0: staying there is no failure.
            return LineSearchResult(step_size, new_loss, enough & (slope <= 0) & (step_size > 0), evaluations)

        def attempt(last: LineSearchResult) -> LineSearchResult:
            step_size = jnp.where(jnp.isinf(last.step_size), 1.0, last.step_size * self.shrink).astype(slope.dtype)
            return judged(step_size, trial_loss(step_size), last.evaluations + 1)

        if full_step_loss is None:
            trials = self.max_trials
            start = LineSearchResult(jnp.full_like(slope, jnp.inf), loss, jnp.bool_(False), jnp.int32(0))
        else:
            trials = self.max_trials - 1
            start = judged(jnp.ones_like(slope), full_step_loss, jnp.int32(0))
        return jax.lax.while_loop(lambda r: ~r.accepted & (r.evaluations < trials), attempt, start)


@dataclass(frozen=True)
class FixedStep:
    """α is a constant and the step is taken whenever it leads to a finite loss. ``hfopt.fixed_step``."""

    step_size: float = 1.0

    def __post_init__(self) -> None:
        require_positive("fixed_step", step_size=self.step_size)

    def search(
        self,
        trial_loss: Callable[[Any], Any],
        loss: jax.Array,
        slope: jax.Array,
        full_step_loss: jax.Array | None = None,
    ) -> LineSearchResult:
        """See `LineSearch.search`."""
        step_size = jnp.full_like(slope, self.step_size)
        is_full = not isinstance(self.step_size, jax.Array) and self.step_size == 1  # an array's number is not known
        if full_step_loss is not None and is_full:
            return LineSearchResult(step_size, full_step_loss, jnp.isfinite(full_step_loss), jnp.int32(0))
        new_loss = trial_loss(step_size)
        return LineSearchResult(step_size, new_loss, jnp.isfinite(new_loss), jnp.int32(1))


@dataclass(frozen=True)
class FullStep:
    """α = 1 if the objective does not rise, else the step is rejected. ``hfopt.full_step``."""

    def search(
        self,
        trial_loss: Callable[[Any], Any],
        loss: jax.Array,
        slope: jax.Array,
        full_step_loss: jax.Array | None = None,
    ) -> LineSearchResult:
        """See `LineSearch.search`."""
        known = full_step_loss is not None
        new_loss = full_step_loss if full_step_loss is not None else trial_loss(jnp.ones_like(slope))
        return LineSearchResult(
            jnp.ones_like(slope), new_loss, (new_loss <= loss) & (slope <= 0), jnp.int32(0 if known else 1)
        )
