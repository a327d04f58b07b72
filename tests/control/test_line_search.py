"""Armijo's rule by hand, and its ends."""

import jax.numpy as jnp
import numpy as np
import pytest

import hfopt


def _search(rule, f, slope):
    return rule.search(lambda alpha: jnp.asarray(f(alpha)), jnp.asarray(f(jnp.float64(0.0))), jnp.float64(slope))


@pytest.mark.parametrize("curvature", [0.5, 1.9, 3.0, 40.0, 1000.0])
def test_takes_the_first_step_that_decreases_enough(curvature):
    f = lambda a: -a + 0.5 * curvature * a**2  # noqa: E731
    result = _search(hfopt.armijo(shrink=0.5, sufficient_decrease=0.1), f, -1.0)
    expected = next(0.5**i for i in range(20) if f(0.5**i) <= -0.1 * 0.5**i)
    assert result.step_size == expected
    assert int(result.evaluations) == 1 - np.log2(expected)
    assert result.accepted
    assert result.new_loss == f(expected)


@pytest.mark.parametrize(
    "f", [lambda a: a, lambda a: jnp.where(a > 0, jnp.nan, 0.0), lambda a: jnp.where(a > 0, jnp.inf, 0.0)]
)
def test_ends_unaccepted_after_the_last_trial(f):
    result = _search(hfopt.armijo(max_trials=7), f, -1.0)
    assert not result.accepted
    assert result.evaluations == 7


def test_an_ascent_direction_is_not_accepted_even_where_the_loss_falls():
    assert not _search(hfopt.armijo(), lambda a: -a, 0.1).accepted


def test_a_stationary_point_is_no_failure():
    result = _search(hfopt.armijo(), lambda a: 0.0 * a, 0.0)
    assert result.accepted
    assert result.evaluations == 1


def test_a_fixed_step_is_taken_unless_it_is_not_finite():
    assert _search(hfopt.fixed_step(0.3), lambda a: a, -1.0).step_size == pytest.approx(0.3)
    assert _search(hfopt.fixed_step(), lambda a: a, -1.0).accepted
    assert not _search(hfopt.fixed_step(), lambda a: jnp.where(a > 0, jnp.nan, 0.0), -1.0).accepted


@pytest.mark.parametrize("options", [{"shrink": 1.0}, {"sufficient_decrease": -0.1}, {"max_trials": 0}])
def test_constants_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must"):
        hfopt.armijo(**options)
