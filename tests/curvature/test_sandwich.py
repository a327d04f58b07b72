"""The outer product of Jacobians and the empirical Fisher against sums over single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from hfopt.curvature import empirical_fisher, outer_product
from tests.cases import (
    CASES,
    EACH,
    N,
    check_against_dense,
    dense_empirical_fisher,
    dense_outer_product,
    relative_error,
    slowly,
)

# A loss plays no part in the outer product: one case a model is enough.
MODELS = ["mlp-huber", slowly("cnn-softmax-integer"), "rnn-squared", "two-heads"]


@pytest.mark.parametrize("name", MODELS)
def test_outer_product_sums_the_jacobians_of_single_examples(name):
    case = CASES[name]()
    check_against_dense(outer_product, case, dense_outer_product(case))


@pytest.mark.parametrize("name", EACH)
def test_empirical_fisher_is_the_second_moment_of_the_gradients_of_single_examples(name):
    case = CASES[name]()
    check_against_dense(empirical_fisher, case, dense_empirical_fisher(case))


def test_outer_product_is_gauss_newton_of_half_the_squared_distance():
    case = CASES["rnn-squared"]()
    inputs, targets, *weights = case.batch
    distance = lambda z, y: 0.5 * jnp.square(z - y).sum(axis=(1, 2))  # noqa: E731
    value_fn = hfopt.Objective(case.predict, distance, l2=0.1).bind((inputs, targets, *weights))
    products = [operator(value_fn, case.params) @ case.params for operator in (outer_product, hfopt.gauss_newton)]
    assert relative_error(*products) < 1e-13


def test_examples_of_weight_zero_do_not_count():
    case = CASES["mlp-squared"]()
    inputs, targets, _ = case.batch
    weights = jnp.array([1.0, 1, 1, 0, 0, 0, 0])
    part = (inputs[:3], targets[:3])
    for operator in (outer_product, empirical_fisher):
        for chunk_size in (None, 3):
            value_fn = case.objective.bind((inputs, targets, weights), chunk_size=chunk_size)
            actual = operator(value_fn, case.params) @ case.params
            expected = operator(case.objective.bind(part), case.params) @ case.params
            assert relative_error(actual, expected) < 1e-13


def test_curvature_batch_replaces_the_batch():
    case = CASES["mlp-squared"]()
    part = tuple(x[:3] for x in case.batch)
    both = [case.objective.bind(case.batch, curvature_batch=part), case.objective.bind(part)]
    actual, expected = (empirical_fisher(value_fn, case.params) @ case.params for value_fn in both)
    assert relative_error(actual, expected) < 1e-14


def test_empirical_fisher_vanishes_where_every_example_is_fitted_and_outer_product_does_not():
    x = jnp.arange(1.0, 7).reshape(3, 2)
    params = jnp.array([1.0, -2.0])
    value_fn = hfopt.Objective(lambda p, x: x @ p, optax.l2_loss).bind((x, x @ params))
    np.testing.assert_array_equal(empirical_fisher(value_fn, params).to_dense(), np.zeros((2, 2)))
    np.testing.assert_allclose(outer_product(value_fn, params).to_dense(), x.T @ x / 3, rtol=1e-14)


@pytest.mark.float32
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_keep_the_dtype_of_the_parameters(dtype):
    params = {"w": jnp.ones((2, 3), dtype)}
    value_fn = hfopt.Objective(lambda p, x: x @ p["w"], optax.squared_error, l2=0.1).bind(
        (jnp.ones((N, 2), dtype), jnp.zeros((N, 3), dtype))
    )
    for operator in (outer_product, empirical_fisher):
        assert (operator(value_fn, params) @ params)["w"].dtype == dtype


@pytest.mark.parametrize("operator", [outer_product, empirical_fisher])
def test_plain_functions_and_whole_numbers_are_refused(operator):
    with pytest.raises(TypeError, match=r"hfopt\.Objective\(predict, loss\)\.bind\(batch\), got function"):
        operator(lambda params: 0.0, jnp.ones(2))
    case = CASES["mlp-squared"]()
    with pytest.raises(TypeError, match="must be real floating arrays"):
        operator(case.objective.bind(case.batch), jax.tree.map(lambda p: p.astype(int), case.params))
