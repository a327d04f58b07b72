"""What the checks examine, and what more than one of them needs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hfopt.objective import ValueFn
from hfopt.placement import placed_as


class Case(NamedTuple):
    """An objective on a batch, parameters, and the programs that more than one check runs."""

    value_fn: ValueFn
    params: Any
    value: Callable[[Any, ValueFn], jax.Array]
    value_and_grad: Callable[[Any, ValueFn], tuple[jax.Array, Any]]


def normal(key: jax.Array, like: Any) -> Any:
    """A tree of normal deviates."""
    return placed_as(optax.tree.random_like(key, like), like)


def eps(value: jax.Array) -> float:
    """The machine epsilon of its dtype."""
    return float(jnp.finfo(value.dtype).eps)


def wide(leaf: jax.Array) -> Any:
    """Its dtype, or float32 if that is wider."""
    return jnp.promote_types(leaf.dtype, jnp.float32)
