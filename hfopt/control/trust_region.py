"""Trust regions: how far a step may go in the norm of the damped curvature, ½ sᵀ(G + λM)s ≤ κ.

For cross-entropy the bounded quantity is close to the mean KL divergence between the predictions before and after the
step. It is what makes small batches safe: the line search sees only the batch that made the step, and that batch is
always pleased with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from hfopt.arguments import require_positive
from hfopt.control.outcome import Outcome
from hfopt.vectors import vdot


class TrustRegion(Protocol):
    """A rule for the bound κ and, for rules that learn it, a level of trust μ that damping may follow."""

    may_skip: ClassVar[bool]  # whether `cg_steps` may be 0: then a step takes no product

    def init(self, params: Any, dtype: Any) -> Any:
        """The state: a pytree of arrays."""

    def observe(
        self, state: Any, params: Any, loss: jax.Array, loss_before: Callable[[Any], jax.Array]
    ) -> tuple[Any, Any]:
        """Before the solve: the state after seeing a new batch, and how many losses that took.

        f(θ) = ``loss`` there, θ = ``params``, and ``loss_before(s)`` is f(θ − s).
        """

    def bound(self, state: Any) -> Any:
        """κ, a scalar."""

    def level(self, state: Any) -> Any:
        """μ, a scalar: 1 is the level of trust that nothing has to be known for."""

    def cg_steps(self, state: Any) -> Any:
        """The most CG iterations worth spending, or None."""

    def update(self, state: Any, params: Any, outcome: Outcome) -> Any:
        """After the step from ``params``."""


@dataclass(frozen=True)
class Unbounded:
    """No trust region: the step is as long as the linear system makes it."""

    may_skip: ClassVar[bool] = False

    def init(self, params: Any, dtype: Any) -> Any:
        """Nothing to remember."""
        return ()

    def observe(
        self, state: Any, params: Any, loss: jax.Array, loss_before: Callable[[Any], jax.Array]
    ) -> tuple[Any, int]:
        """Nothing to learn."""
        return state, 0

    def bound(self, state: Any) -> float:
        """∞."""
        return float("inf")

    def level(self, state: Any) -> float:
        """Always 1."""
        return 1.0

    def cg_steps(self, state: Any) -> None:
        """As many as the solver allows."""

    def update(self, state: Any, params: Any, outcome: Outcome) -> Any:
        """Nothing to learn."""
        return state


@dataclass(frozen=True)
class Scheduled(Unbounded):
    """κ is a constant or a schedule: ``hfopt.scheduled_trust``.

    Args:
      radius: κ > 0, or a callable from the number of steps taken (an int32 scalar) to κ, such as an Optax schedule.

    Raises:
      ValueError: a constant that is not positive.
    """

    radius: float | Callable[[jax.Array], Any]

    def __post_init__(self) -> None:
        if not callable(self.radius):
            require_positive("scheduled_trust", radius=self.radius)

    def init(self, params: Any, dtype: Any) -> jax.Array:
        """The number of steps taken."""
        return jnp.zeros((), jnp.int32)

    def bound(self, state: jax.Array) -> Any:
        """κ of this step."""
        return self.radius(state) if callable(self.radius) else self.radius

    def update(self, state: jax.Array, params: Any, outcome: Outcome) -> jax.Array:
        """One more step."""
        return optax.safe_increment(state)


class TrustState(NamedTuple):
    """State of `Earned`."""

    level: jax.Array  # μ
    agreement: jax.Array  # running sum behind q, how much of the predicted decreases showed on data not seen
    evidence: jax.Array  # the weights in that sum: q = agreement / evidence, in [−1, 1]
    last_step: Any  # shaped like the parameters
    squared_norm: jax.Array  # sᵀs of it
    landing: jax.Array  # sᵀ(θ + s), to know whether θ moved by it
    predicted: jax.Array  # the decrease the model predicted for it, ≥ 0; 0: there is nothing to judge


@dataclass(frozen=True)
class Earned:
    """Trust that is earned on new data and lost on the same: ``hfopt.earned_trust``.

    One level μ rules a step: κ = radius · μ, at most ⌈10 max(μ, 1)^¼⌉ CG iterations and, with `hfopt.trust_damping`,
    λ = λ₀ / μ. ρ on the batch that made a step is optimistic, ρ on another batch is pessimistic (it sees the noise of
    the gradient, not the error of the model), so each is used for what it can show:

    - the next batch says what of the predicted decrease −m was real. With q the (bias-corrected) running average of
      clip((f_new(θ − s) − f_new(θ)) / −m, ±1): μ ← 3/2 μ if q > ¾, and μ ← max(μ/2, min(μ, 1)) if q < ½, so that a
      lack of evidence takes back what was earned and no more;
    - the same batch says when the model itself breaks: μ ← μ/2 if ρ < ½, down to a floor, and μ/8 if the step was
      rejected, far below that, lest a full batch reject the same step for ever; below 1, μ ← 3/2 μ while ρ > 0.9.
      Below the floor a step may be too short for its decrease to show in the rounding of f: then μ ← 8 μ.

    On a full batch q averages ρ, and this is an ordinary trust region that soon stops binding. On small batches near
    their noise floor q → 0 whatever κ is, and μ stays at 1, where the bound is small enough to be safe.

    Args:
      radius: κ at μ = 1, in units of the objective. 0.01 is a mean KL divergence of a hundredth of a nat.
      initial_cg_steps: the most CG iterations at μ ≤ 1.
      memory: of the running average q, in [0, 1).

    Raises:
      ValueError: an argument out of its range.

    Judging the last step on the new batch costs one forward pass a step. A step that was not taken as it was, because a
    transformation behind scaled, delayed or dropped it, is not judged.
    """

    radius: float = 0.01
    initial_cg_steps: int = 10
    memory: float = 0.8

    may_skip: ClassVar[bool] = False

    # Shares of a predicted decrease: above the one trust grows, below the other it shrinks. Between them lies much of a
    # long descent on a full batch, where shorter steps would gain less and agree no better.
    _GROWS, _SHRINKS = 0.75, 0.5
    # Beyond this the bound binds nothing.
    _CEILING = 1e8
    # Of trust lost by steps that were taken, and by rejected ones: these show that the step is still too long.
    _FLOOR, _FLOOR_OF_REJECTED = 1e-3, 1e-8

    def __post_init__(self) -> None:
        require_positive("earned_trust", radius=self.radius)
        if not self.initial_cg_steps >= 1:
            raise ValueError(f"earned_trust: `initial_cg_steps` must be at least 1, got {self.initial_cg_steps}.")
        if not 0 <= self.memory < 1:
            raise ValueError(f"earned_trust: `memory` must lie in [0, 1), got {self.memory}.")

    def init(self, params: Any, dtype: Any) -> TrustState:
        """μ = 1, and nothing to judge."""
        zero = lambda: jnp.zeros((), dtype)  # noqa: E731
        zeros = optax.tree.zeros_like(params)
        return TrustState(jnp.ones((), dtype), zero(), zero(), zeros, zero(), zero(), zero())

    def observe(
        self, state: TrustState, params: Any, loss: jax.Array, loss_before: Callable[[Any], jax.Array]
    ) -> tuple[TrustState, jax.Array]:
        """Judge the last step on a batch it has not seen, if it was taken: something may stand behind us that changes,
        delays or drops it."""
        here = vdot(state.last_step, params)
        due = (state.predicted > 0) & (jnp.abs(state.landing - here) < 0.25 * state.squared_norm)
        before = jax.lax.cond(due, lambda: loss_before(state.last_step), lambda: loss)
        judged = due & jnp.isfinite(before) & jnp.isfinite(loss)
        share = jnp.clip((before - loss) / jnp.where(judged, state.predicted, 1), -1, 1)
        agreement = self.memory * state.agreement + (1 - self.memory) * share
        evidence = self.memory * state.evidence + (1 - self.memory)
        q, level = agreement / evidence, state.level
        level = jnp.where(
            q > self._GROWS,
            jnp.minimum(1.5 * level, self._CEILING),
            jnp.where(q < self._SHRINKS, jnp.maximum(level / 2, jnp.minimum(level, 1)), level),
        )
        after = state._replace(level=level, agreement=agreement, evidence=evidence)
        return optax.tree.where(judged, after, state), due.astype(jnp.int32)

    def bound(self, state: TrustState) -> jax.Array:
        """κ = radius · μ."""
        return self.radius * state.level

    def level(self, state: TrustState) -> jax.Array:
        """μ."""
        return state.level

    def cg_steps(self, state: TrustState) -> jax.Array:
        """⌈initial_cg_steps · max(μ, 1)^¼⌉."""
        return jnp.ceil(self.initial_cg_steps * jnp.maximum(state.level, 1) ** 0.25).astype(jnp.int32)

    def update(self, state: TrustState, params: Any, outcome: Outcome) -> TrustState:
        """Lose trust where the model failed on its own batch; remember the step for the next one to judge."""
        level, ratio = state.level, outcome.reduction_ratio
        lost = jnp.minimum(level, jnp.maximum(level / 2, self._FLOOR))
        regained = jnp.where((ratio > 0.9) & (level < 1), jnp.minimum(1.5 * level, 1), level)
        taken = jnp.where(ratio >= self._SHRINKS, regained, lost)
        level = jnp.where(outcome.accepted, taken, jnp.maximum(level / 8, self._FLOOR_OF_REJECTED))
        landing = vdot(outcome.step, optax.apply_updates(params, outcome.step))
        after = TrustState(
            level=level,
            agreement=state.agreement,
            evidence=state.evidence,
            last_step=outcome.step,
            squared_norm=outcome.squared_norm,
            landing=landing.astype(level.dtype),
            predicted=jnp.maximum(-outcome.predicted, 0),
        )
        longer = jnp.where(state.level < self._FLOOR, jnp.minimum(8 * state.level, self._FLOOR), state.level)
        unseen = state._replace(level=longer, predicted=jnp.zeros_like(state.predicted))
        return optax.tree.where(outcome.informative, after, unseen)
