"""Curvature as operators: symmetric maps on pytrees shaped like the parameters, multiplied by and never formed."""

from hfopt.curvature.fisher import fisher
from hfopt.curvature.gauss_newton import gauss_newton
from hfopt.curvature.hessian import hessian
from hfopt.curvature.jacobian import empirical_fisher, outer_product
from hfopt.curvature.operator import Operator

__all__ = ["Operator", "empirical_fisher", "fisher", "gauss_newton", "hessian", "outer_product"]
