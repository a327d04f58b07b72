"""Pytrees as vectors: inner products, and a form in which vector arithmetic is cheap to compile and to run.

A network has more biases and scales than matrices, and every operation on vectors is one kernel a leaf: with two dozen
leaves the vector arithmetic of a step takes longer to compile than the network. `Packing` joins the small leaves into
one array. The large ones stay what they are, sharded or not: joining them would copy all parameters at every product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hfopt.placement import dot

_SMALL = 1 << 14  # elements, at most, of a leaf that is joined with others


@dataclass(frozen=True)
class Diagonal:
    """v ↦ D v, entry by entry, in the dtypes of v."""

    entries: Any  # D, shaped like v

    def __call__(self, vector: Any) -> Any:
        return jax.tree.map(lambda x, d: (x.astype(d.dtype) * d).astype(x.dtype), vector, self.entries)


@dataclass(frozen=True)
class Packing:
    """How trees like one example are packed: into the large leaves and, for each dtype, one array of the small ones.

    Leaves that an explicit sharding splits count as large.
    """

    like: tuple[Any, ...]  # shapes and dtypes of the leaves
    tree: Any  # their structure
    large: tuple[int, ...]
    small: tuple[tuple[int, ...], ...]  # those of one dtype each

    @staticmethod
    def of(tree: Any) -> "Packing":
        """The packing of trees with the structure, shapes and dtypes of ``tree``."""
        leaves, structure = jax.tree.flatten(tree)
        like = tuple(jax.typeof(leaf) for leaf in leaves)
        groups: dict[Any, list[int]] = {}
        for i, leaf in enumerate(like):
            if leaf.size <= _SMALL and not any(leaf.sharding.spec):
                groups.setdefault(leaf.dtype, []).append(i)
        small = tuple(tuple(group) for group in groups.values() if len(group) > 1)
        joined = {i for group in small for i in group}
        return Packing(like, structure, tuple(i for i in range(len(like)) if i not in joined), small)

    def pack(self, tree: Any) -> list[jax.Array]:
        """``tree`` in the packed form, in the dtypes of the example."""
        leaves = [jnp.asarray(x).astype(like.dtype) for x, like in zip(jax.tree.leaves(tree), self.like, strict=True)]
        join = lambda group: jnp.concatenate([leaves[i].ravel() for i in group])  # noqa: E731
        return [leaves[i] for i in self.large] + [join(group) for group in self.small]

    def unpack(self, packed: list[jax.Array]) -> Any:
        """The tree that ``packed`` is of."""
        leaves: list[Any] = [None] * len(self.like)
        for i, leaf in zip(self.large, packed, strict=False):
            leaves[i] = leaf
        for group, joined in zip(self.small, packed[len(self.large) :], strict=True):
            ends = np.cumsum([self.like[i].size for i in group])
            for i, part in zip(group, jnp.split(joined, ends[:-1]), strict=True):
                leaves[i] = part.reshape(self.like[i].shape)
        return jax.tree.unflatten(self.tree, leaves)

    def linear(self, function: Callable[[Any], Any]) -> Callable[[list[jax.Array]], list[jax.Array]]:
        """``function``, of trees to trees, on packed vectors."""
        if isinstance(function, Diagonal):
            return Diagonal(self.pack(function.entries))
        return lambda packed: self.pack(function(self.unpack(packed)))


def vdot(a: Any, b: Any) -> jax.Array:
    """aᵀb of trees of one structure, summed in at least float32."""
    packing = Packing.of(widened(a))
    parts = list(map(dot, packing.pack(a), packing.pack(b)))
    widest = max((part.dtype for part in parts), key=lambda dtype: jnp.finfo(dtype).bits, default=jnp.float32)
    return optax.tree.sum([part.astype(widest) for part in parts])


def norm(a: Any) -> jax.Array:
    """‖a‖ = √(aᵀa), also where the squares of the entries would under- or overflow."""
    largest = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(widened(a))]
    if not largest:
        return jnp.sqrt(vdot(a, a))
    dtype = max((top.dtype for top in largest), key=lambda dtype: jnp.finfo(dtype).bits)
    unit = _unit(jnp.stack([top.astype(dtype) for top in largest]).max())
    scaled = jax.tree.map(lambda x: x / unit.astype(x.dtype), widened(a))
    return unit * jnp.sqrt(vdot(scaled, scaled)).astype(dtype)


def norms(x: jax.Array, axis: int | None = None) -> jax.Array:
    """Euclidean norms along an axis of an array, of all of it for ``None``; without under- or overflow, as `norm`."""
    unit = _unit(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0))
    return jnp.squeeze(unit, axis) * jnp.linalg.norm(x / unit, axis=axis)


def _unit(largest: jax.Array) -> jax.Array:
    """The power of two at ``largest``, by which a division rounds nothing; 1 for 0 and for what is not finite."""
    usable = (largest > 0) & jnp.isfinite(largest)
    _, exponent = jnp.frexp(jnp.where(usable, largest, 1))
    # Neither the unit nor its reciprocal may leave the normal numbers.
    limits = jnp.finfo(largest.dtype)
    return jnp.ldexp(jnp.ones_like(largest), jnp.clip(exponent, limits.minexp + 1, limits.maxexp - 2))


def widened(tree: Any) -> Any:
    """``tree`` with every leaf in at least float32: what sums over parameters are taken in."""
    return jax.tree.map(lambda x: x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32), tree)


def wide_dtype(x: Any) -> Any:
    """The dtype of ``x``, but at least float32."""
    dtype = jnp.result_type(x)
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def widest_dtype(tree: Any) -> Any:
    """The widest dtype in ``tree``, at least float32."""
    return max(map(wide_dtype, jax.tree.leaves(tree)), key=lambda d: jnp.finfo(d).bits, default=jnp.float32)


def abstract(tree: Any) -> Any:
    """``tree`` with a ``jax.ShapeDtypeStruct`` for every leaf."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def axpy(scalar: Any, x: Any, y: Any) -> Any:
    """scalar · x + y, in the dtypes of x: a float32 scalar must not promote, nor a bfloat16 product narrow."""
    return jax.tree.map(lambda x, y: jnp.asarray(scalar, x.dtype) * x + y.astype(x.dtype), x, y)
