"""Settings of `hessian_free` as their sources publish them, constant by constant."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.arguments import require_positive
from hfopt.control.damping import LevenbergMarquardt
from hfopt.control.damping import Scheduled as ScheduledDamping
from hfopt.control.line_search import Armijo, FixedStep
from hfopt.control.trust_region import Scheduled
from hfopt.solve.cg import ConjugateGradient
from hfopt.solve.kronecker import Kronecker
from hfopt.solve.metrics import SecondMoment
from hfopt.solve.preconditioners import SquaredGradients
from hfopt.solve.stopping import RelativeProgress, RelativeResidual
from hfopt.transform import hessian_free


def simplenn() -> optax.GradientTransformationExtraArgs:
    """The Newton method of simpleNN: CG from zero to ‖r‖ ≤ 0.1 ‖g‖, Armijo by halves, Levenberg-Marquardt.

    The method regularises by I/(C·N), on weights and biases alike: give the objective ``l2 = 1 / (C * N)``. Its
    curvature is taken over a random subset, drawn anew every iteration: the ``curvature_batch`` of `Objective.bind`.

    Two points are ours: the line search is capped (at 60 halvings), where the source searches for ever once rounding
    hides every decrease; and λ falls above ρ = ¾, not at ¾ itself.

    Source: Wang, Tan & Lin, "Newton methods for convolutional neural networks", ACM TIST 2020, and the code of
    simpleNN: CG cap 250, λ₀ = 1, λ × 3/2 below ρ = ¼ and × 2/3 above ¾, λ not in the model of ρ, η = 1e-4.
    """
    return hessian_free(
        solver=ConjugateGradient(max_steps=250, stop=RelativeResidual(0.1)),
        preconditioner=None,
        damping=LevenbergMarquardt(initial=1.0, increase=3 / 2, decrease=2 / 3, lower=0.25, upper=0.75),
        line_search=Armijo(shrink=0.5, sufficient_decrease=1e-4, max_trials=60),
        trust_region=None,
        warm_start=None,
    )


def martens2010(damping: float = 45.0) -> optax.GradientTransformationExtraArgs:
    """The method of Martens 2010: preconditioned CG with backtracking over its iterates, from a decayed warm start.

    Weight decay is the objective's: ``l2 = 2e-5``. The gradient is over all data, the curvature over one chunk of it,
    the chunks taking turns: the ``curvature_batch`` of `Objective.bind`.

    Args:
      damping: λ₀, on the mean curvature over examples; 45 is what the published code starts the autoencoders with. For
        another problem aim at a reduction ratio of 0.75 to 0.95 after one step.

    Three points are ours, where the published code is looser: ρ is that of the step really taken, after the line
    search, and on the batch of the gradient rather than on the chunk; and a rejected step drops the warm start.

    Source: Martens, "Deep learning via Hessian-free optimization", ICML 2010, and its published MATLAB code: CG stop
    k·ε = 5e-4 k with k = max(10, ⌈0.1 i⌉), cap 250, iterates kept at ⌈5·1.3ʲ⌉, start from 0.95 × the last CG solution,
    M = (mean g² + λ + 1/C)^¾, line search × 0.8 with c = 1e-2 and 60 trials, λ × 3/2 below ρ = ¼ and × 2/3 above ¾.
    """
    return hessian_free(
        solver=ConjugateGradient(max_steps=250, stop=RelativeProgress(5e-4), keep_ratio=1.3),
        preconditioner=SquaredGradients(power=0.75),
        damping=LevenbergMarquardt(initial=damping, increase=3 / 2, decrease=2 / 3, lower=0.25, upper=0.75),
        line_search=Armijo(shrink=0.8, sufficient_decrease=1e-2, max_trials=60),
        trust_region=None,
        warm_start=0.95,
    )


def kiros2013(steps_per_epoch: int, learning_rate: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Stochastic Hessian-free of Kiros 2013: at most 5 CG iterations from a warm start that fades ever less.

    The gradient is over mini-batches of 1000, the curvature over 100 of them: the ``curvature_batch`` of
    `Objective.bind`. The decay of the warm start is min(0.5 · 1.01ᵉ, 0.99) in epoch e.

    Args:
      steps_per_epoch: mini-batches an epoch.
      learning_rate: the fixed α of the step.

    Two points are ours: a step that ends in a loss that is not finite is rejected, and the rate 1.01 an epoch, which
    carries the decay from 0.5 to 0.99 in 69 epochs.

    Raises:
      ValueError: an argument that is not positive.

    Source: Kiros, "Training neural networks with stochastic Hessian-free optimization", 2013: no preconditioner,
    λ₀ = 1, λ / 0.99 below ρ = ¼ and × 0.99 above ¾, λ not in the model of ρ, the last CG iterate, α without a line
    search.
    """
    if steps_per_epoch < 1:
        raise ValueError(f"kiros2013: `steps_per_epoch` must be at least 1, got {steps_per_epoch}.")
    require_positive("kiros2013", learning_rate=learning_rate)

    def decay(step: jax.Array) -> jax.Array:
        return jnp.minimum(0.5 * 1.01 ** (step // steps_per_epoch).astype(jnp.float32), 0.99)

    return hessian_free(
        solver=ConjugateGradient(max_steps=5),
        preconditioner=None,
        damping=LevenbergMarquardt(initial=1.0, increase=1 / 0.99, decrease=0.99, lower=0.25, upper=0.75),
        line_search=FixedStep(learning_rate),
        trust_region=None,
        warm_start=decay,
    )


def soap(
    total_steps: int,
    *,
    learning_rate: float = 0.01,
    momentum: float = 0.5,
    metric: Kronecker = Kronecker(),  # noqa: B008
) -> optax.GradientTransformationExtraArgs:
    """SOAP, as the limit of large damping: no CG iterations, so that a step is −(λM)⁻¹m in the metric of the gradients.

    λ = 1 / (learning_rate · (1 − t/T)). A step costs a gradient and its rotations; and a forward pass on the evaluation
    batch, since it is not taken where the objective is not finite afterwards.

    Args:
      total_steps: T, the length of the schedule; afterwards nothing moves.
      learning_rate: the step at the start, in the unit of the parameters.
      momentum: of the gradients.
      metric: M.

    Raises:
      ValueError: an argument that is not positive, or ``momentum`` outside [0, 1).

    Source: Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", 2024, algorithm 3. The authors' momentum
    is 0.95, and they renew a basis by one power iteration, as we do. Ours: λ falls linearly; the first step is in the
    basis of the parameters; second moments follow the bases (``carry``); sides longer than 256 are not rotated; where a
    factor has no rank its basis stays; and instead of an ε beside √v there is a floor relative to all of it.
    """
    if total_steps < 1:
        raise ValueError(f"soap: `total_steps` must be at least 1, got {total_steps}.")
    require_positive("soap", learning_rate=learning_rate)

    def damping(step: jax.Array) -> Any:
        remaining = jnp.maximum(1 - step.astype(float) / total_steps, 0)
        return 1 / (learning_rate * remaining)

    return hessian_free(
        solver=ConjugateGradient(max_steps=0),
        preconditioner=None,
        damping=ScheduledDamping(damping),
        metric=metric,
        trust_region=None,
        line_search=FixedStep(),
        momentum=momentum,
        warm_start=None,
    )


def stochastic(
    total_steps: int, *, radius: float = 0.3, damping: float = 0.1, cg_steps: int = 3
) -> optax.GradientTransformationExtraArgs:
    """For mini-batches and a budget of steps: few CG iterations, and a trust region that shrinks to nothing.

    (G + λM) d = −g with M from the second moments of the gradients (`hfopt.second_moment`), a fixed number of CG
    iterations in that metric from 0.8 × the last solution, and the step bounded by ½ sᵀ(G + λM)s ≤ radius (1 − t/T)².
    For cross-entropy the bound is close to the mean KL divergence between the predictions before and after a step.

    A mini-batch of some hundred examples is meant, with the curvature on a quarter of them, and the step judged on
    those too: ``objective.bind(batch, curvature_batch=part, evaluation_batch=part)``. A step that leads to a loss that
    is not finite there is rejected.

    Args:
      total_steps: T, the length of the schedule; afterwards nothing moves.
      radius: the bound at the start, in units of the objective.
      damping: λ, constant.
      cg_steps: CG iterations a step; 2, with the curvature on fewer examples, is the fast variant.

    Raises:
      ValueError: an argument that is not positive.

    The constants are chosen on MNIST with a fully connected network, from seeds 0, 1 and 100. `python -m experiments
    sweep configs/sweeps/mnist_mlp_stochastic.yaml` compares with a tuned Adam on others.
    """
    if total_steps < 1:
        raise ValueError(f"stochastic: `total_steps` must be at least 1, got {total_steps}.")
    require_positive("stochastic", radius=radius, damping=damping, cg_steps=cg_steps)

    def bound(step: jax.Array) -> Any:
        remaining = jnp.maximum(1 - step.astype(jnp.float32) / total_steps, 0)
        return radius * remaining**2

    return hessian_free(
        solver=ConjugateGradient(max_steps=cg_steps, stop=()),
        preconditioner=None,  # but for the inverse of the metric
        damping=ScheduledDamping(lambda step: damping),  # which optax.inject_hyperparams can change, too
        metric=SecondMoment(),
        trust_region=Scheduled(bound),
        line_search=FixedStep(),
        warm_start=0.8,
    )
