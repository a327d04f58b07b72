"""The algebra of operators, on matrices one can write down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

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


def test_a_stack_of_vectors_is_multiplied_one_by_one():
    stack = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])}
    np.testing.assert_allclose((_operator(A) @ stack)["w"], stack["w"] @ A)
    for wrong in (
        {"w": jnp.ones(3)},
        {"w": jnp.ones((2, 3))},
        {"w": jnp.ones((1, 2), jnp.float32)},
        {"v": jnp.ones(2)},
    ):
        with pytest.raises(ValueError, match="one leading axis more for a stack"):
            _operator(A) @ wrong
    with pytest.raises(ValueError, match="the vector must have the structure"):
        _operator(A).quadratic_form(stack)


def test_scipy_solves_and_decomposes_with_it():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(30, 30))
    matrix = matrix @ matrix.T + np.eye(30)
    operator = Operator.of_matrix(matrix).to_scipy()
    assert operator.shape == (30, 30)
    assert operator.dtype == np.float64
    block = rng.normal(size=(30, 3))
    np.testing.assert_allclose(operator @ block, matrix @ block, rtol=1e-12)
    solution, failed = scipy.sparse.linalg.cg(operator, block[:, 0], rtol=1e-12)
    assert failed == 0
    np.testing.assert_allclose(solution, np.linalg.solve(matrix, block[:, 0]), rtol=1e-8)
    largest = scipy.sparse.linalg.eigsh(operator, 2, which="LA")[0]
    np.testing.assert_allclose(largest, np.linalg.eigvalsh(matrix)[-2:], rtol=1e-12)


def test_a_tree_of_two_dtypes_has_the_order_of_ravel_pytree():
    example = {"b": jnp.ones((2, 2), jnp.float32), "a": jnp.ones(3)}
    operator = Operator.of(lambda v: {"b": 3 * v["b"], "a": 2 * v["a"]}, example)
    np.testing.assert_array_equal(operator.to_dense(), np.diag([2.0] * 3 + [3.0] * 4))
    assert operator.diagonal()["b"].dtype == jnp.float32
    assert operator.size == 7
    assert float(operator.trace()) == 18.0


def test_blocks_are_those_of_the_layers():
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "scale": jnp.ones(1)}
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(7, 7))
    matrix = jnp.asarray(matrix + matrix.T)
    _, unravel = ravel_pytree(params)
    operator = Operator.of(lambda v: unravel(matrix @ ravel_pytree(v)[0]), params)
    blocks = operator.blocks()
    assert list(blocks) == ["dense", "scale"]
    np.testing.assert_allclose(blocks["dense"].to_dense(), matrix[:6, :6])
    part = {"dense/bias": jnp.array([1.0, 2.0]), "dense/kernel": jnp.zeros((2, 2))}
    np.testing.assert_allclose((blocks["dense"] @ part)["dense/bias"], matrix[:2, :2] @ part["dense/bias"])
    np.testing.assert_allclose(blocks["scale"].quadratic_form({"scale": jnp.ones(1)}), matrix[6, 6])


def test_matrices_of_whole_numbers_are_made_real_and_complex_ones_refused():
    np.testing.assert_array_equal(Operator.of_matrix([[2, 1], [1, 2]]).to_dense(), [[2.0, 1.0], [1.0, 2.0]])
    with pytest.raises(TypeError, match="must be real, got dtype complex"):
        Operator.of_matrix(np.array([[1, 1j], [-1j, 1]]))


def test_matrices_must_be_square():
    with pytest.raises(ValueError, match=r"must be square, got shape \(2, 3\)"):
        Operator.of_matrix(jnp.ones((2, 3)))


def test_an_operator_is_divided_and_described():
    half = _operator(A) / 2
    np.testing.assert_allclose(half.to_dense(), A / 2)
    assert not half.indefinite
    assert (_operator(A) / -2.0).indefinite
    assert repr(half) == "Operator(2 x 2, positive semi-definite, on 1 array of float64)"
    two = {"a": jnp.ones(3), "b": jnp.ones((2, 2), jnp.float32)}
    assert repr(Operator.of(lambda v: v, two)) == "Operator(7 x 7, indefinite, on 2 arrays of float32, float64)"
