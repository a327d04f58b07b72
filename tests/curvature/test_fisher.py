"""The Fisher operator: exact, it is the Gauss-Newton matrix; sampled, it is right on average and label by label."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.curvature import fisher
from tests.cases import CASES, EACH, check_against_dense, dense_gauss_newton, relative_error, slowly

NATURAL = [case for case in EACH if not any(word in str(case) for word in ("huber", "summed", "heads"))]


@pytest.mark.parametrize("name", NATURAL)
def test_exact_fisher_is_gauss_newton_for_losses_in_natural_parameters(name):
    case = CASES[name]()
    exact = lambda value_fn, params: fisher(value_fn, params, samples="exact")  # noqa: E731
    check_against_dense(exact, case, dense_gauss_newton(case))


@pytest.mark.parametrize(
    "name", ["mlp-softmax-unnormalised", "mlp-sigmoid", "mlp-squared", "mlp-half-squared", "rnn-softmax-integer"]
)
def test_sampled_fisher_is_right_within_its_standard_error(name):
    case = CASES[name]()
    value_fn = case.objective.bind(case.batch)
    v = jax.tree.map(lambda p: jax.random.normal(jax.random.key(5), p.shape), case.params)
    keys = jax.random.split(jax.random.key(0), 400)
    form = lambda key: fisher(value_fn, case.params, key, samples=5).quadratic_form(v)  # noqa: E731
    forms = np.asarray(jax.jit(jax.vmap(form))(keys))
    flat = ravel_pytree(v)[0]
    error = forms.mean() - float(flat @ dense_gauss_newton(case) @ flat)
    standard_error = forms.std(ddof=1) / np.sqrt(len(forms))
    assert 0 < standard_error < 0.05 * forms.mean()
    assert abs(error) < 4 * standard_error


def test_every_draw_is_one_of_the_possible_labellings_and_their_expectation_is_gauss_newton():
    """Two examples of two time steps and two classes: 16 labellings, each with its matrix and its probability."""
    x = jax.random.normal(jax.random.key(1), (2, 2, 2))
    params = jnp.array([0.5, -0.3])
    # Logits (batch, time, class): the second class scores x·θ.
    predict = lambda p, x: jnp.stack([jnp.zeros(x.shape[:2]), x @ p], axis=-1)  # noqa: E731
    objective = hfopt.Objective(predict, optax.softmax_cross_entropy_with_integer_labels)
    value_fn = objective.bind((x, jnp.zeros((2, 2), int)))

    p = np.asarray(jax.nn.sigmoid(x @ params))
    matrices, probabilities = [], []
    for labels in itertools.product((0, 1), repeat=4):
        y = np.reshape(labels, (2, 2))
        # The derivative of the loss of one step along x·θ is p − y; the mean over 2 examples of the mean over 2 steps.
        matrices.append(np.einsum("it,ita,itb->ab", (p - y) ** 2, x, x) / 4)
        probabilities.append(np.prod(np.where(y == 1, p, 1 - p)))
    exact = hfopt.gauss_newton(value_fn, params).to_dense()
    np.testing.assert_allclose(np.einsum("y,yab->ab", probabilities, matrices), exact, rtol=1e-12)

    keys = jax.random.split(jax.random.key(2), 200)
    drawn = jax.jit(jax.vmap(lambda key: fisher(value_fn, params, key).to_dense()))(keys)
    distances = np.abs(np.asarray(drawn)[:, None] - np.asarray(matrices)).max(axis=(2, 3))
    assert distances.min(axis=1).max() < 1e-14
    counts = np.bincount(distances.argmin(axis=1), minlength=16)
    assert np.sum((counts - 200 * np.array(probabilities)) ** 2 / (200 * np.array(probabilities))) < 38  # χ²₁₅, 0.1 %


@pytest.mark.parametrize("name", ["mlp-sigmoid", slowly("mlp-softmax-integer"), slowly("mlp-squared")])
def test_labels_depend_on_the_key_and_on_nothing_else(name):
    case = CASES[name]()
    products = [
        fisher(case.objective.bind(case.batch, chunk_size=size), case.params, jax.random.key(key), 2) @ case.params
        for key, size in ((0, None), (0, None), (0, 3), (0, 1), (1, None))
    ]
    first, again, chunks, singly, other = products
    assert relative_error(again, first) == 0
    assert relative_error(chunks, first) < 1e-13
    assert relative_error(singly, first) < 1e-13
    assert relative_error(other, first) > 1e-3


def test_all_products_of_an_operator_see_the_same_labels():
    case = CASES["mlp-sigmoid"]()
    for chunk_size in (None, 3):
        value_fn = case.objective.bind(case.batch, chunk_size=chunk_size)
        operator = fisher(value_fn, case.params, jax.random.key(0))
        v = ravel_pytree(case.params)[0]
        dense = operator.to_dense()
        assert relative_error(operator @ case.params, dense @ v) < 1e-13
        assert float(operator.quadratic_form(case.params)) == pytest.approx(float(v @ dense @ v), rel=1e-13)
        assert np.linalg.eigvalsh(dense).min() > -1e-13 * abs(dense).max()


def test_equal_examples_draw_their_own_labels():
    """Were labels shared, 2000 equal examples would give r² of one draw, 0.09 or 0.49; the mean is p (1 − p) = 0.21."""
    x, bias = jnp.ones((2000, 1)), jnp.log(jnp.array([0.3 / 0.7]))
    objective = hfopt.Objective(lambda b, x: x @ b, optax.sigmoid_binary_cross_entropy)
    for chunk_size in (None, 100):
        value_fn = objective.bind((x, jnp.zeros(2000)), chunk_size=chunk_size)
        assert float(fisher(value_fn, bias, jax.random.key(0)).to_dense()[0, 0]) == pytest.approx(0.21, abs=0.02)


def test_curvature_batch_replaces_the_batch():
    case = CASES["mlp-squared"]()
    part = tuple(x[:3] for x in case.batch)
    both = [case.objective.bind(case.batch, curvature_batch=part), case.objective.bind(part)]
    actual, expected = (fisher(value_fn, case.params, jax.random.key(0)) @ case.params for value_fn in both)
    assert relative_error(actual, expected) < 1e-14


@pytest.mark.float32
def test_products_keep_the_dtype_of_the_parameters():
    value_fn = hfopt.Objective(lambda p, x: x @ p, optax.softmax_cross_entropy).bind(
        (jnp.ones((4, 2), jnp.bfloat16), jnp.full((4, 3), 1 / 3))
    )
    params = jnp.ones((2, 3), jnp.bfloat16)
    for samples in (1, "exact"):
        assert (fisher(value_fn, params, jax.random.key(0), samples) @ params).dtype == jnp.bfloat16


def test_a_loss_that_is_no_known_likelihood_is_refused_with_those_that_are():
    case = CASES["mlp-huber"]()
    with pytest.raises(ValueError, match=r"optax\.squared_error; got huber_loss\. For any other loss use gauss_newton"):
        fisher(case.objective.bind(case.batch), case.params, jax.random.key(0))


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, "all", None])
def test_samples_must_be_a_positive_integer_or_exact(samples):
    case = CASES["mlp-squared"]()
    with pytest.raises(ValueError, match='`samples` must be a positive integer or "exact"'):
        fisher(case.objective.bind(case.batch), case.params, jax.random.key(0), samples)


def test_drawing_without_a_key_is_refused():
    case = CASES["mlp-squared"]()
    with pytest.raises(TypeError, match="drawing labels needs a `key`"):
        fisher(case.objective.bind(case.batch), case.params)


def test_too_many_classes_to_enumerate_are_refused():
    objective = hfopt.Objective(lambda p, x: x @ p, optax.softmax_cross_entropy_with_integer_labels)
    value_fn = objective.bind((jnp.ones((2, 1)), jnp.zeros(2, int)))
    with pytest.raises(ValueError, match="at most 256, got 300"):
        fisher(value_fn, jnp.zeros((1, 300)), samples="exact")


def test_plain_functions_and_whole_numbers_are_refused():
    with pytest.raises(TypeError, match=r"hfopt\.Objective\(predict, loss\)\.bind\(batch\), got function"):
        fisher(lambda params: 0.0, jnp.ones(2), jax.random.key(0))
    case = CASES["mlp-squared"]()
    with pytest.raises(TypeError, match="must be real floating arrays"):
        fisher(case.objective.bind(case.batch), jnp.arange(3), jax.random.key(0))
