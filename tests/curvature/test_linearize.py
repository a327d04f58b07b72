"""J v and Jᵀ u of models whose backward pass is their own, against models without one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.ode import odeint

import hfopt
from hfopt.curvature.linearize import linearize
from tests.cases import slowly


def _x() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (5, 3))


def _w() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (3, 3)) / 2


@jax.custom_vjp
def _clipped(z):
    """The identity, whose gradients are clipped one by one: no linear function."""
    return z


_clipped.defvjp(lambda z: (z, None), lambda _, g: (jnp.clip(g, -1.0, 1.0),))


@jax.custom_vjp
def _bounded(z):
    """The identity, whose gradient is bounded in its norm."""
    return z


_bounded.defvjp(lambda z: (z, None), lambda _, g: (g / jnp.maximum(1.0, jnp.sqrt(1e-30 + jnp.square(g).sum())),))


@jax.custom_vjp
def _cube(z):
    return z**3


@jax.custom_vjp
def _outer(z):
    """sin z, whose backward pass calls a function that has a backward pass of its own."""
    return jnp.sin(z)


@jax.custom_vjp
def _twice(g):
    return 2 * g


_twice.defvjp(lambda g: (2 * g, None), lambda _, u: (jnp.clip(u, -99.0, 99.0) * 2,))
_cube.defvjp(lambda z: (z**3, z), lambda z, g: (3 * z**2 * g,))
_outer.defvjp(lambda z: (jnp.sin(z), z), lambda z, g: (jnp.clip(_twice(g), -9.0, 9.0) / 2 * jnp.cos(z),))


def _flow(w, x):
    """x(1) for ẋ = w x; its backward pass solves an equation."""
    return jax.vmap(lambda row: odeint(lambda h, t, w: w @ h, row, jnp.array([0.0, 1.0]), w)[-1])(x)


MODELS = {
    "linear program": (lambda w, x: _cube(x @ w), lambda w, x: (x @ w) ** 3, 1e-12),
    "clipping": (lambda w, x: _clipped(jnp.tanh(x @ w)), lambda w, x: jnp.tanh(x @ w), 1e-12),
    "bound on the norm": (lambda w, x: _bounded(jnp.tanh(x @ w)), lambda w, x: jnp.tanh(x @ w), 1e-12),
    "nested rules": (lambda w, x: _outer(x @ w), lambda w, x: jnp.sin(x @ w), 1e-12),
    "differential equation": (_flow, lambda w, x: x @ jax.scipy.linalg.expm(w).T, 1e-5),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_jacobian_is_that_of_the_function(name):
    model, plain, tolerance = MODELS[name]
    v = jax.random.normal(jax.random.key(2), (3, 3))
    given = jax.jit(lambda w, v: linearize(lambda w: model(w, _x()), w).jvp(v))(_w(), v)
    expected = jax.jvp(lambda w: plain(w, _x()), (_w(),), (v,))[1]
    np.testing.assert_allclose(given, expected, atol=tolerance * float(jnp.abs(expected).max()), rtol=0)


@pytest.mark.float32
@pytest.mark.parametrize("name", ["clipping", slowly("differential equation")])
def test_a_step_trains_such_a_model(name):
    model, plain, _ = MODELS[name]
    x, tx = _x(), hfopt.hessian_free()
    value_fn = hfopt.Objective(model, optax.losses.squared_error).bind((x, plain(_w() + 0.1, x)))

    @jax.jit
    def step(w, state):
        value, grad = jax.value_and_grad(value_fn)(w)
        updates, state = tx.update(grad, state, w, value=value, value_fn=value_fn)
        return optax.apply_updates(w, updates), state

    w, state = _w(), tx.init(_w())
    for _ in range(5):
        w, state = step(w, state)
    assert value_fn(w) < 0.1 * value_fn(_w())


@jax.custom_vjp
def _by_a_loop(z):
    return jnp.sin(z)


@jax.custom_vjp
def _by_a_callback(z):
    return jnp.sin(z)


def _loop(z, g):
    return (jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.cbrt(s[1] ** 3)), (0, g * jnp.cos(z)))[1],)


def _callback(z, g):
    return (jax.pure_callback(lambda z, g: np.cos(z) * g, jax.ShapeDtypeStruct(z.shape, z.dtype), z, g),)


_by_a_loop.defvjp(lambda z: (jnp.sin(z), z), _loop)
_by_a_callback.defvjp(lambda z: (jnp.sin(z), z), _callback)


@pytest.mark.parametrize("function", [_by_a_loop, _by_a_callback])
def test_a_backward_pass_that_cannot_be_turned_round_is_refused(function):
    value_fn = hfopt.Objective(lambda w, x: function(x @ w), optax.losses.squared_error).bind((_x(), _x()))
    assert jnp.isfinite(jax.grad(value_fn)(_w())).all()
    with pytest.raises(TypeError, match=r"Curvature needs J v.*custom_vjp whose backward pass.*jax\.custom_jvp"):
        hfopt.gauss_newton(value_fn, _w())
