"""Images with labels, in memory, and the ways to take part of them."""

import hashlib
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import train_test_split

from experiments.errors import DataError

# One fixed seed for every split: runs of different seeds then see the same examples, and differ by training alone.
_SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)  # equal only to itself: comparing images by value is never meant
class Examples:
    """n images and their classes.

    images: (n, height, width, channels); uint8 as read, float32 once standardized.
    labels: (n,) int32, from 0.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} images but {len(self.labels)} labels")
        if len(self.images) == 0:
            raise DataError("no images: the data set is empty")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Examples":
        return Examples(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set, a test set and, where asked for, a validation set; `classes` is their number."""

    train: Examples
    test: Examples
    classes: int
    validation: Examples | None = None

    def fingerprint(self) -> str:
        """SHA-256 over all images and labels: a resumed run uses it to be sure it sees the same data."""
        digest = hashlib.sha256()
        for part in (self.train, self.test, self.validation):
            if part is not None:
                digest.update(np.ascontiguousarray(part.images).data)
                digest.update(np.ascontiguousarray(part.labels).data)
        return digest.hexdigest()


def stratified_split(examples: Examples, held_out: float | int) -> tuple[Examples, Examples]:
    """Splits so that every class keeps its share: (the rest, the held-out part).

    Args:
      held_out: a fraction in (0, 1), or a number of examples.

    Raises:
      DataError: there are too few examples for every class to be on both sides.
    """
    rows = np.arange(len(examples))
    try:
        kept, taken = train_test_split(rows, test_size=held_out, stratify=examples.labels, random_state=_SPLIT_SEED)
    except ValueError as error:
        raise DataError(f"{len(examples)} examples cannot be split with {held_out} held out: {error}") from None
    return examples.take(np.sort(kept)), examples.take(np.sort(taken))


def standardized(dataset: Dataset) -> Dataset:
    """Float32 images with mean 0 and deviation 1 in each channel, both measured on the training set alone."""
    pixels = dataset.train.images.reshape(-1, dataset.train.images.shape[-1])
    mean = pixels.mean(axis=0, dtype=np.float64)
    deviation = pixels.std(axis=0, dtype=np.float64)
    deviation = np.where(deviation > 0, deviation, 1.0)  # a constant channel stays at 0 instead of dividing by it

    def scale(part: Examples) -> Examples:
        images = (part.images.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
        return Examples(images, part.labels)

    validation = None if dataset.validation is None else scale(dataset.validation)
    return Dataset(scale(dataset.train), scale(dataset.test), dataset.classes, validation)
