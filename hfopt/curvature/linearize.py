"""One linearisation of the model: outputs z, u = J v and Jᵀ u, with the forward pass done once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from hfopt.convolutions import lacks_forward_rule

Product = Callable[[Any], Any]


class Linearization(NamedTuple):
    """z = predict(θ) and its Jacobian J at θ, as products."""

    outputs: Any
    jvp: Product  # tangent shaped like the parameters -> tangent shaped like the outputs
    vjp: Product  # cotangent shaped like the outputs -> cotangent shaped like the parameters


def linearize(function: Callable[[Any], Any], params: Any) -> Linearization:
    """Linearise ``function`` at ``params``.

    ``jax.linearize`` keeps the residuals of one forward pass; transposing its linear part gives Jᵀ from the same
    residuals. A function with only a ``custom_vjp`` has no forward-mode rule: then the transpose comes first, from
    ``jax.vjp``, and J is the transpose of that.
    """
    outputs, jvp = jax.linearize(function, params)
    if lacks_forward_rule(jvp, params):
        outputs, pullback = jax.vjp(function, params)
        vjp = _unpack(pullback)
        return Linearization(outputs, _unpack(jax.linear_transpose(vjp, outputs)), vjp)
    return Linearization(outputs, jvp, _unpack(jax.linear_transpose(jvp, params)))


def _unpack(transpose: Callable[[Any], tuple[Any]]) -> Product:
    """JAX's transposes return a tuple with one entry an argument; ours have one argument."""

    def product(cotangent: Any) -> Any:
        (result,) = transpose(cotangent)
        return result

    return product
