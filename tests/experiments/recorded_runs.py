"""Run folders as runs leave them, without any training."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments.problems.dataset import Dataset, Examples
from experiments.runs.recording import MetricsFile, create_run, write_summary
from experiments.settings.config_file import load_config

ROWS = [
    {
        "step": 0,
        "epoch": 0.0,
        "products": 0,
        "seconds": 0.0,
        "train_loss": 2.0,
        "test_loss": 2.5,
        "test_accuracy": 0.25,
    },
    {"step": 1, "epoch": 1.0, "products": 7, "seconds": 1.5, "loss": 2.0, "cg_stop": "progress", "accepted": True},
    {"step": 2, "epoch": 2.0, "products": 9, "seconds": 3.0, "loss": 1.0, "train_loss": 0.5, "test_accuracy": 0.75},
    {"step": 3, "epoch": 3.0, "products": 1234, "seconds": 4.5, "loss": float("nan"), "accepted": False},
]


def leave_run(
    runs: Path,
    small_file: Path,
    name: str = "small",
    seed: int = 0,
    *,
    rows: list[dict[str, Any]] = ROWS,
    status: str | None = "finished",
    age: float = 86400.0,
) -> Path:
    """A run folder with these rows and a checkpoint of 1,000 bytes, touched so many seconds ago; with a summary unless
    the status is None."""
    examples = Examples(np.zeros((2, 1, 1, 1), np.uint8), np.arange(2, dtype=np.int32))
    config = load_config(small_file, [f"name={name}", f"seed={seed}"])
    folder = create_run(runs, config, Dataset(examples, examples))
    metrics = MetricsFile(folder, keep_steps=None)
    for row in rows:
        metrics.append(row)
    metrics.close()
    (folder / "checkpoints" / "3").mkdir(parents=True)
    (folder / "checkpoints" / "3" / "state").write_bytes(bytes(1000))
    if status is not None:
        costs = {"steps": 3, "products": 1234, "seconds": 4.5, "compile_seconds": 6.0, "evaluation_seconds": 0.5}
        results = {"train_loss": 0.5, "test_accuracy": 0.75, "metric": "accuracy", "metric_format": "{:.2%}"}
        of = {"name": name, "optimizer": "adam", "seed": seed, "status": status, "parameters": 610}
        write_summary(folder, {**of, **results, **costs})
    touch(folder, age)
    return folder


def touch(folder: Path, age: float) -> None:
    """Gives everything in the folder the time so many seconds ago."""
    then = folder.stat().st_mtime - age
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then))
