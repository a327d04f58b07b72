"""A run folder holds what was run, survives interruption, and is never overwritten."""

import json
import math
import os
import re
import socket
from pathlib import Path

import numpy as np
import optax
import pytest

from experiments.problems.dataset import Dataset, Examples
from experiments.runs.recording import (
    Checkpoints,
    MetricsFile,
    create_run,
    find_run,
    read_config,
    read_metrics,
    read_summary,
    write_summary,
)
from experiments.settings.config_file import load_config
from experiments.settings.errors import RunError
from experiments.training.loop import Accounts
from experiments.training.steps import TrainState


def dataset(value: int = 0) -> Dataset:
    examples = Examples(np.full((2, 1, 1, 1), value, np.uint8), np.arange(2, dtype=np.int32))
    return Dataset(examples, examples)


@pytest.fixture
def config(small_file):
    return load_config(small_file)


def test_folders_are_numbered_and_never_used_twice(tmp_path, config):
    names = [create_run(tmp_path, config, dataset()).relative_to(tmp_path).as_posix() for _ in range(3)]
    assert names == ["small/adam-seed0", "small/adam-seed0-2", "small/adam-seed0-3"]
    assert [path.name for path in (tmp_path / "small").iterdir() if path.name.startswith(".")] == []


def test_a_new_folder_has_its_configuration_and_environment(tmp_path, config):
    folder = create_run(tmp_path, config, dataset())
    assert read_config(folder) == config
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["packages"]["jax"]
    assert facts["data"]["training_examples"] == 2
    text = (folder / "environment.json").read_text() + (folder / "config.yaml").read_text()
    for private in (str(Path.home()), os.getcwd(), str(tmp_path), socket.gethostname()):
        assert not re.search(rf"\b{re.escape(private)}\b", text) or len(private) < 3


def test_resuming_finds_the_latest_run_of_the_same_settings(tmp_path, config):
    assert find_run(tmp_path, config, dataset()) is None
    folders = [create_run(tmp_path, config, dataset()) for _ in range(11)]
    assert find_run(tmp_path, config, dataset()) == folders[-1]  # -11, not -9


def test_resuming_refuses_other_settings_and_other_data(tmp_path, config, small_file):
    create_run(tmp_path, config, dataset())
    changed = load_config(small_file, ["optimizers.adam.learning_rate=0.5"])
    with pytest.raises(RunError, match=r"(?s)cannot resume.*optimizers\.adam\.learning_rate: 0\.01 -> 0\.5"):
        find_run(tmp_path, changed, dataset())
    with pytest.raises(RunError, match="the data are not those it began with"):
        find_run(tmp_path, config, dataset(value=1))


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path):
    metrics = MetricsFile(tmp_path, keep_steps=None)
    for step in range(5):
        metrics.append({"step": step})
    metrics.close()
    metrics = MetricsFile(tmp_path, keep_steps=2)
    metrics.append({"step": 3, "again": True})
    metrics.close()
    assert read_metrics(tmp_path) == [{"step": 0}, {"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_without_a_checkpoint_metrics_start_anew(tmp_path):
    for _ in range(2):
        metrics = MetricsFile(tmp_path, keep_steps=None)
        metrics.append({"step": 0})
        metrics.close()
    assert read_metrics(tmp_path) == [{"step": 0}]


def test_a_line_that_was_being_written_does_not_count_but_a_damaged_one_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1]
    path.write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(RunError, match="line 2: not valid JSON"):
        read_metrics(tmp_path)
    with pytest.raises(RunError, match="not a run folder"):
        read_metrics(tmp_path / "elsewhere")


def test_numbers_that_are_not_finite_are_valid_json_and_come_back(tmp_path):
    metrics = MetricsFile(tmp_path, keep_steps=None)
    metrics.append({"step": 0, "nan": math.nan, "up": math.inf, "down": -math.inf, "word": "nan"})
    metrics.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["nan"])
    assert (row["up"], row["down"], row["word"]) == (math.inf, -math.inf, "nan")


def test_a_summary_means_finished(tmp_path):
    assert read_summary(tmp_path) is None
    write_summary(tmp_path, {"train_loss": math.nan, "nested": {"loss": math.inf}})
    summary = read_summary(tmp_path)
    assert math.isnan(summary["train_loss"])
    assert summary["nested"] == {"loss": math.inf}


def test_a_checkpoint_gives_back_every_bit(tmp_path):
    params = {"layer": {"kernel": np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)}}
    transformation = optax.adam(0.1)
    state = TrainState(params, transformation.init(params))
    accounts = Accounts(steps=3, gradients=3, seconds=0.1 + 0.2)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(state) is None
    checkpoints.save(state, accounts)
    checkpoints.close()
    again = Checkpoints(tmp_path)
    restored, restored_accounts = again.restore(state)
    again.close()
    assert restored_accounts == accounts
    np.testing.assert_array_equal(restored.params["layer"]["kernel"], params["layer"]["kernel"])
    assert type(restored.opt_state) is type(state.opt_state)
