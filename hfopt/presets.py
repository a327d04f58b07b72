"""Settings of `hessian_free` as their sources publish them, constant by constant."""

import optax

from hfopt.control.damping import LevenbergMarquardt
from hfopt.control.line_search import Armijo
from hfopt.solve.cg import ConjugateGradient
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
