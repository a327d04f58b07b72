"""MNIST and Fashion-MNIST in IDX files, raw or gzip-compressed.

IDX: two zero bytes, a byte for the element type (8 is uint8), a byte for the number of axes, the axes' lengths as
big-endian 32-bit integers, then the elements in row-major order.
"""

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.problems.dataset import Dataset, Examples
from experiments.problems.storage import Download, candidate_folders, data_root, download, missing_data_message
from experiments.settings.errors import DataError

_UINT8 = 8
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class IdxFamily:
    """One published data set: its folder names (downloads go to the first), mirrors, and the MD5 of each file's .gz."""

    title: str
    folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    md5s: tuple[str, str, str, str]


MNIST = IdxFamily(
    title="MNIST",
    folders=("mnist", "MNIST/raw", "MNIST"),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    md5s=(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
FASHION_MNIST = IdxFamily(
    title="Fashion-MNIST",
    folders=("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    md5s=(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
)


def load_idx(family: IdxFamily, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """60,000 training and 10,000 test images of shape (28, 28, 1), found or downloaded.

    Raises:
      DataError: the files are neither there nor to be had, or are not what they should be.
    """
    root = data_root(data_dir)
    searched = candidate_folders(root, family.folders)
    paths = _find(searched)
    if paths is None:
        downloads = [Download(f"{name}.gz", family.mirrors, md5) for name, md5 in zip(_FILES, family.md5s, strict=True)]
        try:
            download(downloads, searched[0])
        except DataError as error:
            wanted = ", ".join(_FILES) + " (each raw or with .gz)"
            raise DataError(missing_data_message(family.title, root, searched, wanted, str(error))) from None
        paths = [searched[0] / file.filename for file in downloads]
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths)
    return Dataset(
        train=_examples(train_images, train_labels, paths[0]),
        test=_examples(test_images, test_labels, paths[2]),
    )


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file, raw or compressed (told by content, not by name).

    Raises:
      DataError: not IDX, not of bytes, or not as long as its header says.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file: {error}") from None
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{path}: not an IDX file (it should begin with two zero bytes)")
    element_type, axes = content[2], content[3]
    if element_type != _UINT8:
        raise DataError(f"{path}: IDX element type {element_type:#04x}; images and labels have 0x08 (uint8)")
    header = 4 + 4 * axes
    if len(content) < header:
        raise DataError(f"{path}: ends inside its header")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path}: {len(content) - header} bytes of data where its header {shape} says {math.prod(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(folders: list[Path]) -> list[Path] | None:
    for folder in folders:
        paths = [next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None) for name in _FILES]
        if all(paths):
            return [path for path in paths if path is not None]
    return None


def _examples(images: np.ndarray, labels: np.ndarray, path: Path) -> Examples:
    if images.ndim != 3 or labels.ndim != 1:
        raise DataError(f"{path}: images should have 3 axes and labels 1, got {images.ndim} and {labels.ndim}")
    return Examples(images[..., np.newaxis], labels.astype(np.int32))
