"""The losses, models and dense derivatives of the references are right: each is compared with its definition."""

import ast
import inspect
import sys

import numpy as np
import pytest

from . import krylov_numpy as krylov
from . import martens_numpy as martens
from . import models_numpy as models
from . import simplenn_numpy as simplenn
from .models_numpy import LOSSES, autoencoder_problem, cnn_problem


def differences(f, x, step=1e-6):
    """Central differences of f along each coordinate of the vector x, on a new last axis."""
    return np.stack([(f(x + e) - f(x - e)) / (2 * step) for e in step * np.eye(x.size)], axis=-1)


# --- independence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [krylov, models, simplenn, martens], ids=lambda m: m.__name__.rsplit(".", 1)[-1])
def test_references_import_numpy_and_the_standard_library_only(module):
    tree = ast.parse(inspect.getsource(module))
    roots = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    roots |= {node.module.split(".")[0] for node in nodes if node.level == 0}
    assert roots <= sys.stdlib_module_names | {"numpy"}
    assert {node.module for node in nodes if node.level} <= {"models_numpy"}


# --- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_loss_derivatives_are_those_of_its_value(name):
    loss, rng = LOSSES[name], np.random.default_rng(1)
    z, y = 2.0 * rng.standard_normal((6, 5)), rng.random((6, 5))
    for i in range(6):
        zi, yi = z[i], y[i : i + 1]
        slope = differences(lambda t, yi=yi: loss.value(t[None], yi)[0], zi)
        bend = differences(lambda t, yi=yi: loss.gradient(t[None], yi)[0], zi)
        np.testing.assert_allclose(loss.gradient(zi[None], yi)[0], slope, atol=1e-8)
        np.testing.assert_allclose(loss.hessian(zi[None], yi)[0], bend, atol=1e-8)


def test_loss_values_are_their_textbook_formulas():
    rng = np.random.default_rng(2)
    z, y, labels = rng.standard_normal((7, 4)), rng.random((7, 4)), rng.integers(0, 4, 7)
    p, q = 1 / (1 + np.exp(-z)), np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(models.squared.value(z, y), ((z - y) ** 2).sum(axis=1))
    np.testing.assert_allclose(models.softmax_cross_entropy.value(z, np.eye(4)[labels]), -np.log(q[range(7), labels]))
    bernoulli = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(axis=1)
    np.testing.assert_allclose(models.sigmoid_cross_entropy.value(z, y), bernoulli)


def test_losses_stay_finite_at_large_logits():
    z, y = np.array([[1e4, -1e4, 0.0]]), np.array([[0.0, 1.0, 0.0]])
    for loss in LOSSES.values():
        assert all(np.isfinite(part(z, y)).all() for part in loss)


def test_hessian_of_softmax_is_diag_p_minus_ppT_with_rank_one_less_and_spectrum_below_a_half():
    z = 3.0 * np.random.default_rng(3).standard_normal((20, 6))
    B = models.softmax_cross_entropy.hessian(z, np.eye(6)[np.zeros(20, int)])
    for Bi, p in zip(B, models.softmax(z), strict=True):
        np.testing.assert_allclose(Bi, np.diag(p) - np.outer(p, p), atol=1e-15)
        np.testing.assert_allclose(Bi.sum(axis=1), 0.0, atol=1e-15)
        eigenvalues = np.linalg.eigvalsh(Bi)
        assert eigenvalues[-1] <= 0.5
        assert np.abs(eigenvalues[0]) < 1e-15 < eigenvalues[1]


def test_hessian_of_squared_loss_is_twice_the_identity():
    z = np.random.default_rng(4).standard_normal((3, 5))
    np.testing.assert_array_equal(models.squared.hessian(z, z), np.broadcast_to(2 * np.eye(5), (3, 5, 5)))


# --- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [cnn_problem, autoencoder_problem])
def test_jacobian_is_that_of_the_forward_pass(make):
    model, theta, x, _ = make(examples=5)
    theta = theta + 0.1 * np.random.default_rng(5).standard_normal(theta.size)
    J = model.jacobian(theta, x)
    assert J.shape == (*model.forward(theta, x).shape, theta.size)
    np.testing.assert_allclose(J, differences(lambda t: model.forward(t, x), theta), atol=3e-8)


def test_convolution_is_a_zero_padded_cross_correlation():
    model, theta, x, _ = cnn_problem(examples=2)
    K1, b1, K2, b2, W, b = models.unpack(theta + 0.1, model.shapes)
    expected = np.zeros((2, 4))
    for n in range(2):
        h = x[n]
        for K, c, pool in ((K1, b1, 2), (K2, b2, 1)):
            padded, out = np.pad(h, ((1, 1), (1, 1), (0, 0))), np.zeros((*h.shape[:2], c.size))
            for i, j in np.ndindex(h.shape[:2]):
                out[i, j] = np.maximum(np.tensordot(padded[i : i + 3, j : j + 3], K, axes=3) + c, 0.0)
            side = len(h) // pool
            h = np.array(
                [
                    [out[i * pool : (i + 1) * pool, j * pool : (j + 1) * pool].max(axis=(0, 1)) for j in range(side)]
                    for i in range(side)
                ]
            )
        expected[n] = h.ravel() @ W + b
    np.testing.assert_allclose(model.forward(theta + 0.1, x), expected, atol=1e-12)


def test_autoencoder_is_sigmoid_layers_under_linear_logits():
    model, theta, x, _ = autoencoder_problem()
    theta = theta + 0.1
    W1, b1, W2, b2, W3, b3, W4, b4 = models.unpack(theta, model.shapes)
    h = x
    for W, b in ((W1, b1), (W2, b2), (W3, b3)):
        h = 1 / (1 + np.exp(-(h @ W + b)))
    np.testing.assert_allclose(model.forward(theta, x), h @ W4 + b4, rtol=1e-12)


def test_pack_inverts_unpack_and_sparse_start_bounds_the_connections():
    rng = np.random.default_rng(6)
    shapes = models.autoencoder((40, 7, 40)).shapes
    theta = models.sparse_start(shapes, rng)
    arrays = models.unpack(theta, shapes)
    np.testing.assert_array_equal(models.pack(arrays), theta)
    assert [a.shape for a in arrays] == list(shapes)
    assert set((arrays[0] != 0).sum(axis=0)) == {15}
    assert set((arrays[2] != 0).sum(axis=0)) == {7}
    assert not arrays[1].any()
    assert not arrays[3].any()


# --- dense derivatives of the objective ----------------------------------------------------------------------------


CASES = [(cnn_problem, "squared"), (cnn_problem, "softmax"), (autoencoder_problem, "sigmoid")]


@pytest.mark.parametrize(("make", "name"), CASES)
def test_gradient_is_that_of_the_value(make, name):
    (forward, jacobian, _), theta, x, y = make(examples=6)
    g = models.gradient(forward, jacobian, LOSSES[name], 0.3, theta, x, y)
    fd = differences(lambda t: models.value(forward, LOSSES[name], 0.3, t, x, y), theta)
    np.testing.assert_allclose(g, fd, atol=2e-8)


@pytest.mark.parametrize(("make", "name"), CASES)
def test_gauss_newton_is_the_sum_over_examples_and_positive_definite(make, name):
    (forward, jacobian, _), theta, x, y = make(examples=6)
    G = models.gauss_newton(forward, jacobian, LOSSES[name], 0.3, theta, x, y)
    expected = 0.3 * np.eye(theta.size)
    for i in range(6):
        one = slice(i, i + 1)
        J, B = jacobian(theta, x[one])[0], LOSSES[name].hessian(forward(theta, x[one]), y[one])[0]
        expected += J.T @ B @ J / 6
    np.testing.assert_allclose(G, expected, atol=1e-12)
    assert np.linalg.eigvalsh(G)[0] > 0.3 - 1e-10


@pytest.mark.parametrize("name", LOSSES)
def test_gauss_newton_of_a_linear_model_is_the_hessian(name):
    rng = np.random.default_rng(7)
    model, x = models.autoencoder((3, 4)), rng.standard_normal((9, 3))
    y, theta = np.eye(4)[rng.integers(0, 4, 9)], rng.standard_normal(16)
    args = (model.forward, model.jacobian, LOSSES[name], 0.1)
    H = differences(lambda t: models.gradient(*args, t, x, y), theta)
    np.testing.assert_allclose(models.gauss_newton(*args, theta, x, y), H, atol=1e-8)
