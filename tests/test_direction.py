"""`scale_by_gauss_newton`: the solution of the damped system, for any gradient, or an error that says what to do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from tests.cases import CASES, dense_gauss_newton, relative_error, slowly

EXACT = partial(hfopt.scale_by_gauss_newton, solver=hfopt.cg(400, hfopt.relative_residual(1e-13)), warm_start=None)


def direction(tx, case, gradient, state=None):
    value_fn = case.objective.bind(case.batch)
    state = tx.init(case.params) if state is None else state
    return jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=value_fn))(gradient, state, case.params)


@pytest.mark.parametrize("name", ["mlp-softmax-integer", slowly("rnn-squared")])
def test_it_solves_for_the_gradient_it_is_given(name):
    case = CASES[name]()
    gradient = jax.tree.map(lambda p: jnp.sin(7 * p), case.params)  # of something else than the objective
    updates, state = direction(EXACT(damping=0.3), case, gradient)
    matrix = np.asarray(dense_gauss_newton(case))
    expected = np.linalg.solve(matrix + 0.3 * np.eye(len(matrix)), ravel_pytree(gradient)[0])
    assert relative_error(ravel_pytree(updates)[0], expected) < 1e-9
    assert state.info.damping == pytest.approx(0.3)
    assert state.info.products == state.info.cg_steps


def test_a_metric_a_preconditioner_and_another_curvature_have_their_places():
    case = CASES["mlp-softmax-integer"]()
    gradient = jax.tree.map(jnp.sin, case.params)
    plain, _ = direction(EXACT(damping=0.3), case, gradient)
    exact_fisher = partial(hfopt.fisher, samples="exact")
    for options in ({"preconditioner": hfopt.squared_gradients()}, {"curvature": exact_fisher}):
        same, _ = direction(EXACT(damping=0.3, **options), case, gradient)
        assert relative_error(ravel_pytree(same)[0], ravel_pytree(plain)[0]) < 1e-9
    measured, state = direction(EXACT(damping=0.3, metric=hfopt.second_moment()), case, gradient)
    assert relative_error(ravel_pytree(measured)[0], ravel_pytree(plain)[0]) > 1e-3
    assert jax.tree.structure(state.metric) != jax.tree.structure(())


def test_damping_may_follow_a_schedule_and_warm_starts_save_iterations():
    case = CASES["mlp-softmax-integer"]()
    gradient = jax.tree.map(jnp.sin, case.params)
    tx = hfopt.scale_by_gauss_newton(
        damping=lambda step: jnp.where(step == 0, 0.5, 0.25),
        solver=hfopt.cg(400, hfopt.relative_residual(1e-8)),
        warm_start=1.0,
    )
    _, first = direction(tx, case, gradient)
    _, second = direction(tx, case, gradient, first)
    assert (float(first.info.damping), float(second.info.damping)) == (0.5, 0.25)
    same = first._replace(step=jnp.zeros_like(first.step))
    _, again = direction(tx, case, gradient, same)
    assert again.info.cg_steps <= 1 < first.info.cg_steps


def test_a_gradient_that_is_not_finite_gives_no_direction_and_leaves_no_trace():
    case, tx = CASES["mlp-softmax-integer"](), hfopt.scale_by_gauss_newton()
    good, bad = (jax.tree.map(lambda p, x=x: p * x, case.params) for x in (1.0, jnp.nan))
    _, state = direction(tx, case, good)
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(state.solution))  # there is one to start from
    updates, state = direction(tx, case, bad, state)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves((updates, state.solution)))
    assert state.info.cg_stop == hfopt.Stop.NONFINITE


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"damping": 0.0}, ValueError, "`damping` must be positive"),
        ({"damping": hfopt.levenberg_marquardt()}, TypeError, "belong to hfopt.hessian_free"),
        ({"warm_start": 2.0}, ValueError, "`warm_start` must lie in"),
        ({"solver": None}, TypeError, "`solver` must be an object such as hfopt.cg"),
    ],
)
def test_bad_choices_are_named(options, error, words):
    with pytest.raises(error, match=f"scale_by_gauss_newton: .*{words}"):
        hfopt.scale_by_gauss_newton(**options)


def test_bad_calls_are_named():
    case = CASES["mlp-softmax-integer"]()
    tx = hfopt.scale_by_gauss_newton()
    with pytest.raises(ValueError, match="scale_by_gauss_newton: `value_fn` is missing"):
        tx.update(case.params, tx.init(case.params), case.params)
    with pytest.raises(ValueError, match="must be positive semi-definite"):
        direction(hfopt.scale_by_gauss_newton(curvature=hfopt.hessian), case, case.params)
