"""The Gauss-Newton matrix G = I/C + (1/N) Σ J_iᵀ B_i J_i as an operator."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.batch import Examples, chunks, examples, sum_over_chunks
from hfopt.convolutions import specialize
from hfopt.curvature.linearize import linearize
from hfopt.curvature.operator import Operator
from hfopt.losses import output_hessian
from hfopt.objective import Objective, ValueFn

# outputs, rows -> the map u ↦ Σ c_i M_i u_i on things shaped like the outputs
Middle = Callable[[Objective, Any, Examples], Callable[[Any], Any]]


def gauss_newton(value_fn: ValueFn, params: Any) -> Operator:
    """G = I/C + (1/N) Σ J_iᵀ B_i J_i at ``params``, over the curvature batch of ``value_fn``.

    J_i = ∂z_i/∂θ and B_i = ∂²ξ_i/∂z_i². G is positive semi-definite when the loss is convex in the outputs, and
    positive definite when also l2 > 0 on every parameter. I/C is included; damping is not.

    Args:
      value_fn: from `Objective.bind`. With a ``curvature_batch`` the mean is taken over that one.
      params: a pytree of floating arrays.

    Returns:
      An `Operator`. ``G @ v`` costs one jvp and one vjp of the linearised model, ``G.quadratic_form(v)`` one jvp.

    Raises:
      TypeError: ``value_fn`` was not made by `Objective.bind`; a parameter is not floating.

    References:
      Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
    """
    return sandwich(value_fn, params, _loss_hessian)


def _loss_hessian(objective: Objective, outputs: Any, rows: Examples) -> Callable[[Any], Any]:
    return output_hessian(objective.loss, outputs, rows)


def sandwich(value_fn: ValueFn, params: Any, middle: Middle) -> Operator:
    """I/C + Σ c_i J_iᵀ M_i J_i, from one linearisation of the model; chunk by chunk when the batch is chunked."""
    check_value_fn(value_fn)
    check_params(params)
    objective = value_fn.objective
    batch = value_fn.batch if value_fn.curvature_batch is None else value_fn.curvature_batch
    rows = chunks(examples(batch), value_fn.chunk_size)

    def products(rows: Examples) -> tuple[Callable[[Any], Any], Callable[[Any], jax.Array]]:
        """The product and the quadratic form of the data term, over these rows."""
        model = linearize(lambda p: objective.predict(p, rows.inputs), params)
        inner = middle(objective, model.outputs, rows)

        def quadratic(v: Any) -> jax.Array:
            u = model.jvp(v)
            return optax.tree.vdot(u, inner(u))

        return lambda v: model.vjp(inner(model.jvp(v))), quadratic

    with jax.default_matmul_precision(objective.precision):
        if value_fn.is_chunked(batch):
            # A chunk is linearised anew in every product: the memory of one chunk, at the price of its forward pass.
            product = lambda v: sum_over_chunks(lambda chunk: products(chunk)[0](v), rows)  # noqa: E731
            quadratic = lambda v: sum_over_chunks(lambda chunk: products(chunk)[1](v), rows)  # noqa: E731
        else:
            product, quadratic = products(jax.tree.map(lambda x: x[0], rows))
        product, quadratic = specialize(product, params), specialize(quadratic, params)

    l2 = objective.l2
    if l2 == 0:
        regularised_product, regularised_quadratic = product, quadratic
    else:
        regularised_product = lambda v: optax.tree.add_scale(product(v), l2, objective.penalised(v))  # noqa: E731
        regularised_quadratic = lambda v: quadratic(v) + 2 * objective.penalty(v)  # noqa: E731
    example = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), params)
    return Operator(regularised_product, regularised_quadratic, example)


def check_value_fn(value_fn: Any) -> None:
    """Raise TypeError unless ``value_fn`` can be taken apart into predict and loss."""
    if not isinstance(value_fn, ValueFn):
        raise TypeError(
            "Curvature needs the model and the loss apart: pass value_fn = hfopt.Objective(predict, loss).bind(batch), "
            f"got {type(value_fn).__name__}."
        )


def check_params(params: Any) -> None:
    """Raise TypeError unless every parameter is a real floating array."""
    for path, leaf in jax.tree.leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"Parameters must be real floating arrays; params{jax.tree_util.keystr(path)} has dtype {dtype}. "
                "Keep counters and flags out of the parameters, or cast them."
            )
