"""CG against dense solves, SciPy, and the failures it must survive."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

import hfopt
from hfopt import Stop
from hfopt.curvature.operator import Halves


def _spd(n: int = 12, condition: float = 1e3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return q @ np.diag(np.geomspace(1, condition, n)) @ q.T


def _rhs(n: int = 12, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def _solve(matrix, rhs, start=None, *, max_steps=50, stop=(), **options):
    matrix = jnp.asarray(matrix)
    return hfopt.cg(max_steps, stop).solve(lambda v: matrix @ v, jnp.asarray(rhs), start, **options)


def test_n_iterations_solve_the_system():
    matrix, rhs = _spd(condition=10), _rhs()
    result = _solve(matrix, rhs, max_steps=12)
    np.testing.assert_allclose(result.solution, np.linalg.solve(matrix, rhs), rtol=1e-9)
    assert (result.steps, result.products, result.stop) == (12, 12, Stop.CAP)


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_truncated_iterates_are_scipys(steps, preconditioned):
    matrix, rhs, start = _spd(condition=20), _rhs(), _rhs(seed=2)
    inverse = 1 / (np.diag(matrix) + 1) if preconditioned else np.ones(12)
    iterates = []
    scipy.sparse.linalg.cg(
        matrix, rhs, start, rtol=0, maxiter=steps, M=np.diag(inverse), callback=lambda x: iterates.append(x.copy())
    )
    result = _solve(matrix, rhs, jnp.asarray(start), max_steps=steps, preconditioner=lambda r: inverse * r)
    np.testing.assert_allclose(result.solution, iterates[-1], rtol=1e-9)
    assert result.products == steps + 1  # one for the residual at the start


@pytest.mark.parametrize("warm", [False, True])
def test_reports_the_model_and_the_true_residual(warm):
    matrix, rhs, damping = _spd(), _rhs(), 0.7
    result = _solve(matrix, rhs, jnp.asarray(_rhs(seed=3)) if warm else None, max_steps=6, damping=damping)
    x, damped = np.asarray(result.solution), matrix + damping * np.eye(12)
    assert result.model_value == pytest.approx(0.5 * x @ damped @ x - rhs @ x, rel=1e-10)
    assert result.residual_norm == pytest.approx(np.linalg.norm(rhs - damped @ x), rel=1e-10)
    values = np.asarray(result.values)
    assert np.all(np.diff(values[:7]) < 0)
    np.testing.assert_array_equal(values[7:], 0)
    assert values[0] == pytest.approx(
        0.0 if not warm else 0.5 * _rhs(seed=3) @ damped @ _rhs(seed=3) - rhs @ _rhs(seed=3)
    )


def test_pytrees_are_vectors():
    matrix, rhs = _spd(), _rhs()
    split = lambda v: {"a": v[:4].reshape(2, 2), "b": (v[4:],)}  # noqa: E731
    join = lambda t: jnp.concatenate([t["a"].ravel(), t["b"][0]])  # noqa: E731
    result = hfopt.cg(5, ()).solve(lambda t: split(matrix @ join(t)), split(jnp.asarray(rhs)))
    np.testing.assert_allclose(join(result.solution), _solve(matrix, rhs, max_steps=5).solution, rtol=1e-10)


def test_the_unused_residual_costs_no_product():
    matrix, rhs = _spd(), jnp.asarray(_rhs())
    dots = lambda pick: str(jax.jit(lambda b: pick(_solve(matrix, b))).lower(rhs).compile().as_text()).count(" dot(")  # noqa: E731
    assert dots(lambda r: (r.solution, r.residual_norm)) > dots(lambda r: (r.solution, r.model_value))


@pytest.mark.parametrize("tolerance", [1e-1, 1e-4])
def test_relative_residual_stops_at_the_first_iterate_that_satisfies_it(tolerance):
    matrix, rhs = _spd(), _rhs()
    result = _solve(matrix, rhs, stop=hfopt.relative_residual(tolerance))
    before = _solve(matrix, rhs, max_steps=int(result.steps) - 1)
    assert result.stop == Stop.RESIDUAL
    assert result.residual_norm <= tolerance * np.linalg.norm(rhs) < before.residual_norm


def test_relative_progress_compares_with_k_times_epsilon():
    """The index it stops at, from the sequence of φ alone; comparing with ε instead of k·ε would stop later."""
    matrix, rhs = _spd(60, 1e4), _rhs(60)
    phi = np.asarray(_solve(matrix, rhs, max_steps=60).values)

    def first(threshold):
        for i in range(1, 61):
            k = max(10, int(np.ceil(0.1 * i)))
            if i > k and phi[i] < 0 and (phi[i] - phi[i - k]) / phi[i] < threshold(k):
                return i
        return None

    result = _solve(matrix, rhs, max_steps=60, stop=hfopt.relative_progress(5e-3))
    assert result.stop == Stop.PROGRESS
    assert result.steps == first(lambda k: k * 5e-3)
    assert result.steps != first(lambda k: 5e-3)


def test_the_first_rule_to_hold_is_the_reason():
    stop = (hfopt.relative_residual(0.5), hfopt.relative_progress(10.0, min_window=1))
    assert _solve(_spd(), _rhs(), stop=stop).stop in (Stop.RESIDUAL, Stop.PROGRESS)
    assert (
        _solve(_spd(), _rhs(), stop=(hfopt.relative_residual(0.9), hfopt.relative_residual(1e-9))).stop == Stop.RESIDUAL
    )


def test_negative_curvature_ends_with_the_iterate_before_it():
    matrix = np.diag([1.0, 2.0, -0.1])
    rhs = np.array([1.0, 1.0, 1e-3])
    result = _solve(matrix, rhs)
    assert result.stop == Stop.NEGATIVE_CURVATURE
    assert result.steps >= 1
    np.testing.assert_allclose(result.solution, _solve(matrix, rhs, max_steps=int(result.steps)).solution)
    assert result.products == result.steps + 1  # the product that showed it


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_product_that_breaks_down_keeps_the_last_finite_iterate(bad):
    """Search directions shrink as CG converges; products of short ones are poisoned here, some iterations in."""
    matrix, rhs = jnp.asarray(_spd(condition=10)), jnp.asarray(_rhs())
    poisoned = lambda v: jnp.where(jnp.linalg.norm(v) < 0.1, bad, 1.0) * (matrix @ v)  # noqa: E731
    result = hfopt.cg(50, ()).solve(poisoned, rhs)
    assert result.stop == Stop.NONFINITE
    assert 2 < result.steps < 12
    np.testing.assert_array_equal(result.solution, _solve(matrix, rhs, max_steps=int(result.steps)).solution)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_right_hand_side_that_is_not_finite_is_not_touched(bad):
    result = _solve(np.eye(3), np.array([1.0, bad, 0.0]))
    assert (result.stop, result.steps) == (Stop.NONFINITE, 0)
    np.testing.assert_array_equal(result.solution, 0)


def test_a_start_whose_product_breaks_down_has_no_model_value():
    result = hfopt.cg(5).solve(lambda v: v * jnp.nan, jnp.ones(3), 2 * jnp.ones(3))
    np.testing.assert_array_equal(result.solution, 2.0)
    assert (result.steps, result.products, result.stop) == (0, 1, Stop.NONFINITE)
    assert np.isnan(result.model_value)


def test_a_zero_right_hand_side_is_solved_by_zero():
    result = _solve(_spd(), np.zeros(12))
    assert (result.stop, result.steps, result.products) == (Stop.SOLVED, 0, 0)
    np.testing.assert_array_equal(result.solution, 0)


def test_a_zero_matrix_is_not_divided_by():
    result = _solve(np.zeros((3, 3)), np.ones(3))
    assert (result.stop, result.steps) == (Stop.NEGATIVE_CURVATURE, 0)
    np.testing.assert_array_equal(result.solution, 0)


def test_tiny_right_hand_sides_are_solved_like_any_other():
    """An absolute clamp on pᵀAp would return nearly zero here."""
    matrix, rhs = _spd(condition=10), _rhs()
    result = _solve(matrix, 1e-120 * rhs, max_steps=12)
    np.testing.assert_allclose(1e120 * np.asarray(result.solution), np.linalg.solve(matrix, rhs), rtol=1e-9)


@pytest.mark.float32
def test_float32_reaches_float32_accuracy():
    matrix, rhs = _spd(condition=100).astype(np.float32), _rhs().astype(np.float32)
    result = _solve(matrix, rhs, max_steps=40)
    assert result.solution.dtype == jnp.float32
    assert result.residual_norm < 1e-4 * np.linalg.norm(rhs)


@pytest.mark.parametrize("limit", [None, 0])
def test_no_iterations_leave_the_start(limit):
    matrix, start = _spd(), jnp.asarray(_rhs(seed=3))
    for x0, expected in ((None, jnp.zeros_like(start)), (start, start)):
        result = _solve(matrix, _rhs(), x0, max_steps=0 if limit is None else 5, step_limit=limit)
        np.testing.assert_array_equal(result.solution, expected)
        assert (int(result.steps), int(result.products), Stop(int(result.stop))) == (0, 0, Stop.CAP)


def test_the_last_iteration_makes_half_a_product():
    """The same iterates as with whole products, whether the cap or a rule ends them."""
    root = np.random.default_rng(5).normal(size=(30, 12))
    A, rhs = root.T @ root, jnp.asarray(_rhs())
    halves = Halves(lambda v: root @ v, lambda v, middle: jnp.vdot(middle, middle), lambda v, middle: root.T @ middle)
    whole = hfopt.Operator.of_matrix(A)
    for solver in (hfopt.cg(4, stop=()), hfopt.cg(40, hfopt.relative_residual(1e-10))):
        for start in (None, jnp.ones(12)):
            found = solver.solve(replace(whole, halves=halves), rhs, start, damping=0.1)
            expected = solver.solve(whole, rhs, start, damping=0.1)
            np.testing.assert_allclose(found.solution, expected.solution, rtol=1e-6)
            np.testing.assert_allclose(found.values, expected.values, rtol=1e-9)
            assert (int(found.steps), int(found.stop)) == (int(expected.steps), int(expected.stop))


@pytest.mark.parametrize("steps", [-1, 2.5])
def test_the_cap_is_a_number_of_iterations(steps):
    with pytest.raises(ValueError, match="`max_steps` must be an integer of at least 0"):
        hfopt.cg(steps)
