"""Curvature as operators: symmetric maps on pytrees shaped like the parameters, multiplied by and never formed."""

from hfopt.curvature.gauss_newton import gauss_newton
from hfopt.curvature.operator import Operator

__all__ = ["Operator", "gauss_newton"]
