"""`presets.simplenn` takes the same decisions as an independent NumPy transcription of the published method."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import hfopt
from tests.conformance import models_numpy, simplenn_numpy

ITERATIONS = 5
LOSSES = {
    "squared": lambda z, y: jnp.square(z - y).sum(axis=-1),
    "softmax": optax.softmax_cross_entropy,
}


def cnn(params, images):
    """The network of `models_numpy.cnn`, in JAX."""
    k1, b1, k2, b2, w, b = params
    convolve = partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    bias = lambda b: b.reshape(1, 1, 1, -1)  # noqa: E731
    x = nn.max_pool(nn.relu(convolve(images, k1) + bias(b1)), (2, 2), (2, 2))
    x = nn.relu(convolve(x, k2) + bias(b2))
    return x.reshape(len(x), -1) @ w + b[None]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("subset_size", [None, 8])
def test_five_iterations_agree(loss, subset_size):
    model, theta, x, y = models_numpy.cnn_problem(seed=0)
    rng = np.random.default_rng(9)
    subsets = [
        np.arange(len(x)) if subset_size is None else rng.choice(len(x), subset_size, replace=False) for _ in range(5)
    ]
    records = simplenn_numpy.run(
        model.forward, model.jacobian, theta, x, y, models_numpy.LOSSES[loss], 1.0, ITERATIONS, subsets
    )
    # The decisions compared below are decided with room: rounding does not take them.
    assert min(map(simplenn_numpy.margin, records)) > 1e-3

    objective = hfopt.Objective(cnn, LOSSES[loss], l2=1 / len(x))
    tx = hfopt.presets.simplenn()

    @jax.jit
    def step(params, state, curvature_batch):
        value_fn = objective.bind((x, y), curvature_batch=curvature_batch)
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    params = [jnp.asarray(p) for p in models_numpy.unpack(theta, model.shapes)]
    state = tx.init(params)
    for record, subset in zip(records, subsets, strict=True):
        params, state = step(params, state, (x[subset], y[subset]))
        info = state.info
        assert info.cg_steps == record.cg_steps
        assert info.step_size == record.step_size
        assert info.damping == pytest.approx(record.damping, rel=1e-14)
        assert state.next_damping == pytest.approx(record.damping_after, rel=1e-14)
        assert info.loss == pytest.approx(record.f, rel=1e-8)
        assert info.new_loss == pytest.approx(record.new_f, rel=1e-8)
        assert info.reduction_ratio == pytest.approx(record.ratio, rel=1e-6)
        assert info.products == info.cg_steps  # no product beyond those of the iterations
