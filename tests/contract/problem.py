"""A small problem, and the loops by which a wrapped optimizer is compared with one that is called by hand."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hfopt

STEPS = 4


def predict(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["in"]) @ params["out"]


OBJECTIVE = hfopt.Objective(predict, optax.losses.softmax_cross_entropy_with_integer_labels, l2=1e-2)


def params(seed: int = 0) -> dict[str, Any]:
    one, two = jax.random.split(jax.random.key(seed))
    return {"in": jax.random.normal(one, (3, 4)), "out": jax.random.normal(two, (4, 3))}


def batches(count: int = STEPS) -> list[Any]:
    """Another one for each step."""
    draw = lambda key: (jax.random.normal(key, (12, 3)), jax.random.randint(key, (12,), 0, 3))  # noqa: E731
    return [draw(key) for key in jax.random.split(jax.random.key(9), count)]


def train_step(tx: Any, params: Any, state: Any, batch: Any) -> Any:
    """The loop body that users write."""
    value_fn = OBJECTIVE.bind(batch)
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
    return optax.apply_updates(params, updates), state


def trajectory(tx: Any, data: list[Any] | None = None, start: Any = None) -> list[Any]:
    """The parameters after each step of the loop."""
    here = params() if start is None else start
    state, step, path = tx.init(here), jax.jit(partial(train_step, tx)), []
    for batch in batches() if data is None else data:
        here, state = step(here, state, batch)
        path.append(here)
    return path


class ByHand:
    """A transformation called step by step, for what a wrapper should have made of it."""

    def __init__(self, tx: Any, start: Any = None) -> None:
        self.tx = tx
        self.state = tx.init(params() if start is None else start)
        self._call = jax.jit(self._update)

    def _update(self, at: Any, state: Any, batch: Any, updates: Any) -> Any:
        value_fn = OBJECTIVE.bind(batch)
        value, grad = jax.value_and_grad(value_fn)(at)
        return self.tx.update(updates, state, at, value=value, grad=grad, value_fn=value_fn)

    def step(self, at: Any, batch: Any, updates: Any = None) -> Any:
        """The update at ``at``, from the gradient there unless ``updates`` are given."""
        updates = gradient(at, batch) if updates is None else updates
        step, self.state = self._call(at, self.state, batch, updates)
        return step


@jax.jit
def gradient(at: Any, batch: Any) -> Any:
    return jax.grad(OBJECTIVE.bind(batch))(at)


@jax.jit
def value(at: Any, batch: Any) -> Any:
    return OBJECTIVE.bind(batch)(at)


def add(a: Any, b: Any, scale: float = 1.0) -> Any:
    """a + scale · b."""
    return jax.tree.map(lambda x, y: x + scale * y, a, b)


def assert_same(a: Any, b: Any, rtol: float = 1e-8) -> None:
    """Equal trees, to ``rtol`` of the largest number."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(
            np.asarray(x), np.asarray(y), rtol=0, atol=rtol * max(float(np.abs(y).max()), 1e-300)
        )
