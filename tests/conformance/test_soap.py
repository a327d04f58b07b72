"""Without CG a step in the metric of the gradients is that of an independent NumPy transcription of SOAP."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from tests.conformance import soap_numpy
from tests.loops import train_step

STEPS, RATE, BETA1, BETA2, EVERY = 50, 0.02, 0.7, 0.95, 7
# As published only square, with more examples than that: what the factors do not determine, QR makes of rounding there.
SHAPES = {"paper": (4, 4, 4), "ours": (6, 4, 2)}


def _predict(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


@pytest.mark.parametrize("which", SHAPES)
def test_fifty_steps_agree(which):
    ours, (inputs, hidden, outputs) = which == "ours", SHAPES[which]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, inputs)), rng.normal(size=(40, outputs))
    objective = hfopt.Objective(_predict, optax.squared_error)
    params = {
        "in": jnp.asarray(rng.normal(size=(inputs, hidden))),
        "out": jnp.asarray(rng.normal(size=(hidden, outputs))),
    }
    tx = hfopt.hessian_free(
        solver=hfopt.cg(max_steps=0),
        preconditioner=None,
        damping=hfopt.constant_damping(1 / RATE),
        metric=hfopt.kronecker(decay=BETA2, every=EVERY, carry=ours),
        trust_region=None,
        line_search=hfopt.fixed_step(),
        momentum=BETA1,
        warm_start=None,
    )
    state, update = tx.init(params), jax.jit(lambda *arguments: train_step(tx, objective, *arguments))
    theirs = jax.tree.map(np.asarray, params)
    soap = {name: soap_numpy.start(*value.shape) for name, value in theirs.items()}
    for number in range(STEPS):
        rows = rng.permutation(40)[:10]
        batch = (jnp.asarray(x[rows]), jnp.asarray(y[rows]))
        gradients = jax.grad(objective.bind(batch))(jax.tree.map(jnp.asarray, theirs))
        for name in soap:
            direction, soap[name] = soap_numpy.step(soap[name], np.asarray(gradients[name]), BETA1, BETA2, EVERY, ours)
            theirs[name] = theirs[name] - RATE * direction
        params, state, _ = update(params, state, batch)
        for name in soap:
            np.testing.assert_allclose(params[name], theirs[name], rtol=1e-6, atol=1e-6, err_msg=f"{name}, {number}")
    assert state.info.cg_steps == state.info.products == 0
    assert hfopt.Stop(int(state.info.cg_stop)) == hfopt.Stop.NONE
