"""The Fisher matrix I/C + (1/N) Σ J_iᵀ E_{y~p(·|z_i)}[r rᵀ] J_i, with labels drawn from the model.

The loss says what p is: a loss that is −log p(y|z) up to a constant. Those below have z as natural parameters of p,
where E[r rᵀ] is the Hessian B of the loss, so that the Fisher and the Gauss-Newton matrix are the same.

| loss | p(y given z) |
|---|---|
| ``optax.softmax_cross_entropy_with_integer_labels`` | categorical, probabilities softmax(z) |
| ``optax.softmax_cross_entropy`` | categorical; labels that sum to s are s independent draws |
| ``optax.sigmoid_binary_cross_entropy`` | Bernoulli, probability sigmoid(z) |
| ``optax.l2_loss`` | normal, mean z, variance 1 |
| ``optax.squared_error`` | normal, mean z, variance 1/2 |
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hfopt.arguments import require_key
from hfopt.batch import Batch, Examples, size
from hfopt.curvature.average import check_value_fn
from hfopt.curvature.operator import Operator
from hfopt.curvature.sandwich import sandwich
from hfopt.losses import Loss
from hfopt.objective import Objective, ValueFn
from hfopt.placement import placed_as

MAX_CLASSES = 256  # enumerating K classes holds K residuals of K entries for every observation


class Likelihood(NamedTuple):
    """The p(y|z) of a loss, in labels as that loss takes them."""

    event_axes: int  # trailing axes of z that one observation depends on: 1 for logits of K classes, 0 for a mean
    # key, z (…), number S -> S independent labels, (S, …)
    draw: Callable[[jax.Array, jax.Array, int], jax.Array]
    # z (…) -> labels (S, …) and probabilities (S, …) under which E[r rᵀ] is exactly that of p
    enumerate: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def fisher(
    value_fn: ValueFn, params: Any = None, key: jax.Array | None = None, samples: int | Literal["exact"] = 1
) -> Operator:
    """I/C + (1/N) Σ J_iᵀ E_{y~p(·|z_i)}[r rᵀ] J_i at ``params``, over the curvature batch of ``value_fn``.

    p is the distribution whose negative log-likelihood the loss is (the table at the top of this module) and
    r = ∂ξ/∂z at a label y drawn from it. The targets of the batch do not enter, except for the sums of soft labels.

    A loss with T values an example (time steps, output units) is T independent observations, of which ξ_i is the mean.
    M_i is then block-diagonal, (1/T) Σ_t r_it r_itᵀ with r_it the residual of one observation, so that E[M_i] = B_i;
    products of residuals of different observations have mean zero and would only add noise.

    Labels are drawn once: every product of an operator, and every chunking of the same batch, sees the same ones.
    Example i draws from ``jax.random.fold_in(key, i)``. Pass a new key for new labels.

    Args:
      value_fn: from `Objective.bind`. With a ``curvature_batch`` the mean is taken over that one.
      params: a pytree of floating arrays.
      key: for drawing labels; not needed when ``samples="exact"``.
      samples: how many labels to draw for each observation. The operator is unbiased for any number; its standard
        error falls as samples^−½. ``"exact"`` takes the expectation instead: over the K classes or both binary
        labels, and for a normal over y = z ± σ, which has the same second moment.

    Returns:
      An `Operator`, positive semi-definite. ``F @ v`` costs one jvp and one vjp, ``F.quadratic_form(v)`` one jvp;
      memory for residuals is ``samples`` times the outputs, with ``"exact"`` K times.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating; no key to draw from.
      ValueError: the loss has no entry in the table; ``samples`` is neither a positive integer nor ``"exact"``;
        ``"exact"`` for more than 256 classes.

    References:
      Martens, "New insights and perspectives on the natural gradient method", 2020, sections 5 and 9.2.
    """
    check_value_fn(value_fn)
    likelihood = _likelihood(value_fn.objective.loss)
    if samples != "exact" and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise ValueError(f'fisher: `samples` must be a positive integer or "exact", got {samples!r}.')
    if samples != "exact" and key is None:
        raise TypeError('fisher: drawing labels needs a `key`, e.g. jax.random.key(0); or pass samples="exact".')
    if key is not None:
        require_key("fisher", key)

    batch = value_fn.averaged
    # The number of an example travels with its target: what it draws must not depend on the chunk it falls into.
    numbered = Batch(batch.inputs, (batch.targets, jnp.arange(size(batch))), batch.weights)

    def middle(objective: Objective, outputs: jax.Array, rows: Examples) -> Callable[[jax.Array], jax.Array]:
        targets, numbers = rows.targets
        # As many observations as losses: labels that broadcast against the outputs observe one output several times.
        losses = jax.eval_shape(objective.loss, outputs, targets).shape
        shape = losses + outputs.shape[outputs.ndim - likelihood.event_axes :]
        spread = lambda z: jnp.broadcast_to(z, shape)  # noqa: E731
        outputs, gather = jax.vjp(spread, outputs)
        if samples == "exact" or key is None:
            labels, probabilities = likelihood.enumerate(outputs)
        else:
            labels = _draw(likelihood, key, numbers, outputs, samples)
            probabilities = jnp.full((samples,) + (1,) * (outputs.ndim - likelihood.event_axes), 1 / samples)
        observations = _observation_weights(objective.loss, shape, losses, targets, rows.coefficients)
        weights = probabilities.astype(outputs.dtype) * observations[None].astype(outputs.dtype)
        moment = _moment(_residuals(objective.loss, outputs, labels), weights, likelihood.event_axes)
        return lambda u: gather(moment(spread(u)))[0]

    return sandwich(replace(value_fn, batch=numbered, curvature_batch=None), params, middle)


def _likelihood(loss: Loss) -> Likelihood:
    if not any(loss is name for name in _LIKELIHOODS):
        names = ", ".join(f"optax.{known.__name__}" for known in _LIKELIHOODS)
        raise ValueError(
            f"fisher: labels can be drawn for losses that are a known negative log-likelihood: {names}; "
            f"got {getattr(loss, '__name__', repr(loss))}. For any other loss use gauss_newton or empirical_fisher."
        )
    return _LIKELIHOODS[loss]


def _draw(likelihood: Likelihood, key: jax.Array, numbers: jax.Array, outputs: jax.Array, samples: int) -> jax.Array:
    """Labels for every row, (samples, N, …); a row's draw depends on its number, not on its place."""
    one = lambda number, z: likelihood.draw(jax.random.fold_in(key, number), z, samples)  # noqa: E731
    return jax.vmap(one, out_axes=1)(placed_as(numbers, outputs), outputs)


def _residuals(loss: Loss, outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """∂ξ_it/∂z_it at each of S labels: (S, N, …)."""
    return jax.vmap(lambda y: jax.grad(lambda z: loss(z, y).sum())(outputs))(labels)


def _observation_weights(
    loss: Loss, outputs: tuple[int, ...], losses: tuple[int, ...], targets: Any, coefficients: jax.Array
) -> jax.Array:
    """c_i / T for each of the T observations of example i, shaped like the losses; times s for soft labels' sum s."""
    per_row = coefficients * (losses[0] / max(1, math.prod(losses)))
    weights = jnp.broadcast_to(per_row.reshape((-1,) + (1,) * (len(losses) - 1)), losses)
    if loss is optax.losses.softmax_cross_entropy:
        labels = jnp.broadcast_to(targets, jnp.broadcast_shapes(outputs, targets.shape))
        weights = weights * labels.sum(axis=-1).astype(weights.dtype)
    return weights


def _moment(residuals: jax.Array, weights: jax.Array, event_axes: int) -> Callable[[jax.Array], jax.Array]:
    """u ↦ Σ_s w_s r_s (r_sᵀ u), each observation on its own: residuals (S, N, …, events), weights (S, N, …)."""
    axes = tuple(range(-event_axes, 0))

    def product(u: jax.Array) -> jax.Array:
        along = (residuals * u[None]).sum(axis=axes)
        return (jnp.expand_dims(weights * along, axes) * residuals).sum(axis=0)

    return product


def _draw_class(key: jax.Array, logits: jax.Array, samples: int) -> jax.Array:
    return jax.random.categorical(key, logits, shape=(samples, *logits.shape[:-1]))


def _classes(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    count = logits.shape[-1]
    if count > MAX_CLASSES:
        raise ValueError(
            f'fisher: samples="exact" enumerates the classes, at most {MAX_CLASSES}, got {count}. Draw labels with a '
            "key and samples=1, 2, ..., or use gauss_newton, which is the same matrix for this loss."
        )
    labels = jnp.arange(count).reshape((-1,) + (1,) * (logits.ndim - 1))
    return jnp.broadcast_to(labels, (count, *logits.shape[:-1])), jnp.moveaxis(jax.nn.softmax(logits), -1, 0)


def _draw_one_hot(key: jax.Array, logits: jax.Array, samples: int) -> jax.Array:
    return jax.nn.one_hot(_draw_class(key, logits, samples), logits.shape[-1], dtype=logits.dtype)


def _one_hots(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    labels, probabilities = _classes(logits)
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), probabilities


def _draw_binary(key: jax.Array, logits: jax.Array, samples: int) -> jax.Array:
    p = jnp.broadcast_to(jax.nn.sigmoid(logits), (samples, *logits.shape))
    return jax.random.bernoulli(key, p).astype(logits.dtype)


def _binaries(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    labels = jnp.stack([jnp.zeros_like(logits), jnp.ones_like(logits)])
    return labels, jnp.stack([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)])


def _draw_normal(deviation: float, key: jax.Array, mean: jax.Array, samples: int) -> jax.Array:
    return mean[None] + deviation * jax.random.normal(key, (samples, *mean.shape), mean.dtype)


def _normal_nodes(deviation: float, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.stack([mean - deviation, mean + deviation]), jnp.full((2, *mean.shape), 0.5)


def _normal(variance: float) -> Likelihood:
    return Likelihood(0, partial(_draw_normal, variance**0.5), partial(_normal_nodes, variance**0.5))


_LIKELIHOODS: dict[Loss, Likelihood] = {
    optax.losses.softmax_cross_entropy_with_integer_labels: Likelihood(1, _draw_class, _classes),
    optax.losses.softmax_cross_entropy: Likelihood(1, _draw_one_hot, _one_hots),
    optax.losses.sigmoid_binary_cross_entropy: Likelihood(0, _draw_binary, _binaries),
    optax.losses.l2_loss: _normal(1.0),
    optax.losses.squared_error: _normal(0.5),
}
