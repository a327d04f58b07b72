"""The models have the shapes their configurations say, and compute what their names say."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from experiments.config import CNN, MLP
from experiments.problems.models import build_model


def shapes(model: nn.Module, image: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *image), np.float32))["params"]
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}


def test_the_default_cnn_is_that_of_simplenn():
    assert shapes(build_model(CNN(kind="cnn"), classes=10), (28, 28, 1)) == {
        "['Conv_0']['kernel']": (5, 5, 1, 32),
        "['Conv_0']['bias']": (32,),
        "['Conv_1']['kernel']": (3, 3, 32, 64),
        "['Conv_1']['bias']": (64,),
        "['Conv_2']['kernel']": (3, 3, 64, 64),
        "['Conv_2']['bias']": (64,),
        "['Dense_0']['kernel']": (4 * 4 * 64, 10),
        "['Dense_0']['bias']": (10,),
    }


@pytest.mark.parametrize(("side", "features"), [(8, 1), (28, 16), (32, 16), (5, 1)])
def test_three_poolings_halve_any_image_three_times_rounding_up(side, features):
    model = build_model(CNN(kind="cnn", channels=(2, 2, 2)), classes=3)
    assert shapes(model, (side, side, 1))["['Dense_0']['kernel']"] == (2 * features, 3)


def test_an_mlp_is_its_matrix_products_and_activations():
    model = build_model(MLP(kind="mlp", hidden=(5, 4), activation="tanh"), classes=3)
    images = np.random.default_rng(0).normal(size=(7, 2, 3, 1)).astype(np.float32)
    variables = model.init(jax.random.key(1), images)
    layers = variables["params"]
    x = images.reshape(7, 6).astype(np.float64)
    for i in range(3):
        x = x @ np.asarray(layers[f"Dense_{i}"]["kernel"]) + np.asarray(layers[f"Dense_{i}"]["bias"])
        x = np.tanh(x) if i < 2 else x
    np.testing.assert_allclose(model.apply(variables, images), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["max", "average"])
def test_a_cnn_block_is_convolution_activation_and_pooling(pool):
    model = build_model(CNN(kind="cnn", channels=(2,), kernels=(3,), pool=pool), classes=3)
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    variables = model.init(jax.random.key(1), images)
    kernel = np.asarray(variables["params"]["Conv_0"]["kernel"], np.float64)
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    convolved = np.zeros((2, 4, 4, 2))
    for i in range(4):
        for j in range(4):
            convolved[:, i, j] = np.einsum("nhwc,hwcd->nd", padded[:, i : i + 3, j : j + 3], kernel)
    activated = np.maximum(convolved, 0).reshape(2, 2, 2, 2, 2, 2)
    pooled = activated.max(axis=(2, 4)) if pool == "max" else activated.mean(axis=(2, 4))
    logits = pooled.reshape(2, -1) @ np.asarray(variables["params"]["Dense_0"]["kernel"])
    np.testing.assert_allclose(model.apply(variables, images), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "softplus", "gelu"])
def test_every_activation_can_be_chosen(activation):
    model = build_model(MLP(kind="mlp", hidden=(2,), activation=activation), classes=3)
    assert model.init_with_output(jax.random.key(0), np.ones((1, 2, 2, 1), np.float32))[0].shape == (1, 3)
