"""Critical points of functions one can write down, and verdicts that never say more than the numbers allow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from hfopt import spectra
from hfopt.analysis.critical_points import Verdict, classify


def function(f) -> hfopt.ValueFn:
    """An objective equal to ``f(params)``, whatever its sign."""
    objective = hfopt.Objective(lambda p, x: x * f(p), lambda z, y: z)
    return objective.bind((jnp.ones(1), jnp.ones(1)))


def quadratic(eigenvalues) -> hfopt.ValueFn:
    return function(lambda p: 0.5 * jnp.vdot(p, jnp.asarray(eigenvalues) * p))


@pytest.mark.parametrize(
    ("eigenvalues", "verdict"),
    [
        ([1.0, 2.0, 3.0], "minimum"),
        ([-1.0, -2.0, -3.0], "maximum"),
        ([-1.0, 2.0, 3.0], "saddle"),
        ([0.0, 2.0, 3.0], "degenerate"),
        ([0.0, -2.0, -3.0], "degenerate"),
        ([0.0, 0.0, 0.0], "degenerate"),
        ([-1e-14, 1.0, 1.0], "degenerate"),  # the sign of what rounding may have made is not to be told
        ([0.0, -1e-3, 1.0], "saddle"),
    ],
)
def test_quadratics_are_what_their_eigenvalues_say(eigenvalues, verdict):
    point = classify(quadratic(eigenvalues), jnp.zeros(3))
    assert point.verdict == verdict
    assert point.smallest.low <= min(eigenvalues) <= point.smallest.high
    assert point.largest.low <= max(eigenvalues) <= point.largest.high
    assert str(point).startswith(f"{verdict}: λmin is in [")
    assert (point.escape is None) == (min(eigenvalues) > -1e-12)


def saddle() -> hfopt.ValueFn:
    """½ (w₂ w₁ − 1)²."""
    objective = hfopt.Objective(lambda w, x: x * w[0] * w[1], optax.l2_loss)
    return objective.bind((jnp.ones(1), jnp.ones(1)))


def test_the_saddle_of_a_two_layer_product_is_one_and_has_a_way_out():
    value_fn, origin = saddle(), jnp.zeros(2)
    point = classify(value_fn, origin)
    assert point.verdict is Verdict.SADDLE
    np.testing.assert_allclose(jnp.abs(point.escape), np.full(2, 0.5**0.5), rtol=1e-12)
    assert point.escape[0] * point.escape[1] > 0  # both weights up, or both down
    np.testing.assert_allclose(value_fn(0.1 * point.escape), value_fn(origin) - 0.5 * 0.1**2, atol=1e-4)


def test_gauss_newton_alone_is_inconclusive_there():
    point = classify(saddle(), jnp.zeros(2), curvature=hfopt.gauss_newton)
    assert point.verdict is Verdict.INCONCLUSIVE
    assert point.escape is None
    assert "it is not the Hessian" in point.reason


def test_its_minima_are_degenerate():
    """w₁ w₂ = 1 is a curve of them."""
    assert classify(saddle(), jnp.ones(2)).verdict is Verdict.DEGENERATE


def test_away_from_a_critical_point_nothing_is_concluded():
    point = classify(quadratic([-1.0, 2.0]), jnp.array([1.0, 1.0]))
    assert point.verdict is Verdict.INCONCLUSIVE
    assert point.reason.startswith("not a critical point: ‖∇f‖ = 2.24")
    # The way down along negative curvature is there all the same, and it does not lead uphill.
    assert jnp.vdot(point.escape, jnp.array([-1.0, 2.0])) <= 0
    assert classify(quadratic([-1.0, 2.0]), jnp.array([1.0, 1.0]), gradient_tolerance=3).verdict is Verdict.SADDLE


@pytest.mark.parametrize(
    ("eigenvalues", "verdict"),
    [
        (np.linspace(1, 2, 1000), "minimum"),
        (-np.linspace(1, 2, 1000), "maximum"),
        (np.r_[-0.1, np.linspace(0, 2, 999)], "saddle"),
        (np.linspace(0, 2, 1000), "degenerate"),
        (np.r_[1e-5, np.linspace(1, 2, 999)], "degenerate"),  # positive, but nothing shows that it is the smallest
    ],
)
def test_large_problems_are_judged_by_their_extreme_eigenvalues(eigenvalues, verdict):
    point = classify(quadratic(eigenvalues), jnp.zeros(1000))
    assert point.verdict == verdict
    assert point.smallest.low <= eigenvalues.min() <= point.smallest.high
    assert point.largest.low <= eigenvalues.max() <= point.largest.high


def test_too_few_products_for_a_verdict_are_inconclusive():
    value_fn = quadratic(np.linspace(1, 2, 1000))
    assert classify(value_fn, jnp.zeros(1000), basis=15).verdict is Verdict.INCONCLUSIVE


def test_pairs_that_are_there_are_used():
    value_fn, origin = quadratic(np.r_[-1, np.linspace(1, 2, 999)]), jnp.zeros(1000)
    operator = hfopt.hessian(value_fn, origin)
    pairs = spectra.eigenpairs(operator, jax.random.key(0), largest=3, smallest=1, basis=100)
    point = classify(value_fn, origin, pairs=pairs)
    assert point.pairs is pairs
    assert point.verdict is Verdict.SADDLE


def test_pairs_of_one_end_alone_are_refused():
    value_fn, origin = quadratic(np.r_[-1, np.linspace(1, 2, 599)]), jnp.zeros(600)
    pairs = spectra.eigenpairs(hfopt.hessian(value_fn, origin), jax.random.key(0), largest=3)
    with pytest.raises(ValueError, match="from both ends of the spectrum; of these 3, 0 are from the lower end"):
        classify(value_fn, origin, pairs=pairs)


def test_pairs_of_another_operator_are_refused():
    """Those of G at the saddle, with a penalty, would make it a minimum."""
    objective = hfopt.Objective(lambda w, x: x * w[0] * w[1], optax.l2_loss, l2=0.1)
    value_fn, origin = objective.bind((jnp.ones(1), jnp.ones(1))), jnp.zeros(2)
    with pytest.raises(ValueError, match=r"not of this operator: λ = 0\.1 has a residual of 1"):
        classify(value_fn, origin, pairs=spectra.decompose(hfopt.gauss_newton(value_fn, origin)))
    assert classify(value_fn, origin).verdict is Verdict.SADDLE


def test_a_curvature_batch_brings_its_own_gradient():
    """f is −½‖p‖² on the batch and ½‖p‖² on that of the curvature, which is the one that is judged."""
    objective = hfopt.Objective(lambda p, x: x * 0.5 * jnp.vdot(p, p), lambda z, y: z)
    batches = (-jnp.ones(1), jnp.ones(1)), (jnp.ones(1), jnp.ones(1))
    assert classify(objective.bind(*batches), jnp.zeros(3)).verdict is Verdict.MINIMUM
    assert classify(objective.bind(*batches[::-1]), jnp.zeros(3)).verdict is Verdict.MAXIMUM


def test_a_slope_that_a_small_eigenvalue_cannot_stop_is_no_critical_point():
    """½ w₀² + 10⁻³ exp(w₁ − 10) has positive curvature and no critical point."""
    value_fn = function(lambda w: 0.5 * w[0] ** 2 + 1e-3 * jnp.exp(w[1] - 10))
    point = classify(value_fn, jnp.array([0.0, 10.0]))
    assert point.verdict is Verdict.INCONCLUSIVE
    assert "all eigenvalues are positive" in point.reason


@pytest.mark.float32
def test_float32_does_not_take_rounding_for_a_sign():
    params = {"w": jnp.ones(3), "u": jnp.zeros(2)}  # f does not depend on u: its eigenvalues are zero
    objective = hfopt.Objective(lambda p, x: x @ p["w"], optax.squared_error)
    inputs = jax.random.normal(jax.random.key(0), (20, 3))
    point = classify(objective.bind((inputs, inputs.sum(axis=1))), params)
    assert point.verdict is Verdict.DEGENERATE


def test_plain_functions_are_refused():
    with pytest.raises(TypeError, match=r"got function"):
        classify(lambda p: 0.0, jnp.zeros(2))


@pytest.mark.float32
@pytest.mark.parametrize("scale", [1e-27, 1e-20, 1e20])
def test_the_verdict_does_not_depend_on_the_unit_of_the_objective(scale):
    """scale · ½ (w₀² + 2 w₁²): a minimum at 0, and none beside it however small the slope looks."""
    value_fn = function(lambda w: scale * (0.5 * w[0] ** 2 + w[1] ** 2))
    assert classify(value_fn, jnp.zeros(2)).verdict is Verdict.MINIMUM
    beside = classify(value_fn, jnp.array([1.0, 0.5]))
    assert beside.verdict is Verdict.INCONCLUSIVE
    assert beside.gradient_norm == pytest.approx(scale * 2**0.5, rel=1e-5)


@pytest.mark.float32
@pytest.mark.parametrize("far", [40.0, 60.0])
def test_separable_data_have_no_minimum(far):
    """The logistic loss falls for ever along a separating direction; its gradient is then below 1e-19."""
    x, t = jnp.array([[1.0, 0.3], [2.0, -0.5], [-1.0, 0.2], [-2.0, 0.4]]), jnp.array([1.0, 1.0, 0.0, 0.0])
    value_fn = hfopt.Objective(lambda w, x: x @ w, optax.losses.sigmoid_binary_cross_entropy).bind((x, t))
    assert classify(value_fn, jnp.array([far, 0.0])).verdict is Verdict.INCONCLUSIVE
