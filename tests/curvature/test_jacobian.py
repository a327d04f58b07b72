"""The Jacobian of all outputs against ``jacrev`` of the flattened model."""

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from tests.cases import CASES, MODELS, relative_error, slowly


@pytest.mark.parametrize(
    ("name", "chunk_size"),
    [("mlp-softmax-integer", None), ("two-heads", 3)] + [slowly(name, size) for name in MODELS for size in (None, 3)],
)
def test_equals_the_derivative_of_the_flattened_model(name, chunk_size):
    case = CASES[name]()
    flat, unravel = ravel_pytree(case.params)
    expected = jax.jit(jax.jacrev(lambda t: ravel_pytree(case.predict(unravel(t), case.batch[0]))[0]))(flat)
    jacobian = hfopt.jacobian(case.objective.bind(case.batch, chunk_size=chunk_size), case.params)
    assert relative_error(jacobian.to_dense(), expected) < 1e-13
    assert relative_error(jacobian.T.to_dense(), expected.T) < 1e-13
    assert relative_error(jacobian @ case.params, expected @ flat) < 1e-13


def test_its_square_is_the_outer_product():
    case = CASES["mlp-sigmoid"]()
    value_fn = case.objective.bind(case.batch)
    jacobian, outer = hfopt.jacobian(value_fn, case.params), hfopt.outer_product(value_fn, case.params)
    square = jax.tree.map(lambda x: x / 7, jacobian.T @ (jacobian @ case.params))
    assert relative_error(square, outer @ case.params) < 1e-13


def test_a_vector_of_another_shape_is_refused():
    case = CASES["mlp-sigmoid"]()
    jacobian = hfopt.jacobian(case.objective.bind(case.batch), case.params)
    with pytest.raises(ValueError, match="Jacobian: it multiplies"):
        jacobian @ jnp.ones(3)
    with pytest.raises(ValueError, match=r"Jacobian: it multiplies \(\(7, 3\)"):
        jacobian.T @ case.params
