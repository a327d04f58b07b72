"""A configuration's `problem` made concrete: data on hand, a network, a loss, and initial parameters."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from experiments import config
from experiments.errors import DataError
from experiments.problems.cifar10 import load_cifar10
from experiments.problems.dataset import Dataset, Examples, standardized, stratified_split
from experiments.problems.digits import load_digits
from experiments.problems.idx import FASHION_MNIST, MNIST, load_idx
from experiments.problems.models import build_model

Params = Any  # a pytree of float arrays

_LOSSES: dict[str, Callable[..., jax.Array]] = {
    "softmax_cross_entropy": optax.losses.softmax_cross_entropy_with_integer_labels,
    "sigmoid_cross_entropy": optax.losses.sigmoid_binary_cross_entropy,
    "squared_error": optax.losses.squared_error,
}


@dataclass(frozen=True)
class Problem:
    """f(θ) = l2/2 ‖θ‖² + mean over examples of loss(predict(θ, images), targets).

    loss: (outputs, targets) -> (n,), or (n, classes) to be averaged over both axes.
    """

    dataset: Dataset
    model: nn.Module
    loss: Callable[..., jax.Array]
    l2: float
    precision: str = "highest"

    def init(self, seed: int) -> Params:
        """Initial parameters, a function of the seed alone."""
        one_image = self.dataset.train.images[:1]
        return self.model.init(jax.random.key(seed), one_image)["params"]

    def predict(self, params: Params, images: jax.Array) -> jax.Array:
        """Logits (n, classes) for images (n, height, width, channels)."""
        return self.model.apply({"params": params}, images)

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """What the loss compares outputs with: labels (n,) int32, or one-hot rows (n, classes) float32."""
        if self.loss is _LOSSES["softmax_cross_entropy"]:
            return labels
        return np.eye(self.dataset.classes, dtype=np.float32)[labels]


def build_problem(settings: config.Problem, data_dir: str | os.PathLike[str] | None = None) -> Problem:
    """Loads the data and builds the rest.

    Raises:
      DataError: the data cannot be had, or has fewer examples than the configuration asks for.
    """
    dataset = standardized(_restricted(_load(settings.data.name, data_dir), settings.data))
    model = build_model(settings.model, dataset.classes)
    return Problem(dataset, model, _LOSSES[settings.loss], settings.l2, settings.precision)


def _load(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    match name:
        case "digits":
            return load_digits()
        case "mnist":
            return load_idx(MNIST, data_dir)
        case "fashion_mnist":
            return load_idx(FASHION_MNIST, data_dir)
        case "cifar10":
            return load_cifar10(data_dir)
    raise DataError(f"unknown data set '{name}'")


def _restricted(dataset: Dataset, settings: config.Data) -> Dataset:
    """The training set cut to `train_examples`, then parted from its validation fraction."""
    train: Examples = dataset.train
    validation = None
    if settings.train_examples is not None and settings.train_examples != len(train):
        if settings.train_examples > len(train):
            raise DataError(f"train_examples is {settings.train_examples}, but {settings.name} has {len(train)}")
        _, train = stratified_split(train, settings.train_examples)
    if settings.validation_fraction > 0:
        train, validation = stratified_split(train, settings.validation_fraction)
    return dataclasses.replace(dataset, train=train, validation=validation)
