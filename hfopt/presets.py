"""Settings of `hessian_free` as their sources publish them, constant by constant."""

import optax

from hfopt.control.damping import LevenbergMarquardt
from hfopt.control.line_search import Armijo
from hfopt.solve.cg import ConjugateGradient
from hfopt.solve.stopping import RelativeResidual
from hfopt.transform import hessian_free


def simplenn() -> optax.GradientTransformationExtraArgs:
    """The Newton method of simpleNN: CG from zero to ‖r‖ ≤ 0.1 ‖g‖, Armijo by halves, Levenberg-Marquardt.

    The method regularises by I/(C·N), on weights and biases alike: give the objective ``l2 = 1 / (C * N)``. Its
    curvature is taken over a random subset, drawn anew every iteration: the ``curvature_batch`` of `Objective.bind`.

    One constant is ours: the line search is capped (at 60 halvings), where the source searches for ever once rounding
    hides every decrease.

    Source: Wang, Tan & Lin, "Newton methods for convolutional neural networks", ACM TIST 2020, and the code of
    simpleNN: CG cap 250, λ₀ = 1, λ × 3/2 below ρ = ¼ and × 2/3 from ρ = ¾, λ not in the model of ρ, η = 1e-4.
    """
    return hessian_free(
        solver=ConjugateGradient(max_steps=250, stop=RelativeResidual(0.1)),
        damping=LevenbergMarquardt(initial=1.0, increase=3 / 2, decrease=2 / 3, lower=0.25, upper=0.75),
        line_search=Armijo(shrink=0.5, sufficient_decrease=1e-4, max_trials=60),
        trust_region=None,
        warm_start=None,
    )
