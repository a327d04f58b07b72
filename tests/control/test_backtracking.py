"""Walking back over kept CG iterates."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import hfopt
from hfopt.control.backtracking import walk_back
from tests.conformance.martens_numpy import kept_series
from tests.conformance.martens_numpy import walk_back as reference

MATRIX = np.diag(np.geomspace(1, 1e4, 60))
RHS = np.random.default_rng(0).normal(size=60)


@functools.cache
def _solve(max_steps: int, keep_ratio: float | None = 1.3):
    return hfopt.cg(max_steps, (), keep_ratio).solve(lambda v: jnp.asarray(MATRIX) @ v, jnp.asarray(RHS))


@pytest.mark.parametrize("max_steps", [3, 5, 20, 25, 40])
def test_the_published_iterations_are_kept(max_steps):
    kept = _solve(max_steps).kept
    filled = int(kept.filled)
    assert kept.steps[:filled].tolist() == kept_series(max_steps)
    for step, iterate in zip(kept.steps[:filled].tolist(), kept.iterates, strict=False):
        np.testing.assert_array_equal(iterate, _solve(step, None).solution)


@pytest.mark.parametrize("max_steps", [3, 5, 20, 25, 40])
@pytest.mark.parametrize("best", [0, 6, 9, 17, 30, 100])
def test_walks_as_the_reference_does(max_steps, best):
    """The objective likes the iterate nearest to iteration `best`."""
    result = _solve(max_steps)
    favourite = np.asarray(_solve(max(1, best), None).solution)
    f = lambda d: float(np.sum((np.asarray(d) - favourite) ** 2))  # noqa: E731
    steps = sorted({*kept_series(max_steps), max_steps})
    candidates = [np.asarray(_solve(step, None).solution) for step in steps]
    position, loss = reference(f, candidates)
    choice = walk_back(result, result.kept, lambda d: jnp.sum((d - favourite) ** 2))
    assert choice.cg_step == steps[position]
    assert choice.loss == pytest.approx(loss)
    assert choice.model_value == result.values[steps[position]]
    np.testing.assert_allclose(choice.direction, candidates[position], rtol=1e-12)
    assert choice.evaluations == min(len(steps), len(steps) - position + 1)


def test_iterates_that_lead_to_nan_are_left_behind():
    result = _solve(20)
    norm = float(jnp.linalg.norm(_solve(9, None).solution))
    choice = walk_back(result, result.kept, lambda d: jnp.where(jnp.linalg.norm(d) > 1.001 * norm, jnp.nan, 1.0))
    assert choice.cg_step == 5  # equal losses walk on, to the first one kept
    assert choice.loss == 1.0


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_a_series_must_grow(ratio):
    with pytest.raises(ValueError, match="`keep_ratio` must be above 1"):
        hfopt.cg(keep_ratio=ratio)
