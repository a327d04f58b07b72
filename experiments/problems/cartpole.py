"""CartPole: a pole on a cart, to be held upright by pushing left or right. In plain JAX, so that episodes vectorise.

An observation is (position, velocity, angle, angular velocity); an action is 0 (left) or 1 (right); every step that the
pole stands and the cart stays on the track gives a reward of 1, and an episode ends after 500.

Source: Barto, Sutton & Anderson, "Neuronlike adaptive elements that can solve difficult learning control problems",
1983; constants, limits and Euler integration as in the environment CartPole-v1 of Gymnasium.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

LIMIT = 500  # steps an episode, and so the largest return
_GRAVITY, _CART, _POLE, _HALF_LENGTH, _FORCE, _SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
_TRACK, _ANGLE = 2.4, 12 * 2 * jnp.pi / 360
_START = 0.05

Policy = Callable[[jax.Array, jax.Array], jax.Array]  # observation, key -> action


class Episode(NamedTuple):
    """One episode, padded to `LIMIT` steps; leaves start with the axis of steps."""

    observations: jax.Array  # (LIMIT, 4)
    actions: jax.Array  # (LIMIT,) int32
    alive: jax.Array  # (LIMIT,) bool: whether the step was made; their number is the return


def reset(key: jax.Array) -> jax.Array:
    """The state at the start: uniform in [−0.05, 0.05]⁴."""
    return jax.random.uniform(key, (4,), minval=-_START, maxval=_START)


def advance(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next state, and whether the episode is over there."""
    _, speed, angle, spin = state
    force = jnp.where(action == 1, _FORCE, -_FORCE)
    sine, cosine, mass = jnp.sin(angle), jnp.cos(angle), _CART + _POLE
    push = (force + _POLE * _HALF_LENGTH * spin**2 * sine) / mass
    tilt = (_GRAVITY * sine - cosine * push) / (_HALF_LENGTH * (4 / 3 - _POLE * cosine**2 / mass))
    slide = push - _POLE * _HALF_LENGTH * tilt * cosine / mass
    after = state + _SECONDS * jnp.stack([speed, slide, spin, tilt])
    return after, (jnp.abs(after[0]) > _TRACK) | (jnp.abs(after[2]) > _ANGLE)


def play(policy: Policy, key: jax.Array) -> Episode:
    """One episode under ``policy``."""

    def step(carry: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Episode]:
        state, alive = carry
        action = policy(state, key)
        after, over = advance(state, action)
        return (jnp.where(alive, after, state), alive & ~over), Episode(state, action, alive)

    start, steps = jax.random.split(key)
    return jax.lax.scan(step, (reset(start), jnp.bool_(True)), jax.random.split(steps, LIMIT))[1]
