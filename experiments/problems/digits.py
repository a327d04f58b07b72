"""The 8×8 handwritten digits that come inside scikit-learn: 1,797 images, no files and no network needed."""

import numpy as np
from sklearn.datasets import load_digits as sklearn_digits

from experiments.problems.dataset import Dataset, Examples, stratified_split

_TEST_FRACTION = 0.2


def load_digits() -> Dataset:
    """1,437 training and 360 test images of shape (8, 8, 1), grey levels 0 to 16, in a stratified split."""
    digits = sklearn_digits()
    images = digits.images.astype(np.uint8)[..., np.newaxis]
    train, test = stratified_split(Examples(images, digits.target.astype(np.int32)), _TEST_FRACTION)
    return Dataset(train, test)
