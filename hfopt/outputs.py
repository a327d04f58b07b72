"""Outputs of a model as a real vector space: what J is a derivative of, and what B multiplies.

Curvature is linear algebra over the reals. A complex output counts as a pair of reals, so that |z − t|² has B = 2I on
(Re z, Im z) and quadratic forms are real; a leaf that has no derivative, such as a predicted class, takes no part. Both
are put together again for the loss, which sees the outputs as the model returns them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Pair(NamedTuple):
    """A complex array as two real ones."""

    real: jax.Array
    imag: jax.Array


def coordinates(outputs: Any) -> Any:
    """The outputs in real coordinates: a `Pair` for every complex leaf, ``None`` for one without a derivative."""
    return jax.tree.map(_coordinates, outputs)


def others(outputs: Any) -> Any:
    """The leaves without a derivative, ``None`` for all else."""
    return jax.tree.map(lambda z: None if jnp.issubdtype(jnp.result_type(z), jnp.inexact) else z, outputs)


def in_coordinates(function: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """``function`` with its outputs in two parts: their `coordinates`, and the `others`."""

    def parts(*arguments: Any) -> tuple[Any, Any]:
        outputs = function(*arguments)
        return coordinates(outputs), others(outputs)

    return parts


def joined(coordinates: Any, others: Any) -> Any:
    """The outputs that have these `coordinates` and `others`."""
    absent = lambda node: node is None or isinstance(node, Pair)  # noqa: E731
    return jax.tree.map(_joined, coordinates, others, is_leaf=absent)


def of_coordinates(loss: Callable[[Any, Any], Any], coordinates: Any, others: Any) -> Callable[[Any, Any], Any]:
    """``loss`` as a function of coordinates; where all outputs are real ``loss`` itself, which may be known by name."""
    pairs = jax.tree.leaves(coordinates, is_leaf=lambda node: isinstance(node, Pair))
    if not jax.tree.leaves(others) and not any(isinstance(node, Pair) for node in pairs):
        return loss
    return lambda z, targets: loss(joined(z, others), targets)


def _coordinates(z: Any) -> Any:
    dtype = jnp.result_type(z)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return Pair(jnp.real(z), jnp.imag(z))
    return z if jnp.issubdtype(dtype, jnp.floating) else None


def _joined(part: Any, other: Any) -> Any:
    if isinstance(part, Pair):
        return jax.lax.complex(part.real, part.imag)
    return other if part is None else part
