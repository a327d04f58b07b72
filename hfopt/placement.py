"""Arrays on a mesh with explicit axes, where JAX wants to be told what it elsewhere finds out by itself.

Such an axis is part of an array's type, and operations that would have to choose a sharding raise. The functions here
choose: rows stay on their devices as long as they divide evenly, and sums are on all. Where no axis is explicit they
are what they are without a mesh.
"""

from typing import Any

import jax
import jax.numpy as jnp


def is_split(x: Any) -> bool:
    """Whether the type of ``x`` says that it is split over devices."""
    return any(jax.typeof(x).sharding.spec)


def whole(x: Any) -> Any:
    """``x`` on every device."""
    return jax.sharding.reshard(x, jax.P()) if is_split(x) else x


def placed_as(tree: Any, like: Any) -> Any:
    """``tree``, of arrays that are on every device, split as ``like`` is, along the axes they share from the first."""

    def place(x: Any, like: Any) -> Any:
        sharding = jax.typeof(like).sharding
        spec = jax.P(*sharding.spec[: jnp.ndim(x)])
        return jax.sharding.reshard(x, jax.NamedSharding(sharding.mesh, spec)) if any(spec) else x

    return jax.tree.map(place, tree, like)


def split_evenly(x: Any, parts: int) -> bool:
    """Whether the first axis can be cut into ``parts`` equal ones on every device."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[0] if sharding.spec else None
    names = names if isinstance(names, tuple) else (names,)
    devices = 1
    for name in names:
        devices *= 1 if name is None else sharding.mesh.shape[name]
    return jnp.shape(x)[0] // parts % devices == 0


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Σ a ∘ b, for arrays of one shape."""
    return (a * b).sum() if is_split(a) and is_split(b) else jnp.vdot(a, b)


def weighted_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Σ_i w_i x_i over the first axis."""
    if is_split(weights) and is_split(rows):
        return (weights.reshape((-1,) + (1,) * (rows.ndim - 1)) * rows).sum(axis=0)
    return jnp.tensordot(weights, rows, axes=1)
