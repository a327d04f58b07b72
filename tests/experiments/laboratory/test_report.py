"""The report on a model's curvature: its numbers against dense matrices, and a page that is complete by itself."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.__main__ import main
from experiments.laboratory.curvature import trained
from experiments.problems.build import build_problem
from experiments.runs.recording import read_metrics
from tests.experiments.conftest import SMALL


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The run folder of a small network that was trained for the report."""
    folder = tmp_path_factory.mktemp("report")
    path = folder / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    settings = ["--set", "optimizers.adam.epochs=2", "recording.sharpness=true"]
    assert main(["curvature", str(path), "--runs-dir", str(folder), "--optimizer", "adam", *settings]) == 0
    return folder / "small" / "adam-seed0"


@pytest.fixture(scope="module")
def dense(report) -> np.ndarray:
    """The Hessian of the flattened objective, written out."""
    config, parameters = trained(report)
    problem = build_problem(config.problem)
    flat, unravel = ravel_pytree(parameters(problem))
    train = problem.dataset.train

    def value(t):
        losses = problem.loss(problem.predict(unravel(t), train.inputs), train.targets)
        return losses.mean() + 0.5 * problem.l2 * t @ t

    return np.asarray(jax.jit(jax.hessian(value))(flat), np.float64)


@pytest.mark.slow
def test_eigenvalues_and_trace_are_those_of_the_dense_hessian(report, dense):
    numbers = json.loads((report / "curvature" / "curvature.json").read_text())
    expected = np.linalg.eigvalsh(dense)
    scale = np.abs(expected).max()
    found = np.array(numbers["hessian"]["eigenvalues"])
    np.testing.assert_allclose(found, [*expected[:3], *expected[-20:]], atol=2e-5 * scale)
    assert all(numbers["hessian"]["converged"])
    assert abs(numbers["hessian"]["trace"] - np.trace(dense)) < 5 * numbers["hessian"]["trace_standard_error"]
    low, high = numbers["smallest_eigenvalue"]
    assert low <= expected[0] <= high
    assert numbers["parameters"] == len(dense)


@pytest.mark.slow
def test_what_is_recorded_along_training_ends_at_the_largest_eigenvalue(report, dense):
    recorded = [row["sharpness"] for row in read_metrics(report) if "sharpness" in row]
    assert len(recorded) == 3  # before the first epoch and after each of two
    np.testing.assert_allclose(recorded[-1], np.linalg.eigvalsh(dense)[-1], rtol=1e-2)


@pytest.mark.slow
def test_the_page_is_complete_by_itself(report):
    page = (report / "curvature" / "report.html").read_text(encoding="utf-8")
    pictures = {"spectrum", "density", "layers", "directions", "matrices", "sharpness"}
    assert {path.stem for path in (report / "curvature").glob("*.png")} == pictures
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == len(pictures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", page)
    verdict = json.loads((report / "curvature" / "curvature.json").read_text())["verdict"]
    assert f"{verdict.capitalize()}: " in page
    assert page.count("<tr>") > 24


@pytest.mark.slow
def test_a_finished_run_is_reported_on_by_its_folder(report, capsys):
    assert main(["curvature", str(report), "--set", "seed=3"]) == 2
    assert "is a run with settings of its own" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["curvature", str(tmp_path)]) == 2
    assert "is not a run folder: it has no config.yaml" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_double_precision_is_examined_in_double_precision(tmp_path):
    """At the minimum of logistic regression the gradient is far below what float32 can tell from zero."""
    path = tmp_path / "logistic.yaml"
    path.write_text(
        "name: logistic\n"
        "problem: {family: regression, task: logistic, l2: 1.0e-3, float64: true}\n"
        "optimizers: {hessian_free: {steps: 30}}\n",
        encoding="utf-8",
    )
    assert main(["curvature", str(path), "--runs-dir", str(tmp_path)]) == 0
    (numbers,) = tmp_path.glob("logistic/*/*/curvature.json")
    assert json.loads(numbers.read_text())["gradient_norm"] < 1e-10
