"""λ₀ made for the problem, and λ by schedule."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from hfopt.control.outcome import Outcome
from tests.cases import CASES
from tests.loops import CLASSICAL, run


@pytest.mark.parametrize("initial", [1e-6, 1.0, 1e4])
def test_the_first_step_lands_in_the_band_wherever_the_search_begins(initial):
    rule = hfopt.calibrated_damping(hfopt.levenberg_marquardt(initial))
    _, state, history = run(CLASSICAL(damping=rule), CASES["mlp-softmax-integer"](), 3)
    first, second = history[0][1], history[1][1]
    assert 0.75 <= first.reduction_ratio <= 0.95
    assert first.products > second.products  # the trials are counted
    # Afterwards the rule goes its own way: ρ of the first step asks for 2/3 λ above ¾.
    assert second.damping == pytest.approx(2 / 3 * float(first.damping))
    assert state.step == 3


def _trial(ratio_of, informative=True):
    def trial(damping):
        ratio = ratio_of(damping)
        outcome = Outcome((), jnp.ones(()), -jnp.ones(()), ratio, ratio, jnp.bool_(True), jnp.bool_(informative))
        return SimpleNamespace(outcome=outcome, info=SimpleNamespace(products=jnp.int32(5), evaluations=jnp.int32(2)))

    return trial


def test_the_bisection_ends_in_the_band():
    """ρ(λ) = λ / (1 + λ) is in [0.8, 0.9] for λ in [4, 9], which tenfold steps from 1e-3 pass by."""
    rule = hfopt.calibrated_damping(lower=0.8, upper=0.9)
    damping, products, evaluations = rule.calibrate(jnp.float64(1e-3), _trial(lambda d: d / (1 + d)))
    # 1e-3, 1e-2, 0.1, 1, 10 (too large), √10 (too small), 10^¾
    assert damping == pytest.approx(10**0.75)
    assert (products, evaluations) == (7 * 5, 7 * 2)


@pytest.mark.parametrize("ratio", [1.0, -np.inf, np.nan])
def test_without_a_band_the_rule_keeps_its_own(ratio):
    rule = hfopt.calibrated_damping(max_trials=4)
    damping, products, _ = rule.calibrate(jnp.float64(0.3), _trial(lambda d: jnp.full_like(d, ratio)))
    assert products == 4 * 5
    assert damping == 0.3


def test_a_step_below_rounding_ends_the_search():
    damping, products, _ = hfopt.calibrated_damping().calibrate(jnp.float64(0.3), _trial(lambda d: 0.8 + 0 * d, False))
    assert (damping, products) == (0.3, 5)


def test_the_trust_region_does_not_enter_the_trials():
    """Within a tight bound ρ is near 1 for every λ."""
    case, rule = CASES["mlp-softmax-integer"](), hfopt.calibrated_damping()
    _, bounded, _ = run(CLASSICAL(damping=rule, trust_region=hfopt.scheduled_trust(1e-6)), case, 1)
    _, free, _ = run(CLASSICAL(damping=rule), case, 1)
    assert bounded.info.damping == pytest.approx(float(free.info.damping))


@pytest.mark.slow
@pytest.mark.slow
def test_a_first_batch_that_is_not_finite_does_not_calibrate():
    case = CASES["mlp-softmax-integer"]()
    inputs, *rest = case.batch
    bad = case._replace(batch=(inputs.at[0, 0].set(np.nan), *rest))
    tx = CLASSICAL(damping=hfopt.calibrated_damping())
    _, state, _ = run(tx, bad, 1)
    assert state.info.products <= 1
    assert state.next_damping == pytest.approx(1.5)
    # Nor does a gradient that is not finite, whatever the evaluation batch says.
    value_fn = case.objective.bind(bad.batch, evaluation_batch=case.batch)
    params, state = case.params, tx.init(case.params)
    update = jax.jit(lambda grad, state, f: tx.update(grad, state, params, value_fn=f))
    _, state = update(jax.grad(value_fn)(params), state, value_fn)
    assert np.isfinite(state.info.loss)
    assert state.next_damping == pytest.approx(1.5)


def test_damping_by_schedule():
    schedule = optax.exponential_decay(0.5, 1, 0.1)
    _, _, history = run(CLASSICAL(damping=hfopt.scheduled_damping(schedule)), CASES["mlp-softmax-integer"](), 3)
    assert [float(info.damping) for _, info in history] == pytest.approx([0.5, 0.05, 0.005])


def test_the_ratio_may_be_taken_with_the_damped_model():
    """gᵀs + ½ sᵀ(G + λI)s promises less than gᵀs + ½ sᵀGs, so that λ falls where it would have stayed."""
    case, band = CASES["mlp-softmax-integer"](), {"lower": 0.0, "upper": 1.02}
    _, plain, _ = run(CLASSICAL(damping=hfopt.levenberg_marquardt(10.0, **band)), case, 1)
    _, damped, _ = run(CLASSICAL(damping=hfopt.levenberg_marquardt(10.0, damped_ratio=True, **band)), case, 1)
    assert plain.info.reduction_ratio == damped.info.reduction_ratio
    assert plain.next_damping == pytest.approx(10.0)
    assert damped.next_damping == pytest.approx(10.0 * 2 / 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: hfopt.calibrated_damping(lower=0.9, upper=0.8), ValueError, "need 0 < `lower` < `upper`"),
        (lambda: hfopt.calibrated_damping(max_trials=0), ValueError, "`max_trials` must be at least 1"),
        (lambda: hfopt.calibrated_damping(hfopt.trust_damping()), TypeError, "ByTrust has no λ of its own"),
        (lambda: hfopt.scheduled_damping(0.1), TypeError, r"for a number use hfopt\.constant_damping"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
