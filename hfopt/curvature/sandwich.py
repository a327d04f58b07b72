"""Matrices Σ c_i J_iᵀ M_i J_i, with J_i = ∂z_i/∂θ: the outer product of Jacobians and the empirical Fisher.

All of them are one linearisation of the model around a middle factor M_i, which acts on things shaped like the
outputs: the identity, r_i r_iᵀ, or, in the files beside this one, the Hessian of the loss or the moment of sampled
residuals.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from hfopt.batch import Examples
from hfopt.curvature.average import Products, average
from hfopt.curvature.linearize import linearize
from hfopt.curvature.operator import Halves, Operator
from hfopt.curvature.roots import Roots, random_signs
from hfopt.losses import Loss, mean_loss
from hfopt.objective import Objective, ValueFn
from hfopt.vectors import vdot

# objective, outputs, rows -> the map u ↦ (c_i M_i u_i)_i on things shaped like the outputs
Middle = Callable[[Objective, Any, Examples], Callable[[Any], Any]]


def sandwich(value_fn: ValueFn, params: Any, middle: Middle, roots: Roots | None = None) -> Operator:
    """I/C + Σ c_i J_iᵀ M_i J_i, from one linearisation of the model; chunk by chunk when the batch is chunked.

    A product is one jvp and one vjp; a quadratic form Σ c_i u_iᵀ M_i u_i, with u = J v, one jvp. With ``roots``, a
    probe Jᵀ L z, L Lᵀ = diag(c_i M_i) and z random signs, is one vjp.
    """

    def products(rows: Examples) -> Products:
        objective = value_fn.objective.for_curvature
        model = linearize(lambda p: objective.predict(p, rows.inputs), params)
        inner = middle(replace(objective, loss=model.seen_by(objective.loss)), model.outputs, rows)

        def quadratic(v: Any) -> jax.Array:
            u = model.jvp(v)
            return vdot(u, inner(u))

        def forward(v: Any) -> tuple[Any, Any]:
            u = model.jvp(v)
            return u, inner(u)

        halves = Halves(forward, lambda v, middle: vdot(*middle), lambda v, middle: model.vjp(middle[1]))
        if roots is None:
            return Products(lambda v: model.vjp(inner(model.jvp(v))), quadratic, halves)

        def probe(key: jax.Array) -> tuple[Any, ...]:
            pair = roots(model.seen_by(objective.loss), model.outputs, rows)
            u, w = pair(random_signs(key, model.outputs))
            return (model.vjp(u),) if w is u else (model.vjp(u), model.vjp(w))

        return Products(lambda v: model.vjp(inner(model.jvp(v))), quadratic, halves, probe)

    return average(value_fn, params, products)


def outer_product(value_fn: ValueFn, params: Any) -> Operator:
    """I/C + (1/N) Σ J_iᵀ J_i at ``params``, over the curvature batch of ``value_fn``.

    J_i is the Jacobian of all outputs of example i, further axes and every leaf of a pytree included; they are summed
    over, not averaged. Neither the loss nor the targets enter. It is the Gauss-Newton matrix of ½‖z − y‖², so for
    D outputs an example D times that of ``optax.l2_loss``, whose D values are averaged.

    Args:
      value_fn: from `Objective.bind`. With a ``curvature_batch`` the mean is taken over that one.
      params: a pytree of floating arrays.

    Returns:
      An `Operator`, positive semi-definite. ``A @ v`` costs one jvp and one vjp, ``A.quadratic_form(v)`` one jvp.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.
    """
    return sandwich(value_fn, params, _identity)


def empirical_fisher(value_fn: ValueFn, params: Any = None) -> Operator:
    """I/C + (1/N) Σ J_iᵀ r_i r_iᵀ J_i at ``params``, over the curvature batch of ``value_fn``.

    r_i = ∂ξ_i/∂z_i at the targets of the batch, so J_iᵀ r_i is the gradient of example i and the matrix is the
    uncentred second moment of the gradients of the examples. Where a loss has further axes ξ_i is their mean, and
    r_i ranges over all outputs of the example. Not the Fisher matrix, whose labels come from the model: see `fisher`.

    Args:
      value_fn: from `Objective.bind`. With a ``curvature_batch`` the mean is taken over that one.
      params: a pytree of floating arrays.

    Returns:
      An `Operator`, positive semi-definite. ``A @ v`` costs one jvp and one vjp, ``A.quadratic_form(v)`` one jvp.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.

    References:
      Kunstner, Balles, Hennig, "Limitations of the empirical Fisher approximation for natural gradient descent", 2019.
    """
    return sandwich(value_fn, params, _residual_moment)


def _identity(objective: Objective, outputs: Any, rows: Examples) -> Callable[[Any], Any]:
    _check_rows("outer_product", outputs)
    return lambda u: _scale_rows(rows.coefficients, u)


def _residual_moment(objective: Objective, outputs: Any, rows: Examples) -> Callable[[Any], Any]:
    _check_rows("empirical_fisher", outputs)
    r = residuals(objective.loss, outputs, rows)

    def product(u: Any) -> Any:
        along = _row_sums(jax.tree.map(jnp.multiply, r, u))  # r_iᵀ u_i
        return _scale_rows(rows.coefficients.astype(along.dtype) * along, r)

    return product


def residuals(loss: Loss, outputs: Any, rows: Examples) -> Any:
    """r_i = ∂ξ_i/∂z_i for every row, shaped like the outputs."""
    # Coefficients of one, since dividing r_i out of c_i r_i fails for examples of weight zero.
    unweighted = rows._replace(coefficients=jnp.ones_like(rows.coefficients))
    return jax.grad(lambda z: mean_loss(loss, z, unweighted))(outputs)


def _check_rows(where: str, outputs: Any) -> None:
    """Raise ValueError for an output that is not of one example."""
    for path, leaf in jax.tree.leaves_with_path(outputs):
        if jnp.ndim(leaf) == 0:
            raise ValueError(
                f"{where}: outputs{jax.tree_util.keystr(path)} is a scalar, which all examples share; this matrix is a "
                "sum over the outputs of each. Return it once an example, shape (N,), or take hfopt.gauss_newton."
            )


def _row_sums(tree: Any) -> jax.Array:
    """Sum over everything but the batch axis, all leaves together: shape (N,)."""
    leaves = [leaf.reshape(leaf.shape[0], -1).sum(axis=1) for leaf in jax.tree.leaves(tree)]
    dtype = jnp.result_type(*[leaf.dtype for leaf in leaves])
    return reduce(jnp.add, [leaf.astype(dtype) for leaf in leaves])


def _scale_rows(scale: jax.Array, tree: Any) -> Any:
    """Multiply row i of every leaf by ``scale[i]``."""
    return jax.tree.map(lambda x: scale.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1)) * x, tree)
