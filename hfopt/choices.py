"""Checks at the boundary: of the choices a transformation is made of, and of what its update is given."""

import inspect
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.arguments import require_positive
from hfopt.control.calibration import Calibrated
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
    without_cg = getattr(solver, "max_steps", None) == 0
    if without_cg and isinstance(choices.get("damping"), Calibrated):
        raise ValueError(
            f"{where}: calibrated_damping looks for the λ of a linear system, and with max_steps=0 there is none; give "
            "hfopt.scheduled_damping or hfopt.constant_damping, whose 1/λ is then a learning rate."
        )
    if without_cg and metric is not None and not getattr(metric, "invertible", False):
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
    check_replicas(where)
    check_problem(where, params, value_fn)
    check_start(params)
    return value_fn


def check_problem(where: str, params: Any, value_fn: Any) -> None:
    """Raise TypeError or ValueError where ``value_fn`` is no `ValueFn`, or cannot take ``params``."""
    check_value_fn(value_fn)
    check_params(params)
    if not jax.tree.leaves(params):
        raise ValueError(f"{where}: `params` has no arrays, so there is nothing to train.")
    check_structure(where, params, value_fn)


def check_start(params: Any) -> None:
    """Raise TypeError or ValueError for parameters that cannot be trained."""
    check_params(params)
    if isinstance(params, Mapping) and {"params", "batch_stats"} <= set(params):
        raise ValueError(
            "The variables of a Flax model were given for its parameters: params['batch_stats'] are running "
            "statistics, which no gradient may move. Give variables['params'] alone, and let "
            "hfopt.flax.linen.TrainState carry the statistics, or let `predict` put them in: "
            "model.apply({'params': params, 'batch_stats': statistics}, x)."
        )


def check_update(where: str, kind: Any, state: Any, params: Any, value: Any = None, **gradients: Any) -> None:
    """Raise TypeError or ValueError for a state, a value or gradients that do not belong to ``params``.

    Args:
      where: the transformation.
      kind: of the state it makes.
      state: what its update was given.
      params: the parameters.
      value: f there; ``None``: not given.
      gradients: by the name of the argument; ``None``: not given.
    """
    if not isinstance(state, kind):
        fields = set(getattr(kind, "_fields", ()))
        advice = "A state goes with the optimizer that made it: begin with tx.init(params)."
        if isinstance(state, Mapping) and fields <= set(state):
            advice = (
                "It has the fields of one, as a checkpoint restored without a target: restore it into such a state."
            )
        got = type(state).__name__
        raise TypeError(f"{where}: `state` must be the {kind.__name__} that init(params) makes, got {got}. {advice}")
    if jax.tree.leaves(state.solution):
        _check_like(where, "state", state.solution, params, "Begin with tx.init(params) of these parameters")
    if value is not None and jnp.ndim(value) != 0:
        raise ValueError(
            f"{where}: `value` must be a scalar, f at `params`, got shape {jnp.shape(value)}. It comes from "
            "value, grad = jax.value_and_grad(value_fn)(params)."
        )
    for name, gradient in gradients.items():
        if gradient is not None or name == "updates":
            _check_like(where, f"the gradient ({name})", gradient, params, "It comes from jax.grad(value_fn)(params)")


def _check_like(where: str, name: str, tree: Any, params: Any, advice: str) -> None:
    """Raise ValueError, by the name of a leaf, where ``tree`` does not have the structure and shapes of ``params``."""
    given, expected = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(t)}
        for t in (tree, params)
    )
    for path, shape in expected.items():
        if path not in given:
            raise ValueError(f"{where}: {name} has no entry for params{path}, of shape {shape}. {advice}.")
        if given[path] != shape:
            raise ValueError(f"{where}: {name} at {path} has shape {given[path]}, params{path} has {shape}. {advice}.")
    if extra := [path for path in given if path not in expected]:
        raise ValueError(f"{where}: {name} has an entry {extra[0]} that the parameters do not have. {advice}.")
    got, wanted = str(jax.tree.structure(tree)), str(jax.tree.structure(params))
    if got != wanted:
        raise ValueError(f"{where}: {name} must have the structure of the parameters, {wanted}, got {got}. {advice}.")


def check_replicas(where: str) -> None:
    """Raise ValueError inside ``jax.shard_map`` and ``jax.pmap``, where every device has a part of the batch alone.

    A mean of the devices' gradients does not make one step of it: curvature, trial losses and the rules that learn from
    them would be those of each part, and the replicas of the parameters would drift apart.
    """
    if axes := jax.sharding.get_abstract_mesh().manual_axes:
        raise ValueError(
            f"{where}: inside shard_map or pmap over {', '.join(map(repr, axes))}, write jax.jit(step)(params, state, "
            "hfopt.sharding.shard_batch(batch, mesh)) instead, with the step for the whole batch, as for one device: "
            "they share the work. Here every device would make a step of its own, from its part of the batch. For a "
            "model of its own on every device, map the step by jax.vmap and shard the axis of models."
        )


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
