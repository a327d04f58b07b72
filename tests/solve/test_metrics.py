"""Metrics of damping against dense matrices from other routes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.solve.metrics import Euclidean
from tests.cases import CASES, Case, dense_gauss_newton, dense_value, relative_error, slowly
from tests.loops import NEWTON, run

DAMPING = 0.3


def _flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def _after(metric, gradients, momentum=None):
    """The geometry of a metric that does not look at the objective, after these gradients."""
    state = metric.init(gradients[0], momentum=momentum is not None, curved=False)
    for gradient in gradients:
        geometry = metric.geometry(state, gradient, momentum, None, gradient)
        state = geometry.state
    return geometry


def _one_step(case, metric, **options):
    params, state, _ = run(NEWTON(damping=hfopt.constant_damping(DAMPING), metric=metric, **options), case, 1)
    gradient = _flat(jax.grad(partial(dense_value, case))(case.params))
    return _flat(params) - _flat(case.params), gradient, state


@pytest.mark.slow
def test_the_second_moment_damps_by_the_size_of_the_gradient():
    case = CASES["mlp-softmax-integer"]()
    step, gradient, _ = _one_step(case, hfopt.second_moment(floor=0.01))
    size = np.abs(gradient)  # after one gradient √v̂ = |g|
    metric = np.diag(np.maximum(size / size.mean(), 0.01))
    assert relative_error(step, -np.linalg.solve(dense_gauss_newton(case) + DAMPING * metric, gradient)) < 1e-8


def test_the_second_moment_is_the_running_average_of_adam():
    metric = hfopt.second_moment(decay=0.9, floor=1e-6)
    gradients = [{"a": jnp.array([1.0, -2.0])}, {"a": jnp.array([3.0, 0.5])}, {"a": jnp.array([0.1, 0.2])}]
    geometry = _after(metric, gradients)
    squares = np.stack([gradient["a"] for gradient in gradients]) ** 2
    root = np.sqrt(np.average(squares, axis=0, weights=[0.81, 0.9, 1]))
    np.testing.assert_allclose(geometry.entries["a"], root / root.mean(), rtol=1e-12)


def test_gradients_that_are_not_finite_or_zero_leave_a_sound_metric():
    metric = hfopt.second_moment()
    np.testing.assert_array_equal(_after(metric, [{"a": jnp.zeros(3)}]).entries["a"], 1)
    good, bad = {"a": jnp.array([1.0, 2.0, 3.0])}, {"a": jnp.array([1.0, np.nan, np.inf])}
    seen, poisoned = _after(metric, [good]), _after(metric, [good, bad])
    jax.tree.map(np.testing.assert_array_equal, poisoned.state, seen.state)


def test_momentum_averages_the_gradients_without_the_bias_of_its_start():
    gradients = [{"a": jnp.array([1.0, -2.0])}, {"a": jnp.array([3.0, 0.5])}, {"a": jnp.array([0.1, 0.2])}]
    for metric in (Euclidean(), hfopt.second_moment(), hfopt.kronecker()):
        mean = _after(metric, gradients, momentum=0.9).average
        expected = np.average([g["a"] for g in gradients], axis=0, weights=[0.81, 0.9, 1])
        np.testing.assert_allclose(mean["a"], expected, rtol=1e-6)


def test_a_diagonal_metric_preconditions_cg():
    """CG with M⁻¹ needs no more iterations than M⁻¹(A + λM) has eigenvalues: one where A = M."""
    scales = jnp.array([1.0, 10.0, 100.0, 1000.0])
    batch = jnp.sqrt(4 * scales)[None], jnp.zeros((1, 4))
    case = Case(lambda p, x: x * p["w"][None], optax.l2_loss, {"w": jnp.ones(4)}, batch)
    _, _, state = _one_step(case, hfopt.second_moment(floor=1e-9))  # g = scales, so that M ∝ A
    assert state.info.cg_steps == 1


def _structure(metric, value_fn, params):
    return metric.geometry((), params, None, value_fn, params).product


def _recurrent():
    """An RNN that exposes its hidden states, in plain functions: h_t = tanh(W h + U x_t), z_t = V h_t."""
    key = jax.random.split(jax.random.key(3), 5)
    params = {
        "w": 0.5 * jax.random.normal(key[0], (4, 4)),
        "u": jax.random.normal(key[1], (2, 4)),
        "v": jax.random.normal(key[2], (4, 3)),
    }

    def predict(p, x):
        def cell(h, x):
            h = jnp.tanh(h @ p["w"] + x @ p["u"])
            return h, h

        hidden = jax.vmap(lambda series: jax.lax.scan(cell, jnp.zeros(4), series)[1])(x)
        return {"logits": hidden @ p["v"], "hidden": hidden}

    x, y = jax.random.normal(key[3], (6, 5, 2)), jax.random.randint(key[4], (6, 5), 0, 3)
    loss = lambda z, y: optax.losses.softmax_cross_entropy_with_integer_labels(z["logits"], y)  # noqa: E731
    return params, hfopt.Objective(predict, loss, l2=0.01), (x, y, jnp.arange(1.0, 7.0))


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [slowly(None), 4])
def test_structural_damping_is_the_gauss_newton_matrix_of_the_hidden_states(chunk_size):
    params, objective, batch = _recurrent()
    value_fn = objective.bind(batch, chunk_size=chunk_size)
    metric = hfopt.structural(lambda outputs: outputs["hidden"], weight=0.7)
    product = _structure(metric, value_fn, params)
    flat, unravel = ravel_pytree(params)
    dense = np.stack([_flat(product(unravel(row))) for row in np.eye(flat.size)])
    jacobian = jax.jacrev(lambda t: objective.predict(unravel(t), batch[0])["hidden"])(flat)  # (N, time, units, n)
    weights = np.asarray(batch[2] / batch[2].sum())
    expected = np.eye(flat.size) + 0.7 * np.einsum("i,ituj,ituk->jk", weights, jacobian, jacobian)
    np.testing.assert_allclose(dense, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_the_step_with_structural_damping_solves_the_dense_system():
    params, objective, batch = _recurrent()
    case = Case(objective.predict, objective.loss, params, batch, l2=0.01)
    metric = hfopt.structural(lambda outputs: outputs["hidden"], weight=0.7)
    step, gradient, _ = _one_step(case, metric)
    value_fn = objective.bind(batch)
    product, unravel = _structure(metric, value_fn, params), ravel_pytree(params)[1]
    dense_metric = np.stack([_flat(product(unravel(row))) for row in np.eye(gradient.size)])
    curvature = np.asarray(hfopt.gauss_newton(value_fn, params).to_dense())
    assert relative_error(step, -np.linalg.solve(curvature + DAMPING * dense_metric, gradient)) < 1e-8


def test_the_distance_between_states_may_be_chosen():
    """Huber's loss at distance zero has the curvature of ½‖·‖², averaged over units and time instead of summed."""
    params, objective, batch = _recurrent()
    value_fn, states = objective.bind(batch), lambda outputs: outputs["hidden"]
    v = optax.tree.ones_like(params)
    averaged = _structure(hfopt.structural(states, 20.0, optax.losses.huber_loss), value_fn, params)(v)
    summed = _structure(hfopt.structural(states, 1.0), value_fn, params)(v)  # 5 steps of 4 units
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), averaged, summed)


def test_a_distance_sees_one_chunk_at_a_time():
    params, objective, batch = _recurrent()
    rows = set()

    def predict(p, x):
        rows.add(len(x))
        return objective.predict(p, x)

    value_fn = hfopt.Objective(predict, objective.loss).bind(batch, chunk_size=2, memory="recompute")
    metric = hfopt.structural(lambda outputs: outputs["hidden"], distance=optax.losses.huber_loss)
    _structure(metric, value_fn, params)(optax.tree.ones_like(params))
    assert rows == {2}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: hfopt.second_moment(decay=1.0), ValueError, r"`decay` must lie in \[0, 1\), got 1\.0"),
        (lambda: hfopt.second_moment(floor=0.0), ValueError, "`floor` must be positive"),
        (lambda: hfopt.structural("hidden"), TypeError, "`states` must map outputs to hidden states, got 'hidden'"),
        (lambda: hfopt.structural(lambda z: z, weight=0), ValueError, "`weight` must be positive, got 0"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
