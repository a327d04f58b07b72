"""The Gauss-Newton operator against dense matrices from an independent route."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.curvature import average
from tests.cases import CASES, MODELS, N, dense_gauss_newton, relative_error, slowly

CHUNKED = ["mlp-softmax-integer", "two-heads"]


def _vector(params):
    flat, unravel = ravel_pytree(params)
    return unravel(jax.random.normal(jax.random.key(9), flat.shape))


@pytest.mark.parametrize(
    ("name", "chunk_size", "memory"),
    [
        pytest.param(name, None, "auto", marks=() if name in MODELS or name.startswith("mlp") else pytest.mark.slow)
        for name in CASES
    ]
    + [
        pytest.param(name, 3, memory, marks=() if name in CHUNKED and memory == "keep" else pytest.mark.slow)
        for name in CASES
        for memory in ("keep", "recompute")
    ],
)
def test_equals_the_hessian_of_the_linearised_model(name, chunk_size, memory):
    case = CASES[name]()
    value_fn = case.objective.bind(case.batch, chunk_size=chunk_size, memory=memory)
    operator = hfopt.gauss_newton(value_fn, case.params)
    expected, dense = dense_gauss_newton(case), np.asarray(operator.to_dense())
    assert relative_error(dense, expected) < 1e-10
    # Symmetric, and positive semi-definite since all these losses are convex.
    np.testing.assert_allclose(dense, dense.T, atol=1e-12 * abs(dense).max())
    assert np.linalg.eigvalsh(dense).min() > -1e-12 * abs(dense).max()
    assert relative_error(operator.diagonal(), jnp.diag(expected)) < 1e-10
    v = _vector(case.params)
    flat = ravel_pytree(v)[0]
    assert relative_error(operator @ v, expected @ flat) < 1e-10
    assert operator.quadratic_form(v) == pytest.approx(float(flat @ expected @ flat), rel=1e-10)


@pytest.mark.parametrize(
    "operator",
    [
        hfopt.gauss_newton,
        hfopt.hessian,
        hfopt.empirical_fisher,
        hfopt.outer_product,
        partial(hfopt.fisher, samples="exact"),
    ],
)
@pytest.mark.parametrize("name", ["mlp-softmax-integer", pytest.param("cnn-softmax-integer", marks=pytest.mark.slow)])
def test_kept_residuals_change_no_operator(name, operator):
    case = CASES[name]()
    v = _vector(case.params)

    @jax.jit
    def products(params):
        bind = partial(case.objective.bind, case.batch)
        chunked = [bind(chunk_size=size, memory="keep") for size in (3, 4)]
        return [(A @ v, A.quadratic_form(v)) for A in (operator(f, params) for f in (bind(), *chunked))]

    whole, *kept = products(case.params)
    for product in kept:
        assert relative_error(product, whole) < 1e-10


def test_residuals_are_kept_while_they_are_few(monkeypatch):
    case = CASES["mlp-squared"]()

    def program(memory):
        value_fn = case.objective.bind(case.batch, chunk_size=3, memory=memory)
        return str(jax.make_jaxpr(lambda params: hfopt.gauss_newton(value_fn, params) @ params)(case.params))

    assert program("keep") != program("recompute")
    assert program("auto") == program("keep")
    monkeypatch.setattr(average, "KEPT_RESIDUALS", 0)
    assert program("auto") == program("recompute")


@pytest.mark.parametrize(
    ("operator", "at_least"), [(hfopt.gauss_newton, 100), (partial(hfopt.fisher, samples="exact"), 10_000)]
)
def test_what_is_kept_of_an_example_counts_outputs_and_no_parameters(monkeypatch, operator, at_least):
    """A linear model with 100 classes and 5,000 parameters, which asks for batches of an even size."""

    def predict(p, x):
        assert len(x) % 2 == 0
        return x @ p

    counted = []
    count = average._bytes_per_row
    monkeypatch.setattr(average, "_bytes_per_row", lambda *arguments: counted.append(count(*arguments)) or counted[-1])
    objective = hfopt.Objective(predict, optax.softmax_cross_entropy_with_integer_labels)
    value_fn = objective.bind((jnp.ones((8, 50)), jnp.arange(8)), chunk_size=2)
    operator(value_fn, jnp.ones((50, 100)))
    assert 8 * at_least <= counted[0] <= 4 * 8 * at_least


@pytest.mark.parametrize("name", ["mlp-softmax-integer", *map(slowly, MODELS[1:])])
def test_runs_under_jit_and_vmap(name):
    case = CASES[name]()
    value_fn = case.objective.bind(case.batch)
    dense = dense_gauss_newton(case)
    flat, unravel = ravel_pytree(case.params)
    vectors = jax.random.normal(jax.random.key(3), (3, flat.size))
    product = jax.jit(jax.vmap(lambda v: ravel_pytree(hfopt.gauss_newton(value_fn, case.params) @ unravel(v))[0]))
    assert relative_error(product(vectors), vectors @ dense) < 1e-10


def test_curvature_batch_replaces_the_batch():
    case = CASES["mlp-squared"]()
    part = tuple(x[:3] for x in case.batch)
    operator = hfopt.gauss_newton(case.objective.bind(case.batch, curvature_batch=part), case.params)
    assert relative_error(operator.to_dense(), dense_gauss_newton(case._replace(batch=part))) < 1e-10


@pytest.mark.slow
@pytest.mark.float32
@pytest.mark.parametrize("name", ["mlp-huber", *(slowly(name) for name in ("cnn-softmax-integer", "rnn-squared"))])
def test_float32_products_agree_to_float32_accuracy(name):
    with jax.enable_x64(True):
        case = CASES[name]()
        expected = np.asarray(dense_gauss_newton(case), np.float32)
    case = jax.tree.map(lambda x: np.asarray(x, np.float32) if x.dtype == np.float64 else x, (case.params, case.batch))
    params, batch = case
    operator = hfopt.gauss_newton(CASES[name]().objective.bind(batch), params)
    chex.assert_type(jax.tree.leaves(operator @ params), jnp.float32)
    assert relative_error(operator.to_dense(), expected) < 1e-5


def test_a_model_with_only_a_reverse_rule_has_products_too():
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
    x = jnp.arange(1.0, 5).reshape(4, 1)
    objective = lambda f: hfopt.Objective(lambda p, x: f(x @ p), optax.squared_error)  # noqa: E731
    batch, params = (x, jnp.ones((4, 2))), jnp.ones((1, 2))
    expected = hfopt.gauss_newton(objective(lambda x: x**2).bind(batch), params).to_dense()
    for chunking in ({}, {"chunk_size": 2, "memory": "keep"}, {"chunk_size": 2, "memory": "recompute"}):
        value_fn = objective(square).bind(batch, **chunking)
        np.testing.assert_allclose(hfopt.gauss_newton(value_fn, params).to_dense(), expected, rtol=1e-12)


def test_plain_functions_are_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"hfopt\.Objective\(predict, loss\)\.bind\(batch\), got function"):
        hfopt.gauss_newton(lambda params: 0.0, jnp.ones(2))


@pytest.mark.parametrize("leaf", [jnp.arange(3, dtype=jnp.int32), np.ones(3, bool), np.ones(3, complex)])
def test_parameters_that_are_not_floating_are_refused_by_name(leaf):
    value_fn = hfopt.Objective(lambda p, x: x, optax.squared_error).bind((jnp.ones((N, 3)), jnp.ones((N, 3))))
    with pytest.raises(TypeError, match=r"params\['count'\] has dtype"):
        hfopt.gauss_newton(value_fn, {"count": leaf, "w": jnp.ones(3)})


def test_vectors_of_another_shape_are_refused():
    case = CASES["mlp-squared"]()
    operator = hfopt.gauss_newton(case.objective.bind(case.batch), case.params)
    with pytest.raises(ValueError, match="must have the structure, shapes and dtypes of the parameters"):
        operator @ {"w": jnp.ones(3)}
