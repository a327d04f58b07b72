"""What kind of critical point the parameters are at, as far as the computed eigenvalues show it.

Lanczos gives a lower bound of the largest eigenvalue and an upper bound of the smallest; it does not show that nothing
lies beyond. What may lie there is bounded too, in probability, so that the verdict is never more than the numbers
allow: with both bounds about zero in doubt it is ``degenerate`` or ``inconclusive``.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hfopt.analysis.spectra import Eigenpairs, decompose, eigenpairs, machine_epsilon
from hfopt.choices import checked_call
from hfopt.curvature.average import check_value_fn
from hfopt.curvature.hessian import hessian
from hfopt.curvature.operator import Operator
from hfopt.objective import ValueFn
from hfopt.vectors import norm, norms, vdot

_DENSE = 512  # rows, up to which all eigenvalues are computed
_FAILURE = 1e-6  # probability with which an eigenvalue may lie beyond the bounds


class Verdict(StrEnum):
    """What a critical point is known to be."""

    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    SADDLE = "saddle"
    DEGENERATE = "degenerate"
    INCONCLUSIVE = "inconclusive"


class Bounds(NamedTuple):
    """An eigenvalue is at least ``low`` and at most ``high``."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.3g}, {self.high:.3g}]"


class CriticalPoint(NamedTuple):
    """What `classify` found.

    Attributes:
      verdict: see `classify`.
      reason: a sentence with the numbers it rests on.
      smallest, largest: bounds of the extreme eigenvalues.
      gradient_norm: ‖∇f‖.
      gradient_tolerance: up to which the point counts as critical.
      escape: where H has a negative eigenvalue, a unit vector v with vᵀHv < 0 and gᵀv ≤ 0, along which f falls as
        ½ vᵀHv t²; else ``None``.
      pairs: the extreme eigenpairs, with their residuals; of a small problem all.
    """

    verdict: Verdict
    reason: str
    smallest: Bounds
    largest: Bounds
    gradient_norm: float
    gradient_tolerance: float
    escape: Any
    pairs: Eigenpairs

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}"


def classify(
    value_fn: ValueFn,
    params: Any,
    *,
    key: jax.Array | None = None,
    curvature: Callable[[ValueFn, Any], Operator] = hessian,
    pairs: Eigenpairs | None = None,
    tolerance: float = 1e-2,
    gradient_tolerance: float | None = None,
    basis: int = 150,
) -> CriticalPoint:
    """Minimum, maximum, saddle, degenerate or inconclusive: what the Hessian at ``params`` shows.

    minimum: all eigenvalues are positive. maximum: all are negative. saddle: some are positive and some negative.
    degenerate: semi-definite within the bounds, that is: none is on the wrong side of zero by more than ``tolerance``
    times the largest |λ|, and whether some are zero is not to be told. inconclusive: anything else; also where the
    gradient says that the point is not critical, and for every ``curvature`` but the Hessian, since what another
    matrix leaves out may have either sign.

    Up to 512 parameters all eigenvalues are computed. Above, a Ritz value θ of Lanczos from a random vector proves that
    λmin ≤ θ, and that λmin < θ − ε (λmax − λmin) has a probability of at most 1.648 √n exp(−√ε (2m − 1)) after m steps;
    ε is taken for a probability of 10⁻⁶ at either end. So the certainty of a minimum grows with ``basis``, as basis⁻².

    In a network with ReLU or max-pooling the Hessian is that of the piece the parameters are in, which may be tiny: the
    objective may rise over its edge where the verdict says that it falls. Look at it along ``escape``.

    Args:
      value_fn: from `hfopt.Objective.bind`; with a ``curvature_batch`` or a ``curvature_predict``, gradient and
        eigenvalues are of the objective with those.
      params: a pytree of floating arrays.
      key: of random vectors; ``None``: ``jax.random.key(0)``.
      curvature: `hfopt.hessian`, or what else to look at.
      pairs: extreme pairs of that operator if they are there already, from both ends, by `hfopt.spectra.eigenpairs`.
      tolerance: see degenerate.
      gradient_tolerance: up to which ‖∇f‖ counts as zero; ``None``: √ε_machine ‖θ‖ |λ|, with λ the least eigenvalue
        that the verdict rests on: the Newton step along it is then at most √ε_machine of the parameters. At θ = 0 the
        gradient must be zero, or give a tolerance.
      basis: m, the Lanczos vectors to hold and the least number of products.

    Returns:
      A `CriticalPoint`; ``print`` shows the verdict and its reason.

    Raises:
      TypeError: ``value_fn`` was not made by `hfopt.Objective.bind`; a parameter is not floating.
      ValueError: ``pairs`` are from one end of the spectrum alone, or not of this operator.

    References:
      Kuczyński & Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos algorithms with a random
      start", 1992, theorem 4.2; Parlett, "The symmetric eigenvalue problem", 1998.
    """
    check_value_fn(value_fn)
    checked_call("classify", params, value_fn)
    # One function for gradient and curvature, whatever the gradient of a training step is of.
    function = replace(
        value_fn, objective=value_fn.objective.for_curvature, batch=value_fn.averaged, curvature_batch=None
    )
    operator = curvature(function, params)
    if pairs is None:
        pairs = _extremes(operator, jax.random.key(0) if key is None else key, basis)
    else:
        _check_pairs(pairs, operator)
    gradient = _gradient(params, function)
    scale, eps = float(jnp.abs(pairs.values).max()), machine_epsilon(operator)
    low, high = (max(100 * eps * scale, float(pairs.residuals[end])) for end in (0, -1))
    beyond = _beyond(pairs, operator.size)
    least, most = float(pairs.values[0]), float(pairs.values[-1])
    smallest, largest = Bounds(least - max(beyond, low), least + low), Bounds(most - high, most + max(beyond, high))
    verdict, reason, decisive = _verdict(smallest, largest, tolerance * scale)
    steepness = float(norm(gradient))
    if gradient_tolerance is None:
        gradient_tolerance = math.sqrt(eps) * float(norm(params)) * decisive
    if curvature is not hessian:
        name = getattr(curvature, "__name__", "this operator")
        verdict = Verdict.INCONCLUSIVE
        reason = (
            f"the eigenvalues of {name} are in [{smallest.low:.3g}, {largest.high:.3g}], but it is not the Hessian: "
            "what it leaves out may have either sign"
        )
    elif not steepness <= gradient_tolerance:
        verdict = Verdict.INCONCLUSIVE
        reason = f"not a critical point: ‖∇f‖ = {steepness:.3g} (tolerance {gradient_tolerance:.3g}). Here {reason}"
    escape = _escape(pairs, gradient) if curvature is hessian and smallest.high < 0 else None
    return CriticalPoint(verdict, reason, smallest, largest, steepness, gradient_tolerance, escape, pairs)


@jax.jit
def _gradient(params: Any, function: ValueFn) -> Any:
    return jax.grad(function)(params)


def _check_pairs(pairs: Eigenpairs, operator: Operator) -> None:
    if len(pairs.values) < operator.size and not 0 < pairs.smallest < len(pairs.values):
        raise ValueError(
            f"classify: `pairs` must be from both ends of the spectrum; of these {len(pairs.values)}, {pairs.smallest} "
            "are from the lower end. Take spectra.eigenpairs(operator, key, largest=1, smallest=1)."
        )
    rounding = 100 * machine_epsilon(operator) * float(jnp.abs(pairs.values).max())
    for end in (0, -1):
        vector = jax.tree.map(lambda v, end=end: v[end], pairs.vectors)
        image = operator.flat.ravel(operator @ vector)
        residual = float(norms(image - pairs.values[end] * operator.flat.ravel(vector)))
        if not residual <= 2 * float(pairs.residuals[end]) + rounding:
            raise ValueError(
                f"classify: `pairs` are not of this operator: λ = {pairs.values[end]:.3g} has a residual of "
                f"{residual:.3g} and not of {pairs.residuals[end]:.3g}. Take those of these parameters and this batch."
            )


def _extremes(operator: Operator, key: jax.Array, basis: int) -> Eigenpairs:
    if operator.size <= _DENSE:
        return decompose(operator)
    steps = min(basis, operator.size)
    return eigenpairs(operator, key, largest=1, smallest=1, basis=steps, max_products=4 * steps)


def _beyond(pairs: Eigenpairs, size: int) -> float:
    """How far an eigenvalue may lie beyond the extreme pairs: ε (λmax − λmin), where the spread found may be less."""
    if pairs.basis >= size:
        return 0.0
    epsilon = (math.log(1.648 * math.sqrt(size) / _FAILURE) / (2 * pairs.basis - 1)) ** 2
    return math.inf if epsilon >= 0.25 else epsilon / (1 - 2 * epsilon) * float(pairs.values[-1] - pairs.values[0])


def _verdict(smallest: Bounds, largest: Bounds, tolerance: float) -> tuple[Verdict, str, float]:
    """The verdict for a critical point, its reason, and the least |λ| that it rests on."""
    ends = f"λmin is in {smallest} and λmax in {largest}"
    scale = max(abs(smallest.low), abs(largest.high))
    if smallest.high < 0 < largest.low:
        reason = f"{ends}: there are negative and positive eigenvalues"
        return Verdict.SADDLE, reason, min(-smallest.high, largest.low)
    if smallest.low > 0:
        return Verdict.MINIMUM, f"{ends}: all eigenvalues are positive", smallest.low
    if largest.high < 0:
        return Verdict.MAXIMUM, f"{ends}: all eigenvalues are negative", -largest.high
    if smallest.low >= -tolerance:
        return Verdict.DEGENERATE, f"{ends}: none is below {smallest.low:.3g}, and some may be zero", scale
    if largest.high <= tolerance:
        return Verdict.DEGENERATE, f"{ends}: none is above {largest.high:.3g}, and some may be zero", scale
    return Verdict.INCONCLUSIVE, f"{ends}: the signs are not to be told", scale


def _escape(pairs: Eigenpairs, gradient: Any) -> Any:
    direction = jax.tree.map(lambda v: v[0], pairs.vectors)
    sign = jnp.where(vdot(gradient, direction) > 0, -1, 1)
    return jax.tree.map(lambda v: sign.astype(v.dtype) * v, direction)
