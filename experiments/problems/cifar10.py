"""CIFAR-10 in its binary files: records of one label byte and 3,072 pixel bytes, all red, then green, then blue.

A folder named `cifar10-subset` may hold fewer records, in fewer `data_batch_*.bin` files, than the published set.
"""

import os
from pathlib import Path

import numpy as np

from experiments.problems.dataset import Dataset, Examples
from experiments.problems.storage import (
    Download,
    candidate_folders,
    data_root,
    download,
    missing_data_message,
    unpack,
)
from experiments.settings.errors import DataError

_FOLDERS = ("cifar-10-batches-bin", "cifar10")
_SUBSET_FOLDER = "cifar10-subset"
_TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST_FILE = "test_batch.bin"
_ARCHIVE = Download(
    "cifar-10-binary.tar.gz", ("https://www.cs.toronto.edu/~kriz/",), md5="c32a1d4ab5d03f1284b67883e8d87530"
)
_RECORD = 1 + 3 * 32 * 32


def load_cifar10(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """50,000 training and 10,000 test images (fewer from a subset) of shape (32, 32, 3), found or downloaded.

    Raises:
      DataError: the files are neither there nor to be had, or are not what they should be.
    """
    root = data_root(data_dir)
    searched = candidate_folders(root, (*_FOLDERS, _SUBSET_FOLDER))
    folder = next((folder for folder in searched if _is_complete(folder)), None)
    if folder is None:
        folder = searched[0]
        try:
            _fetch(root.path, folder)
        except DataError as error:
            wanted = f"{', '.join(_TRAIN_FILES)} and {_TEST_FILE} (in {_SUBSET_FOLDER}: at least one of the former)"
            raise DataError(missing_data_message("CIFAR-10", root, searched, wanted, str(error))) from None
    batches = [read_cifar10(path) for path in _train_files(folder)]
    train = Examples(np.concatenate([b.inputs for b in batches]), np.concatenate([b.targets for b in batches]))
    return Dataset(train, read_cifar10(folder / _TEST_FILE))


def read_cifar10(path: Path) -> Examples:
    """The records of one binary file.

    Raises:
      DataError: the file is not a whole number of records, or has a label above 9.
    """
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % _RECORD:
        raise DataError(f"{path}: {content.size} bytes is not a whole number of records of {_RECORD} bytes")
    records = content.reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() > 9:
        raise DataError(f"{path}: label {labels.max()}; CIFAR-10 has labels 0 to 9")
    channels_first = records[:, 1:].reshape(-1, 3, 32, 32)
    return Examples(np.ascontiguousarray(channels_first.transpose(0, 2, 3, 1)), labels)


def _train_files(folder: Path) -> list[Path]:
    return [folder / name for name in _TRAIN_FILES if (folder / name).is_file()]


def _is_complete(folder: Path) -> bool:
    required = 1 if folder.name == _SUBSET_FOLDER else len(_TRAIN_FILES)
    return (folder / _TEST_FILE).is_file() and len(_train_files(folder)) >= required


def _fetch(root: Path, folder: Path) -> None:
    if folder.exists():
        raise DataError(f"{folder} exists but is incomplete; remove it to have it downloaded again")
    download([_ARCHIVE], root)
    unpack(root / _ARCHIVE.filename, (*_TRAIN_FILES, _TEST_FILE), folder)
