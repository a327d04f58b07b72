"""Where data files are: one root folder, searched first and downloaded into when it lacks them.

The root is `--data-dir`, else the environment variable HFOPT_DATA, else the user's cache folder. Exactly one of them
is used, so a typing error never ends in training on other data than was meant.
"""

import os
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import pooch
import requests

from experiments.settings.errors import DataError

DATA_VARIABLE = "HFOPT_DATA"
_SECONDS_WITHOUT_DATA = 20


@dataclass(frozen=True)
class DataRoot:
    """The folder that holds one sub-folder for each data set, and the name of what chose it."""

    path: Path
    chosen_by: str


@dataclass(frozen=True)
class Download:
    """A published file: the mirrors that serve it, each a URL prefix, and its MD5."""

    filename: str
    mirrors: tuple[str, ...]
    md5: str


def data_root(data_dir: str | os.PathLike[str] | None = None) -> DataRoot:
    """The root folder for data.

    Raises:
      DataError: `data_dir` or HFOPT_DATA names a folder that does not exist.
    """
    if data_dir is None and not os.environ.get(DATA_VARIABLE):
        return DataRoot(platformdirs.user_cache_path("hfopt") / "data", "the default cache folder")
    chosen_by = DATA_VARIABLE if data_dir is None else "--data-dir"
    path = Path(os.environ[DATA_VARIABLE] if data_dir is None else data_dir).expanduser()
    if not path.is_dir():
        raise DataError(f"{chosen_by} is {path}, which is not a folder. Create it, or name one that holds the data.")
    return DataRoot(path, chosen_by)


def candidate_folders(root: DataRoot, names: Sequence[str]) -> list[Path]:
    """Sub-folders of the root with one of these names, and the root itself if it bears one of them.

    The root under another name is not searched: MNIST and Fashion-MNIST have the same file names.
    """
    folders = [root.path / name for name in names]
    if any(root.path.resolve().as_posix().endswith("/" + name) for name in names):
        folders.append(root.path)
    return folders


def download(files: Sequence[Download], folder: Path) -> None:
    """Fetches each file into `folder`; under its name there is never an incomplete or altered file.

    Raises:
      DataError: a file could not be fetched from any mirror, or arrived with another checksum. Says why for each.
    """
    created = not folder.exists()
    for file in files:
        failures = []
        for mirror in file.mirrors:
            url = mirror + file.filename
            try:
                # Writes to a temporary file beside the target, compares the checksum, then renames.
                pooch.retrieve(
                    url,
                    known_hash=f"md5:{file.md5}",
                    fname=file.filename,
                    path=folder,
                    downloader=pooch.HTTPDownloader(timeout=_SECONDS_WITHOUT_DATA),
                )
                break
            except requests.exceptions.ConnectionError:
                failures.append(f"{url}: no connection")
            except (requests.exceptions.RequestException, OSError, ValueError) as error:
                failures.append(f"{url}: {error}")
        else:
            if created and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
            raise DataError(f"{file.filename} could not be downloaded:\n  " + "\n  ".join(failures))


def unpack(archive: Path, members: Sequence[str], folder: Path) -> None:
    """Extracts the named members of a tar file, whatever folder they have inside it, as `folder`, all or nothing.

    Raises:
      DataError: the archive lacks a member or is damaged.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        staged = Path(scratch) / folder.name
        staged.mkdir()
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    name = Path(member.name).name
                    if name in members and member.isfile():
                        member.name = name
                        tar.extract(member, staged, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{archive} cannot be unpacked: {error}") from None
        missing = [name for name in members if not (staged / name).is_file()]
        if missing:
            raise DataError(f"{archive} lacks {', '.join(missing)}")
        staged.rename(folder)


def missing_data_message(what: str, root: DataRoot, searched: Sequence[Path], wanted: str, reason: str) -> str:
    """What was looked for, where, why it could not be fetched, and what to do."""
    places = "\n  ".join(str(folder) for folder in searched)
    return (
        f"{what} was not found. Looked for {wanted} in\n  {places}\n"
        f"(the root {root.path} comes from {root.chosen_by})\n{reason}\n"
        f"Either run once with a network connection, or put these files into {searched[0]}, "
        f"or pass --data-dir DIR (or set {DATA_VARIABLE}) for the folder that holds {searched[0].name}/. "
        "The digits experiments need no files."
    )
