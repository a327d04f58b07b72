"""λ follows ρ."""

import jax.numpy as jnp
import numpy as np
import pytest

import hfopt
from hfopt.control.outcome import Outcome


def _next(rule, damping, ratio, accepted=True, damped_ratio=np.nan):
    numbers = (jnp.float64(x) for x in (1.0, -1.0, ratio, damped_ratio))
    outcome = Outcome((), *numbers, jnp.bool_(accepted), jnp.bool_(True))
    return float(rule.update(jnp.float64(damping), outcome))


@pytest.mark.parametrize(
    ("ratio", "accepted", "factor"),
    [
        (0.1, True, 3 / 2),
        (0.25, True, 1),
        (0.5, True, 1),
        (0.75, True, 1),
        (0.9, True, 2 / 3),
        (2.0, True, 2 / 3),
        (np.nan, True, 3 / 2),
        (-np.inf, False, 3 / 2),
        (0.9, False, 3 / 2),
    ],
)
def test_levenberg_marquardt(ratio, accepted, factor):
    assert _next(hfopt.levenberg_marquardt(), 0.8, ratio, accepted) == pytest.approx(0.8 * factor)


def test_floor_and_ceiling():
    rule = hfopt.levenberg_marquardt(floor=0.5, ceiling=2.0)
    assert _next(rule, 0.6, 1.0) == 0.5
    assert _next(rule, 1.9, 0.0) == 2.0
    assert _next(hfopt.levenberg_marquardt(), 1e-40, 1.0) == pytest.approx(np.finfo(float).eps ** 2)


def test_constant():
    assert _next(hfopt.constant_damping(0.3), 0.3, 0.0, False) == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 0.0}, "`initial` must be positive, got 0.0"),
        ({"increase": 0.9}, "need 0 < `decrease` <= 1 <= `increase`"),
        ({"decrease": 0.0}, "need 0 < `decrease` <= 1 <= `increase`"),
        ({"lower": 0.9}, "need `lower` <= `upper`, got 0.9 and 0.75"),
    ],
)
def test_constants_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hfopt.levenberg_marquardt(**options)
