"""The matrix of a step where the loss is a straight line with kinks: absolute errors, quantiles, hinges.

There B = 0, and G sees nothing of the loss: a step would follow the gradient with a length that λ alone decides. What
bends are the kinks. Smoothed over a width h on either side, the loss has at z the second derivative

    (r(z + h) − r(z − h)) / 2h,        r = ∂ξ/∂z,

zero as long as h does not reach a kink, and largest where it just does. That largest value over h = 2ᵏ is taken for B.
For |z − t| it is 1 / |z − t| to within a factor of two, the weight of iteratively reweighted least squares, which keeps
a step from jumping over the kinks that are near.

Source of the weights: Lawson 1961; Hunter & Lange, "Quantile regression via an MM algorithm", 2000. Finding them by
differences, for any loss, is ours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hfopt.batch import Examples
from hfopt.convolutions import unaffected
from hfopt.curvature.gauss_newton import gauss_newton
from hfopt.curvature.operator import Operator
from hfopt.curvature.roots import Pairs, root_pairs
from hfopt.curvature.sandwich import residuals, sandwich
from hfopt.losses import Loss, is_known, output_hessian
from hfopt.objective import ValueFn

# Of the widths 2ᵏ: nearer to a kink the weight stays at 2¹⁴, and none is looked for beyond a million.
_NARROWEST, _WIDEST = -14, 20


def of_steps(curvature: Callable[..., Operator]) -> Callable[..., Operator]:
    """``curvature``, or `smoothed` for the Gauss-Newton matrix."""
    return smoothed if curvature is gauss_newton else curvature


def smoothed(value_fn: ValueFn, params: Any) -> Operator:
    """I/C + (1/N) Σ J_iᵀ B̃_i J_i: B̃ is B, and that of the smoothed loss in outputs where B is zero by construction.

    Such an output has a second derivative that does not depend on what it is multiplied with. Where there is none, this
    is `hfopt.gauss_newton`, operation by operation.
    """
    return sandwich(value_fn, params, lambda objective, z, rows: _bends(objective.loss, z, rows)[0], _roots)


def _roots(loss: Loss, outputs: Any, rows: Examples) -> Pairs:
    bend, smoothed = _bends(loss, outputs, rows)
    return (lambda z: (z, bend(z))) if smoothed else root_pairs(loss, outputs, rows)


def _bends(loss: Loss, outputs: Any, rows: Examples) -> tuple[Callable[[Any], Any], bool]:
    """u ↦ (c_i B̃_i u_i)_i, and whether B̃ is anything else than B."""
    bend = output_hessian(loss, outputs, rows)
    if is_known(loss, outputs, rows.targets):
        return bend, False
    straight = jax.tree.map(lambda free, z: free and jnp.ndim(z) > 0, unaffected(bend, outputs), outputs)
    if not any(jax.tree.leaves(straight)):
        return bend, False
    weights = _weights(loss, outputs, rows, straight)

    def product(u: Any) -> Any:
        return jax.tree.map(lambda s, w, b, u: w * u if s else b, straight, weights, bend(u), u)

    return product, True


def _weights(loss: Loss, outputs: Any, rows: Examples, straight: Any) -> Any:
    """c_i B̃_i, shaped like the outputs, a diagonal: right where an output's slope depends on that output alone.

    All outputs are moved at once, their neighbours the other way, since some losses do not see a common shift.
    """
    signs = jax.tree.map(lambda s, z: _alternating(z) if s else jnp.zeros_like(z), straight, outputs)

    def widen(k: jax.Array, largest: Any) -> Any:
        h = 2.0 ** k.astype(jnp.float32)
        moved = lambda way: jax.tree.map(lambda z, s: z + (way * h).astype(z.dtype) * s, outputs, signs)  # noqa: E731
        ahead, behind = (residuals(loss, moved(way), rows) for way in (1, -1))
        secant = lambda s, a, b: s * (a - b) / (2 * h).astype(a.dtype)  # noqa: E731
        return jax.tree.map(jnp.maximum, largest, jax.tree.map(secant, signs, ahead, behind))

    zeros = jax.tree.map(jnp.zeros_like, outputs)
    found = jax.lax.fori_loop(_NARROWEST, _WIDEST + 1, widen, zeros)
    per_row = lambda z: rows.coefficients.astype(z.dtype).reshape((-1,) + (1,) * (z.ndim - 1))  # noqa: E731
    return jax.tree.map(lambda s, b: per_row(b) * b if s else b, straight, found)


def _alternating(z: jax.Array) -> jax.Array:
    """1, −1, 1, … over the outputs of an example, in the shape of ``z``."""
    of_one = jnp.ones(z.shape[1:], z.dtype)
    for axis in range(of_one.ndim):
        of_one = of_one * (1 - 2 * (jax.lax.broadcasted_iota(jnp.int32, of_one.shape, axis) % 2)).astype(z.dtype)
    return jnp.zeros_like(z) + of_one[None]
