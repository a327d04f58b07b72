"""What became of a step: what the rules for damping and trust learn from."""

from typing import Any, NamedTuple

import jax


class Outcome(NamedTuple):
    """A step s and how well the quadratic model foretold it."""

    step: Any  # s, shaped like the parameters; zero when rejected
    squared_norm: jax.Array  # sᵀs
    predicted: jax.Array  # gᵀs + ½ sᵀGs; 0 when rejected
    reduction_ratio: jax.Array  # ρ = (f(θ + s) − f(θ)) / (gᵀs + ½ sᵀGs); −∞ when rejected
    damped_ratio: jax.Array  # the same with the damping in the model: gᵀs + ½ sᵀ(G + λM)s
    accepted: jax.Array  # bool
    informative: jax.Array  # bool; False: predicted and actual decrease are below rounding, and ρ was set to 1
