"""The randomized Nyström preconditioner: the top eigenvectors of the curvature, from a few products with it.

    A ≈ U diag(s) Uᵀ,        M⁻¹ = (s_r + λ) U (diag(s) + λ)⁻¹ Uᵀ + (I − U Uᵀ)

M⁻¹(A + λI) then has its top r eigenvalues flattened to s_r + λ, and CG sees only what is left of the spectrum.

Source: Frangella, Tropp & Udell, "Randomized Nyström preconditioning", SIAM J. Matrix Anal. Appl. 2023, algorithm 2.1
and section 5. It differs where float32 needs it:

1. the core ΩᵀAΩ is inverted by its eigenvalues, not by a Cholesky factor, which breaks down when rounding makes the
   core indefinite;
2. eigenvalues are flattened to no less than what rounding leaves of the largest, 10 ε s_1. Below it U is noise, and
   flattening by it is worse than nothing: a regression over three decades at full rank takes 3 iterations so, and more
   than 3000 without.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from hfopt.curvature.operator import Operator
from hfopt.objective import ValueFn
from hfopt.solve.preconditioners import Inverse, check_count, refreshed
from hfopt.vectors import norms, widest_dtype

# In units of machine epsilon and the largest eigenvalue: 1 is too little, and 100 gives away twice the iterations.
_NOISE = 10


class NystromState(NamedTuple):
    """State of `Nystrom`; n parameters, rank r."""

    age: jax.Array  # int32: steps since `init` that were not lost to a failed refresh
    setup_products: jax.Array  # int32: products in the last update: r or 0
    vectors: jax.Array  # (n, r): U, orthonormal columns; zero before the first refresh
    values: jax.Array  # (r,): s, descending, non-negative


@dataclass(frozen=True)
class Nystrom:
    """M from a rank-r approximation of the curvature, made anew at every so many steps; ``hfopt.nystrom``.

    It pays where a few eigenvalues stand above the rest and above λ, as they do in networks, and where the curvature
    changes little over ``every`` steps. Memory is r vectors like the parameters; an application is 4nr operations.

    Args:
      rank: r, the products of a refresh; at most n is used.
      every: refresh at every so many steps: rank / every products a step are the price.
      seed: of the random test vectors; a refresh at step t uses a key of its own, made from the seed and t.

    Raises:
      ValueError: ``rank`` or ``every`` is not a positive integer.
    """

    rank: int = 32
    every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("nystrom", "rank", self.rank)
        check_count("nystrom", "every", self.every)

    def init(self, params: Any) -> NystromState:
        """The state before the first step: M = I."""
        flat = jax.eval_shape(lambda p: _flatten(p)[0], params)
        rank = min(self.rank, flat.size)
        vectors, values = jnp.zeros((flat.size, rank), flat.dtype), jnp.zeros(rank, flat.dtype)
        return NystromState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), vectors, values)

    def update(self, state: NystromState, operator: Operator, value_fn: ValueFn, params: Any) -> NystromState:
        """The state for this step's solve. ``value_fn`` is not used."""
        _, unflatten = _flatten(params)
        product = lambda v: _flatten(operator.product(unflatten(v)))[0]  # noqa: E731

        def compute(state: NystromState) -> NystromState:
            key = jax.random.fold_in(jax.random.key(self.seed), state.age)
            vectors, values = approximate(product, state.vectors, key)
            return state._replace(setup_products=jnp.int32(values.size), vectors=vectors, values=values)

        return refreshed(state, self.every, compute)

    def inverse(self, state: NystromState, damping: Any) -> Inverse:
        """r ↦ M⁻¹ r, for λ = ``damping`` ≥ 0."""
        vectors, values = state.vectors, state.values
        level = jnp.maximum(values[-1], _NOISE * jnp.finfo(values.dtype).eps * values[0])
        # (level + λ) / (s + λ) − 1 without the cancellation
        above = values > level
        damped = values + jnp.asarray(damping).astype(values.dtype)
        change = jnp.where(above, (level - values) / jnp.where(above, damped, 1), 0)

        def apply(r: Any) -> Any:
            flat, unflatten = _flatten(r)
            with jax.default_matmul_precision("highest"):
                return unflatten(flat + vectors @ (change * (vectors.T @ flat)))

        return apply


def approximate(
    product: Callable[[jax.Array], jax.Array], like: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """U (n, r) and s (r,) with U diag(s) Uᵀ = A Ω (ΩᵀAΩ)⁺ (A Ω)ᵀ for random orthonormal Ω; r products.

    A is symmetric positive semi-definite. Directions in which an indefinite A shows negative curvature are left out.
    ``like`` has the shape and dtype of U.
    """
    eps = jnp.finfo(like.dtype).eps
    with jax.default_matmul_precision("highest"):
        omega = jnp.linalg.qr(jax.random.normal(key, like.shape, like.dtype))[0]
        sketch = jax.lax.map(product, omega.T).T
        # A shift of the size of the rounding in the sketch, taken off the eigenvalues at the end (their "ν").
        nu = eps * norms(sketch)
        sketch = sketch + nu * omega
        core = omega.T @ sketch
        w, q = jnp.linalg.eigh(0.5 * (core + core.T))
        sound = w > 0.5 * nu
        root = jnp.where(sound, 1 / jnp.sqrt(jnp.where(sound, w, 1)), 0)
        # The SVD of an n × r matrix through its r × r triangle.
        orthonormal, triangle = jnp.linalg.qr((sketch @ q) * root[None, :])
        left, singular, _ = jnp.linalg.svd(triangle)
        return orthonormal @ left, jnp.maximum(jnp.square(singular) - nu, 0)


def _flatten(tree: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """A tree as one vector, in the widest of its dtypes and at least float32, and the way back to its own dtypes."""
    dtypes = jax.tree.map(jnp.result_type, tree)
    widest = widest_dtype(tree)
    flat, unravel = ravel_pytree(optax.tree.cast(tree, widest))
    return flat, lambda v: jax.tree.map(lambda x, dtype: x.astype(dtype), unravel(v), dtypes)
