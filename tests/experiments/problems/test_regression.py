"""Regression with known optima: the condition number, the optimum, the suboptimality, and the function to fit."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import Ridge

import hfopt
from experiments.problems.problem import Problem
from experiments.problems.regression import build_regression, smooth_function
from experiments.settings.problem import Regression
from tests.loops import train_step


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def problem(task: str, **changes: object) -> Problem:
    return build_regression(Regression(**({"family": "regression", "task": task, "examples": 60} | changes)))


def bound(given: Problem) -> hfopt.ValueFn:
    """f on the whole training set."""
    train = jax.device_put((given.dataset.train.inputs, given.dataset.train.targets))
    return hfopt.Objective(given.predict, given.loss, l2=given.l2).bind(train)


def suboptimality(given: Problem, weights: np.ndarray) -> float:
    train = given.dataset.train
    measured = jax.jit(given.metric.measure)({"weights": jnp.asarray(weights)}, train.inputs, train.targets)
    assert measured.shape == (len(train),)
    return given.metric.finish(float(measured.mean()))


@pytest.mark.parametrize("condition_number", [1e2, 1e6])
def test_condition_number_is_that_of_the_hessian(condition_number: float) -> None:
    given = problem("ill_conditioned", features=15, condition_number=condition_number)
    eigenvalues = np.linalg.eigvalsh(jax.hessian(lambda w: bound(given)({"weights": w}))(jnp.zeros(15)))
    assert eigenvalues[-1] / eigenvalues[0] == pytest.approx(condition_number, rel=1e-6)
    assert eigenvalues[-1] == pytest.approx(2)


@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_suboptimality_of_least_squares_is_zero_at_the_solution_of_another_library(l2: float) -> None:
    given = problem("ill_conditioned", features=15, condition_number=1e4, l2=l2)
    x, y = given.dataset.train.inputs, given.dataset.train.targets
    if l2:
        solution = Ridge(alpha=len(x) * l2 / 2, fit_intercept=False, solver="cholesky").fit(x, y).coef_
    else:
        solution = np.linalg.lstsq(x, y)[0]
    assert suboptimality(given, solution) < 1e-20
    assert suboptimality(given, solution + 1e-3) > 1e-10


def test_suboptimality_of_logistic_regression_is_zero_where_scipy_finds_the_minimum() -> None:
    given = problem("logistic", l2=1e-3)
    x, y = given.dataset.train.inputs, given.dataset.train.targets

    def value_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w
        p = 1 / (1 + np.exp(-z))
        return np.logaddexp(0, z).mean() - y @ z / len(y) + 5e-4 * w @ w, x.T @ (p - y) / len(y) + 1e-3 * w

    found = minimize(value_and_gradient, np.zeros(31), jac=True, method="BFGS", options={"gtol": 1e-9})
    assert suboptimality(given, found.x) < 1e-12


@pytest.mark.parametrize(("task", "l2"), [("ill_conditioned", 0.0), ("ill_conditioned", 1e-3), ("logistic", 1e-4)])
def test_suboptimality_is_the_share_of_the_first_excess_that_is_left(task: str, l2: float) -> None:
    given = problem(task, l2=l2, features=20, condition_number=1e3)
    f, zero = jax.jit(bound(given)), np.asarray(given.init(0)["weights"])
    away = 0.3 * np.cos(np.arange(len(zero)))
    between = 0.25 * away
    # f* cancels: from three points, of which one is the start.
    left, right = suboptimality(given, away), suboptimality(given, between)
    excess = [float(f({"weights": w})) for w in (zero, away, between)]
    assert suboptimality(given, zero) == pytest.approx(1, rel=1e-12)
    assert (excess[1] - excess[0]) * (right - 1) == pytest.approx((excess[2] - excess[0]) * (left - 1), rel=1e-9)


def test_logistic_regression_is_on_standardized_measurements_with_a_constant() -> None:
    dataset = problem("logistic", l2=1e-4).dataset
    x = dataset.train.inputs
    assert x.shape == (455, 31)
    assert dataset.test.inputs.shape == (114, 31)
    np.testing.assert_allclose(x[:, :30].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(x[:, :30].std(axis=0), 1)
    assert np.all(x[:, 30] == 1)
    share = load_breast_cancer().target.mean()
    assert dataset.train.targets.mean() == pytest.approx(share, abs=0.01)
    assert dataset.test.targets.mean() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("task", ["ill_conditioned", "logistic", "function"])
def test_data_are_float64_and_the_same_every_time(task: str) -> None:
    first, second = (problem(task, l2=1e-3, features=10, hidden=(4,)).dataset for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    assert {leaf.dtype for leaf in (first.train.inputs, first.train.targets)} == {np.dtype(np.float64)}


def test_metric_of_the_function_is_its_relative_error() -> None:
    given = problem("function", hidden=(5, 4))
    params, test = given.init(0), given.dataset.test
    x = test.inputs
    hidden = np.tanh(np.tanh(x @ params["dense_0"]["kernel"]) @ params["dense_1"]["kernel"])
    error = hidden @ params["dense_2"]["kernel"] - np.sin(3 * np.pi * x) * np.exp(x / 2)
    train = given.dataset.train
    np.testing.assert_allclose(test.targets, smooth_function(x))
    assert np.all(np.diff(train.inputs[:, 0]) > 0)
    assert np.abs(train.inputs).max() < 1
    measured = given.metric.finish(float(given.metric.measure(params, x, test.targets).mean()))
    assert measured == pytest.approx(np.sqrt((error**2).mean() / (train.targets**2).mean()), rel=1e-12)


def test_hessian_free_solves_least_squares_of_condition_1e5_to_1e_8() -> None:
    given = problem("ill_conditioned", features=20, condition_number=1e5)
    batch, tx = jax.device_put((given.dataset.train.inputs, given.dataset.train.targets)), hfopt.hessian_free()
    objective = hfopt.Objective(given.predict, given.loss)

    @jax.jit
    def steps(params: object) -> object:
        step = lambda _, carry: train_step(tx, objective, *carry, batch)[:2]  # noqa: E731
        return jax.lax.fori_loop(0, 40, step, (params, tx.init(params)))[0]

    assert suboptimality(given, steps(given.init(0))["weights"]) < 1e-8


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"task": "ill_conditioned", "examples": 10, "features": 20}, "fewer examples"),
        ({"task": "logistic"}, "l2 above 0"),
        ({"task": "function"}, "hidden"),
    ],
)
def test_settings_that_make_no_problem_are_refused(section: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regression(family="regression", **section)
