"""Masked parameters: the solve on the trainable ones is that of the sub-matrix, and the others do not move."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from tests.cases import CASES, dense_gauss_newton, dense_hessian, dense_value, relative_error
from tests.loops import NEWTON, STYLES, run, train_step

NAMES = [
    "mlp-softmax-integer",
    pytest.param("cnn-softmax-integer", marks=pytest.mark.slow),
    pytest.param("rnn-squared", marks=pytest.mark.slow),
]


def head_only(params):
    """True for about half of the leaves: not the first ones."""
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [i >= len(leaves) // 2 for i in range(len(leaves))])


def flat_mask(params) -> np.ndarray:
    full = jax.tree.map(lambda keep, p: jnp.full(p.shape, keep), head_only(params), params)
    return np.asarray(ravel_pytree(full)[0])


@pytest.mark.parametrize(
    ("curvature", "dense"), [(hfopt.gauss_newton, dense_gauss_newton), (hfopt.hessian, dense_hessian)]
)
@pytest.mark.parametrize("name", NAMES)
def test_the_solve_is_that_of_the_sub_matrix(name, curvature, dense):
    case = CASES[name]()
    # More damping than there is negative curvature: the Hessian's system then has its one solution as well.
    tx = hfopt.masked(NEWTON(curvature=curvature, damping=hfopt.constant_damping(5.0)), head_only)
    params, state, _ = run(tx, case, 1)
    kept = flat_mask(case.params)
    assert 0 < kept.sum() < kept.size
    theta = ravel_pytree(case.params)[0]
    gradient = np.asarray(ravel_pytree(jax.grad(partial(dense_value, case))(case.params))[0])[kept]
    matrix = np.asarray(dense(case))[np.ix_(kept, kept)]
    step = -np.linalg.solve(matrix + 5.0 * np.eye(kept.sum()), gradient)
    moved = np.asarray(ravel_pytree(params)[0] - theta)
    assert state.info.step_size == 1
    assert relative_error(moved[kept], step) < 1e-10
    assert (moved[~kept] == 0).all()
    # The losses reported are those of the whole objective, its penalty on frozen parameters included.
    assert state.info.loss == pytest.approx(float(dense_value(case)), rel=1e-12)
    assert state.info.new_loss == pytest.approx(float(dense_value(case, params)), rel=1e-12)


@STYLES
def test_frozen_parameters_stay_and_the_others_learn(make):
    case = CASES["mlp-softmax-integer"]()
    params, state, history = run(hfopt.masked(make(), head_only), case, 10)
    kept = flat_mask(case.params)
    moved = np.asarray(ravel_pytree(params)[0] != ravel_pytree(case.params)[0])
    assert not moved[~kept].any()
    assert history[-1][0] < 0.9 * history[0][0]
    assert len(jax.tree.leaves(state.solution)) == sum(jax.tree.leaves(head_only(case.params)))


def test_a_mask_that_keeps_everything_changes_nothing():
    case = CASES["mlp-squared"]()
    tx = hfopt.hessian_free()
    plain, kept = (run(each, case, 5)[0] for each in (tx, hfopt.masked(tx, True)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), plain, kept)


def test_frozen_parameters_may_be_integers():
    x, y = jnp.arange(12.0).reshape(6, 2), jnp.ones(6)
    objective = hfopt.Objective(lambda p, x: (x @ p["w"]) * p["scale"].astype(x.dtype), optax.squared_error)
    params = {"w": jnp.ones(2), "scale": jnp.int32(2)}
    tx = hfopt.masked(hfopt.hessian_free(), {"w": True, "scale": False})
    value_fn = objective.bind((x, y))
    value, grad = jax.value_and_grad(value_fn, allow_int=True)(params)
    updates, state = tx.update(grad, tx.init(params), params, value=value, grad=grad, value_fn=value_fn)
    assert state.info.accepted
    assert (updates["w"] != 0).all()
    assert updates["scale"] == 0


def test_chunks_change_nothing():
    case = CASES["mlp-squared"]()
    tx = hfopt.masked(NEWTON(damping=hfopt.constant_damping(1.0)), head_only)

    @jax.jit
    def updates(params):
        found = []
        for chunking in ({}, {"chunk_size": 3, "memory": "keep"}, {"chunk_size": 3, "memory": "recompute"}):
            value_fn = case.objective.bind(case.batch, **chunking)
            value, grad = jax.value_and_grad(value_fn)(params)
            found.append(tx.update(grad, tx.init(params), params, value=value, grad=grad, value_fn=value_fn)[0])
        return found

    whole, *chunked = updates(case.params)
    assert all(relative_error(part, whole) < 1e-9 for part in chunked)


def test_the_loop_is_the_usual_one_and_compiles_once():
    case = CASES["mlp-softmax-integer"]()
    tx = hfopt.masked(hfopt.hessian_free(), head_only)
    step = jax.jit(partial(train_step, tx, case.objective))
    params, state = case.params, tx.init(case.params)
    for _ in range(3):
        params, state, _ = step(params, state, case.batch)
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"w": True, "c": True}, ValueError, "must be shaped like the parameters"),
        ({"w": False, "b": False}, ValueError, "keeps none of the parameters"),
        ({"w": 1, "b": False}, TypeError, r"mask\['w'\] is 1"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, error, message):
    with pytest.raises(error, match=message):
        hfopt.masked(hfopt.hessian_free(), mask).init({"w": jnp.ones(2), "b": jnp.ones(())})
