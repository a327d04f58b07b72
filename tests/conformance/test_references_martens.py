"""The reference of Martens 2010 is itself right: its parts and its records are compared with their definitions."""

import numpy as np
import pytest

from . import martens_numpy as martens
from . import models_numpy as models
from .krylov_numpy import krylov_minimisers, positive_definite
from .models_numpy import autoencoder_problem, overshooting_problem


def test_constants_are_the_published_ones():
    constants = (martens.MAX_CG_STEPS, martens.EPSILON, martens.WARM_START, martens.POWER)
    assert constants == (250, 5e-4, 0.95, 0.75)
    assert (martens.SHRINK, martens.DECREASE, martens.MAX_RATES) == (0.8, 1e-2, 60)
    assert (martens.INITIAL_DAMPING, martens.WEIGHT_DECAY) == (45.0, 2e-5)


def test_keeps_the_published_series_of_iterates():
    assert martens.kept_series(250) == [5, 7, 9, 11, 15, 19, 25, 32, 41, 54, 69, 90, 117, 152, 197]


def test_gap_is_a_tenth_rounded_up_in_exact_arithmetic():
    assert [martens.gap(i) for i in range(1, 251)] == [max(10, -(-i // 10)) for i in range(1, 251)]


def test_cg_converges_to_the_solution_and_its_model_falls(monkeypatch):
    monkeypatch.setattr(martens, "EPSILON", 0.0)  # never satisfied with the progress
    A, b = positive_definite(condition=30.0)
    start, M = np.random.default_rng(10).standard_normal(30), np.diag(A) ** 0.75
    trace = martens.conjugate_gradient(lambda v: A @ v, b, start, M, 30)
    exact = np.linalg.solve(A, b)
    assert trace.reason == "limit"
    np.testing.assert_allclose(trace.kept[-1], exact, atol=1e-7)
    assert trace.phi[-1] == pytest.approx(-0.5 * b @ exact, rel=1e-12)
    assert trace.phi[0] == pytest.approx(0.5 * start @ A @ start - b @ start, rel=1e-12)
    assert (np.diff(trace.phi[:20]) < 0).all()
    for i, x in zip(trace.kept_indices, trace.kept, strict=True):
        assert trace.phi[i] == pytest.approx(0.5 * x @ A @ x - b @ x, rel=1e-10)


def test_cg_minimises_over_preconditioned_krylov_spaces():
    A, b = positive_definite(condition=30.0)
    M = np.geomspace(0.1, 10.0, 30)
    start = np.random.default_rng(11).standard_normal(30)
    trace = martens.conjugate_gradient(lambda v: A @ v, b, start, M, 12)
    root = np.sqrt(M)
    iterates = krylov_minimisers(A / np.outer(root, root), (b - A @ start) / root, 12)
    for i, x in zip(trace.kept_indices, trace.kept, strict=True):
        np.testing.assert_allclose(x, start + iterates[i - 1] / root, rtol=1e-7, atol=1e-9)


def test_cg_stops_at_the_first_step_without_progress_and_keeps_the_last_iterate():
    A, b = positive_definite(n=200, condition=1e5)
    trace = martens.conjugate_gradient(lambda v: A @ v, b, np.zeros(200), np.ones(200))
    phi = trace.phi

    def slow(i):
        k = max(10, -(-i // 10))
        return i > k and phi[i - k] < 0 and (phi[i] - phi[i - k]) / phi[i] < k * 5e-4

    assert trace.reason == "progress"
    assert [i for i in range(1, trace.steps + 1) if slow(i)] == [trace.steps]
    assert trace.kept_indices == [i for i in martens.kept_series(250) if i < trace.steps] + [trace.steps]


def test_stop_rule_is_k_epsilon_and_not_epsilon():
    phi = [-1.0 - 0.003 * min(i, 12) / 12 for i in range(13)]  # over ten steps 0.25 % progress: below k·ε, above ε
    assert martens.stalled(phi, 11)
    assert (phi[11] - phi[1]) / phi[11] > martens.EPSILON
    assert not martens.stalled(phi, 10)


def test_stop_rule_does_not_depend_on_which_value_must_be_negative():
    """The paper asks for φ_i < 0, the demo for φ_{i−k} < 0: for falling φ they decide alike."""
    rng = np.random.default_rng(12)
    for _ in range(200):
        phi = np.cumsum(-(10.0 ** rng.uniform(-8, 0, 60))) + rng.uniform(0, 3)
        for i in range(11, 60):
            k = martens.gap(i)
            demo = phi[i - k] < 0 and (phi[i] - phi[i - k]) / phi[i] < k * 5e-4
            assert martens.stalled(phi, i) == demo


def test_cg_ends_on_the_iterate_before_negative_curvature():
    A = np.diag([3.0, 2.0, -1.0])
    b = np.array([1.0, 1.0, 0.1])
    trace = martens.conjugate_gradient(lambda v: A @ v, b, np.zeros(3), np.ones(3))
    assert trace.reason == "curvature"
    assert trace.kept_indices == [trace.steps]
    assert 0 < trace.steps < 3
    none = martens.conjugate_gradient(lambda v: -v, b, np.zeros(3), np.ones(3))
    assert (none.steps, none.kept_indices, none.reason) == (0, [0], "curvature")


def test_cg_is_capped():
    A, b = positive_definite(n=300, condition=1e12)
    trace = martens.conjugate_gradient(lambda v: A @ v, b, np.zeros(300), np.ones(300), 9)
    assert (trace.steps, trace.reason, trace.kept_indices) == (9, "limit", [5, 7, 9])


@pytest.mark.parametrize(
    ("values", "position"),
    [([3, 2, 1], 2), ([1, 2, 3], 0), ([1, 3, 2, 4], 2), ([0, 5, 1, 1], 2), ([7], 0), ([2, 2, 2], 0)],
)
def test_walks_back_while_the_objective_does_not_rise(values, position):
    assert martens.walk_back(lambda c: values[c], range(len(values))) == (position, values[position])


def test_choice_is_the_same_when_the_last_iterate_is_listed_twice():
    rng = np.random.default_rng(13)
    for values in rng.integers(0, 4, (200, 5)):
        once = martens.walk_back(lambda c, v=values: v[c], range(5))
        twice = martens.walk_back(lambda c, v=values: v[min(c, 4)], range(6))
        assert (min(twice[0], 4), twice[1]) == once


def test_line_search_tries_sixty_rates_then_rejects():
    tried = []

    def never(rate):
        tried.append(rate)
        return 1.0

    assert martens.line_search(never, 0.0, 1.0, -1.0) == (0.0, 0.0)
    np.testing.assert_allclose(tried, 0.8 ** np.arange(1, 61), rtol=1e-12)
    assert martens.line_search(lambda t: np.nan, 0.0, np.nan, -1.0) == (0.0, 0.0)
    at_the_last = martens.line_search(lambda t: -1.0 if t < 0.8**58.5 else 1.0, 0.0, 1.0, -1.0)
    assert at_the_last == (pytest.approx(0.8**59, rel=1e-12), -1.0)
    assert martens.line_search(never, 0.0, -0.01, -1.0) == (1.0, -0.01)


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [(-np.inf, 3 / 2), (np.nan, 3 / 2), (0.2499, 3 / 2), (0.25, 1), (0.75, 1), (0.7501, 2 / 3)],
)
def test_damping_rule(ratio, factor):
    assert martens.update_damping(45.0, ratio) == 45.0 * factor


def test_ratio_is_minus_infinity_when_the_loss_rose():
    assert martens.reduction_ratio(1.0, 1.1, -0.2) == -np.inf
    assert martens.reduction_ratio(1.0, 0.9, -0.2) == pytest.approx(0.5)


@pytest.mark.parametrize("chunks", [1, 4])
def test_records_fulfil_their_definitions(chunks):
    (forward, jacobian, _), theta, x, y = autoencoder_problem()
    loss, l2 = models.sigmoid_cross_entropy, 2e-5
    subsets = martens.rotating_chunks(40, chunks, 5)
    records = martens.run(forward, jacobian, theta, x, y, 5, subsets, damping=1.0)
    before, damping, last = theta, 1.0, np.zeros_like(theta)
    for record, S in zip(records, subsets, strict=True):
        f = models.value(forward, loss, l2, before, x, y)
        g = models.gradient(forward, jacobian, loss, l2, before, x, y)
        G = models.gauss_newton(forward, jacobian, loss, l2, before, x[S], y[S])
        assert record.f == f
        assert record.damping == damping
        np.testing.assert_array_equal(record.start, 0.95 * last)
        squares = np.mean(
            [
                (models.gradient(forward, jacobian, loss, 0.0, before, x[i : i + 1], y[i : i + 1])) ** 2
                for i in range(40)
            ],
            axis=0,
        )
        np.testing.assert_allclose(record.preconditioner, (squares + damping + l2) ** 0.75, rtol=1e-12)
        assert (np.diff(record.phi) < 0).all()
        q = 0.5 * record.last @ G @ record.last + 0.5 * damping * record.last @ record.last + g @ record.last
        assert record.phi[-1] == pytest.approx(q, rel=1e-9)
        assert record.chosen_index in record.kept_indices
        assert record.kept_indices[-1] == record.cg_steps == len(record.phi) - 1
        d = record.direction
        fS, newS = (models.value(forward, loss, l2, t, x[S], y[S]) for t in (before, before + d))
        rho = -np.inf if newS > fS else (newS - fS) / (g @ d + 0.5 * d @ G @ d)
        assert record.ratio == pytest.approx(rho, rel=1e-9)
        assert record.new_f <= f + 1e-2 * record.step_size * (g @ d)
        np.testing.assert_allclose(record.theta, before + record.step_size * d, rtol=0, atol=1e-14)
        before, damping, last = record.theta, record.damping_after, record.last
    assert records[-1].new_f < records[0].f


def test_ratio_is_measured_before_the_line_search():
    (forward, jacobian, _), theta, x, y = overshooting_problem()
    record, taken = (
        martens.run(forward, jacobian, theta, x, y, 1, damping=1e-6, deviations=martens.Deviations(choice))[0]
        for choice in (False, True)
    )
    assert 0 < record.step_size < 1
    assert record.ratio == -np.inf
    assert record.damping_after == 1e-6 * 3 / 2
    assert taken.ratio > 0
    np.testing.assert_array_equal(taken.theta, record.theta)


@pytest.mark.parametrize("case", models.AUTOENCODER_CASES)
def test_cases_decide_with_room_and_alike_from_a_start_a_rounding_error_away(case):
    (forward, jacobian, _), theta, x, y = autoencoder_problem(case.seed, sizes=case.sizes)
    subsets = martens.rotating_chunks(40, case.chunks, 5)
    records, others = (
        martens.run(forward, jacobian, start, x, y, 5, subsets, damping=case.damping)
        for start in (theta, theta * (1 + 1e-13))
    )
    assert min(map(martens.margin, records)) > 1e-7
    for one, two in zip(records, others, strict=True):
        assert (one.cg_steps, one.chosen_index, one.step_size) == (two.cg_steps, two.chosen_index, two.step_size)
        assert one.damping_after == two.damping_after
        assert one.new_f == pytest.approx(two.new_f, rel=1e-10)


def test_cases_cover_every_outcome():
    records = []
    for case in models.AUTOENCODER_CASES:
        (forward, jacobian, _), theta, x, y = autoencoder_problem(case.seed, sizes=case.sizes)
        subsets = martens.rotating_chunks(40, case.chunks, 5)
        records += martens.run(forward, jacobian, theta, x, y, 5, subsets, damping=case.damping)
    assert {r.chosen_index == r.cg_steps for r in records} == {True, False}
    assert {round(r.damping_after / r.damping, 3) for r in records} == {0.667, 1.0, 1.5}
    assert len({r.cg_steps for r in records}) >= 4


def test_rejected_step_moves_nothing_and_keeps_the_warm_start():
    """A Jacobian of the wrong sign points uphill, so that every rate fails."""
    (forward, jacobian, _), theta, x, y = autoencoder_problem()

    def uphill(t, x):
        return -jacobian(t, x)

    kept = martens.run(forward, uphill, theta, x, y, 2)
    assert [r.step_size for r in kept] == [0.0, 0.0]
    np.testing.assert_array_equal(kept[1].theta, theta)
    assert kept[0].new_f == kept[0].f
    assert [r.damping_after for r in kept] == [67.5, 67.5 * 1.5]
    np.testing.assert_array_equal(kept[1].start, 0.95 * kept[0].last)
    reset = martens.run(forward, uphill, theta, x, y, 2, deviations=martens.Deviations(reset_on_rejection=True))
    assert not reset[1].start.any()


def test_ratio_over_all_examples_equals_that_over_a_chunk_of_all():
    (forward, jacobian, _), theta, x, y = autoencoder_problem()
    over_all = martens.Deviations(ratio_over_all=True)
    one, same = (martens.run(forward, jacobian, theta, x, y, 1, deviations=d)[0] for d in (martens.SOURCE, over_all))
    assert one.ratio == same.ratio
    parts = martens.rotating_chunks(40, 4, 1)
    chunk, whole = (
        martens.run(forward, jacobian, theta, x, y, 1, parts, deviations=d)[0] for d in (martens.SOURCE, over_all)
    )
    assert chunk.ratio != whole.ratio
    np.testing.assert_array_equal(chunk.theta, whole.theta)
