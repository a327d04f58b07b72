"""The Hessian H = I/C + (1/N) Σ ∇²ξ_i of the objective as an operator, and its part that Gauss-Newton leaves out."""

from typing import Any

import jax

from hfopt.batch import Examples
from hfopt.curvature.average import Products, average
from hfopt.curvature.operator import Operator
from hfopt.losses import mean_loss
from hfopt.objective import ValueFn
from hfopt.outputs import in_coordinates, of_coordinates
from hfopt.vectors import vdot


def hessian(value_fn: ValueFn, params: Any = None) -> Operator:
    """H = I/C + (1/N) Σ ∇²ξ_i at ``params``, over the curvature batch of ``value_fn``.

    H = G + (1/N) Σ_i Σ_k r_ik ∇²z_ik, with G of `gauss_newton` and r_i = ∂ξ_i/∂z_i. It is indefinite in general: away
    from a minimum the second term has either sign. I/C is included; damping is not.

    Args:
      value_fn: from `Objective.bind`. With a ``curvature_batch`` the mean is taken over that one.
      params: a pytree of floating arrays.

    Returns:
      An `Operator`. ``H @ v`` costs one jvp of the gradient, linearised once; ``H.quadratic_form(v)`` the same.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.

    References:
      Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
    """

    def products(rows: Examples) -> Products:
        # Not the gradient of value_fn itself: differentiated again, its rule for a chunked batch is slow.
        gradient = jax.grad(lambda p: value_fn.objective.for_curvature.mean_loss(p, rows))
        product = jax.linearize(gradient, params)[1]
        return Products(product, lambda v: vdot(v, product(v)))

    return average(value_fn, params, products, indefinite=True)


def residual_hessian(value_fn: ValueFn, params: Any) -> Operator:
    """S = (1/N) Σ_i Σ_k r_ik ∇²z_ik at ``params``: the curvature of the model, weighted by the residuals.

    r_i = ∂ξ_i/∂z_i is held fixed, so that S is the Hessian of θ ↦ Σ c_i r_iᵀ z_i(θ). It is what H has and G has not:
    H = I/C + G_data + S. It vanishes where the residuals do, and where the model is linear in its parameters. I/C is
    not included.

    Args:
      value_fn: from `Objective.bind`. With a ``curvature_batch`` the mean is taken over that one.
      params: a pytree of floating arrays.

    Returns:
      An `Operator`, indefinite. ``S @ v`` costs what a product with the Hessian costs.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.
    """

    def products(rows: Examples) -> Products:
        objective = value_fn.objective.for_curvature
        predict = in_coordinates(lambda p: objective.predict(p, rows.inputs))
        outputs, others = predict(params)
        loss = of_coordinates(objective.loss, outputs, others)
        residuals = jax.grad(lambda z: mean_loss(loss, z, rows))(outputs)
        product = jax.linearize(jax.grad(lambda p: vdot(residuals, predict(p)[0])), params)[1]
        return Products(product, lambda v: vdot(v, product(v)))

    return average(value_fn, params, products, indefinite=True, regularised=False)
