"""The optimizers behind one interface: an Optax transformation that the one train step drives, and what it tells.

All take `value`, `grad` and `value_fn` as extra arguments; the first-order ones ignore them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import hfopt
from experiments.settings import optimizers as config
from experiments.training import peers

Report = dict[str, Any]


def _value_and_grad(value_fn: Callable[[Any], jax.Array], params: Any, state: Any) -> Any:
    return jax.value_and_grad(value_fn)(params)


@dataclass(frozen=True)
class Optimizer:
    """A transformation, and how to read what its last step did.

    report: optimizer state -> scalar arrays by name; called inside jit. `products` and `line_search_gradients` among
      them are added up.
    readable: the same scalars fetched from the device -> what is recorded (codes become words).
    value_and_grad: (value_fn, parameters, state) -> value and gradient there, for the next step.
    queued_steps: how many steps one program may make before the reports of any are looked at.
    """

    transformation: optax.GradientTransformationExtraArgs
    report: Callable[[Any], dict[str, jax.Array]]
    readable: Callable[[Report], Report] = lambda report: report
    value_and_grad: Callable[..., Any] = _value_and_grad
    queued_steps: int = 1


# An interruption waits for the steps that are queued.
_QUEUED_STEPS = 50  # of first-order methods
_QUEUED_SEARCHES = 10  # of L-BFGS


def build_optimizer(settings: config.Training, total_steps: int, steps_per_epoch: int) -> Optimizer:
    """The optimizer that a section of `optimizers:` describes, its schedules in steps."""
    match settings:
        case config.HessianFree():
            return _hessian_free(settings, total_steps, steps_per_epoch)
        case config.FirstOrder():
            return _first_order(settings, total_steps)
        case config.LBFGS():
            return _lbfgs(settings)
        case config.Somax():
            transformation = peers.somax(settings)
            return Optimizer(transformation, report=lambda state: {"products": state.products})
    raise TypeError(f"no optimizer is described by {type(settings).__name__}")


def _first_order(settings: config.FirstOrder, total_steps: int) -> Optimizer:
    transformation = optax.chain(_at_unit_rate(settings), _scale_by_rate(settings, total_steps))
    return Optimizer(optax.with_extra_args_support(transformation), report=lambda state: {}, queued_steps=_QUEUED_STEPS)


def _at_unit_rate(settings: config.FirstOrder) -> optax.GradientTransformation:
    """The method with a learning rate of one, to which its steps are proportional."""
    match settings:
        case config.AdamW():  # before Adam, which it is one of
            moments = {"b1": settings.b1, "b2": settings.b2, "eps": settings.eps}
            return optax.adamw(1.0, weight_decay=settings.weight_decay, **moments)
        case config.Adam():
            return optax.adam(1.0, b1=settings.b1, b2=settings.b2, eps=settings.eps)
        case config.Muon():
            own = settings.adam_learning_rate
            return optax.contrib.muon(
                1.0,
                beta=settings.beta,
                weight_decay=settings.weight_decay,
                adam_learning_rate=None if own is None else own / settings.learning_rate,
                muon_weight_dimension_numbers=_matrices,
            )
        case config.SGD():
            momentum = settings.momentum or None  # None spares the buffer that 0.0 would keep
            return optax.sgd(1.0, momentum=momentum, nesterov=settings.nesterov)
    raise TypeError(f"no first-order method is described by {type(settings).__name__}")


class _RateState(NamedTuple):
    step: jax.Array  # int32
    peak: jax.Array  # the learning rate at the start
    steps: jax.Array  # of the whole schedule


def _scale_by_rate(settings: config.FirstOrder, total_steps: int) -> optax.GradientTransformation:
    """Updates times the learning rate of the step, constant or falling to zero along a cosine.

    Unlike `optax.scale_by_schedule`, rate and length are data, not constants of the program: all that a tuning tries
    shares one compiled step.
    """

    def init(params: Any) -> _RateState:
        return _RateState(jnp.zeros((), jnp.int32), jnp.array(settings.learning_rate), jnp.array(float(total_steps)))

    def update(updates: Any, state: _RateState, params: Any = None) -> tuple[Any, _RateState]:
        rate = state.peak
        if settings.schedule == "cosine":
            rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(state.step / state.steps, 1.0)))
        return optax.tree.scale(rate, updates), state._replace(step=optax.safe_increment(state.step))

    return optax.GradientTransformation(init, update)


def _matrices(params: Any) -> Any:
    """Which parameters are matrices, and which of their axes are rows and columns."""

    def axes(leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if leaf.ndim < 2:
            return None
        *rows, column = range(leaf.ndim)
        return optax.contrib.MuonDimensionNumbers(tuple(rows), column)

    return jax.tree.map(axes, params)


class _LBFGSState(NamedTuple):
    inner: Any  # Optax's
    line_search_gradients: jax.Array  # of the last step, besides the one that every step is charged for


def _lbfgs(settings: config.LBFGS) -> Optimizer:
    """L-BFGS that takes value and gradient where its line search left them, unless the batch is another one by now.

    A line search that ends above its start, as it does once rounding hides every decrease, leaves the parameters alone
    and clears the memory; Optax takes the step it ended with, whatever it is.
    """
    search = optax.scale_by_zoom_linesearch(settings.line_search_steps, initial_guess_strategy="one")
    lbfgs = optax.lbfgs(memory_size=settings.memory_size, linesearch=search)
    reused = settings.batches.gradient == "full"

    def init(params: Any) -> _LBFGSState:
        return _LBFGSState(lbfgs.init(params), jnp.zeros((), jnp.int32))

    def update(grads: Any, state: _LBFGSState, params: Any, **extra: Any) -> tuple[Any, _LBFGSState]:
        updates, after = lbfgs.update(grads, state.inner, params, **extra)
        descends = optax.tree.get(after, "value") <= extra["value"]
        gradients = optax.tree.get(after, "info").num_linesearch_steps
        if reused:  # the start was among the points of the last search, if there was one
            gradients = gradients - jnp.isfinite(optax.tree.get(state.inner, "value"))
        after = optax.tree.where(descends, after, lbfgs.init(params))
        updates = optax.tree.where(descends, updates, optax.tree.zeros_like(updates))
        return updates, _LBFGSState(after, jnp.asarray(gradients, jnp.int32))

    def value_and_grad(value_fn: Any, params: Any, state: _LBFGSState) -> Any:
        return optax.value_and_grad_from_state(value_fn)(params, state=state.inner)

    return Optimizer(
        optax.GradientTransformationExtraArgs(init, update),
        report=lambda state: {"line_search_gradients": state.line_search_gradients},
        value_and_grad=value_and_grad if reused else _value_and_grad,
        queued_steps=_QUEUED_SEARCHES,
    )


_DAMPINGS = {
    "trust": hfopt.trust_damping,
    "levenberg_marquardt": hfopt.levenberg_marquardt,
    "constant": hfopt.constant_damping,
}
_PRECONDITIONERS = {
    "jacobi": hfopt.jacobi(decay=0.6, every=4),
    "squared_gradients": hfopt.squared_gradients(),
    "none": None,
}
_METRICS = {"kronecker": hfopt.kronecker(), "second_moment": hfopt.second_moment()}
_LINE_SEARCHES = {"full_step": hfopt.full_step, "armijo": hfopt.armijo, "fixed_step": hfopt.fixed_step}


def _hessian_free(settings: config.HessianFree, total_steps: int, steps_per_epoch: int) -> Optimizer:
    # The configuration lets only those options pass that the preset takes, under the names it has for them.
    options = _given(cg_steps=settings.max_cg_steps, damping=settings.initial_damping, radius=settings.trust_radius)
    match settings.preset:
        case None:
            transformation = _composed(settings)
        case "kiros2013":
            transformation = hfopt.presets.kiros2013(steps_per_epoch)
        case "soap":
            transformation = hfopt.presets.soap(total_steps)
        case "stochastic":
            transformation = hfopt.presets.stochastic(total_steps, **options)
        case name:
            transformation = getattr(hfopt.presets, name)(**options)
    return Optimizer(
        transformation,
        report=lambda state: state.info._asdict(),
        readable=lambda report: report | {"cg_stop": hfopt.Stop(report["cg_stop"]).name.lower()},
        # Without CG a step costs what a first-order one costs.
        queued_steps=_QUEUED_STEPS if settings.preset == "soap" or settings.max_cg_steps == 0 else 1,
    )


def _composed(settings: config.HessianFree) -> optax.GradientTransformationExtraArgs:
    return hfopt.hessian_free(
        damping=_DAMPINGS[settings.damping](**_given(initial=settings.initial_damping)),
        line_search=_LINE_SEARCHES[settings.line_search](),
        **_solver(settings),
        **_preconditioner(settings),
        **_trust_region(settings),
        **_metric(settings),
        **({"warm_start": None} if settings.warm_start == 0 else _given(warm_start=settings.warm_start)),
    )


def _solver(settings: config.HessianFree) -> dict[str, Any]:
    stop = None if settings.cg_tolerance is None else hfopt.relative_residual(settings.cg_tolerance)
    chosen = _given(max_steps=settings.max_cg_steps, stop=stop)
    return {"solver": hfopt.cg(**chosen)} if chosen else {}


def _preconditioner(settings: config.HessianFree) -> dict[str, Any]:
    name = settings.preconditioner
    return {} if name is None else {"preconditioner": _PRECONDITIONERS[name]}


def _metric(settings: config.HessianFree) -> dict[str, Any]:
    momentum = {"momentum": settings.momentum} if settings.momentum else {}
    return momentum if settings.metric is None else {"metric": _METRICS[settings.metric], **momentum}


def _trust_region(settings: config.HessianFree) -> dict[str, Any]:
    radius = _given(radius=settings.trust_radius)
    match settings.trust_region:
        case "none":
            return {"trust_region": None}
        case "constant":
            return {"trust_region": hfopt.scheduled_trust(**({"radius": 0.01} | radius))}
        case _:
            return {"trust_region": hfopt.earned_trust(**radius)}


def _given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None: the others stay with hfopt's defaults."""
    return {name: value for name, value in arguments.items() if value is not None}
