"""One linearisation of the model: outputs z, u = J v and Jᵀ u, with the forward pass done once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hfopt.convolutions import lacks_forward_rule
from hfopt.losses import Loss
from hfopt.outputs import in_coordinates, of_coordinates

Product = Callable[[Any], Any]


class Linearization(NamedTuple):
    """z = predict(θ) in real coordinates, and its Jacobian J at θ as products; see `hfopt.outputs`."""

    outputs: Any
    jvp: Product  # tangent shaped like the parameters -> tangent shaped like the outputs
    vjp: Product  # cotangent shaped like the outputs -> cotangent shaped like the parameters
    others: Any  # what the model returns besides, without derivatives

    def seen_by(self, loss: Loss) -> Loss:
        """``loss`` as a function of these outputs."""
        return of_coordinates(loss, self.outputs, self.others)


def linearize(function: Callable[[Any], Any], params: Any) -> Linearization:
    """Linearise ``function`` at ``params``.

    ``jax.linearize`` keeps the residuals of one forward pass; transposing its linear part gives Jᵀ from the same
    residuals. A function with only a ``custom_vjp`` has no forward-mode rule: then Jᵀ comes first, from ``jax.vjp``,
    and J is the transpose of that, or its derivative; see `_forward_of`.

    Raises:
      TypeError: there is a backward pass that can be neither transposed nor differentiated.
    """
    parts = in_coordinates(function)
    outputs, jvp, others = jax.linearize(parts, params, has_aux=True)
    if not lacks_forward_rule(jvp, params):
        return Linearization(outputs, jvp, _unpack(jax.linear_transpose(jvp, params)), others)
    outputs, pullback, others = jax.vjp(parts, params, has_aux=True)
    vjp = _unpack(pullback)
    return Linearization(outputs, _forward_of(vjp, outputs, params), vjp, others)


def _forward_of(vjp: Product, outputs: Any, params: Any) -> Product:
    """v ↦ J v from u ↦ Jᵀ u.

    Where the backward pass is a linear program it is transposed. A backward pass that solves an equation or clips is a
    function of u like any other, and J v the derivative of vᵀ(Jᵀ u) by u. It is taken at u = 0, where a pass that is
    no linear function, such as one that clips, has the derivative of the one it approximates.
    """
    zeros = jax.tree.map(jnp.zeros_like, outputs)
    transposed = _unpack(jax.linear_transpose(vjp, outputs))
    differentiated = lambda v: _unpack(jax.vjp(vjp, zeros)[1])(v)  # noqa: E731
    refusals = []
    for forward in (transposed, differentiated):
        try:
            jax.eval_shape(forward, params)
        except Exception as error:  # whatever JAX or the rule raises
            refusals.append(f"{type(error).__name__}: {error}".split("\n")[0])
        else:
            return forward
    raise TypeError(
        "Curvature needs J v, the derivative of the model along v, and the model has a custom_vjp whose backward pass "
        "can be neither transposed nor differentiated. Write the rule as jax.custom_jvp, or give `predict` a version "
        f"without it (a solver's direct or forward mode). JAX says: {'; '.join(refusals)}"
    )


def _unpack(transpose: Callable[[Any], tuple[Any]]) -> Product:
    """JAX's transposes return a tuple with one entry an argument; ours have one argument."""

    def product(cotangent: Any) -> Any:
        (result,) = transpose(cotangent)
        return result

    return product
