"""The optimizers behind one interface: an Optax transformation that the one train step drives, and what it tells.

All take `value`, `grad` and `value_fn` as extra arguments; the first-order ones ignore them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

import hfopt
from experiments import config

Report = dict[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """A transformation, and how to read what its last step did.

    report: optimizer state -> scalar arrays by name; called inside jit. `products` among them is added up.
    readable: the same scalars fetched from the device -> what is recorded (codes become words).
    """

    transformation: optax.GradientTransformationExtraArgs
    report: Callable[[Any], dict[str, jax.Array]]
    readable: Callable[[Report], Report]


def build_optimizer(settings: config.Training, total_steps: int, steps_per_epoch: int) -> Optimizer:
    """The optimizer that a section of `optimizers:` describes, its schedules in steps."""
    match settings:
        case config.HessianFree():
            return _hessian_free(settings, total_steps, steps_per_epoch)
        case config.Adam():
            rate = _learning_rate(settings, total_steps)
            return _first_order(optax.adam(rate, b1=settings.b1, b2=settings.b2, eps=settings.eps))
        case config.SGD():
            rate = _learning_rate(settings, total_steps)
            momentum = settings.momentum or None  # None spares the buffer that 0.0 would keep
            return _first_order(optax.sgd(rate, momentum=momentum, nesterov=settings.nesterov))
    raise TypeError(f"no optimizer is described by {type(settings).__name__}")


def _first_order(transformation: optax.GradientTransformation) -> Optimizer:
    return Optimizer(
        optax.with_extra_args_support(transformation), report=lambda state: {}, readable=lambda report: report
    )


def _learning_rate(settings: config.FirstOrder, total_steps: int) -> optax.ScalarOrSchedule:
    if settings.schedule == "cosine":
        return optax.cosine_decay_schedule(settings.learning_rate, total_steps)
    return settings.learning_rate


_DAMPINGS = {
    "trust": hfopt.trust_damping,
    "levenberg_marquardt": hfopt.levenberg_marquardt,
    "constant": hfopt.constant_damping,
}
_LINE_SEARCHES = {"full_step": hfopt.full_step, "armijo": hfopt.armijo, "fixed_step": hfopt.fixed_step}


def _hessian_free(settings: config.HessianFree, total_steps: int, steps_per_epoch: int) -> Optimizer:
    # The configuration lets only those options pass that the preset takes, under the names it has for them.
    options = _given(cg_steps=settings.max_cg_steps, damping=settings.initial_damping, radius=settings.trust_radius)
    match settings.preset:
        case None:
            transformation = _composed(settings)
        case "kiros2013":
            transformation = hfopt.presets.kiros2013(steps_per_epoch)
        case "stochastic":
            transformation = hfopt.presets.stochastic(total_steps, **options)
        case name:
            transformation = getattr(hfopt.presets, name)(**options)
    return Optimizer(
        transformation,
        report=lambda state: state.info._asdict(),
        readable=lambda report: report | {"cg_stop": hfopt.Stop(report["cg_stop"]).name.lower()},
    )


def _composed(settings: config.HessianFree) -> optax.GradientTransformationExtraArgs:
    return hfopt.hessian_free(
        damping=_DAMPINGS[settings.damping](**_given(initial=settings.initial_damping)),
        line_search=_LINE_SEARCHES[settings.line_search](),
        **_solver(settings),
        **_trust_region(settings),
        **({"warm_start": None} if settings.warm_start == 0 else _given(warm_start=settings.warm_start)),
    )


def _solver(settings: config.HessianFree) -> dict[str, Any]:
    stop = None if settings.cg_tolerance is None else hfopt.relative_residual(settings.cg_tolerance)
    chosen = _given(max_steps=settings.max_cg_steps, stop=stop)
    return {"solver": hfopt.cg(**chosen)} if chosen else {}


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
