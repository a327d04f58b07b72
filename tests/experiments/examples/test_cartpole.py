"""CartPole against a transcription of its published dynamics, and the natural policy gradient that balances it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.examples.policy_gradient import SOLVED, bounded_step, solve
from experiments.problems import cartpole

pytestmark = pytest.mark.float32


def published(state, action):
    """The environment's code, written out in plain Python."""
    x, x_dot, theta, theta_dot = map(float, state)
    gravity, masscart, masspole, length, force_mag, tau = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    total_mass, polemass_length = masscart + masspole, masspole * length
    force = force_mag if action == 1 else -force_mag
    costheta, sintheta = math.cos(theta), math.sin(theta)
    temp = (force + polemass_length * theta_dot**2 * sintheta) / total_mass
    thetaacc = (gravity * sintheta - costheta * temp) / (length * (4.0 / 3.0 - masspole * costheta**2 / total_mass))
    xacc = temp - polemass_length * thetaacc * costheta / total_mass
    after = (x + tau * x_dot, x_dot + tau * xacc, theta + tau * theta_dot, theta_dot + tau * thetaacc)
    over = abs(after[0]) > 2.4 or abs(after[2]) > 12 * 2 * math.pi / 360
    return after, over


def test_the_dynamics_are_the_published_ones():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        state, action = rng.uniform(-1, 1, 4) * (3.0, 2.0, 0.3, 2.0), int(rng.integers(2))
        after, over = cartpole.advance(jnp.asarray(state, jnp.float32), jnp.int32(action))
        expected, ends = published(state, action)
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)
        assert bool(over) == ends
        seen.add(ends)
    assert seen == {True, False}


def test_an_episode_ends_where_the_pole_falls():
    episode = cartpole.play(lambda observation, key: jnp.int32(1), jax.random.key(0))
    length = int(episode.alive.sum())
    assert 5 < length < 20  # pushed to one side all the time
    assert episode.alive[:length].all()
    state = episode.observations[0]
    assert (jnp.abs(state) <= 0.05).all()
    for t in range(length - 1):
        state = np.asarray(published(state, 1)[0])
        np.testing.assert_allclose(episode.observations[t + 1], state, rtol=1e-3, atol=1e-4)
    assert published(state, 1)[1]


def test_the_step_is_a_multiple_of_the_direction_within_the_bound():
    grad, direction = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([2.0, 1.0])}
    tx = bounded_step(rate=0.5, bound=0.5)
    step, _ = tx.update(direction, tx.init(grad), grad=grad)
    np.testing.assert_allclose(step["w"], -0.5 * np.array([2.0, 1.0]))  # gᵀd = 4: √(2·0.5/4) = 0.5
    step, _ = tx.update({"w": 4 * direction["w"]}, tx.init(grad), grad=grad)
    np.testing.assert_allclose(step["w"], -0.25 * 4 * np.array([2.0, 1.0]))


@pytest.mark.slow
def test_the_pole_is_balanced():
    result = solve(seed=100, iterations=40)
    assert result.evaluation >= SOLVED
    assert result.returns[0] < 100
