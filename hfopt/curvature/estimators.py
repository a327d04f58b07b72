"""Trace and diagonal of a matrix from a few products with random vectors, with standard errors."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from hfopt.arguments import require_key
from hfopt.curvature.flat import Flat, FlatProduct
from hfopt.vectors import norms

TraceMethod = Literal["xtrace", "hutchinson"]


class Estimate(NamedTuple):
    """An unbiased estimate and its standard error, in the same units; both pytrees of one structure."""

    value: Any
    standard_error: Any


def trace(flat: Flat, key: jax.Array, products: int, method: TraceMethod) -> Estimate:
    """tr A, see `hfopt.Operator.estimate_trace`."""
    if method not in ("xtrace", "hutchinson"):
        raise ValueError(f'Operator.estimate_trace: `method` must be "xtrace" or "hutchinson", got {method!r}.')
    least = 4 if method == "xtrace" else 2
    if type(products) is not int or products < least:
        raise ValueError(f"Operator.estimate_trace: `products` must be an integer of at least {least}, got {products}.")
    if method == "xtrace" and products // 2 > flat.size:
        raise ValueError(
            f"Operator.estimate_trace: {products} products, for a matrix of {flat.size} rows that {flat.size} "
            "determine; take Operator.trace()."
        )
    require_key("Operator.estimate_trace", key)
    run = _xtrace if method == "xtrace" else _hutchinson
    estimates = run(flat.product, flat.size, flat.dtype, products, flat.captured, key)
    count = estimates.size
    mean = estimates.mean()
    return Estimate(mean, norms(estimates - mean) / jnp.sqrt(jnp.asarray(count * (count - 1), flat.dtype)))


def diagonal(flat: Flat, key: jax.Array, probes: int) -> Estimate:
    """diag A, see `hfopt.Operator.estimate_diagonal`."""
    if type(probes) is not int or probes < 2:
        raise ValueError(f"Operator.estimate_diagonal: `probes` must be an integer of at least 2, got {probes}.")
    require_key("Operator.estimate_diagonal", key)
    mean, error = _moments(flat.product, flat.size, flat.dtype, probes, flat.captured, key)
    return Estimate(flat.unravel(mean), flat.unravel(error))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _moments(
    product: FlatProduct, size: int, dtype: Any, probes: int, captured: list[jax.Array], key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean of z ∘ (A z) over random signs z, and its standard error; by Welford's recurrence, without cancellation.

    It adds (x_k − m_{k−1}) (x_k − m_k) = (1 − 1/k) (x_k − m_{k−1})² to a sum of squares. Here the root of that sum is
    carried, whose squares neither under- nor overflow.
    """

    def probe(moments: tuple[jax.Array, jax.Array], turn: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        number, key = turn
        mean, root = moments
        z = jax.random.rademacher(key, (size,), dtype)
        away = z * product(captured, z) - mean
        return (mean + away / number, jnp.hypot(root, jnp.sqrt(1 - 1 / number) * away)), None

    numbers = jnp.arange(1, probes + 1).astype(dtype)
    zero = jnp.zeros(size, dtype)
    (mean, root), _ = jax.lax.scan(probe, (zero, zero), (numbers, jax.random.split(key, probes)))
    return mean, root / jnp.sqrt(jnp.asarray(probes * (probes - 1), dtype))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _hutchinson(
    product: FlatProduct, size: int, dtype: Any, products: int, captured: list[jax.Array], key: jax.Array
) -> jax.Array:
    """zᵀAz at random signs z."""

    def one(key: jax.Array) -> jax.Array:
        z = jax.random.rademacher(key, (size,), dtype)
        return jnp.vdot(z, product(captured, z))

    return jax.lax.map(one, jax.random.split(key, products))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _xtrace(
    product: FlatProduct, size: int, dtype: Any, products: int, captured: list[jax.Array], key: jax.Array
) -> jax.Array:
    """Leave-one-out estimates: for test vector i, the trace on the range of A times all others, and of the rest.

    With Q R = A Ω and Q_i an orthonormal basis of the columns of A Ω but the i-th, of rank s − 1,
    t_i = tr Q_iᵀ A Q_i + (n − s + 1) r̂ᵀ A r̂, where r̂ is the direction of (I − Q_i Q_iᵀ) ω_i. Q_i Q_iᵀ =
    Q (I − u uᵀ) Qᵀ, u the unit vector orthogonal to the columns of R but the i-th; so all t_i are of small matrices.
    """
    with jax.default_matmul_precision("highest"):
        return _leave_one_out(product, size, dtype, products // 2, captured, key)


def _leave_one_out(
    product: FlatProduct, size: int, dtype: Any, count: int, captured: list[jax.Array], key: jax.Array
) -> jax.Array:
    multiply = partial(jax.lax.map, partial(product, captured))
    tests = jax.random.normal(key, (count, size), dtype)
    image = multiply(tests)
    q, r = jnp.linalg.qr(image.T)
    inner = q.T @ multiply(q.T).T
    inner = (inner + inner.T) / 2
    w = q.T @ tests.T

    def estimate(i: jax.Array) -> jax.Array:
        # By the SVD and not by R⁻ᵀ, as published: R is singular where A has a rank below s.
        others = jnp.where(jnp.arange(count)[None] == i, 0, r)
        u = jnp.linalg.svd(others)[0][:, -1]
        p = w[:, i] - u * jnp.vdot(u, w[:, i])
        length = jnp.vdot(tests[i], tests[i]) - jnp.vdot(p, p)
        form = jnp.vdot(tests[i], image[i]) - 2 * jnp.vdot(p, r[:, i]) + p @ inner @ p
        rest = (size - count + 1) * form / jnp.maximum(length, jnp.finfo(dtype).tiny)
        return jnp.trace(inner) - u @ inner @ u + rest

    return jax.lax.map(estimate, jnp.arange(count))
