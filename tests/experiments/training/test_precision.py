"""`problem.float64` computes in double precision, there and nowhere else."""

import jax
import numpy as np
import pytest

from experiments.problems.build import build_problem
from experiments.runs.recording import read_metrics
from experiments.runs.runner import run
from experiments.settings.config_file import load_config
from tests.experiments.training.test_loop import linear_gradient, without_times

SETTINGS = ("optimizer=sgd", "problem.model.hidden=[]", "optimizers.sgd.steps=2")


@pytest.mark.slow
def test_a_run_in_double_precision_agrees_with_numpy_to_its_digits_and_leaves_the_next_one_alone(
    small_file, tmp_path, console
):
    def recorded(*overrides: str):
        config = load_config(small_file, [*SETTINGS, *overrides])
        return [without_times([row])[0] for row in read_metrics(run(config, runs=tmp_path, console=console).folder)]

    before = recorded()
    double = recorded("problem.float64=true")
    assert recorded() == before

    problem = build_problem(load_config(small_file, SETTINGS).problem)
    layer, train_set = problem.init(0)["Dense_0"], problem.dataset.train
    theta = tuple(np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
    value, gradient = linear_gradient(theta, train_set.inputs, train_set.targets, l2=0.01)
    # The first step of Nesterov momentum: 1.9 times that of the gradient.
    moved = tuple(t - 0.1 * 1.9 * g for t, g in zip(theta, gradient, strict=True))
    after = linear_gradient(moved, train_set.inputs, train_set.targets, l2=0.01)[0]
    assert [row["loss"] for row in double[1:]] == pytest.approx([value, after], rel=1e-12)
    assert double[0]["train_loss"] == pytest.approx(value, rel=1e-12)
    assert before[1]["loss"] == pytest.approx(value, rel=1e-5)
    assert before[1]["loss"] != pytest.approx(value, rel=1e-12)


def test_data_and_parameters_are_double_where_they_were_single(small_file):
    single = build_problem(load_config(small_file, SETTINGS).problem)
    with jax.enable_x64(True):
        double = build_problem(load_config(small_file, [*SETTINGS, "problem.float64=true"]).problem)
        params = double.init(0)
        outputs = double.predict(params, double.dataset.test.inputs[:2])
    assert {leaf.dtype for leaf in jax.tree.leaves((params, double.dataset.train.inputs, outputs))} == {np.dtype("f8")}
    assert double.dataset.train.targets.dtype == single.dataset.train.targets.dtype == np.int32
    np.testing.assert_array_equal(double.dataset.train.inputs, single.dataset.train.inputs)
    jax.tree.map(np.testing.assert_array_equal, params, single.init(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(single.init(0))} == {np.dtype("f4")}
