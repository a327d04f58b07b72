"""The curves are what their description says, and the autoencoders have the loss and the metric of the literature."""

import hashlib

import jax
import numpy as np
import pytest
from scipy.special import expit
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.decomposition import PCA

from experiments.problems import curves
from experiments.problems.autoencoders import build_autoencoder, sparse_normal
from experiments.problems.curves import curve_images, parabolas
from experiments.settings.errors import DataError
from experiments.settings.problem import Autoencoder
from hfopt import Objective

DIGITS = Autoencoder(family="autoencoder", data="digits", hidden=(32, 16, 4))


def settings(**changes) -> Autoencoder:
    given = {"family": "autoencoder", "data": "curves3pt", "hidden": (20, 6), "train_examples": 40, "test_examples": 30}
    return Autoencoder(**given | changes)


def pca_error(train_images: int, test_images: int) -> float:
    """Squared error, summed over pixels, of 18 principal components on images that they were not fitted to."""
    train, test = (curve_images(n, seed).reshape(n, -1) / 255 for n, seed in ((train_images, 1), (test_images, 2)))
    pca = PCA(18, svd_solver="covariance_eigh").fit(train)
    return float(((pca.inverse_transform(pca.transform(test)) - test) ** 2).sum(axis=1).mean())


def test_curves_go_through_their_three_points_and_are_parabolas():
    points = np.random.default_rng(0).random((50, 3, 2))
    times = np.array([0, 0.5, 1])
    curve, velocity = parabolas(points, times)
    np.testing.assert_allclose(curve, points, atol=1e-15)
    for i, axis in np.ndindex(50, 2):
        fitted = np.polynomial.Polynomial.fit(times, points[i, :, axis], 2)
        np.testing.assert_allclose(velocity[i, :, axis], fitted.deriv()(times), atol=1e-12)


def test_no_curve_leaves_the_frame():
    corners = np.array(np.meshgrid(*[[0.0, 1.0]] * 3)).reshape(3, -1).T[..., np.newaxis]  # extremes are at corners
    curve, _ = parabolas(np.concatenate([corners, corners], axis=2), np.linspace(0, 1, 1001))
    assert curve.min() == pytest.approx(-1 / 8, abs=1e-6)
    assert curve.max() == pytest.approx(9 / 8, abs=1e-6)


def test_a_straight_stroke_fades_with_the_distance_as_a_gaussian_brush():
    points = np.array([[[0.5, 0.1], [0.5, 0.5], [0.5, 0.9]]])  # across the image, in the middle between rows 13 and 14
    column = curves._render(points)[0, :, 14]
    distance = np.abs(np.arange(28) - 13.5)
    expected = 1 - np.exp(-curves.DARKNESS * np.exp(-0.5 * (distance / curves.BRUSH) ** 2))
    np.testing.assert_allclose(column, expected, atol=1e-3)


def test_ink_is_the_integral_along_the_curve_to_one_grey_level():
    points = np.random.default_rng(5).random((3, 3, 2))
    scale = (28 - 2 * 2.0) / 1.25
    curve, _ = parabolas(points, np.linspace(0, 1, 4001))
    pixels = np.stack(np.meshgrid(np.arange(28) + 0.5, np.arange(28) + 0.5, indexing="ij"), axis=-1)
    for image, path in zip(curves._render(points), 2.0 + scale * (curve + 1 / 8), strict=True):
        middle, length = (path[1:] + path[:-1]) / 2, np.linalg.norm(np.diff(path, axis=0), axis=1)
        ink = np.zeros((28, 28))
        for centre, piece in zip(middle, length, strict=True):
            ink += piece * np.exp(-((pixels - centre) ** 2).sum(axis=-1) / (2 * curves.BRUSH**2))
        ink /= curves.BRUSH * np.sqrt(2 * np.pi)
        np.testing.assert_allclose(image, 1 - np.exp(-curves.DARKNESS * ink), atol=1 / 255)


def test_images_are_a_function_of_the_seed_and_more_of_them_begin_with_the_same():
    images = curve_images(600, 7)
    assert images.shape == (600, 28, 28)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(curve_images(550, 7), images[:550])
    assert (curve_images(600, 8) != images).any(axis=(1, 2)).all()
    digest = hashlib.sha256(curve_images(20, 1).tobytes()).hexdigest()
    assert digest.startswith("e5f69c01aac4e7bd")


def test_the_principal_components_of_few_curves_leave_about_the_published_error():
    assert pca_error(4000, 1000) == pytest.approx(5.90, rel=0.05)


@pytest.mark.slow
def test_the_principal_components_of_20000_curves_leave_the_published_error():
    assert pca_error(20_000, 10_000) == pytest.approx(5.90, abs=0.05)


def test_without_images_there_is_an_error():
    with pytest.raises(ValueError, match="`count` must be at least 1, got 0"):
        curve_images(0, 0)


def test_digits_are_grey_levels_between_zero_and_one_and_their_own_targets():
    dataset = build_autoencoder(DIGITS).dataset
    assert dataset.train.inputs.shape == (1437, 64)
    assert dataset.test.inputs.shape == (360, 64)
    assert dataset.train.targets is dataset.train.inputs
    everything = np.concatenate([dataset.train.inputs, dataset.test.inputs])
    expected = sklearn_digits().data.astype(np.float32) / 16
    np.testing.assert_array_equal(np.unique(everything, axis=0), np.unique(expected, axis=0))


def test_the_decoder_mirrors_the_encoder():
    params = build_autoencoder(settings(hidden=(50, 20, 6))).init(0)
    shapes = [params[f"Dense_{i}"]["kernel"].shape for i in range(6)]
    assert shapes == [(784, 50), (50, 20), (20, 6), (6, 20), (20, 50), (50, 784)]


@pytest.mark.parametrize(("activation", "function"), [("sigmoid", expit), ("tanh", np.tanh)])
def test_the_network_is_its_matrix_products_with_a_linear_code(activation, function):
    problem = build_autoencoder(settings(hidden=(12, 5), activation=activation))
    params, x = problem.init(3), problem.dataset.train.inputs[:7]
    layers = [(np.float64(params[f"Dense_{i}"]["kernel"]), np.float64(params[f"Dense_{i}"]["bias"])) for i in range(4)]
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = layers
    code = function(x @ w1 + b1) @ w2 + b2
    logits = function(code @ w3 + b3) @ w4 + b4
    np.testing.assert_allclose(problem.predict(params, x), logits, rtol=1e-4, atol=1e-4)


def test_loss_and_metric_are_those_of_the_literature():
    problem = build_autoencoder(settings(l2=1e-3))
    params, x = problem.init(0), np.float64(problem.dataset.train.inputs)
    p = expit(np.float64(problem.predict(params, problem.dataset.train.inputs)))
    cross_entropy = -(x * np.log(p) + (1 - x) * np.log1p(-p)).mean()
    penalty = 0.5e-3 * sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(params))
    train = problem.dataset.train
    objective = Objective(problem.predict, problem.loss, l2=problem.l2).bind((train.inputs, train.targets))
    assert float(objective(params)) == pytest.approx(cross_entropy + penalty, rel=1e-5)
    measured = problem.metric.measure(params, train.inputs, train.targets)
    np.testing.assert_allclose(measured, ((p - x) ** 2).sum(axis=1), rtol=1e-4)
    assert problem.metric.name == "squared_error"


def test_a_unit_has_fifteen_connections_with_the_deviation_asked_for():
    kernel = sparse_normal(np.random.default_rng(0), (100, 400), 0.25)
    assert (np.count_nonzero(kernel, axis=0) == 15).all()
    assert np.count_nonzero(kernel, axis=1).std() < 3 * np.sqrt(400 * 0.15)  # spread over the inputs
    drawn = kernel[kernel != 0]
    assert drawn.std() == pytest.approx(0.25, rel=0.03)
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert np.count_nonzero(sparse_normal(np.random.default_rng(0), (6, 9))) == 54


@pytest.mark.parametrize(("activation", "bias", "deviation"), [("sigmoid", 0.0, 1.0), ("tanh", 0.5, 0.25)])
def test_a_sparse_start_depends_on_the_activation(activation, bias, deviation):
    params = build_autoencoder(settings(activation=activation, initialisation="sparse", hidden=(300, 6))).init(0)
    assert (np.asarray(params["Dense_0"]["bias"]) == bias).all()
    kernel = np.asarray(params["Dense_0"]["kernel"])
    assert kernel[kernel != 0].std() == pytest.approx(deviation, rel=0.05)


def test_a_start_is_a_function_of_the_seed():
    problem = build_autoencoder(DIGITS)
    first, again, other = (problem.init(seed)["Dense_0"]["kernel"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_other_start_is_that_of_flax():
    params = build_autoencoder(settings(initialisation="flax", hidden=(6,))).init(0)
    kernel = np.asarray(params["Dense_0"]["kernel"])
    assert np.count_nonzero(kernel) == kernel.size
    assert kernel.std() == pytest.approx(1 / np.sqrt(784), rel=0.05)


def test_more_examples_than_there_are_is_an_error():
    with pytest.raises(DataError, match="test_examples is 361, but digits has 360"):
        build_autoencoder(Autoencoder(family="autoencoder", data="digits", hidden=(4,), test_examples=361))
