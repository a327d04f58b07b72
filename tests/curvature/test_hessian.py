"""The Hessian operator against dense Hessians, and the term that the Gauss-Newton matrix leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.curvature import hessian
from tests.cases import CASES, EACH, check_against_dense, dense_hessian, relative_error


@pytest.mark.parametrize("name", EACH)
def test_equals_the_hessian_of_the_flattened_objective(name):
    case = CASES[name]()
    check_against_dense(hessian, case, dense_hessian(case))


@pytest.mark.parametrize("name", ["mlp-softmax-integer", "mlp-squared"])
def test_minus_gauss_newton_is_the_curvature_of_the_outputs_weighted_by_the_residuals(name):
    """H − G = Σ c_i Σ_k r_ik ∇²z_ik, with r written by hand."""
    case = CASES[name]()
    inputs, targets, *weights = case.batch
    flat, unravel = ravel_pytree(case.params)
    predict = lambda t: case.predict(unravel(t), inputs)  # noqa: E731
    z = predict(flat)
    if name == "mlp-squared":
        residuals = 2 * (z - targets) / z.shape[1]  # the outputs are averaged
    else:
        residuals = jax.nn.softmax(z) - jax.nn.one_hot(targets, z.shape[1])
    coefficients = weights[0] / weights[0].sum() if weights else jnp.full(len(z), 1 / len(z))
    expected = jnp.einsum("i,ik,ikop->op", coefficients, residuals, jax.jit(jax.hessian(predict))(flat))

    value_fn = case.objective.bind(case.batch)
    operator = hessian(value_fn, case.params) - hfopt.gauss_newton(value_fn, case.params)
    assert relative_error(operator.to_dense(), expected) < 1e-10


def test_a_saddle_has_negative_curvature_that_gauss_newton_cannot_see():
    """½ (w₂ w₁ − 1)² at 0: eigenvalues −1 and 1, and G = 0."""
    objective = hfopt.Objective(lambda w, x: x * w[0] * w[1], optax.l2_loss)
    value_fn, origin = objective.bind((jnp.ones(1), jnp.ones(1))), jnp.zeros(2)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian(value_fn, origin).to_dense()), [-1, 1], atol=1e-15)
    np.testing.assert_array_equal(hfopt.gauss_newton(value_fn, origin).to_dense(), np.zeros((2, 2)))
    assert hessian(value_fn, origin).quadratic_form(jnp.ones(2)) == -2


def test_blocks_of_one_layer_agree_with_gauss_newton_in_a_piecewise_linear_network():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"first": jax.random.normal(keys[0], (3, 4)), "second": jax.random.normal(keys[1], (4, 2))}
    objective = hfopt.Objective(lambda p, x: jax.nn.relu(x @ p["first"]) @ p["second"], optax.squared_error)
    value_fn = objective.bind((jax.random.normal(keys[2], (6, 3)), jax.random.normal(keys[3], (6, 2))))
    difference = (hessian(value_fn, params) - hfopt.gauss_newton(value_fn, params)).to_dense()
    first = params["first"].size
    np.testing.assert_allclose(difference[:first, :first], 0, atol=1e-14)
    np.testing.assert_allclose(difference[first:, first:], 0, atol=1e-14)
    assert abs(difference[:first, first:]).max() > 0.1


def test_curvature_batch_replaces_the_batch():
    case = CASES["mlp-squared"]()
    part = tuple(x[:3] for x in case.batch)
    v = case.params
    both = [case.objective.bind(case.batch, curvature_batch=part), case.objective.bind(part)]
    whole, expected = (hessian(value_fn, case.params) @ v for value_fn in both)
    assert relative_error(whole, expected) < 1e-14


def test_a_model_with_only_a_reverse_rule_has_products_too():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))
    batch, params = (jnp.arange(1.0, 5).reshape(4, 1), jnp.ones((4, 2))), jnp.ones((1, 2))
    objective = lambda f: hfopt.Objective(lambda p, x: f(x @ p), optax.squared_error)  # noqa: E731
    dense = [hessian(objective(f).bind(batch), params).to_dense() for f in (cube, lambda x: x**3)]
    np.testing.assert_allclose(*dense, rtol=1e-12)


@pytest.mark.float32
def test_float32_products_agree_to_float32_accuracy():
    with jax.enable_x64(True):
        case = CASES["mlp-squared"]()
        expected = np.asarray(dense_hessian(case), np.float32)
    params, batch = jax.tree.map(lambda x: np.asarray(x, np.float32), (case.params, case.batch))
    dense = hessian(case.objective.bind(batch), params).to_dense()
    assert dense.dtype == jnp.float32
    assert relative_error(dense, expected) < 1e-5


def test_plain_functions_and_whole_numbers_are_refused():
    with pytest.raises(TypeError, match=r"hfopt\.Objective\(predict, loss\)\.bind\(batch\), got function"):
        hessian(lambda params: 0.0, jnp.ones(2))
    case = CASES["mlp-squared"]()
    with pytest.raises(TypeError, match=r"params\['count'\] has dtype int32"):
        hessian(case.objective.bind(case.batch), {"count": jnp.arange(3, dtype=jnp.int32)})
