"""Checks of the choices a step is made of, at the boundary where a caller hands them in."""

import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any

from hfopt.curvature.operator import Operator

Curvature = Callable[..., Operator]

# A choice of `hessian_free` -> a method it must have, and an example of one.
_KINDS = {
    "solver": ("solve", "hfopt.cg()"),
    "preconditioner": ("inverse", "hfopt.nystrom()"),
    "damping": ("update", "hfopt.levenberg_marquardt()"),
    "metric": ("product", "hfopt.second_moment()"),
    "trust_region": ("bound", "hfopt.earned_trust()"),
    "line_search": ("search", "hfopt.armijo()"),
}
_OPTIONAL = ("preconditioner", "metric", "trust_region")


def takes_key(curvature: Curvature) -> bool:
    """Whether ``curvature`` has a parameter ``key`` that is not set already."""
    try:
        parameter = inspect.signature(curvature, follow_wrapped=False).parameters.get("key")
    except ValueError:  # some callables of C extensions
        return False
    return parameter is not None and parameter.default in (None, inspect.Parameter.empty)


def check_choices(curvature: Any, warm_start: Any, **choices: Any) -> None:
    """Raise TypeError or ValueError, by the name of the argument, for a choice that is not of its kind."""
    if not callable(curvature):
        raise TypeError(f"hessian_free: `curvature` must be a function such as hfopt.gauss_newton, got {curvature!r}.")
    for name, choice in choices.items():
        method, example = _KINDS[name]
        if choice is None and name in _OPTIONAL:
            continue
        if isinstance(choice, type) or not hasattr(choice, method):
            raise TypeError(f"hessian_free: `{name}` must be an object such as {example}, got {choice!r}.")
    if warm_start is None or callable(warm_start):
        return
    if not isinstance(warm_start, Real):
        if hasattr(warm_start, "dtype"):  # an array, whose value may not be known yet
            return
        raise TypeError(f"hessian_free: `warm_start` must be a number, a schedule or None, got {warm_start!r}.")
    if not 0 <= float(warm_start) <= 1:
        raise ValueError(f"hessian_free: `warm_start` must lie in [0, 1] or be None, got {warm_start}.")
