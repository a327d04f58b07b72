"""Examples in memory, and the ways to take part of them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from sklearn.model_selection import train_test_split

from experiments.settings.errors import DataError

# One fixed seed for every split: runs of different seeds then see the same examples, and differ by training alone.
_SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)  # equal only to itself: comparing arrays by value is never meant
class Examples:
    """n inputs and their targets, each an array or a pytree of arrays whose leading axis counts the examples.

    Of images with labels: (n, height, width, channels), uint8 as read and float32 once standardized; and (n,) int32.
    """

    inputs: Any
    targets: Any

    def __post_init__(self) -> None:
        inputs, targets = ({len(leaf) for leaf in jax.tree.leaves(part)} for part in (self.inputs, self.targets))
        if len(inputs | targets) != 1:
            raise DataError(f"inputs of {_counts(inputs)} but targets of {_counts(targets)} examples")
        if len(self) == 0:
            raise DataError("no examples: the data set is empty")

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.inputs)[0])

    def take(self, rows: np.ndarray) -> "Examples":
        return Examples(*jax.tree.map(lambda leaf: leaf[rows], (self.inputs, self.targets)))


def _counts(lengths: set[int]) -> str:
    return " and ".join(map(str, sorted(lengths)))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set, a test set and, where asked for, a validation set."""

    train: Examples
    test: Examples
    validation: Examples | None = None

    def map(self, change: Callable[[Examples], Examples]) -> "Dataset":
        """Every set changed alike."""
        validation = None if self.validation is None else change(self.validation)
        return Dataset(change(self.train), change(self.test), validation)

    def fingerprint(self) -> str:
        """SHA-256 over all inputs and targets: a resumed run uses it to be sure it sees the same data."""
        digest = hashlib.sha256()
        for part in (self.train, self.test, self.validation):
            if part is not None:
                for leaf in jax.tree.leaves((part.inputs, part.targets)):
                    digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()


def stratified_split(examples: Examples, held_out: float | int) -> tuple[Examples, Examples]:
    """Splits labelled examples so that every class keeps its share: (the rest, the held-out part).

    Args:
      held_out: a fraction in (0, 1), or a number of examples.

    Raises:
      DataError: there are too few examples for every class to be on both sides.
    """
    rows = np.arange(len(examples))
    try:
        kept, taken = train_test_split(rows, test_size=held_out, stratify=examples.targets, random_state=_SPLIT_SEED)
    except ValueError as error:
        raise DataError(f"{len(examples)} examples cannot be split with {held_out} held out: {error}") from None
    return examples.take(np.sort(kept)), examples.take(np.sort(taken))


def standardized(dataset: Dataset) -> Dataset:
    """Float32 images with mean 0 and deviation 1 in each channel, both measured on the training set alone."""
    pixels = dataset.train.inputs.reshape(-1, dataset.train.inputs.shape[-1])
    mean = pixels.mean(axis=0, dtype=np.float64)
    deviation = pixels.std(axis=0, dtype=np.float64)
    deviation = np.where(deviation > 0, deviation, 1.0)  # a constant channel stays at 0 instead of dividing by it

    def scale(part: Examples) -> Examples:
        images = (part.inputs.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
        return Examples(images, part.targets)

    return dataset.map(scale)
