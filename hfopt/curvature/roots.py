"""Square roots L of the Hessians B of losses, B = L Lᵀ: what random probes of a Gauss-Newton matrix are made with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.batch import Examples
from hfopt.losses import Loss, is_known, output_hessian, scale_of_rows
from hfopt.placement import placed_as

# z ↦ (u, w) with E[u wᵀ] = Σ c_i B_i when the entries of z are independent signs
Pairs = Callable[[Any], tuple[Any, Any]]
# loss, outputs, rows -> its pairs
Roots = Callable[[Loss, Any, Examples], Pairs]


def random_signs(key: jax.Array, like: Any) -> Any:
    """A tree like ``like`` of independent ±1, placed as it is."""
    signs = lambda key, shape, dtype: jax.random.rademacher(key, shape, dtype)  # noqa: E731
    return placed_as(optax.tree.random_like(key, like, signs), like)


def root_pairs(loss: Loss, outputs: Any, rows: Examples) -> Pairs:
    """z ↦ (u, w) with E[u wᵀ] = Σ c_i B_i, the Hessian of the mean loss in the outputs; u is w where it has a root."""
    if not is_known(loss, outputs, rows.targets):
        if any(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(outputs)):  # what all examples share is in no row
            hessian = output_hessian(loss, outputs, rows)
            return lambda z: (z, hessian(z))
        half = rows._replace(coefficients=jnp.sqrt(rows.coefficients))
        hessian = output_hessian(loss, outputs, half)
        broadcast = lambda x: half.coefficients.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1)) * x  # noqa: E731
        return lambda z: (jax.tree.map(broadcast, z), hessian(z))
    factor = _ROOTS[loss](outputs, rows.targets, scale_of_rows(loss, outputs, rows))

    def pair(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = factor(z)
        return u, u

    return pair


def _softmax_root(logits: jax.Array, scale: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """L = diag(√p) − p √pᵀ: L Lᵀ = diag(p) − p pᵀ since √pᵀ√p = 1."""
    p = jax.nn.softmax(logits)
    root = jnp.sqrt(p)
    return lambda z: jnp.sqrt(scale) * (root * z - p * (root * z).sum(axis=-1, keepdims=True))


def _soft_labels_root(logits: jax.Array, labels: jax.Array, scale: jax.Array) -> Callable[[jax.Array], jax.Array]:
    return _softmax_root(logits, scale * labels.sum(axis=-1, keepdims=True).astype(logits.dtype))


def _sigmoid_root(logits: jax.Array, labels: jax.Array, scale: jax.Array) -> Callable[[jax.Array], jax.Array]:
    p = jax.nn.sigmoid(logits)
    return lambda z: jnp.sqrt(scale * p * (1 - p)) * z


_ROOTS: dict[Loss, Callable[[jax.Array, jax.Array, jax.Array], Callable[[jax.Array], jax.Array]]] = {
    optax.losses.softmax_cross_entropy: _soft_labels_root,
    optax.losses.softmax_cross_entropy_with_integer_labels: lambda z, y, scale: _softmax_root(z, scale),
    optax.losses.sigmoid_binary_cross_entropy: _sigmoid_root,
    optax.losses.squared_error: lambda z, y, scale: lambda u: jnp.sqrt(2 * scale) * u,
    optax.losses.l2_loss: lambda z, y, scale: lambda u: jnp.sqrt(scale) * u,
}
