"""H = I/C + G_data + S: the parts as operators of their own, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.batch import Examples
from hfopt.losses import output_hessian
from tests.cases import CASES, dense_gauss_newton, dense_hessian, relative_error, slowly


@pytest.mark.parametrize(
    ("name", "chunk_size"),
    [("mlp-softmax-integer", 3), ("mlp-huber", None), ("two-heads", 3)]
    + [slowly(name, chunk_size) for name in CASES for chunk_size in (None, 3)],
)
def test_the_parts_add_up_to_the_hessian(name, chunk_size):
    case = CASES[name]()
    value_fn = case.objective.bind(case.batch, chunk_size=chunk_size)
    make = (hfopt.hessian, hfopt.gauss_newton, hfopt.penalty_hessian, hfopt.residual_hessian)
    v = jax.tree.map(lambda p: jnp.sin(jnp.arange(1.0, p.size + 1)).reshape(p.shape), case.params)

    @jax.jit
    def products(v):
        h, g, penalty, s = (operator(value_fn, case.params) for operator in make)
        data = g - penalty
        return h @ v, (penalty + data + s) @ v, (h - g - s) @ v, (h.quadratic_form(v), (g + s).quadratic_form(v))

    whole, parts, nothing, forms = products(v)
    assert relative_error(parts, whole) < 1e-13
    assert optax.tree.norm(nothing) < 1e-13 * optax.tree.norm(whole)
    assert abs(forms[0] - forms[1]) < 1e-12 * optax.tree.norm(whole) * optax.tree.norm(v)


@pytest.mark.parametrize("name", ["mlp-huber", *map(slowly, ("mlp-softmax-integer", "rnn-squared", "two-heads"))])
def test_what_gauss_newton_leaves_out_is_the_difference_of_the_dense_matrices(name):
    case = CASES[name]()
    value_fn = case.objective.bind(case.batch)
    expected = dense_hessian(case) - dense_gauss_newton(case)
    dense = hfopt.residual_hessian(value_fn, case.params).to_dense()
    assert jnp.abs(dense - expected).max() < 1e-10 * jnp.abs(dense_hessian(case)).max()


def test_it_vanishes_for_a_model_that_is_linear_in_its_parameters():
    objective = hfopt.Objective(lambda w, x: x @ w, optax.losses.softmax_cross_entropy_with_integer_labels, l2=0.1)
    value_fn = objective.bind((jnp.eye(4), jnp.array([0, 1, 2, 0])))
    operator = hfopt.residual_hessian(value_fn, jnp.ones((4, 3)))
    assert operator.indefinite
    np.testing.assert_array_equal(operator.to_dense(), np.zeros((12, 12)))


def test_the_penalty_is_seen_by_the_parameters_it_is_on():
    case = CASES["mlp-huber"]()
    operator = hfopt.penalty_hessian(case.objective.bind(case.batch), case.params)
    kept = jax.tree.map(lambda p: jnp.full(p.shape, 0.1 * (p.ndim > 1)), case.params)
    np.testing.assert_array_equal(operator.to_dense(), np.diag(ravel_pytree(kept)[0]))
    assert relative_error(operator.diagonal(), kept) < 1e-15


@pytest.mark.slow
@pytest.mark.slow
def test_layers_of_a_piecewise_linear_network_have_the_same_block_in_both_matrices():
    keys = jax.random.split(jax.random.key(0), 8)
    shapes = {"first": (3, 5), "second": (5, 4), "third": (4, 2)}
    params = {
        name: {"kernel": jax.random.normal(key, shape), "bias": jax.random.normal(key, shape[1:])}
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }

    def predict(params, x):
        for name in ("first", "second"):
            x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
        return x @ params["third"]["kernel"] + params["third"]["bias"][None]

    objective = hfopt.Objective(predict, optax.losses.softmax_cross_entropy)
    targets = jax.nn.softmax(jax.random.normal(keys[6], (9, 2)))
    value_fn = objective.bind((jax.random.normal(keys[7], (9, 3)), targets))
    h, g = hfopt.hessian(value_fn, params), hfopt.gauss_newton(value_fn, params)
    assert list(h.blocks()) == ["first", "second", "third"]
    for a, b in zip(h.blocks().values(), g.blocks().values(), strict=True):
        assert relative_error(a.to_dense(), b.to_dense()) < 1e-13
    assert relative_error(h.to_dense(), g.to_dense()) > 0.1


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_softmax_has_a_hessian_with_null_vector_one_of_rank_k_minus_one_and_at_most_a_half(classes):
    logits = 3 * jax.random.normal(jax.random.key(0), (50, classes))
    labels = jnp.zeros(50, jnp.int32)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    product = output_hessian(loss, logits, Examples(None, labels, jnp.ones(50)))
    matrices = jnp.stack([product(jnp.broadcast_to(e, logits.shape)) for e in jnp.eye(classes)], axis=-1)
    eigenvalues = np.linalg.eigvalsh(matrices)
    np.testing.assert_allclose(matrices @ jnp.ones(classes), 0, atol=1e-15)
    assert (eigenvalues[:, 1] > 1e-12).all()  # the only null vector
    assert abs(eigenvalues[:, 0]).max() < 1e-14
    assert eigenvalues.max() <= 0.5
    # The bound is attained by two equally probable classes.
    p = jnp.where(jnp.arange(classes) < 2, 0.5, 0)
    np.testing.assert_allclose(np.linalg.eigvalsh(jnp.diag(p) - jnp.outer(p, p)).max(), 0.5, rtol=1e-15)
