"""Saddles are left along directions of negative curvature."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from tests.cases import CASES, Case, dense_hessian
from tests.loops import CLASSICAL, STYLES, run


def _saddle(start):
    """½(w₂w₁ − 1)²: a saddle at 0, where H has the eigenvalues ±1; minima where w₂w₁ = 1."""
    return Case(lambda p, x: (p[0] * p[1])[None], optax.l2_loss, jnp.asarray(start), (jnp.ones(1), jnp.ones(1)))


@STYLES
@pytest.mark.parametrize("start", [[1e-8, 1e-8], [1e-30, 1e-30], [0.0, 0.0]], ids=str)
def test_a_saddle_is_left_with_the_hessian(make, start):
    params, _, history = run(make(curvature=hfopt.hessian), _saddle(start), 50)
    assert 0.5 * (params[0] * params[1] - 1) ** 2 < 1e-12
    losses = [float(loss) for loss, _ in history]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.float32
@STYLES
def test_a_saddle_is_left_in_float32(make):
    params, _, _ = run(make(curvature=hfopt.hessian), _saddle([1e-8, 1e-8]), 50)
    assert 0.5 * (params[0] * params[1] - 1) ** 2 < 1e-12


@STYLES
def test_with_gauss_newton_a_saddle_is_left_from_beside_it_but_not_from_it(make):
    """At 0 both g and G vanish: nothing tells the saddle from a minimum. Beside it the residual pushes, without H."""
    params, _, _ = run(make(), _saddle([0.0, 0.0]), 50)
    np.testing.assert_array_equal(params, 0)
    params, _, _ = run(make(), _saddle([1e-8, 1e-8]), 50)
    assert 0.5 * (params[0] * params[1] - 1) ** 2 < 1e-12


def test_the_step_has_the_length_that_the_documentation_gives():
    """From 0 the eigenvector is (1, 1)/√2 with the eigenvalue −1, and ½ τ² = f = ½."""
    case = _saddle([0.0, 0.0])
    step_rule = hfopt.fixed_step()
    params, state, _ = run(
        hfopt.hessian_free(
            curvature=hfopt.hessian, damping=hfopt.constant_damping(1e-12), trust_region=None, line_search=step_rule
        ),
        case,
        1,
    )
    # CG had a random right-hand side, so p is not the eigenvector; along u = p/‖p‖ the curvature is 2u₁u₂.
    u = params / jnp.linalg.norm(params)
    assert float(params @ params * -2 * u[0] * u[1] * -0.5) == pytest.approx(0.5, rel=1e-9)
    assert state.info.accepted


def test_the_bound_holds_for_negative_curvature_too():
    case, radius, damping = _saddle([1e-3, 2e-3]), 0.02, 0.1
    tx = hfopt.hessian_free(
        curvature=hfopt.hessian,
        damping=hfopt.constant_damping(damping),
        trust_region=hfopt.scheduled_trust(radius),
        line_search=hfopt.fixed_step(),
        warm_start=None,
    )
    params, _, _ = run(tx, case, 1)
    step = np.asarray(params - case.params)
    damped = np.asarray(dense_hessian(case)) + damping * np.eye(2)
    assert abs(0.5 * step @ damped @ step) == pytest.approx(radius, rel=1e-9)


def test_networks_train_with_the_hessian():
    _, state, history = run(CLASSICAL(curvature=hfopt.hessian), CASES["mlp-softmax-integer"](), 15)
    losses = [float(loss) for loss, _ in history]
    assert losses[-1] < 0.7 * losses[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.float32
def test_parameters_of_two_dtypes():
    with jax.enable_x64(True):
        mixed = {"a": jnp.full(3, 1e-3, jnp.float32), "b": jnp.full(3, 1e-3, jnp.float64)}
        predict = lambda p, x: (x @ p["a"]) * (x @ p["b"])  # noqa: E731
        case = Case(predict, optax.squared_error, mixed, (jnp.eye(3), jnp.ones(3)))
        params, state, history = run(hfopt.hessian_free(curvature=hfopt.hessian), case, 10)
        dtypes = lambda tree: jax.tree.map(lambda x: x.dtype, tree)  # noqa: E731
        assert dtypes((params, state.solution)) == dtypes((mixed, mixed))
        assert history[-1][0] < 0.1 * history[0][0]


def test_a_random_right_hand_side_leaves_no_warm_start():
    case = Case(lambda p, x: jnp.tanh(x @ p), optax.squared_error, jnp.zeros(3), (jnp.eye(3), jnp.zeros(3)))
    params, state, _ = run(hfopt.hessian_free(curvature=hfopt.hessian), case, 1)
    np.testing.assert_array_equal(params, 0)
    np.testing.assert_array_equal(state.solution, 0)


def test_following_never_costs_a_step_that_the_line_search_would_have_taken():
    """Indefinite quadratics from warm starts, after which p may lead uphill."""
    rng, rejected = np.random.default_rng(0), {True: 0, False: 0}
    following, plain = (
        hfopt.hessian_free(
            curvature=curvature,
            solver=hfopt.cg(3, ()),
            damping=hfopt.constant_damping(1e-6),
            trust_region=None,
            warm_start=1.0,
        )
        for curvature in (hfopt.hessian, lambda f, p: replace(hfopt.hessian(f, p), indefinite=False))
    )

    @jax.jit
    def accepted(matrix, x, solution):
        value_fn = hfopt.Objective(lambda p, m: jnp.einsum("bij,i,j->b", m, p, p), lambda z, y: z).bind(
            (matrix[None], jnp.zeros(1))
        )
        updates = jax.grad(value_fn)(x)
        states = [tx.init(x)._replace(solution=solution) for tx in (following, plain)]
        return [
            tx.update(updates, s, x, value_fn=value_fn)[1].info.accepted
            for tx, s in zip((following, plain), states, strict=True)
        ]

    for _ in range(300):
        matrix = rng.normal(size=(4, 4))
        ours, theirs = accepted(jnp.asarray(matrix + matrix.T), *jnp.asarray(rng.normal(size=(2, 4))))
        assert ours or not theirs
        rejected[bool(ours)] += 1
    assert rejected[True] > rejected[False]
