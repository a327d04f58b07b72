"""The loss as a function of the outputs: its value, its gradient r, and B, its Hessian.

With outputs ``z`` and ``loss(z, targets)`` one value per example, r_i = ∂ξ_i/∂z_i and B_i = ∂²ξ_i/∂z_i². Curvature
products need only ``u ↦ B u``. For the losses of Optax that most models use, B is written in closed form below; for
every other loss it is the derivative of the gradient, ``jvp(grad(loss))``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.batch import Examples, size
from hfopt.placement import dot

Loss = Callable[[Any, Any], jax.Array]
Product = Callable[[Any], Any]


def mean_loss(loss: Loss, outputs: Any, rows: Examples) -> jax.Array:
    """Σ c_i ξ_i: the mean over examples (and over every further axis) of the loss; a scalar.

    Raises:
      TypeError: the loss does not take the tuple that ``predict`` returned.
      ValueError: the loss is a scalar, is not floating, or has another number of rows than there are examples.
    """
    losses = jnp.asarray(_applied(loss, outputs, rows.targets))
    count = size(rows)
    if losses.ndim == 0:
        raise ValueError(
            "Objective: `loss` returned a scalar; it must return one value per example, shape (N,) or (N, ...). "
            "Return the losses before their mean, e.g. optax.softmax_cross_entropy_with_integer_labels(logits, labels)."
        )
    if losses.shape[0] != count:
        shapes = jax.tree.map(jnp.shape, outputs)
        raise ValueError(
            f"Objective: `loss` returned shape {losses.shape} for {count} examples (outputs of shape {shapes}); "
            "outputs and losses must keep the batch axis first."
        )
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(f"Objective: `loss` must return floating values, got dtype {losses.dtype}.")
    # Low-precision losses are widened first, so that the mean over many examples does not drown in rounding.
    if jnp.finfo(losses.dtype).bits < 32:
        losses = losses.astype(jnp.float32)
    return dot(rows.coefficients.astype(losses.dtype), losses.reshape(count, -1).mean(axis=1))


def _applied(loss: Loss, outputs: Any, targets: Any) -> Any:
    """``loss(outputs, targets)``; raise TypeError where it does not take the tuple that ``predict`` returned."""
    if not isinstance(outputs, tuple | list):
        return loss(outputs, targets)
    try:
        return loss(outputs, targets)
    except Exception as error:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise TypeError(
            f"Objective: `predict` returned a {type(outputs).__name__} of {len(outputs)} and `loss`, {name}, did not "
            f"take it ({type(error).__name__}: {error}). Let `predict` return the outputs alone, or write "
            f"loss=lambda outputs, targets: {name}(outputs[0], targets)."
        ) from error


def output_hessian(loss: Loss, outputs: Any, rows: Examples) -> Product:
    """Return u ↦ B u, with B = ∂²(Σ c_i ξ_i)/∂z² at the outputs; u and B u are shaped like the outputs."""
    if not is_known(loss, outputs, rows.targets):
        total = lambda z: mean_loss(loss, z, rows)  # noqa: E731
        return jax.linearize(jax.grad(total), outputs)[1]
    return _CLOSED_FORMS[loss](outputs, rows.targets, scale_of_rows(loss, outputs, rows))


def is_known(loss: Loss, outputs: Any, targets: Any) -> bool:
    """Whether what is known of ``loss`` by its name holds for these outputs: every output has labels of its own.

    Cross-entropies of Optax broadcast labels against outputs. An output with several labels has the sum of their B,
    which is left to the general rule.
    """
    if not any(loss is name for name in _CLOSED_FORMS):  # by identity: a loss with settings has no hash
        return False
    shape = jnp.shape(outputs)
    return bool(jnp.shape(targets) == (shape[:-1] if loss in _OF_CLASSES else shape))


def scale_of_rows(loss: Loss, outputs: jax.Array, rows: Examples) -> jax.Array:
    """c_i / (elements of ξ_i), in a shape that multiplies the outputs: (N, 1, …)."""
    further = size(rows) / max(1, jax.eval_shape(loss, outputs, rows.targets).size)
    per_row = (rows.coefficients * further).astype(outputs.dtype)
    return per_row.reshape((-1,) + (1,) * (outputs.ndim - 1))


def _softmax(logits: jax.Array, scale: jax.Array) -> Product:
    """B = diag(p) − p pᵀ: null vector 1, λmax ≤ ½, rank K − 1."""
    p = jax.nn.softmax(logits)

    def product(u: jax.Array) -> jax.Array:
        pu = p * u
        return scale * (pu - p * pu.sum(axis=-1, keepdims=True))

    return product


def _softmax_cross_entropy(logits: jax.Array, labels: jax.Array, scale: jax.Array) -> Product:
    # Labels that do not sum to one scale the log-normaliser, and with it B.
    return _softmax(logits, scale * labels.sum(axis=-1, keepdims=True).astype(logits.dtype))


def _softmax_cross_entropy_with_integer_labels(logits: jax.Array, labels: jax.Array, scale: jax.Array) -> Product:
    return _softmax(logits, scale)


def _sigmoid_binary_cross_entropy(logits: jax.Array, labels: jax.Array, scale: jax.Array) -> Product:
    p = jax.nn.sigmoid(logits)
    return lambda u: scale * p * (1 - p) * u


def _squared_error(outputs: jax.Array, targets: jax.Array, scale: jax.Array) -> Product:
    return lambda u: 2 * scale * u


def _l2_loss(outputs: jax.Array, targets: jax.Array, scale: jax.Array) -> Product:
    return lambda u: scale * u


_CLOSED_FORMS: dict[Loss, Callable[[jax.Array, jax.Array, jax.Array], Product]] = {
    optax.losses.softmax_cross_entropy: _softmax_cross_entropy,
    optax.losses.softmax_cross_entropy_with_integer_labels: _softmax_cross_entropy_with_integer_labels,
    optax.losses.sigmoid_binary_cross_entropy: _sigmoid_binary_cross_entropy,
    optax.losses.squared_error: _squared_error,
    optax.losses.l2_loss: _l2_loss,
}
# Losses whose targets are the numbers of classes, one for the last axis of the outputs.
_OF_CLASSES = {optax.losses.softmax_cross_entropy_with_integer_labels}
