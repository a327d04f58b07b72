"""Squared gradients against a loop over examples; probed diagonals against dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.curvature.diagonal import probed_diagonal, probed_squares, squared_gradients
from tests.cases import CASES, Case, dense_gauss_newton, relative_error, slowly
from tests.loops import run


def squares_by_a_loop(case: Case) -> jax.Array:
    """Σ c_i g_i² with one jax.grad a row, the l2 term left out; (n,)."""
    inputs, targets, *weights = case.batch
    count = len(jax.tree.leaves(inputs)[0])
    weights = weights[0] if weights else jnp.ones(count)
    flat, unravel = ravel_pytree(case.params)

    @jax.jit
    def gradient(theta, x, y):
        return jax.grad(lambda theta: case.loss(case.predict(unravel(theta), x), y).mean())(theta)

    row = lambda tree, i: jax.tree.map(lambda x: x[i : i + 1], tree)  # noqa: E731
    squares = jnp.stack([gradient(flat, row(inputs, i), row(targets, i)) ** 2 for i in range(count)])
    return jnp.average(squares, axis=0, weights=weights)


def penalties(case: Case) -> jax.Array:
    objective = case.objective
    return ravel_pytree(objective.penalised(optax.tree.full_like(case.params, case.l2)))[0]


@pytest.mark.parametrize(
    ("name", "chunk_size"),
    [
        ("mlp-softmax-integer", 3),
        ("mlp-huber", None),
        slowly("cnn-softmax-integer", 3),
        slowly("rnn-squared", None),
        ("two-heads", 3),
    ],
)
def test_squared_gradients_are_those_of_a_loop_over_examples(name, chunk_size):
    case = CASES[name]()
    value_fn = case.objective.bind(case.batch, chunk_size=chunk_size)
    assert relative_error(jax.jit(squared_gradients)(value_fn, case.params), squares_by_a_loop(case)) < 1e-13


@pytest.mark.parametrize(
    "name",
    [
        "mlp-huber",
        "mlp-softmax-unnormalised",
        "mlp-sigmoid",
        "mlp-half-squared",
        pytest.param("cnn-softmax-integer", marks=pytest.mark.slow),
        "rnn-squared",
        "two-heads",
    ],
)
def test_probes_estimate_the_diagonal_without_bias(name):
    """The mean over 400 keys is the exact diagonal, to a few of its own standard errors in every entry."""
    case = CASES[name]()
    value_fn = case.objective.bind(case.batch)
    keys = jax.random.split(jax.random.key(0), 400)
    estimate = jax.jit(lambda f, p: jax.lax.map(lambda key: ravel_pytree(probed_diagonal(f, p, key, 3))[0], keys))(
        value_fn, case.params
    )
    exact = jnp.diag(dense_gauss_newton(case)) - penalties(case)
    error, deviation = jnp.abs(estimate.mean(axis=0) - exact), estimate.std(axis=0) / np.sqrt(400)
    if name in ("two-heads", "mlp-huber"):  # no closed form: negative estimates are cut, which biases them a little
        assert jnp.linalg.norm(error) < 0.3 * jnp.linalg.norm(exact)
    else:
        assert jnp.all(error < 5 * deviation + 1e-12)


def test_more_probes_err_less_in_every_entry():
    """Entries over eight decades: the error of each is a share of itself, about √(2 / probes)."""
    scales = jnp.geomspace(1e-4, 1e4, 9)
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(256, 9)) @ (np.eye(9) + 0.3)) * scales[None, :]
    objective = hfopt.Objective(lambda p, x: x @ p, optax.l2_loss)
    value_fn = objective.bind((inputs, jnp.zeros(256)))
    exact = jnp.mean(inputs**2, axis=0)
    for probes in (16, 64):
        estimate = jax.jit(lambda key, probes=probes: probed_diagonal(value_fn, jnp.zeros(9), key, probes))
        estimates = jnp.stack([estimate(jax.random.key(i)) for i in range(20)])
        spread = jnp.sqrt(jnp.mean((estimates / exact[None, :] - 1) ** 2, axis=0))
        assert jnp.all(spread < 1.6 * np.sqrt(2 / probes))


def graph_case() -> Case:
    """Nodes of a graph: the model mixes them, and cannot be applied to some of them alone."""
    rng = np.random.default_rng(0)
    nodes = 12
    adjacency = jnp.asarray(rng.random((nodes, nodes)) < 0.3, float)
    x, labels = jnp.asarray(rng.normal(size=(nodes, 3))), jnp.asarray(rng.integers(3, size=nodes))
    params = {"in": jnp.asarray(rng.normal(size=(3, 4))), "out": jnp.asarray(rng.normal(size=(4, 3)))}

    def predict(params, x):
        return adjacency @ jnp.tanh(adjacency @ x @ params["in"]) @ params["out"]

    return Case(predict, optax.losses.softmax_cross_entropy_with_integer_labels, params, (x, labels), l2=0.0)


def test_a_batch_that_cannot_be_cut_is_probed_as_a_whole():
    case = graph_case()
    value_fn = case.objective.bind(case.batch)
    keys = jax.random.split(jax.random.key(0), 2000)
    estimate = jax.jit(lambda p: jax.lax.map(lambda key: ravel_pytree(probed_diagonal(value_fn, p, key, 4))[0], keys))(
        case.params
    )
    exact = jnp.diag(hfopt.gauss_newton(value_fn, case.params).to_dense())
    standard_error = estimate.std(axis=0) / len(keys) ** 0.5
    assert (jnp.abs(estimate.mean(axis=0) - exact) < 5 * standard_error).all()


def test_what_is_wrong_with_the_model_itself_is_still_told():
    case = graph_case()
    value_fn = hfopt.Objective(lambda params, x: x @ jnp.ones((7, 3)), case.loss).bind(case.batch)
    with pytest.raises(TypeError, match="dot_general"):
        probed_diagonal(value_fn, case.params, jax.random.key(0), 4)


def test_squared_gradients_of_a_batch_that_cannot_be_cut_are_probed():
    """The probes are unbiased: against the gradient of the loss of every node, written out."""
    case = graph_case()
    f = case.objective.bind(case.batch)
    flat, unravel = ravel_pytree(case.params)
    losses = lambda t: case.loss(case.predict(unravel(t), case.batch[0]), case.batch[1])  # noqa: E731
    expected = jnp.square(jax.jacrev(losses)(flat)).mean(axis=0)
    given = ravel_pytree(probed_squares(f, case.params, jax.random.key(1), 10_000))[0]
    np.testing.assert_allclose(given, expected, rtol=0.1)
    few = ravel_pytree(squared_gradients(f, case.params))[0]
    assert 0.5 * expected.sum() < few.sum() < 2 * expected.sum()
    with pytest.raises(TypeError, match="dot_general"):
        squared_gradients(case.objective.bind(case.batch, chunk_size=2), case.params)


@pytest.mark.parametrize("preconditioner", [hfopt.jacobi(), hfopt.squared_gradients(), slowly(hfopt.nystrom(3))])
def test_a_graph_is_trained_with_every_preconditioner(preconditioner):
    case = graph_case()
    _, _, history = run(hfopt.hessian_free(preconditioner=preconditioner), case, 5)
    assert history[-1][0] < history[0][0]


def test_a_model_of_one_batch_size_is_trained():
    """It reshapes to the number it was written for."""
    case = CASES["mlp-squared"]()
    fixed = case._replace(predict=lambda p, x: case.predict(p, x.reshape(7, 4)))
    for preconditioner in (hfopt.jacobi(), hfopt.squared_gradients()):
        _, _, history = run(hfopt.hessian_free(preconditioner=preconditioner), fixed, 3)
        assert history[-1][0] < history[0][0]
