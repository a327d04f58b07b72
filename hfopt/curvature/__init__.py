"""Curvature as operators: symmetric maps on pytrees shaped like the parameters, multiplied by and never formed."""

from hfopt.curvature.average import penalty_hessian
from hfopt.curvature.estimators import Estimate
from hfopt.curvature.fisher import fisher
from hfopt.curvature.gauss_newton import gauss_newton
from hfopt.curvature.hessian import hessian, residual_hessian
from hfopt.curvature.jacobian import Jacobian, jacobian
from hfopt.curvature.operator import Operator
from hfopt.curvature.sandwich import empirical_fisher, outer_product

__all__ = [
    "Estimate",
    "Jacobian",
    "Operator",
    "empirical_fisher",
    "fisher",
    "gauss_newton",
    "hessian",
    "jacobian",
    "outer_product",
    "penalty_hessian",
    "residual_hessian",
]
