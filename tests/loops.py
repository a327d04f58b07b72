"""The training loop its users write, and the settings of the step that the tests start from."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from tests.cases import Case


def train_step(tx, objective, params, state, batch):
    """The loop body of optax.lbfgs, word for word."""
    value_fn = objective.bind(batch)
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
    return optax.apply_updates(params, updates), state, value


def run(tx, case: Case, steps: int, params=None):
    params = case.params if params is None else params
    state = tx.init(params)
    step = jax.jit(partial(train_step, tx, case.objective))
    history = []
    for _ in range(steps):
        params, state, value = step(params, state, case.batch)
        history.append((value, getattr(state, "info", None)))
    return params, state, history


CLASSICAL = partial(
    hfopt.hessian_free,
    preconditioner=None,
    damping=hfopt.levenberg_marquardt(),
    trust_region=None,
    line_search=hfopt.armijo(),
    warm_start=0.95,
)
STYLES = pytest.mark.parametrize("make", [hfopt.hessian_free, CLASSICAL], ids=["default", "classical"])


def least_squares() -> Case:
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(20, 5))), jnp.asarray(rng.normal(size=20))
    return Case(lambda p, x: x @ p["w"], optax.squared_error, {"w": jnp.zeros(5)}, (x, y), l2=0.3)


# A Newton step proper: no damping to speak of, no trust region, CG to convergence.
NEWTON = partial(
    hfopt.hessian_free,
    solver=hfopt.cg(400, hfopt.relative_residual(1e-13)),
    preconditioner=None,
    damping=hfopt.constant_damping(1e-14),
    trust_region=None,
    line_search=hfopt.armijo(),
)
