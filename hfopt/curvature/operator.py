"""Symmetric linear operators on pytrees shaped like the parameters: products, their algebra, and what they tell."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hfopt.curvature import estimators
from hfopt.curvature.estimators import Estimate, TraceMethod
from hfopt.curvature.flat import Flat, applied, diagonal_of_forms, flatten
from hfopt.curvature.layers import layers, leaf_names
from hfopt.vectors import abstract, vdot

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class Halves(NamedTuple):
    """A product in two steps, after the first of which vᵀ A v is known, too."""

    forward: Callable[[Any], Any]  # v ↦ middle
    form: Callable[[Any, Any], jax.Array]  # v, middle ↦ vᵀ A v
    backward: Callable[[Any, Any], Any]  # v, middle ↦ A v


@dataclass(frozen=True, eq=False, repr=False)
class Operator:
    """A symmetric linear map v ↦ A v, for v a pytree shaped like the parameters.

    Made by `hfopt.gauss_newton` and its siblings, or `Operator.of`; combined by ``A + B``, ``A - B``, ``2.0 * A``,
    ``A / 2.0``, ``-A``.

    Attributes:
      product: v ↦ A v.
      quadratic: v ↦ vᵀ A v, where that is cheaper than a product followed by a dot product.
      example: a pytree of ``jax.ShapeDtypeStruct`` like the parameters.
      indefinite: whether vᵀ A v < 0 is to be expected for some v, so that a step looks out for such directions.
      halves: the product in two steps, where it has them.
      probe: key ↦ trees u and w like the parameters with E[u wᵀ] = A without its penalty, or u alone where w is the
        same; where such draws cost less than a product.

    Example:
      >>> import jax.numpy as jnp, hfopt
      >>> A = hfopt.Operator.of(lambda v: jnp.array([2.0, 3.0]) * v, jnp.zeros(2))
      >>> (A + 2.0 * A).to_dense().tolist()
      [[6.0, 0.0], [0.0, 9.0]]
    """

    product: Callable[[Any], Any]
    quadratic: Callable[[Any], jax.Array]
    example: Any
    indefinite: bool = False
    halves: Halves | None = None
    probe: Callable[[jax.Array], tuple[Any, ...]] | None = None

    # Above NumPy's, so that ``numpy_scalar * A`` reaches __rmul__ instead of becoming an array of objects.
    __array_priority__ = 1000

    @staticmethod
    def of(product: Callable[[Any], Any], like: Any, indefinite: bool = True) -> "Operator":
        """The operator of a symmetric ``product`` on trees like ``like``; that it is symmetric is not checked."""
        return Operator(product, lambda v: vdot(v, product(v)), abstract(like), indefinite)

    @staticmethod
    def of_matrix(matrix: Any) -> "Operator":
        """The operator of a symmetric (n, n) array, on arrays of shape (n,); that it is symmetric is not checked.

        Raises:
          ValueError: ``matrix`` is not square.
          TypeError: it is complex.
        """
        matrix = jnp.asarray(matrix)
        if jnp.iscomplexobj(matrix):
            raise TypeError(f"Operator.of_matrix: a matrix must be real, got dtype {matrix.dtype}.")
        if not jnp.issubdtype(matrix.dtype, jnp.floating):
            matrix = matrix.astype(float)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"Operator.of_matrix: a matrix must be square, got shape {matrix.shape}.")
        operator = Operator.of(lambda v: matrix @ v, jax.ShapeDtypeStruct(matrix.shape[:1], matrix.dtype))
        # One product for all matrices: what is compiled for one serves every other of its size.
        operator.__dict__["flat"] = flatten(operator.product, operator.example)._replace(
            product=_matrix_product, captured=[matrix]
        )
        return operator

    @property
    def size(self) -> int:
        """n, the number of rows and of columns."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.example))

    def __repr__(self) -> str:
        """What it is of, without its functions."""
        leaves = jax.tree.leaves(self.example)
        dtypes = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        kind = "indefinite" if self.indefinite else "positive semi-definite"
        arrays = f"{len(leaves)} array" + ("" if len(leaves) == 1 else "s")
        return f"Operator({self.size} x {self.size}, {kind}, on {arrays} of {dtypes})"

    def __matmul__(self, vector: Any) -> Any:
        """A v, shaped like v; of a stack of vectors, whose leaves have one leading axis more, the stack of products.

        Raises:
          ValueError: ``vector`` is shaped neither like the parameters nor like a stack of them.
          TypeError: it is an operator.
        """
        if isinstance(vector, Operator):
            raise TypeError(
                "Operator: a product of two operators is not symmetric, and no operator. Apply them one after the "
                "other, A @ (B @ v), or multiply the dense matrices."
            )
        if _shapes(vector) == _shapes(self.example):
            return self.product(vector)
        leading = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(vector)}
        if len(leading) == 1 and _shapes(vector) == _shapes(self.example, *leading):
            return jax.lax.map(self.product, vector)
        raise ValueError(
            f"Operator: the vector must have the structure, shapes and dtypes of the parameters, "
            f"{_shapes(self.example)}, all with one leading axis more for a stack of vectors; got {_shapes(vector)}."
        )

    def quadratic_form(self, vector: Any) -> jax.Array:
        """vᵀ A v, a scalar; for a Gauss-Newton matrix one jvp and no vjp.

        Raises:
          ValueError: ``vector`` is not shaped like the parameters.
        """
        if _shapes(vector) != _shapes(self.example):
            raise ValueError(
                f"Operator: the vector must have the structure, shapes and dtypes of the parameters, "
                f"{_shapes(self.example)}; got {_shapes(vector)}."
            )
        return self.quadratic(vector)

    @cached_property
    def flat(self) -> Flat:
        """The operator on flat arrays, traced once."""
        return flatten(self.product, self.example)

    def to_dense(self) -> jax.Array:
        """A as an (n, n) array, rows and columns ordered as ``jax.flatten_util.ravel_pytree`` orders parameters.

        n products; for n in the thousands at most.
        """
        return self.flat.to_dense()

    def to_scipy(self) -> "LinearOperator":
        """A as a ``scipy.sparse.linalg.LinearOperator`` of shape (n, n), for SciPy's solvers and eigensolvers.

        Vectors are NumPy arrays in the order of ``jax.flatten_util.ravel_pytree``, in the widest dtype of the
        parameters and at least float32.
        """
        from scipy.sparse.linalg import LinearOperator

        product, captured, *_, size, dtype = self.flat
        multiply = lambda v: np.asarray(applied(product, captured, jnp.asarray(v, dtype).reshape(size)))  # noqa: E731
        return LinearOperator((size, size), matvec=multiply, rmatvec=multiply, dtype=np.dtype(dtype))

    def diagonal(self) -> Any:
        """The diagonal of A, shaped like the parameters. Exact; n quadratic forms."""
        return self.flat.unravel(self._entries())

    def trace(self) -> jax.Array:
        """tr A, the sum of the eigenvalues. Exact; n quadratic forms."""
        return self._entries().sum()

    def estimate_trace(self, key: jax.Array, products: int = 40, method: TraceMethod = "xtrace") -> Estimate:
        """An unbiased estimate of tr A from a few products.

        Args:
          key: of the random vectors.
          products: how many products it may take; for ``"xtrace"`` an odd one is left.
          method: ``"hutchinson"`` is the mean of zᵀAz over random signs z, with a standard error that falls as
            products^−½. ``"xtrace"`` takes the trace on a subspace that half of the products find, exactly, and
            estimates the rest, each test vector serving for both in turn: exact for matrices of a rank below
            products / 2, and far better where eigenvalues decay, as those of networks do. It holds products / 2
            vectors.

        Returns:
          An `Estimate`: ``value`` and ``standard_error``, scalars.

        Raises:
          ValueError: too few products, more than the matrix has rows, or another method.

        References:
          Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines",
          1990; Epperly, Tropp & Webber, "XTrace: making the most of every sample in stochastic trace estimation", 2024.
        """
        return estimators.trace(self.flat, key, products, method)

    def estimate_diagonal(self, key: jax.Array, probes: int = 40) -> Estimate:
        """An unbiased estimate of the diagonal, the mean of z ∘ (A z) over random signs z.

        The variance of entry j is the sum of the squares of all other entries in its row, over ``probes``: good where
        the diagonal dominates. For non-negative estimates of small entries see ``hfopt.jacobi``.

        Args:
          key: of the random signs.
          probes: products to take.

        Returns:
          An `Estimate`: ``value`` and ``standard_error``, shaped like the parameters.

        Raises:
          ValueError: fewer than 2 probes.

        References:
          Bekas, Kokiopoulou & Saad, "An estimator for the diagonal of a matrix", 2007.
        """
        return estimators.diagonal(self.flat, key, probes)

    def blocks(self) -> dict[str, "Operator"]:
        """The diagonal blocks of the layers, by name: operators on dictionaries from the names of leaves to leaves.

        The leaves that share a parent in the parameter tree are a layer, such as the kernel and bias of a Flax layer;
        a leaf at the root is one of its own. The block of layer l is P_l A P_lᵀ, at the price of a product with A.
        """
        return {name: self._block(leaves) for name, leaves in layers(self.example).items()}

    def _entries(self) -> jax.Array:
        """The diagonal, flat."""
        flat, form = self.flat, flatten(lambda v: self.quadratic(v), self.example)
        return diagonal_of_forms(form.product, flat.size, flat.dtype, form.captured)

    def _block(self, kept: tuple[int, ...]) -> "Operator":
        like, structure = jax.tree.flatten(self.example)
        names = leaf_names(self.example)

        def embed(part: dict[str, Any]) -> Any:
            leaves = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in like]
            for i in kept:
                leaves[i] = part[names[i]]
            return jax.tree.unflatten(structure, leaves)

        def product(part: dict[str, Any]) -> dict[str, Any]:
            leaves = jax.tree.leaves(self.product(embed(part)))
            return {names[i]: leaves[i] for i in kept}

        example = {names[i]: like[i] for i in kept}
        return Operator(product, lambda part: self.quadratic(embed(part)), example, self.indefinite)

    def __add__(self, other: "Operator") -> "Operator":
        if not isinstance(other, Operator):
            return NotImplemented
        if self.example != other.example:
            raise ValueError(f"Operators on different parameters cannot be added: {self.example} and {other.example}.")
        return Operator(
            lambda v: jax.tree.map(jnp.add, self.product(v), other.product(v)),
            lambda v: self.quadratic(v) + other.quadratic(v),
            self.example,
            self.indefinite or other.indefinite,
        )

    def __mul__(self, scalar: Any) -> "Operator":
        if isinstance(scalar, Operator) or jnp.ndim(scalar) != 0:
            return NotImplemented
        return Operator(
            lambda v: optax.tree.scale(scalar, self.product(v)),
            lambda v: scalar * self.quadratic(v),
            self.example,
            self.indefinite or not _is_non_negative(scalar),
        )

    __rmul__ = __mul__

    def __truediv__(self, scalar: Any) -> "Operator":
        if isinstance(scalar, Operator) or jnp.ndim(scalar) != 0:
            return NotImplemented
        return (1 / scalar) * self

    def __neg__(self) -> "Operator":
        return -1 * self

    def __sub__(self, other: "Operator") -> "Operator":
        return self + -other if isinstance(other, Operator) else NotImplemented


def _matrix_product(captured: list[jax.Array], vector: jax.Array) -> jax.Array:
    (matrix,) = captured
    with jax.default_matmul_precision("highest"):
        return (matrix @ vector.astype(matrix.dtype)).astype(vector.dtype)


def _shapes(tree: Any, leading: tuple[int, ...] = ()) -> Any:
    return jax.tree.map(lambda x: ((*leading, *jnp.shape(x)), jnp.result_type(x)), tree)


def _is_non_negative(scalar: Any) -> bool:
    """Whether a scalar is known not to be negative; of one that is being traced nothing is known."""
    try:
        return bool(scalar >= 0)
    except jax.errors.ConcretizationTypeError:
        return False
