"""When CG has done enough: stop rules as objects, and the codes that say why it stopped."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp


class Stop(IntEnum):
    """Why CG stopped; ``cg_stop`` in ``state.info``.

    ====================  =========================================================================
    NONE                  it has not run
    CAP                   ``max_steps`` iterations were done
    SOLVED                the residual is exactly zero (also: the right-hand side was)
    RESIDUAL              ‖r‖ ≤ tolerance ‖b‖
    PROGRESS              the quadratic model no longer falls fast enough
    NEGATIVE_CURVATURE    pᵀAp ≤ 0: the iterate before it is returned
    NONFINITE             an overflow or NaN: the last finite iterate is returned
    ====================  =========================================================================
    """

    NONE = 0
    CAP = 1
    SOLVED = 2
    RESIDUAL = 3
    PROGRESS = 4
    NEGATIVE_CURVATURE = 5
    NONFINITE = 6


class Progress(NamedTuple):
    """What a stop rule may look at after iteration ``step``; scalars but for ``values``."""

    step: jax.Array  # iterations done, i ≥ 1
    residual_norm: jax.Array  # ‖r_i‖ of the recursive residual r = b − A x
    rhs_norm: jax.Array  # ‖b‖
    values: jax.Array  # (max_steps + 1,): φ_0 … φ_i, the model at each iterate; undefined beyond i


class StopRule(Protocol):
    """A condition after which CG stops, and the code it reports."""

    reason: ClassVar[Stop]

    def __call__(self, progress: Progress) -> Any:
        """Whether to stop now: a boolean scalar."""


@dataclass(frozen=True)
class RelativeResidual:
    """Stop when ‖r‖ ≤ tolerance · ‖b‖. In float32 the true residual floors near 1e-6 ‖b‖; ask for no less there."""

    tolerance: float = 0.1
    reason: ClassVar[Stop] = Stop.RESIDUAL

    def __call__(self, progress: Progress) -> jax.Array:
        return progress.residual_norm <= self.tolerance * progress.rhs_norm


@dataclass(frozen=True)
class RelativeProgress:
    """Stop when k iterations together improved φ by less than the share k·ε of what it is.

    i > k, φ_i < 0 and (φ_i − φ_{i−k}) / φ_i < k·ε, with k = max(min_window, ⌈window_share · i⌉). The threshold is
    k·ε, not ε: the *average* improvement an iteration is compared with ε.

    Source: Martens, "Deep learning via Hessian-free optimization", ICML 2010, section 4.4, with these constants.
    """

    tolerance: float = 5e-4
    min_window: int = 10
    window_share: float = 0.1
    reason: ClassVar[Stop] = Stop.PROGRESS

    def __call__(self, progress: Progress) -> jax.Array:
        step, values = progress.step, progress.values
        share = jnp.ceil(self.window_share * step.astype(values.dtype)).astype(step.dtype)
        window = jnp.maximum(self.min_window, share)
        now, then = values[step], values[jnp.maximum(step - window, 0)]
        # (φ_i − φ_{i−k}) / φ_i < k·ε with the division by the negative φ_i multiplied out
        stalled = now - then > window.astype(values.dtype) * self.tolerance * now
        return (step > window) & (now < 0) & stalled
