"""The models have the shapes their configurations say, and compute what their names say."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from experiments.problems.models import build_model
from experiments.settings.problem import CNN, MLP, ResNet


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


def test_a_resnet_is_its_convolutions_and_group_norms_beside_shortcuts():
    model = build_model(ResNet(kind="resnet", channels=(2, 4), groups=2), classes=3)
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def convolved(kernel, x, stride=1):
        size = len(kernel)
        sides = x.shape[1] // stride
        margin = max((sides - 1) * stride + size - x.shape[1], 0)
        x = np.pad(x, ((0, 0), *[(margin // 2, margin - margin // 2)] * 2, (0, 0)))
        found = np.zeros((len(x), sides, sides, kernel.shape[-1]))
        for i in range(sides):
            for j in range(sides):
                patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
                found[:, i, j] = np.einsum("nhwc,hwcd->nd", patch, kernel)
        return found

    def normalised(layer, x):
        grouped = x.reshape(*x.shape[:3], 2, -1)
        centred = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=(1, 2, 4), keepdims=True) + 1e-6)
        return scaled.reshape(x.shape) * layer["scale"] + layer["bias"]

    def block(layers, x, stride):
        y = np.maximum(normalised(layers["GroupNorm_0"], convolved(layers["Conv_0"]["kernel"], x, stride)), 0)
        y = normalised(layers["GroupNorm_1"], convolved(layers["Conv_1"]["kernel"], y))
        if "Conv_2" in layers:
            x = normalised(layers["GroupNorm_2"], convolved(layers["Conv_2"]["kernel"], x, stride))
        return np.maximum(x + y, 0)

    x = np.maximum(normalised(p["GroupNorm_0"], convolved(p["Conv_0"]["kernel"], images.astype(np.float64))), 0)
    assert "Conv_2" not in p["ResidualBlock_0"]
    x = block(p["ResidualBlock_1"], block(p["ResidualBlock_0"], x, 1), 2)
    logits = x.mean(axis=(1, 2)) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, images), logits, rtol=1e-4, atol=1e-5)


def test_the_default_resnet_has_three_stages_of_one_block():
    found = shapes(build_model(ResNet(kind="resnet"), classes=10), (32, 32, 3))
    kernels = [shape for name, shape in found.items() if "kernel" in name and len(shape) == 4]
    assert [shape[-1] for shape in kernels].count(16) == 1 + 2
    assert [shape[-1] for shape in kernels].count(32) == [shape[-1] for shape in kernels].count(64) == 3
    assert found["['Dense_0']['kernel']"] == (64, 10)
    deeper = shapes(build_model(ResNet(kind="resnet", blocks=3), classes=10), (32, 32, 3))
    assert sum("Conv" in name for name in deeper) == 1 + 2 * 9 + 2  # the network of 20 layers, and two shortcuts


def test_an_output_of_a_resnet_depends_on_its_own_image_alone():
    model = build_model(ResNet(kind="resnet", channels=(4, 8), groups=4), classes=3)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    predict = jax.jit(model.apply)
    outputs = predict(variables, images)
    other = images.copy()
    other[1] = 0
    np.testing.assert_allclose(predict(variables, other)[::2], outputs[::2], rtol=1e-5, atol=1e-6)


def test_channels_that_the_groups_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"\[16, 20\] are not all multiples of groups, which is 8"):
        ResNet(kind="resnet", channels=(16, 20))
