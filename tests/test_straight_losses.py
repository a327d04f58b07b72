"""Losses that are straight lines with kinks: B = 0, and steps go by the B of a smoothed loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.curvature.straight import smoothed
from tests.cases import CASES, Case, check_against_dense, dense_gauss_newton, relative_error
from tests.loops import run, train_step


def absolute(z, t):
    return jnp.abs(z - t)


def quantile(z, t):
    return jnp.maximum(0.9 * (t - z), -0.1 * (t - z))


def hinge(z, t):
    return optax.losses.hinge_loss(z, jnp.sign(t))


STRAIGHT = {"absolute": absolute, "quantile": quantile, "hinge": hinge}


def _problem(loss) -> Case:
    x, keys = jax.random.normal(jax.random.key(1), (24, 4)), jax.random.split(jax.random.key(0))
    params = {"a": jax.random.normal(keys[0], (4, 8)) / 2, "b": jax.random.normal(keys[1], (8,)) / 3}
    t = jnp.sin(2 * x[:, 0]) + x[:, 1]
    return Case(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], loss, params, (x, t))


def _trained(tx, case: Case, steps: int) -> float:
    step = jax.jit(partial(train_step, optax.with_extra_args_support(tx), case.objective))
    params, state = case.params, tx.init(case.params)
    for _ in range(steps):
        params, state, _ = step(params, state, case.batch)
    return float(case.objective.bind(case.batch)(params))


@pytest.mark.float32
@pytest.mark.parametrize("loss", STRAIGHT.values(), ids=STRAIGHT)
def test_training_ends_no_worse_than_the_best_gradient_descent(loss):
    case = _problem(loss)
    descent = min(_trained(optax.sgd(rate), case, 200) for rate in (0.03, 0.1, 0.3))
    assert _trained(hfopt.hessian_free(), case, 200) <= descent


def _next_power(distance):
    """The least power of two that is no less."""
    return 2.0 ** np.ceil(np.log2(np.asarray(distance)))


# What the slope jumps by at the kink, and how far that is.
KINKS = {
    "absolute": lambda z, t: (2, abs(z - t)),
    "quantile": lambda z, t: (1, abs(z - t)),
    "hinge": lambda z, t: (1, abs(1 - z * np.sign(t))),
}


def _weighted(case: Case, weights) -> jax.Array:
    """Σ c_i w_i J_iᵀ J_i, from the Jacobian written out."""
    flat, unravel = ravel_pytree(case.params)
    jacobian = jax.jacrev(lambda t: case.predict(unravel(t), case.batch[0]))(flat)
    return jnp.einsum("i,ip,iq->pq", jnp.asarray(weights) / len(weights), jacobian, jacobian)


@pytest.mark.parametrize("name", STRAIGHT)
def test_the_matrix_of_a_step_has_the_weights_of_reweighted_least_squares(name):
    """Jump of the slope over twice the distance, rounded up to a power of two: half to all of the exact weight."""
    case = _problem(STRAIGHT[name])
    case = case._replace(batch=tuple(b[:7] for b in case.batch))
    assert float(jnp.abs(dense_gauss_newton(case)).max()) == 0
    jump, distance = KINKS[name](case.predict(case.params, case.batch[0]), case.batch[1])
    check_against_dense(smoothed, case, _weighted(case, jump / (2 * _next_power(distance))))


def test_a_loss_that_sees_no_common_shift_is_smoothed_too():
    """The multiclass hinge: the largest rival's margin."""
    rival = lambda z, y: jnp.where(jax.nn.one_hot(y, 2, dtype=bool), -jnp.inf, z + 1).max(-1)  # noqa: E731
    own = lambda z, y: jnp.take_along_axis(z, y[:, None], axis=-1)[:, 0]  # noqa: E731
    loss = lambda z, y: jnp.maximum(0, rival(z, y) - own(z, y))  # noqa: E731
    x = jax.random.normal(jax.random.key(1), (9, 3))
    y = (x[:, 0] > 0).astype(jnp.int32)
    case = Case(lambda p, x: x @ p, loss, jnp.zeros((3, 2)), (x, y))
    A = smoothed(case.objective.bind(case.batch), case.params).to_dense()
    values = np.linalg.eigvalsh(A)
    assert values[0] > -1e-12
    assert values[-1] > 0.1
    assert _trained(hfopt.hessian_free(), case, 20) < 0.3 * case.objective.bind(case.batch)(case.params)


def test_only_the_straight_one_of_two_heads_is_smoothed():
    x, t = _problem(absolute).batch
    x, t = x[:7], t[:7]
    params = {"w": jax.random.normal(jax.random.key(3), (4, 2))}
    heads = lambda p, x: {"bent": (x @ p["w"])[:, 0], "straight": jnp.tanh(x @ p["w"])[:, 1]}  # noqa: E731
    bent = Case(lambda p, x: heads(p, x)["bent"], lambda z, t: jnp.cosh(z - t), params, (x, t))
    straight = Case(lambda p, x: heads(p, x)["straight"], absolute, params, (x, t))
    both = Case(heads, lambda o, t: jnp.cosh(o["bent"] - t) + absolute(o["straight"], t), params, (x, t))
    weights = 1 / _next_power(abs(straight.predict(params, x) - t))
    check_against_dense(smoothed, both, dense_gauss_newton(bent) + _weighted(straight, weights))


@pytest.mark.parametrize("name", ["mlp-softmax-integer", "mlp-huber"])
def test_for_every_other_loss_it_is_the_gauss_newton_matrix_operation_by_operation(name):
    case = CASES[name]()
    f = case.objective.bind(case.batch)
    programs = [
        str(jax.make_jaxpr(lambda v, A=A: A(f, case.params) @ v)(case.params)) for A in (smoothed, hfopt.gauss_newton)
    ]
    assert programs[0] == programs[1]
    if name == "mlp-huber":  # all its residuals in the straight part: B is 0 there, and not by construction
        far = case._replace(batch=(case.batch[0], case.batch[1] + 100))
        A = smoothed(far.objective.bind(far.batch), case.params)
        assert relative_error(A.to_dense(), dense_gauss_newton(far)) < 1e-12


def test_a_loss_without_kinks_within_reach_has_no_weights():
    case = Case(lambda p, x: x @ p, lambda z, t: z, jnp.ones(4), (_problem(absolute).batch[0], jnp.zeros(24)))
    assert float(jnp.abs(smoothed(case.objective.bind(case.batch), case.params).to_dense()).max()) == 0


def test_a_direction_goes_by_the_smoothed_loss_too():
    case = _problem(absolute)
    tx = optax.chain(hfopt.scale_by_gauss_newton(damping=0.1), optax.scale_by_learning_rate(0.5))
    _, _, history = run(tx, case, 30)
    assert history[-1][0] < 0.2 * history[0][0]
