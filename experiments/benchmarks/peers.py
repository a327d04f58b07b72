"""Products of other packages, for comparison in one run: the optional extra `peers`."""

from collections.abc import Callable
from typing import Any

import jax

import hfopt
from experiments.settings.errors import ExperimentError


def _somax(value_fn: hfopt.ValueFn, params: Any) -> Callable[[Any], Any]:
    """The Gauss-Newton product of python-somax, for softmax cross-entropy."""
    try:
        from somax.curvature.ggn_ce import GGNCE
    except ImportError:
        raise ExperimentError(
            "--peer somax needs python-somax: pip install 'hfopt[peers]', or python-somax into this environment"
        ) from None
    inputs, targets, _ = value_fn.batch
    curvature = GGNCE(predict_fn=value_fn.objective.predict)
    with jax.default_matmul_precision(value_fn.objective.precision):
        state, _ = curvature.init(params, {"x": inputs, "y": targets})
        return lambda v: curvature.matvec(params, state, v)


PEERS = {"somax": _somax}
