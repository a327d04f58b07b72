"""Losses that are not finite in the middle of training: what goes on, what ends, and how it is reported."""

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runs import runner
from experiments.settings.config_file import load_config
from tests.experiments.conftest import rows


def with_fault(problem):
    """Predicts NaN for a batch of 50 with the first training image in it, and is well on any other number of images."""

    def predict(params, images):
        outputs = problem.predict(params, images)
        fault = (images == problem.dataset.train.inputs[0]).all(axis=(1, 2, 3)).any()
        return jnp.where(fault, jnp.nan, outputs) if len(images) == 50 else outputs

    return replace(problem, predict=predict)


FAULTY = ("optimizers.hessian_free={steps: 8, batches: {gradient: 50}}", "optimizers.adam.batches.gradient=50")


@pytest.fixture
def faulty(plan, monkeypatch):
    """(its plan, the steps whose batch has the fault); `run` meets the same problem."""
    healthy = plan(*FAULTY, "optimizer=hessian_free", "recording.evaluate_every_epochs=0.01")
    problem = with_fault(healthy.problem)
    monkeypatch.setattr(runner, "build_problem", lambda *_: problem)
    steps = [step for step in range(8) if 0 in healthy.batches.rows(step).gradient]
    assert len(steps) == 2  # once in each of two epochs
    return replace(healthy, problem=problem), steps


def test_training_goes_on_after_a_step_that_is_rejected_because_its_loss_is_not_finite(faulty):
    plan, faults = faulty
    recorded = rows(plan)
    assert recorded[-1]["step"] == 8
    assert [row["step"] - 1 for row in recorded[1:] if not math.isfinite(row["loss"])] == faults
    for step in faults:
        before, after = recorded[step], recorded[step + 1]
        assert after["accepted"] is False
        assert after["train_loss"] == before["train_loss"]
    assert recorded[-1]["train_loss"] < recorded[0]["train_loss"]


def test_a_run_that_only_rejected_such_steps_is_finished_and_counts_them(faulty, small_file, tmp_path, console):
    config = load_config(small_file, [*FAULTY, "optimizer=hessian_free"])
    summary = runner.run(config, runs=tmp_path, console=console).summary
    assert (summary["status"], summary["steps"]) == ("finished", 8)
    assert summary["rejected"] == sum(row.get("accepted") is False for row in rows(faulty[0])) >= 2


def test_a_first_order_method_has_no_way_past_them(faulty, small_file, tmp_path, console):
    summary = runner.run(load_config(small_file, FAULTY), runs=tmp_path, console=console).summary
    assert (summary["status"], summary["steps"]) == ("diverged", faulty[1][0] + 1)
    assert "rejected" not in summary


def test_a_run_that_ends_with_a_training_loss_that_is_not_finite_has_diverged(
    plan, small_file, tmp_path, console, monkeypatch
):
    problem = plan("optimizer=hessian_free").problem
    train_set = problem.dataset.train
    images = np.where(np.arange(200)[:, None, None, None] == 0, np.nan, train_set.inputs)
    dataset = replace(problem.dataset, train=replace(train_set, inputs=images))
    monkeypatch.setattr(runner, "build_problem", lambda *_: replace(problem, dataset=dataset))
    config = load_config(small_file, ["optimizer=hessian_free", "optimizers.hessian_free.batches={gradient: full}"])
    summary = runner.run(config, runs=tmp_path, console=console).summary
    assert (summary["status"], summary["steps"], summary["rejected"]) == ("diverged", 4, 4)
