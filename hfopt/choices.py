"""Checks at the boundary: of the choices a transformation is made of, and of what its update is given."""

import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
import optax

from hfopt.arguments import require_positive
from hfopt.curvature.average import check_params, check_value_fn
from hfopt.curvature.operator import Operator
from hfopt.objective import ValueFn

Curvature = Callable[..., Operator]

# A choice of `hessian_free` -> a method it must have, and an example of one.
_KINDS = {
    "solver": ("solve", "hfopt.cg()"),
    "preconditioner": ("inverse", "hfopt.nystrom()"),
    "damping": ("update", "hfopt.levenberg_marquardt()"),
    "metric": ("geometry", "hfopt.kronecker()"),
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


def check_choices(where: str, curvature: Any, warm_start: Any, momentum: Any, **choices: Any) -> None:
    """Raise TypeError or ValueError, by the name of the argument of ``where``, for a choice that is not of its kind."""
    if not callable(curvature):
        raise TypeError(f"{where}: `curvature` must be a function such as hfopt.gauss_newton, got {curvature!r}.")
    for name, choice in choices.items():
        method, example = _KINDS[name]
        if choice is None and name in _OPTIONAL:
            continue
        if isinstance(choice, type) or not hasattr(choice, method):
            raise TypeError(f"{where}: `{name}` must be an object such as {example}, got {choice!r}.")
    solver, metric = choices["solver"], choices["metric"]
    if solver.max_steps == 0 and metric is not None and not metric.invertible:
        raise ValueError(
            f"{where}: without CG iterations a step is −(λM)⁻¹m, and {type(metric).__name__} has no cheap inverse; "
            "take hfopt.kronecker(), or a solver with max_steps of at least 1."
        )
    for name, decay, below in (("warm_start", warm_start, False), ("momentum", momentum, True)):
        if decay is None or callable(decay) or isinstance(decay, jax.Array):
            continue
        if not isinstance(decay, Real):
            raise TypeError(f"{where}: `{name}` must be a number, a schedule or None, got {decay!r}.")
        if not (0 <= float(decay) < 1 or (decay == 1 and not below)):
            raise ValueError(f"{where}: `{name}` must lie in [0, 1{')' if below else ']'} or be None, got {decay}.")


def check_damping(where: str, damping: Any) -> None:
    """Raise TypeError or ValueError for a ``damping`` that is neither a positive number nor a schedule."""
    if callable(damping) or isinstance(damping, jax.Array):
        return
    if not isinstance(damping, Real):
        raise TypeError(
            f"{where}: `damping` must be a number or a schedule, got {damping!r}; rules that learn from the steps "
            "taken belong to hfopt.hessian_free, which takes them."
        )
    require_positive(where, damping=damping)


def checked_call(where: str, params: Any, value_fn: Any) -> ValueFn:
    """``value_fn`` of an update; raise ValueError or TypeError where it or ``params`` cannot be worked with."""
    usage = "tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)"
    if params is None:
        raise ValueError(f"{where}: `params` is missing; call {usage}.")
    if value_fn is None:
        raise ValueError(
            f"{where}: `value_fn` is missing. A second-order step evaluates the objective and its curvature: "
            f"make value_fn = hfopt.Objective(predict, loss).bind(batch) and call {usage}. A wrapper that passes no "
            "extra arguments on, such as optax.contrib.sam, cannot stand around it."
        )
    check_value_fn(value_fn)
    check_params(params)
    if not jax.tree.leaves(params):
        raise ValueError(f"{where}: `params` has no arrays, so there is nothing to train.")
    check_structure(where, params, value_fn)
    return value_fn


def check_structure(where: str, params: Any, value_fn: ValueFn) -> None:
    """Raise ValueError where a wrapper has changed the parameters into what the objective cannot take."""
    holes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    if any(isinstance(node, optax.MaskedNode) for node in holes) and not value_fn.objective.takes_masked:
        raise ValueError(
            f"{where}: the parameters have masked entries, but the objective needs them all. optax.masked and "
            "optax.partition cannot stand around it: use hfopt.masked(tx, mask), which solves for the others alone."
        )
    if isinstance(params, jax.Array) and params.ndim == 1:
        try:
            jax.eval_shape(value_fn, params)
        except Exception as error:
            raise ValueError(
                f"{where}: the objective cannot be evaluated at `params`, a vector of {params.size} numbers: "
                f"{type(error).__name__}: {error} (If it is optax.flatten that makes a vector of the parameters, leave "
                "it out: here it gains nothing.)"
            ) from error
