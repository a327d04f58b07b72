"""The Gauss-Newton matrix G = I/C + (1/N) Σ J_iᵀ B_i J_i as an operator."""

from collections.abc import Callable
from typing import Any

from hfopt.batch import Examples
from hfopt.curvature.operator import Operator
from hfopt.curvature.roots import root_pairs
from hfopt.curvature.sandwich import sandwich
from hfopt.losses import output_hessian
from hfopt.objective import Objective, ValueFn


def gauss_newton(value_fn: ValueFn, params: Any = None) -> Operator:
    """G = I/C + (1/N) Σ J_iᵀ B_i J_i at ``params``, over the curvature batch of ``value_fn``.

    J_i = ∂z_i/∂θ and B_i = ∂²ξ_i/∂z_i². G is positive semi-definite when the loss is convex in the outputs, and
    positive definite when also l2 > 0 on every parameter. I/C is included; damping is not.

    What it does not see is the curvature of the model. At a saddle of f that stems from J_i = 0, such as that of
    ½(w₂w₁ − 1)² at 0, G vanishes with the gradient, and a step stays there; from a point beside it the residual pushes
    away, and steps grow from one to the next. `hessian` sees the direction that leads down.

    Args:
      value_fn: from `Objective.bind`. With a ``curvature_batch`` the mean is taken over that one.
      params: a pytree of floating arrays.

    Returns:
      An `Operator`. ``G @ v`` costs one jvp and one vjp of the linearised model, ``G.quadratic_form(v)`` one jvp.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.

    References:
      Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
    """
    return sandwich(value_fn, params, _loss_hessian, root_pairs)


def _loss_hessian(objective: Objective, outputs: Any, rows: Examples) -> Callable[[Any], Any]:
    return output_hessian(objective.loss, outputs, rows)
