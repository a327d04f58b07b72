"""Deep autoencoders on grey images, the problems that Hessian-free training was made known with.

An encoder of fully connected layers narrows an image x in [0, 1]^D to a code, and its mirror image widens the code
to D logits z. The code is linear, every other hidden layer has the activation. The loss of an example is the mean over
pixels of the sigmoid cross-entropy −x log σ(z) − (1 − x) log σ(−z), and what is reported beside it is the squared error

    squared_error = mean over images of Σ over pixels of (σ(z) − x)²,

as the literature does, whose objective is the sum over pixels, D times ours: an l2 of 2e-5 there is 2e-5 / D here.

Sources: Hinton & Salakhutdinov, "Reducing the dimensionality of data with neural networks", Science 313, 2006 (nets,
data and measure); Martens, "Deep learning via Hessian-free optimization", ICML 2010 (sparse initialisation).
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.problems.curves import curve_images
from experiments.problems.dataset import Dataset, Examples
from experiments.problems.digits import load_digits
from experiments.problems.idx import MNIST, load_idx
from experiments.problems.problem import LOSSES, Metric, Params, Problem
from experiments.settings.errors import DataError
from experiments.settings.problem import Autoencoder as Settings

SPARSE_CONNECTIONS = 15
CURVES_TRAIN, CURVES_TEST = 20_000, 10_000
_CURVES_TRAIN_SEED, _CURVES_TEST_SEED = 1, 2


class Autoencoder(nn.Module):
    """Images (n, D) in [0, 1] -> logits (n, D).

    hidden: the widths from the first hidden layer to the code; the decoder mirrors those before the code.
    """

    hidden: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        *widths, code = self.hidden
        x = images
        for width in widths:
            x = self.activation(nn.Dense(width)(x))
        x = nn.Dense(code)(x)
        for width in reversed(widths):
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(images.shape[-1])(x)


def sparse_normal(random: np.random.Generator, shape: tuple[int, int], deviation: float = 1.0) -> np.ndarray:
    """A kernel (inputs, units) with 15 connections into a unit, drawn N(0, deviation²), and zeros elsewhere; float32.

    All are drawn where a unit has fewer inputs. Source: Martens 2010, section 5.
    """
    # The places of the smallest of independent uniform numbers are a random choice without repetition.
    chosen = random.random(shape).argsort(axis=0)[:SPARSE_CONNECTIONS]
    kernel = np.zeros(shape, np.float32)
    np.put_along_axis(kernel, chosen, deviation * random.standard_normal(chosen.shape, np.float32), axis=0)
    return kernel


def sparse_start(shapes: Params, activation: str, seed: int) -> Params:
    """Parameters of the given shapes with sparse kernels and constant biases.

    Biases are zero. For tanh, which is 2σ(2·) − 1, weights are scaled by 1/4 and biases are 1/2, so that a unit starts
    about as a sigmoid unit does. Source: Sutskever, Martens, Dahl & Hinton, "On the importance of initialization and
    momentum in deep learning", ICML 2013, section 3. NumPy draws the numbers: JAX would compile for every shape.
    """
    deviation, bias = (0.25, 0.5) if activation == "tanh" else (1.0, 0.0)
    random = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if len(leaf.shape) == 1:
            return jnp.full(leaf.shape, bias, leaf.dtype)
        return jnp.asarray(sparse_normal(random, leaf.shape, deviation), leaf.dtype)

    return jax.tree.map(draw, shapes)


def build_autoencoder(settings: Settings, data_dir: str | os.PathLike[str] | None = None) -> Problem:
    """An autoencoder of flattened grey images: inputs and targets are the same (n, D) float32 array, levels in [0, 1].

    Raises:
      DataError: the data cannot be had, or has fewer examples than the configuration asks for.
    """
    dataset = _load(settings, data_dir)
    model = Autoencoder(settings.hidden, getattr(jax.nn, settings.activation))
    one_image = dataset.train.inputs[:1]

    def flax_start(seed: int) -> Params:
        return model.init(jax.random.key(seed), one_image)["params"]

    def init(seed: int) -> Params:
        if settings.initialisation == "flax":
            return flax_start(seed)
        return sparse_start(jax.eval_shape(flax_start, 0), settings.activation, seed)

    def predict(params: Params, images: jax.Array) -> jax.Array:
        return model.apply({"params": params}, images)

    return Problem(
        dataset,
        init=init,
        predict=predict,
        loss=LOSSES["sigmoid_cross_entropy"],
        metric=squared_error(predict),
        l2=settings.l2,
        precision=settings.precision,
    )


def squared_error(predict: Callable[[Params, Any], jax.Array]) -> Metric:
    """Σ over pixels of (σ(z) − x)², whose mean over images is reported."""

    def measure(params: Params, inputs: Any, targets: jax.Array) -> jax.Array:
        return ((jax.nn.sigmoid(predict(params, inputs)) - targets) ** 2).sum(axis=-1)

    return Metric("squared_error", measure, format="{:.3f}")


def _load(settings: Settings, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Flattened images with levels in [0, 1], the first so many of each set."""
    match settings.data:
        case "digits":
            digits = load_digits()
            train, test, white = digits.train.inputs, digits.test.inputs, 16
        case "mnist":
            mnist = load_idx(MNIST, data_dir)
            train, test, white = mnist.train.inputs, mnist.test.inputs, 255
        case "curves3pt":
            train = curve_images(settings.train_examples or CURVES_TRAIN, _CURVES_TRAIN_SEED)
            test = curve_images(settings.test_examples or CURVES_TEST, _CURVES_TEST_SEED)
            white = 255
    return Dataset(
        _flat(_first(train, settings.train_examples, settings.data, "train_examples"), white),
        _flat(_first(test, settings.test_examples, settings.data, "test_examples"), white),
    )


def _first(images: np.ndarray, count: int | None, data: str, key: str) -> np.ndarray:
    if count is not None and count > len(images):
        raise DataError(f"{key} is {count}, but {data} has {len(images)}")
    return images[:count]


def _flat(images: np.ndarray, white: int) -> Examples:
    levels = images.reshape(len(images), -1).astype(np.float32) / np.float32(white)
    return Examples(levels, levels)
