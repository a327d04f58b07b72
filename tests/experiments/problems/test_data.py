"""Data files are read as their formats say, found where they are said to be, and never half there."""

import gzip
import hashlib
import io
import struct
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from sklearn.datasets import load_digits as sklearn_digits

from experiments.problems import cifar10
from experiments.problems.build import build_problem
from experiments.problems.cifar10 import load_cifar10, read_cifar10
from experiments.problems.dataset import Dataset, Examples, standardized, stratified_split
from experiments.problems.digits import load_digits
from experiments.problems.idx import FASHION_MNIST, MNIST, load_idx, read_idx
from experiments.problems.storage import data_root
from experiments.settings.errors import DataError
from experiments.settings.problem import MLP, Classification, Data

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_files(train: int = 6, test: int = 3) -> dict[str, bytes]:
    random = np.random.default_rng(0)
    return {
        TRAIN_IMAGES: idx_bytes(random.integers(0, 256, (train, 5, 4))),
        TRAIN_LABELS: idx_bytes(random.integers(0, 10, train)),
        TEST_IMAGES: idx_bytes(random.integers(0, 256, (test, 5, 4))),
        TEST_LABELS: idx_bytes(random.integers(0, 10, test)),
    }


def cifar_bytes(labels: list[int]) -> bytes:
    """Pixel (row, column) of channel c holds (7 row + 3 column + 50 c + label) mod 256, written byte by byte."""
    records = bytearray()
    for label in labels:
        records.append(label)
        for channel in range(3):
            records += bytes((7 * i + 3 * j + 50 * channel + label) % 256 for i in range(32) for j in range(32))
    return bytes(records)


@pytest.fixture
def no_network(monkeypatch):
    """Mirrors that refuse connections at once."""
    nowhere = ("http://127.0.0.1:9/",)
    monkeypatch.setattr(cifar10, "_ARCHIVE", replace(cifar10._ARCHIVE, mirrors=nowhere))
    return lambda family: replace(family, mirrors=nowhere)


@pytest.fixture
def mirror(tmp_path):
    """A folder served over HTTP on this machine, and its URL prefix."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


class TestDigits:
    def test_the_split_is_80_to_20_and_every_class_keeps_its_share(self):
        dataset = load_digits()
        assert (len(dataset.train), len(dataset.test)) == (1437, 360)
        shares = [np.bincount(part.targets) / len(part) for part in (dataset.train, dataset.test)]
        np.testing.assert_allclose(shares[0], shares[1], atol=2 / 360)

    def test_train_and_test_together_are_the_digits_of_scikit_learn(self):
        dataset = load_digits()
        images = np.concatenate([dataset.train.inputs, dataset.test.inputs])[..., 0].reshape(-1, 64)
        expected = sklearn_digits().data
        assert np.array_equal(images[np.lexsort(images.T)], expected[np.lexsort(expected.T)])

    def test_the_split_is_always_the_same(self):
        assert load_digits().fingerprint() == load_digits().fingerprint()


class TestIdx:
    @pytest.mark.parametrize("compressed", [False, True])
    def test_a_file_written_by_hand_is_read_back(self, tmp_path, compressed):
        array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        content = idx_bytes(array)
        path = tmp_path / "file"
        path.write_bytes(gzip.compress(content) if compressed else content)
        np.testing.assert_array_equal(read_idx(path), array)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not an IDX file"),
            (b"PK\3\4", "not an IDX file"),
            (struct.pack(">BBBBI", 0, 0, 13, 1, 1) + b"\0\0\0\0", "element type 0x0d"),
            (struct.pack(">BBBBI", 0, 0, 8, 3, 1), "ends inside its header"),
            (struct.pack(">BBBBI", 0, 0, 8, 1, 5) + b"abc", "3 bytes of data where its header (5,) says 5"),
            (gzip.compress(idx_bytes(np.zeros(99)), mtime=0)[:-9], "damaged gzip file"),
        ],
    )
    def test_a_damaged_file_is_refused_with_its_name(self, tmp_path, content, message):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            read_idx(path)
        assert str(path) in str(error.value)
        assert message in str(error.value)

    @pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
    def test_a_data_set_is_found_in_its_folder_raw_or_compressed(self, tmp_path, folder):
        files = idx_files()
        target = tmp_path / folder
        target.mkdir(parents=True)
        for i, (name, content) in enumerate(files.items()):
            path = target / (name if i % 2 else f"{name}.gz")
            path.write_bytes(content if i % 2 else gzip.compress(content))
        for root in (tmp_path, target):
            dataset = load_idx(MNIST, root)
            assert dataset.train.inputs.shape == (6, 5, 4, 1)
            assert dataset.test.targets.tolist() == list(files[TEST_LABELS][8:])

    def test_mnist_in_the_root_is_not_taken_for_fashion_mnist(self, tmp_path, no_network):
        folder = tmp_path / "mnist"
        folder.mkdir()
        for name, content in idx_files().items():
            (folder / name).write_bytes(content)
        with pytest.raises(DataError, match="Fashion-MNIST was not found"):
            load_idx(no_network(FASHION_MNIST), folder)

    def test_images_and_labels_of_different_number_are_refused(self, tmp_path):
        folder = tmp_path / "mnist"
        folder.mkdir()
        for name, content in (idx_files() | {TRAIN_LABELS: idx_bytes(np.zeros(5))}).items():
            (folder / name).write_bytes(content)
        with pytest.raises(DataError, match="inputs of 6 but targets of 5 examples"):
            load_idx(MNIST, tmp_path)


class TestCifar10:
    def test_records_written_by_hand_are_read_back_channels_last(self, tmp_path):
        path = tmp_path / "test_batch.bin"
        path.write_bytes(cifar_bytes([3, 9]))
        examples = read_cifar10(path)
        assert examples.targets.tolist() == [3, 9]
        assert examples.inputs.shape == (2, 32, 32, 3)
        assert examples.inputs[1, 4, 6, 2] == (7 * 4 + 3 * 6 + 50 * 2 + 9) % 256

    def test_a_subset_may_have_fewer_files_a_full_folder_may_not(self, tmp_path, no_network):
        for name in ("cifar10", "cifar10-subset"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "data_batch_1.bin").write_bytes(cifar_bytes([1, 2, 3]))
            (tmp_path / name / "test_batch.bin").write_bytes(cifar_bytes([4]))
        assert len(load_cifar10(tmp_path).train) == 3
        (tmp_path / "cifar10-subset" / "data_batch_1.bin").unlink()
        with pytest.raises(DataError, match="CIFAR-10 was not found"):
            load_cifar10(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"x" * 3072, cifar_bytes([1])[:-1], bytes([10]) + bytes(3072)])
    def test_a_damaged_file_is_refused(self, tmp_path, content):
        path = tmp_path / "test_batch.bin"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"not a whole number of records|label 10"):
            read_cifar10(path)


class TestRoot:
    def test_the_option_comes_before_the_variable_and_both_before_the_cache(self, tmp_path, monkeypatch):
        first, second = tmp_path / "first", tmp_path / "second"
        first.mkdir()
        second.mkdir()
        monkeypatch.delenv("HFOPT_DATA", raising=False)
        assert data_root().path == platformdirs.user_cache_path("hfopt") / "data"
        monkeypatch.setenv("HFOPT_DATA", str(second))
        assert data_root().path == second
        assert data_root(first).path == first

    def test_a_folder_that_does_not_exist_is_an_error_not_a_download(self, tmp_path, monkeypatch):
        with pytest.raises(DataError, match=r"--data-dir is .*nowhere, which is not a folder"):
            data_root(tmp_path / "nowhere")
        monkeypatch.setenv("HFOPT_DATA", str(tmp_path / "nowhere"))
        with pytest.raises(DataError, match="HFOPT_DATA is"):
            data_root()


class TestDownload:
    def serve(self, folder: Path, content: dict[str, bytes]) -> tuple[str, ...]:
        """Puts compressed files on the mirror; returns their MD5s."""
        for name, data in content.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        return tuple(hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest() for name in content)

    def test_missing_files_come_from_the_first_mirror_that_has_them(self, tmp_path, mirror):
        folder, url = mirror
        files = idx_files()
        family = replace(MNIST, mirrors=("http://127.0.0.1:9/", url), md5s=self.serve(folder, files))
        root = tmp_path / "data"
        root.mkdir()
        dataset = load_idx(family, root)
        assert dataset.train.targets.tolist() == list(files[TRAIN_LABELS][8:])
        assert sorted(path.name for path in (root / "mnist").iterdir()) == sorted(f"{name}.gz" for name in files)
        assert load_idx(replace(family, mirrors=()), root).fingerprint() == dataset.fingerprint()

    def test_a_file_with_another_checksum_is_not_kept(self, tmp_path, mirror):
        folder, url = mirror
        md5s = self.serve(folder, idx_files())
        family = replace(MNIST, mirrors=(url,), md5s=("0" * 32, *md5s[1:]))
        root = tmp_path / "data"
        root.mkdir()
        with pytest.raises(DataError, match=r"(?s)could not be downloaded.*hash"):
            load_idx(family, root)
        assert list(root.rglob("*")) == []

    def test_cifar10_is_unpacked_whole_or_not_at_all(self, tmp_path, mirror, monkeypatch):
        folder, url = mirror
        names = [*cifar10._TRAIN_FILES, cifar10._TEST_FILE]

        def publish(members):
            archive = folder / "cifar-10-binary.tar.gz"
            with tarfile.open(archive, "w:gz") as tar:
                for i, name in enumerate(members):
                    content = cifar_bytes([i])
                    member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            md5 = hashlib.md5(archive.read_bytes()).hexdigest()
            monkeypatch.setattr(cifar10, "_ARCHIVE", replace(cifar10._ARCHIVE, mirrors=(url,), md5=md5))

        root = tmp_path / "data"
        root.mkdir()
        publish(names[:-1])
        with pytest.raises(DataError, match=r"lacks test_batch\.bin"):
            load_cifar10(root)
        assert not (root / "cifar-10-batches-bin").exists()
        publish(names)
        dataset = load_cifar10(root)
        assert dataset.train.targets.tolist() == [0, 1, 2, 3, 4]
        assert dataset.test.targets.tolist() == [5]

    def test_offline_one_message_says_what_is_missing_where_and_what_to_do(self, tmp_path, no_network):
        with pytest.raises(DataError) as error:
            load_idx(no_network(MNIST), tmp_path)
        message = str(error.value)
        for part in ("MNIST was not found", TRAIN_IMAGES, str(tmp_path / "mnist"), "no connection", "HFOPT_DATA"):
            assert part in message
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(DataError, match=r"(?s)CIFAR-10 was not found.*data_batch_5\.bin.*no connection"):
            load_cifar10(tmp_path)


class TestParts:
    def examples(self, n: int) -> Examples:
        return Examples(np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2, 1), (np.arange(n) % 2).astype(np.int32))

    def test_a_stratified_split_keeps_every_example_once(self):
        kept, held_out = stratified_split(self.examples(20), 0.3)
        assert (len(kept), len(held_out)) == (14, 6)
        assert held_out.targets.sum() == 3
        assert sorted([*kept.inputs[:, 0, 0, 0], *held_out.inputs[:, 0, 0, 0]]) == list(range(0, 80, 4))

    def test_a_split_that_cannot_be_is_an_error(self):
        with pytest.raises(DataError, match="3 examples cannot be split with 2 held out"):
            stratified_split(self.examples(3), 2)

    def test_no_examples_are_an_error(self):
        with pytest.raises(DataError, match="no examples"):
            Examples(np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, np.int32))

    def test_standardizing_uses_the_training_set_alone_and_survives_a_constant_channel(self):
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (50, 3, 3, 2)).astype(np.uint8)
        images[..., 1] = 7
        train = Examples(images, np.zeros(50, np.int32))
        test = Examples(images[:5], np.zeros(5, np.int32))
        dataset = standardized(Dataset(train, test))
        reference = images[..., 0].astype(np.float64)
        expected = (reference - reference.mean()) / reference.std()
        np.testing.assert_allclose(dataset.train.inputs[..., 0], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dataset.test.inputs[..., 0], expected[:5], rtol=1e-5, atol=1e-6)
        assert not dataset.train.inputs[..., 1].any()

    def test_a_problem_cuts_the_training_set_and_holds_out_a_validation_set(self):
        model = MLP(kind="mlp", hidden=())
        data = Data(name="digits", train_examples=500, validation_fraction=0.2)
        settings = Classification(family="classification", data=data, model=model)
        dataset = build_problem(settings).dataset
        assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (400, 100, 360)
        with pytest.raises(DataError, match="train_examples is 2000, but digits has 1437"):
            build_problem(replace(settings, data=Data(name="digits", train_examples=2000)))
