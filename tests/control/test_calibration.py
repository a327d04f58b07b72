"""λ₀ made for the problem, and λ by schedule."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from tests.cases import CASES
from tests.loops import CLASSICAL, run


@pytest.mark.parametrize("initial", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("name", ["mlp-softmax-integer", "cnn-softmax-integer"])
def test_the_first_step_lands_in_the_band_wherever_the_search_begins(name, initial):
    rule = hfopt.calibrated_damping(hfopt.levenberg_marquardt(initial))
    _, state, history = run(CLASSICAL(damping=rule), CASES[name](), 3)
    first, second = history[0][1], history[1][1]
    assert 0.75 <= first.reduction_ratio <= 0.95
    assert first.products > second.products  # the trials are counted
    # Afterwards the rule goes its own way: ρ of the first step asks for 2/3 λ above ¾.
    assert second.damping == pytest.approx(2 / 3 * float(first.damping))
    assert state.step == 3


def test_the_bisection_ends_in_the_band():
    """ρ(λ) = λ / (1 + λ) is in [0.75, 0.95] for λ in [3, 19]."""
    rule = hfopt.calibrated_damping(hfopt.constant_damping(1e-3))
    damping, products = rule.calibrate(jnp.float64(1e-3), lambda d: (d / (1 + d), jnp.int32(5)))
    assert 3 <= damping <= 19
    assert products == 5 * 5  # 1e-3, 1e-2, 0.1, 1, 10


def test_without_a_band_the_trials_end():
    rule = hfopt.calibrated_damping(max_trials=4)
    damping, products = rule.calibrate(jnp.float64(1.0), lambda d: (jnp.float64(1.0), jnp.int32(1)))
    assert products == 4
    assert damping == pytest.approx(1e-3)


def test_a_first_batch_that_is_not_finite_does_not_calibrate():
    case = CASES["mlp-softmax-integer"]()
    inputs, *rest = case.batch
    bad = case._replace(batch=(inputs.at[0, 0].set(np.nan), *rest))
    tx = CLASSICAL(damping=hfopt.calibrated_damping())
    _, state, _ = run(tx, bad, 1)
    assert state.info.products <= 1
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
        (lambda: hfopt.scheduled_damping(0.1), TypeError, r"for a number use hfopt\.constant_damping"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
