"""Runs split over several devices: the numbers of one device."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.runs.recording import read_metrics
from experiments.training.batches import Rows
from experiments.training.placement import split
from hfopt import sharding

ROOT = Path(__file__).parents[3]
# 100 examples and a curvature of 23 divide by no 8 devices.
BATCHES = "{gradient: 100, curvature: 23, evaluation: 40, chunk_size: 30}"


@pytest.mark.slow
def test_a_run_on_eight_devices_is_that_of_one(small_file, tmp_path):
    chosen = ["--optimizer", "hessian_free"]
    # Well damped: where CG is far from converged, float32 rounding alone moves its iterate in the fourth digit.
    settings = f"{{steps: 3, damping: constant, initial_damping: 1, batches: {BATCHES}}}"
    arguments = ["run", str(small_file), *chosen, "--set", f"optimizers.hessian_free={settings}"]
    assert main([*arguments, "--runs-dir", str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "experiments", *arguments, "--runs-dir", str(tmp_path / "eight"), "--devices", "8"]
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    one, eight = (read_metrics(next((tmp_path / name).glob("*/*-seed*"))) for name in ("one", "eight"))
    for name in ("loss", "evaluation_loss", "new_loss", "train_loss"):
        values = [[row[name] for row in rows if name in row] for rows in (one, eight)]
        assert len(values[0]) >= 2
        np.testing.assert_allclose(*values, rtol=1e-4, err_msg=name)
    assert '"devices": 8' in next((tmp_path / "eight").glob("*/*/environment.json")).read_text()


def test_what_is_repeated_to_fill_the_devices_weighs_nothing(monkeypatch):
    monkeypatch.setattr(sharding, "shard_batch", lambda batch, mesh: batch)
    four_devices = SimpleNamespace(size=4)  # there are none here to make a mesh of
    rows = split(Rows(np.arange(5, 11), np.array([4, 0]), None), 20, four_devices)
    assert rows.gradient.rows.tolist() == [5, 6, 7, 8, 9, 10, 5, 6]
    assert rows.gradient.weights.tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    assert rows.curvature.rows.tolist() == [9, 5, 9, 5]  # numbers of rows of the data
    assert rows.curvature.weights.tolist() == [1, 1, 0, 0]
    assert rows.evaluation is None


def test_more_devices_than_there_are_is_one_message(small_file, tmp_path, capsys):
    jax.devices()
    assert main(["run", str(small_file), "--runs-dir", str(tmp_path), "--devices", "1000"]) == 2
    assert "asked for 1000 devices, but JAX has" in capsys.readouterr().err
