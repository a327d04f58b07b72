"""Traces and diagonals from random vectors: unbiased, with standard errors that are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hfopt
from hfopt import Operator
from tests.cases import CASES


def matrix(decay: float, size: int = 60) -> np.ndarray:
    """Symmetric, eigenvalues 1, decay, decay² … with random eigenvectors."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    return (q * decay ** np.arange(size)) @ q.T


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_traces_are_unbiased_and_their_standard_errors_right(method):
    a = matrix(0.95)
    operator = Operator.of_matrix(a)
    estimates = [operator.estimate_trace(jax.random.key(i), 20, method) for i in range(300)]
    scores = np.array([(e.value - np.trace(a)) / e.standard_error for e in estimates])
    values = np.array([e.value for e in estimates])
    assert abs(values.mean() - np.trace(a)) < 4 * values.std() / np.sqrt(len(values))
    assert 0.7 < np.sqrt((scores**2).mean()) < 1.5  # of 10 or 20 samples each: Student's t has heavier tails


def test_xtrace_is_far_better_where_eigenvalues_decay():
    a = matrix(0.5)
    errors = {
        method: [abs(Operator.of_matrix(a).estimate_trace(jax.random.key(i), 40, method).value - 2) for i in range(10)]
        for method in ("hutchinson", "xtrace")
    }
    assert np.max(errors["xtrace"]) < 1e-4 * np.median(errors["hutchinson"])


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_xtrace_is_exact_below_full_rank(rank):
    u = np.random.default_rng(1).normal(size=(60, rank))
    estimate = Operator.of_matrix(u @ u.T).estimate_trace(jax.random.key(0), 20)
    np.testing.assert_allclose(estimate.value, (u**2).sum(), rtol=1e-12)
    assert estimate.standard_error <= 1e-12 * max(1, (u**2).sum())


def test_diagonals_are_unbiased_and_their_standard_errors_right():
    a = matrix(0.9)
    estimates = [Operator.of_matrix(a).estimate_diagonal(jax.random.key(i), 30) for i in range(50)]
    scores = np.array([(e.value - np.diag(a)) / e.standard_error for e in estimates])
    assert abs(scores.mean()) < 0.1
    assert 0.9 < np.sqrt((scores**2).mean()) < 1.2
    exact = Operator.of_matrix(np.diag(np.arange(5.0))).estimate_diagonal(jax.random.key(0), 2)
    np.testing.assert_array_equal(exact.value, np.arange(5.0))
    np.testing.assert_array_equal(exact.standard_error, 0)


@pytest.mark.slow
def test_a_network_has_the_shapes_of_its_parameters():
    case = CASES["mlp-softmax-integer"]()
    operator = hfopt.gauss_newton(case.objective.bind(case.batch, chunk_size=3), case.params)
    trace = operator.estimate_trace(jax.random.key(0), 20)
    assert abs(trace.value - operator.trace()) < 4 * trace.standard_error + 1e-12
    diagonal = operator.estimate_diagonal(jax.random.key(0), 5)
    for part in diagonal:
        assert jax.tree.map(jnp.shape, part) == jax.tree.map(jnp.shape, case.params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, key: a.estimate_trace(key, 3), "at least 4, got 3"),
        (lambda a, key: a.estimate_trace(key, 1, "hutchinson"), "at least 2, got 1"),
        (lambda a, key: a.estimate_trace(key, 40), r"take Operator.trace\(\)"),
        (lambda a, key: a.estimate_trace(key, 10, "exact"), "`method` must be"),
        (lambda a, key: a.estimate_diagonal(key, 1), "at least 2, got 1"),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Operator.of_matrix(np.eye(6)), jax.random.key(0))


@pytest.mark.float32
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_standard_errors_do_not_depend_on_the_unit(scale):
    a = np.random.default_rng(0).normal(size=(30, 30))
    plain, scaled = (Operator.of_matrix(np.asarray(s * (a + a.T), np.float32)) for s in (1.0, scale))
    for estimate in (
        lambda A: A.estimate_trace(jax.random.key(0), 20),
        lambda A: A.estimate_trace(jax.random.key(0), 20, "hutchinson"),
        lambda A: A.estimate_diagonal(jax.random.key(0), 20),
    ):
        expected, given = (np.asarray(estimate(A).standard_error, np.float64) for A in (plain, scaled))
        assert (expected > 0).all()
        np.testing.assert_allclose(given / scale, expected, rtol=1e-2)
