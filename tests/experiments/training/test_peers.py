"""Optimizers of other packages take the step that they promise, on the loss they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from experiments.settings.config_file import load_config
from experiments.settings.errors import ConfigError, ExperimentError
from experiments.settings.optimizers import Somax
from experiments.training import peers
from tests.experiments.conftest import rows

PROBLEM = ("problem.l2=0", "problem.model.hidden=[]")


@pytest.fixture
def linear():
    """Parameters, and softmax cross-entropy of a linear model on a batch; the curvature at any point is dense."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": jax.random.normal(keys[0], (4, 3)), "b": jnp.zeros(3)}
    batch = jax.random.normal(keys[1], (20, 4)), jax.random.randint(keys[2], (20,), 0, 3)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return params, hfopt.Objective(lambda p, x: x @ p["w"] + p["b"], loss), batch


def test_somax_solves_the_damped_system(linear):
    pytest.importorskip("somax")
    params, objective, batch = linear
    value_fn = objective.bind(batch)
    somax = peers.somax(Somax(steps=1, learning_rate=0.5, damping=0.3, max_cg_steps=20))
    grads = jax.grad(value_fn)(params)
    updates, state = somax.update(grads, somax.init(params), params, value_fn=value_fn)

    flat, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda v: value_fn(unravel(v)))(flat)  # a linear model's is the Gauss-Newton matrix
    step = -0.5 * np.linalg.solve(hessian + 0.3 * np.eye(flat.size), ravel_pytree(grads)[0])
    np.testing.assert_allclose(ravel_pytree(updates)[0], step, atol=1e-4)  # its CG stops at a residual of 1e-5
    assert 2 < state.products <= 20 + 2 + 1  # iterations, and residuals


@pytest.mark.parametrize(("steps", "products"), [(4, 5), (10, 11), (20, 23)])
def test_somax_runs_as_an_experiment_and_its_products_are_counted(plan, steps, products):
    """Iterations, the first residual, and with more than ten iterations two that are computed anew."""
    pytest.importorskip("somax")
    somax = f"optimizers.somax={{steps: 3, max_cg_steps: {steps}, batches: {{gradient: 100}}}}"
    recorded = rows(plan("optimizer=somax", somax, *PROBLEM))
    assert recorded[-1]["train_loss"] < recorded[0]["train_loss"]
    assert [row["products"] for row in recorded] == [0, products, 2 * products, 3 * products]


def test_somax_refuses_weights(linear):
    pytest.importorskip("somax")
    params, objective, batch = linear
    value_fn = objective.bind((*batch, jnp.ones(20)))
    somax = peers.somax(Somax(steps=1))
    with pytest.raises(ConfigError, match="no weights of examples"):
        somax.update(params, somax.init(params), params, value_fn=value_fn)


@pytest.mark.parametrize(
    "problem", [("problem.l2=0.1",), ("problem.l2=0", "problem.loss=squared_error")], ids=["penalty", "loss"]
)
def test_somax_refuses_what_it_would_silently_ignore(plan, problem):
    pytest.importorskip("somax")
    with pytest.raises(ConfigError, match="for softmax_cross_entropy without l2"):
        rows(plan("optimizer=somax", "optimizers.somax={steps: 1}", "problem.model.hidden=[]", *problem))


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(peers, "is_installed", lambda peer: False)
    with pytest.raises(ExperimentError, match=r"pip install 'hfopt\[peers\]'"):
        peers.somax(Somax(steps=1))


@pytest.mark.parametrize("setting", ["chunk_size: 10", "gradient: 50, curvature: 10"])
def test_batches_that_somax_makes_no_use_of_are_refused(small_file, setting):
    with pytest.raises(ConfigError, match="has no use in somax"):
        load_config(small_file, [f"optimizers.somax={{steps: 1, batches: {{{setting}}}}}"])
