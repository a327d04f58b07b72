"""The algebra of operators, on matrices one can write down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfopt import Operator


def _operator(matrix: np.ndarray) -> Operator:
    matrix = jnp.asarray(matrix)
    example = {"w": jax.ShapeDtypeStruct((matrix.shape[0],), matrix.dtype)}
    return Operator(lambda v: {"w": matrix @ v["w"]}, lambda v: v["w"] @ matrix @ v["w"], example)


A = np.array([[2.0, 1.0], [1.0, 3.0]])
B = np.array([[0.0, -1.0], [-1.0, 5.0]])


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        (lambda a, b: a + b, A + B),
        (lambda a, b: a - b, A - B),
        (lambda a, b: -a, -A),
        (lambda a, b: 2.5 * a, 2.5 * A),
        (lambda a, b: a * jnp.float64(2.5), 2.5 * A),
        (lambda a, b: np.float64(2.5) * a - 0.5 * (a + b), 2 * A - 0.5 * B),
    ],
)
def test_sums_differences_and_multiples(combine, expected):
    result = combine(_operator(A), _operator(B))
    np.testing.assert_allclose(result.to_dense(), expected, rtol=1e-15)
    np.testing.assert_allclose(result.diagonal()["w"], np.diag(expected), rtol=1e-15)
    v = {"w": jnp.array([1.0, -2.0])}
    np.testing.assert_allclose((result @ v)["w"], expected @ v["w"])
    np.testing.assert_allclose(result.quadratic_form(v), v["w"] @ expected @ v["w"])


def test_operators_on_different_parameters_do_not_add():
    with pytest.raises(ValueError, match="cannot be added"):
        _operator(A) + _operator(np.eye(3))


@pytest.mark.parametrize("other", [3.0, np.eye(2)])
def test_an_operator_and_something_else_do_not_add(other):
    with pytest.raises(TypeError):
        _operator(A) + other
