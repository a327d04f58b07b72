"""What a step leaves behind: the state carried to the next one, and a report."""

from typing import Any, NamedTuple

import jax


class Carried(NamedTuple):
    """What one linear system leaves to the next; fields of the state of every transformation."""

    solution: Any  # the last solution, shaped like the parameters; () without warm start or CG
    metric: Any  # the state of the metric, with the average of the gradients; () without either
    preconditioner: Any  # the state of the preconditioner; () without one or CG


class StepInfo(NamedTuple):
    """What the last step did; scalars, all zero before the first: a NaN there would stop a hunt for NaNs."""

    loss: jax.Array  # f(θ) before the step, on the evaluation batch where there is one
    new_loss: jax.Array  # f(θ + s) after it, on the same batch; equal to `loss` when the step was rejected
    reduction_ratio: jax.Array  # ρ = actual / predicted decrease; −∞ if rejected, 1 if both are below rounding
    damping: jax.Array  # λ the step was solved with
    cg_steps: jax.Array  # int32: CG iterations
    cg_stop: jax.Array  # int32: why CG stopped, a `hfopt.Stop`
    step_size: jax.Array  # s = step_size · d, d from CG or along negative curvature; 0 when the step was rejected
    products: jax.Array  # int32: products with the curvature, for solve, preconditioner and calibration
    evaluations: jax.Array  # int32: losses computed: at trial points, and what the caller did not give
    accepted: jax.Array  # bool: whether the step was taken


class HessianFreeState(NamedTuple):
    """State of `hessian_free`; a pytree of arrays."""

    step: jax.Array  # int32: steps taken, rejected ones included
    rejected: jax.Array  # int32: steps rejected so far
    next_damping: jax.Array  # λ carried to the next step; rules that do not carry one make it from trust or `step`
    solution: (
        Any  # the last CG solution, shaped like the parameters; zero after a rejection. () without warm start or CG
    )
    trust: Any  # the state of the trust region; () without one
    metric: Any  # the state of the metric, with the average of the gradients; () without either
    preconditioner: Any  # the state of the preconditioner; () without one or CG
    info: StepInfo


class DirectionInfo(NamedTuple):
    """How the last direction was found; scalars."""

    damping: jax.Array  # λ it was solved with
    cg_steps: jax.Array  # int32: CG iterations
    cg_stop: jax.Array  # int32: why CG stopped, a `hfopt.Stop`
    products: jax.Array  # int32: products with the curvature, for solve and preconditioner


class GaussNewtonState(NamedTuple):
    """State of `scale_by_gauss_newton`; a pytree of arrays."""

    step: jax.Array  # int32: updates made
    solution: Any  # the last CG solution, shaped like the parameters. () without warm start or CG
    metric: Any  # the state of the metric, with the average of the gradients; () without either
    preconditioner: Any  # the state of the preconditioner; () without one or CG
    info: DirectionInfo
