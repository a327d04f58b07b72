"""The simpleNN reference is itself right: its parts and its records are compared with their definitions."""

import numpy as np
import pytest

from . import models_numpy as models
from . import simplenn_numpy as simplenn
from .krylov_numpy import krylov_minimisers, positive_definite
from .models_numpy import LOSSES, cnn_problem, overshooting_problem


def test_constants_are_the_published_ones():
    assert (simplenn.TOLERANCE, simplenn.MAX_CG_STEPS, simplenn.INITIAL_DAMPING) == (0.1, 250, 1.0)
    assert (simplenn.SHRINK, simplenn.DECREASE) == (0.5, 1e-4)
    assert simplenn.regularization(0.01, 50) == 2.0
    assert simplenn.regularization(np.inf, 50) == 0.0


def test_cg_converges_to_the_solution():
    A, b = positive_definite()
    s = simplenn.conjugate_gradient(A, b, 2.0, tolerance=1e-13)
    exact = np.linalg.solve(A + 2.0 * np.eye(30), -b)
    np.testing.assert_allclose(s.direction, exact, rtol=1e-9, atol=1e-13)
    assert s.quadratic == pytest.approx(0.5 * exact @ A @ exact, rel=1e-9)
    assert s.slope == pytest.approx(exact @ b, rel=1e-9)


@pytest.mark.parametrize("condition", [10.0, 100.0])
def test_cg_stops_at_the_first_krylov_minimiser_within_the_tolerance(condition):
    A, b = positive_definite(condition=condition)
    s = simplenn.conjugate_gradient(A, b, 0.5)
    damped = A + 0.5 * np.eye(30)
    iterates = krylov_minimisers(damped, -b, 30)
    residuals = [np.linalg.norm(damped @ x + b) for x in iterates]
    first = next(k for k, r in enumerate(residuals, 1) if r <= 0.1 * np.linalg.norm(b))
    assert s.steps == first
    np.testing.assert_allclose(s.direction, iterates[first - 1], rtol=1e-8)
    np.testing.assert_allclose(s.residual_norms[1:], residuals[:first], rtol=1e-8)
    assert s.quadratic == pytest.approx(0.5 * s.direction @ A @ s.direction, rel=1e-9)


def test_cg_is_capped_at_250_steps():
    A, b = positive_definite(n=300, condition=1e14)
    assert simplenn.conjugate_gradient(A, b, 0.0, tolerance=1e-9).steps == 250


@pytest.mark.parametrize(("ratio", "factor"), [(-1, 3 / 2), (0.2499, 3 / 2), (0.25, 1), (0.7499, 1), (0.75, 2 / 3)])
def test_damping_rule(ratio, factor):
    assert simplenn.update_damping(2.0, ratio) == 2.0 * factor


def test_line_search_takes_the_longest_sufficient_halving():
    theta, s = np.zeros(1), np.ones(1)
    tried = []

    def f(t):
        tried.append(t[0])
        return -t[0] if t[0] <= 0.25 else 1.0

    assert simplenn.line_search(f, theta, s, 0.0, -1.0) == (0.25, -0.25)
    assert tried == [1.0, 0.5, 0.25]
    with pytest.raises(FloatingPointError, match="halve for ever"):
        simplenn.line_search(lambda t: np.nan, theta, s, 0.0, -1.0)


def test_partition_uses_every_example_and_keeps_the_size():
    subsets = simplenn.partition(10, 4, np.random.default_rng(8))
    assert [len(s) for s in subsets] == [4, 4, 4]
    assert sorted(np.concatenate(subsets)[:10]) == list(range(10))
    np.testing.assert_array_equal(subsets[2][2:], subsets[0][:2])


@pytest.mark.parametrize("name", ["squared", "softmax"])
@pytest.mark.parametrize("size", [None, 7])
def test_records_fulfil_their_definitions(name, size):
    (forward, jacobian, _), theta, x, y = cnn_problem()
    loss, C, rng = LOSSES[name], 0.01, np.random.default_rng(9)
    subsets = [np.arange(24)] * 5 if size is None else [rng.choice(24, size, replace=False) for _ in range(5)]
    # Theta is scaled up so that some iterations must shorten the step.
    records = simplenn.run(forward, jacobian, 2 * theta, x, y, loss, C, 5, None if size is None else subsets)
    before, damping = 2 * theta, 1.0
    for record, S in zip(records, subsets, strict=True):
        l2, s = 1 / (0.01 * 24), record.direction
        f = models.value(forward, loss, l2, before, x, y)
        g = models.gradient(forward, jacobian, loss, l2, before, x, y)
        G = models.gauss_newton(forward, jacobian, loss, l2, before, x[S], y[S])
        assert record.f == f
        assert record.gradient_norm == pytest.approx(np.linalg.norm(g), rel=1e-12)
        assert record.damping == damping
        residual = G @ s + damping * s + g
        assert np.linalg.norm(residual) == pytest.approx(record.residual_norms[-1], rel=1e-8)
        assert record.residual_norms[-1] <= 0.1 * record.residual_norms[0] < record.residual_norms[-2]
        step = record.theta - before
        np.testing.assert_allclose(step, record.step_size * s, atol=1e-14)
        assert record.new_f <= f + 1e-4 * record.step_size * (g @ s)
        assert record.ratio == pytest.approx((record.new_f - f) / (g @ step + 0.5 * step @ G @ step), rel=1e-8)
        factor = 3 / 2 if record.ratio < 0.25 else 2 / 3 if record.ratio >= 0.75 else 1
        assert record.damping_after == damping * factor
        before, damping = record.theta, record.damping_after
    assert records[-1].new_f < records[0].f


def test_halves_a_step_that_is_too_long_and_measures_the_shortened_one():
    (forward, jacobian, _), theta, x, y = overshooting_problem()
    loss = models.sigmoid_cross_entropy
    (record,) = simplenn.run(forward, jacobian, theta, x, y, loss, np.inf, 1, damping=1e-6)
    s, t = record.direction, record.step_size
    assert t < 1
    g = models.gradient(forward, jacobian, loss, 0.0, theta, x, y)
    G = models.gauss_newton(forward, jacobian, loss, 0.0, theta, x, y)
    assert record.ratio == pytest.approx((record.new_f - record.f) / (t * g @ s + 0.5 * t**2 * s @ G @ s), rel=1e-9)
    longer = models.value(forward, loss, 0.0, theta + 2 * t * s, x, y)
    assert longer > record.f + 1e-4 * 2 * t * (g @ s)


@pytest.mark.parametrize("name", ["squared", "softmax"])
@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("scale", [1, 2])
def test_decides_with_room_at_C_one(name, size, scale):
    (forward, jacobian, _), theta, x, y = cnn_problem()
    rng = np.random.default_rng(9)
    subsets = None if size is None else [rng.choice(24, size, replace=False) for _ in range(5)]
    records = simplenn.run(forward, jacobian, scale * theta, x, y, LOSSES[name], 1.0, 5, subsets)
    assert min(map(simplenn.margin, records)) > 1e-3
