"""Run folders: what a run leaves behind, written so that being killed at any moment loses only time.

    <runs>/<name>/<optimizer>-seed<k>[-n]/
      config.yaml       the whole configuration, defaults and overrides included
      environment.json  versions, device, and fingerprints of the data and of the source
      metrics.jsonl     one JSON object a line: step 0, then every step; NaN and infinities as strings
      checkpoints/      parameters, optimizer state and accounts (Orbax)
      summary.json      written last: a folder without it is an unfinished run
      loss.png          drawn from metrics.jsonl

A checkpoint is saved after the metrics up to its step have reached the disk. Resuming goes back to the last checkpoint
and drops the later lines of metrics, which are then computed again.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import jax
import orbax.checkpoint as ocp

from experiments.problems.dataset import Dataset
from experiments.runs.environment import ENVIRONMENT, environment
from experiments.runs.strict_json import from_json, read_json, to_json
from experiments.settings.config import Config
from experiments.settings.config_file import differing_keys, dump_config, load_config
from experiments.settings.errors import RunError
from experiments.training.loop import Accounts, Row
from experiments.training.steps import TrainState

_CONFIG, _METRICS, _SUMMARY = "config.yaml", "metrics.jsonl", "summary.json"
_CHECKPOINTS = "checkpoints"


def create_run(runs: Path, config: Config, dataset: Dataset, devices: int = 1) -> Path:
    """A new run folder with its configuration and environment in it; existing folders are left alone."""
    parent = runs / config.name
    parent.mkdir(parents=True, exist_ok=True)
    # Filled under a temporary name and then renamed: a run folder is never without its configuration.
    staged = parent / f".new-{uuid4().hex}"
    staged.mkdir()
    try:
        (staged / _CONFIG).write_text(dump_config(config), encoding="utf-8")
        (staged / ENVIRONMENT).write_text(to_json(environment(dataset, devices), indent=2) + "\n", encoding="utf-8")
        (staged / _METRICS).touch()
        return _take_number(staged, runs, config)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def is_run(folder: Path) -> bool:
    """Whether it is a run folder, finished or not."""
    return all((folder / name).is_file() for name in (_CONFIG, ENVIRONMENT, _METRICS))


def _take_number(staged: Path, runs: Path, config: Config) -> Path:
    """``staged`` renamed to the first free number of this configuration's runs."""
    number = max((number for number, _ in _runs_of(runs, config)), default=0)
    while True:
        number += 1
        folder = staged.parent / (_stem(config) + ("" if number == 1 else f"-{number}"))
        try:
            return staged.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # Another process took the name in the meantime.


def find_run(runs: Path, config: Config, dataset: Dataset) -> Path | None:
    """The latest run of this configuration, finished or not, for resuming; None if there is none.

    Raises:
      RunError: the latest run of this name, optimizer and seed was made with other settings or other data.
    """
    existing = _runs_of(runs, config)
    if not existing:
        return None
    _, folder = max(existing)
    changes = differing_keys(load_config(folder / _CONFIG), config)
    if changes:
        raise RunError(
            f"cannot resume {folder}: its settings differ (recorded -> asked for)\n  "
            + "\n  ".join(changes)
            + "\nResume it with the settings it has, or leave out --resume to start a new run."
        )
    if read_json(folder / ENVIRONMENT)["data"]["sha256"] != dataset.fingerprint():
        raise RunError(f"cannot resume {folder}: the data are not those it began with")
    return folder


def find_same_run(runs: Path, config: Config, dataset: Dataset) -> Path | None:
    """The latest run with just this configuration and these data, finished or not; None if there is none."""
    for _, folder in sorted(_runs_of(runs, config), reverse=True):
        same_data = read_json(folder / ENVIRONMENT)["data"]["sha256"] == dataset.fingerprint()
        if same_data and load_config(folder / _CONFIG) == config:
            return folder
    return None


class MetricsFile:
    """Appends rows to metrics.jsonl, one line each."""

    def __init__(self, folder: Path, keep_steps: int | None) -> None:
        """Opens the file, first dropping what lies beyond step `keep_steps` (None: everything)."""
        path = folder / _METRICS
        kept = [] if keep_steps is None else [row for row in read_metrics(folder) if row["step"] <= keep_steps]
        last = kept[-1]["step"] if kept else None
        if last != keep_steps:
            raise RunError(f"{path} ends at step {last}, before its last checkpoint at step {keep_steps}")
        _write_atomically(path, "".join(to_json(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: Row) -> None:
        self._file.write(to_json(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns once every row is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Checkpoints:
    """The latest states of a run, each complete or absent."""

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager((folder / _CHECKPOINTS).resolve(), options=options)

    def save(self, state: TrainState, accounts: Accounts) -> None:
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), accounts=ocp.args.JsonSave(asdict(accounts)))
        self._manager.save(accounts.steps, args=args)

    def restore(self, like: TrainState) -> tuple[TrainState, Accounts] | None:
        """The latest state, in the structure, shapes and dtypes of `like`; None if nothing was saved."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), accounts=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        return restored["state"], Accounts(**restored["accounts"])

    def close(self) -> None:
        self._manager.close()


@contextmanager
def opened(
    folder: Path, like: TrainState
) -> Iterator[tuple[MetricsFile, Checkpoints, tuple[TrainState, Accounts] | None]]:
    """The files of a run, brought to its last checkpoint: (metrics, checkpoints, restored state or None)."""
    checkpoints = Checkpoints(folder)
    try:
        restored = checkpoints.restore(like)
        metrics = MetricsFile(folder, keep_steps=None if restored is None else restored[1].steps)
        try:
            yield metrics, checkpoints, restored
        finally:
            metrics.close()
    finally:
        checkpoints.close()


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Declares the run finished."""
    _write_atomically(folder / _SUMMARY, to_json(summary, indent=2) + "\n")


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, None for an unfinished one."""
    path = folder / _SUMMARY
    return from_json(path.read_text(encoding="utf-8")) if path.exists() else None


def read_metrics(folder: Path) -> list[Row]:
    """All rows of a run; an incomplete last line, from a process killed while writing it, does not count.

    Raises:
      RunError: there is no metrics file, or a line before the last is damaged.
    """
    path = folder / _METRICS
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise RunError(f"{folder} is not a run folder: it has no {_METRICS}") from None
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is empty or incomplete
        try:
            rows.append(from_json(line))
        except ValueError:
            raise RunError(f"{path}, line {number}: not valid JSON") from None
    return rows


def read_config(folder: Path) -> Config:
    """The configuration a run was made with."""
    return load_config(folder / _CONFIG)


def _stem(config: Config) -> str:
    return f"{config.optimizer}-seed{config.seed}"


def _runs_of(runs: Path, config: Config) -> list[tuple[int, Path]]:
    """(n, folder) of every run with this configuration's name, optimizer and seed; the first has n = 1."""
    pattern = re.compile(re.escape(_stem(config)) + r"(?:-(\d+))?")
    parent = runs / config.name
    folders = parent.iterdir() if parent.is_dir() else ()
    matches = ((pattern.fullmatch(folder.name), folder) for folder in folders)
    return [(int(match[1] or 1), folder) for match, folder in matches if match]


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
