"""The transformations the contract is kept for: a preset is one more row."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import optax

import hfopt
from tests.loops import CLASSICAL


def _chained(curvature: Any = hfopt.gauss_newton, damping: Any = 0.01) -> optax.GradientTransformationExtraArgs:
    return optax.chain(hfopt.scale_by_gauss_newton(curvature=curvature, damping=damping), optax.scale(-0.5))


class Optimizer(NamedTuple):
    """How it is made, and what ``optax.inject_hyperparams`` can schedule of it."""

    make: Callable[..., optax.GradientTransformationExtraArgs]
    injected: str | None = None  # a number among the arguments of `make`
    values: tuple[float, float] = (0.9, 0.1)  # it goes from one to the other
    static: tuple[str, ...] = ()


OPTIMIZERS = {
    "hessian_free": Optimizer(hfopt.hessian_free, "warm_start", static=("curvature",)),
    "scale_by_gauss_newton": Optimizer(_chained, "damping", static=("curvature",)),
    "Levenberg-Marquardt": Optimizer(CLASSICAL, "warm_start", static=("curvature",)),
    "masked": Optimizer(lambda: hfopt.masked(hfopt.hessian_free(), True)),
    "simplenn": Optimizer(hfopt.presets.simplenn),
    "martens2010": Optimizer(hfopt.presets.martens2010),
    "kiros2013": Optimizer(
        partial(hfopt.presets.kiros2013, steps_per_epoch=2), "learning_rate", static=("steps_per_epoch",)
    ),
    "soap": Optimizer(
        partial(hfopt.presets.soap, total_steps=20), "learning_rate", (0.01, 0.001), static=("total_steps",)
    ),
    "stochastic": Optimizer(
        partial(hfopt.presets.stochastic, total_steps=20), "damping", static=("total_steps", "cg_steps")
    ),
}
