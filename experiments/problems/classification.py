"""Images with labels: digits, MNIST, Fashion-MNIST and CIFAR-10, and the networks that classify them."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.problems.cifar10 import load_cifar10
from experiments.problems.dataset import Dataset, Examples, standardized, stratified_split
from experiments.problems.digits import load_digits
from experiments.problems.idx import FASHION_MNIST, MNIST, load_idx
from experiments.problems.models import build_model
from experiments.problems.problem import LOSSES, Metric, Params, Problem
from experiments.settings.errors import DataError
from experiments.settings.problem import Classification, Data


def build_classification(settings: Classification, data_dir: str | os.PathLike[str] | None = None) -> Problem:
    """A network on standardized images.

    Outputs are logits (n, classes). Targets are labels (n,) int32 for softmax cross-entropy, one-hot rows (n, classes)
    for the other losses; the metric is the accuracy.

    Raises:
      DataError: the data cannot be had, or has fewer examples than the configuration asks for.
    """
    labelled = load_images(settings.data.name, data_dir)
    classes = int(labelled.train.targets.max()) + 1
    dataset = standardized(_restricted(labelled, settings.data))
    one_hot = settings.loss != "softmax_cross_entropy"
    model = build_model(settings.model, classes)
    one_image = dataset.train.inputs[:1]

    def predict(params: Params, images: jax.Array) -> jax.Array:
        return model.apply({"params": params}, images)

    return Problem(
        _with_targets(dataset, lambda labels: np.eye(classes, dtype=np.float32)[labels]) if one_hot else dataset,
        init=lambda seed: model.init(jax.random.key(seed), one_image)["params"],
        predict=predict,
        loss=LOSSES[settings.loss],
        metric=accuracy(predict, one_hot),
        l2=settings.l2,
        precision=settings.precision,
    )


def accuracy(predict: Callable[[Params, Any], jax.Array], one_hot: bool = False) -> Metric:
    """The fraction of examples whose largest output is that of their class."""

    def right(params: Params, inputs: Any, targets: jax.Array) -> jax.Array:
        labels = targets.argmax(axis=-1) if one_hot else targets
        return predict(params, inputs).argmax(axis=-1) == labels

    return Metric("accuracy", right, format="{:.2%}", higher_is_better=True)


def load_images(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Images as read, uint8, with their labels.

    Raises:
      DataError: the data cannot be had.
    """
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


def _with_targets(dataset: Dataset, targets: Callable[[np.ndarray], np.ndarray]) -> Dataset:
    return dataset.map(lambda part: Examples(part.inputs, targets(part.targets)))


def _restricted(dataset: Dataset, settings: Data) -> Dataset:
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
