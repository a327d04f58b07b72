"""The spectral density of an operator by stochastic Lanczos quadrature."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hfopt.analysis.krylov import empty, extend
from hfopt.arguments import require_key
from hfopt.curvature.flat import FlatProduct
from hfopt.curvature.operator import Operator


class Density(NamedTuple):
    """φ(t) = (1/n) Σ δ(t − λᵢ) as the mean over probes of quadratures Σ_k w_k δ(t − θ_k).

    Attributes:
      nodes: (probes, depth), the θ of every probe, ascending.
      weights: (probes, depth), non-negative; those of one probe add up to one.
    """

    nodes: jax.Array
    weights: jax.Array

    @property
    def width(self) -> jax.Array:
        """What the quadratures resolve: the spread of the nodes over twice their number, in units of λ."""
        return (self.nodes.max() - self.nodes.min()) / (2 * self.nodes.shape[1])

    def evaluate(self, grid: jax.Array, width: jax.Array | float | None = None) -> jax.Array:
        """φ at the points of ``grid``, every δ a normal of standard deviation ``width``; ``None``: `width`.

        A width of zero, where all nodes are one, has no density: give another.
        """
        grid = jnp.asarray(grid, self.nodes.dtype)
        deviation = self.width if width is None else jnp.asarray(width, grid.dtype)
        distance = (grid[:, None] - self.nodes.reshape(1, -1)) / deviation
        bells = jnp.exp(-(distance**2) / 2) / (deviation * jnp.sqrt(jnp.asarray(2 * jnp.pi, grid.dtype)))
        return bells @ self.weights.reshape(-1) / self.nodes.shape[0]

    def below(self, bound: jax.Array | float) -> jax.Array:
        """The share of eigenvalues that are at most ``bound``, without smoothing."""
        return jnp.where(self.nodes <= bound, self.weights, 0).sum() / self.nodes.shape[0]


def density(operator: Operator, key: jax.Array, probes: int = 10, depth: int = 20) -> Density:
    """The spectral density of a symmetric operator from ``probes · depth`` products; usable inside ``jax.jit``.

    For a random unit vector v, vᵀ f(A) v is Gauss quadrature of f with nodes and weights from the tridiagonal matrix T
    of Lanczos from v: θ_k its eigenvalues, w_k the squared first entries of its eigenvectors. Its mean over v is
    (1/n) tr f(A).

    Args:
      operator: see `hfopt.Operator`.
      key: of the random vectors.
      probes: vectors v; the error falls as (n · probes)^−½.
      depth: Lanczos steps for each, at most n: details narrower than about the spread over ``depth`` are not resolved,
        but for eigenvalues that stand apart.

    Returns:
      A `Density`.

    Raises:
      ValueError: ``probes`` or ``depth`` is not positive.

    References:
      Ubaru, Chen & Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", 2017; Ghorbani, Krishnan &
      Xiao, "An investigation into neural net optimization via Hessian eigenvalue density", 2019.
    """
    if probes < 1 or depth < 1:
        raise ValueError(f"density: `probes` and `depth` must be at least 1, got {probes} and {depth}.")
    require_key("density", key)
    flat = operator.flat
    keys = jax.random.split(key, probes)
    return Density(*_quadratures(flat.product, flat.size, flat.dtype, min(depth, flat.size), flat.captured, keys))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _quadratures(
    product: FlatProduct, length: int, dtype: Any, depth: int, captured: list[jax.Array], keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def quadrature(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start, rest = jax.random.split(key)
        begun = empty(jax.random.normal(start, (length,), dtype), depth)
        square = extend(product, captured, begun, 0, rest).projected[:depth]
        nodes, vectors = jnp.linalg.eigh((square + square.T) / 2)
        return nodes, vectors[0] ** 2

    return jax.lax.map(quadrature, keys)
