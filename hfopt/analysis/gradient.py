"""The gradient against central differences, in the precision of the model itself."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hfopt.analysis.case import Case, eps
from hfopt.analysis.measured import draw
from hfopt.analysis.report import Finding, Status
from hfopt.curvature.diagonal import wide_dtype
from hfopt.vectors import norm, vdot

_DIRECTIONS = 3  # besides that of the gradient
_ALLOWED, _SETTLED = 0.05, 0.1


class _Estimate(NamedTuple):
    """Of the slope along a direction, at one distance."""

    difference: float
    slope: float  # by the gradient
    floor: float  # what rounding makes of a difference

    @property
    def told(self) -> bool:
        return math.isfinite(self.difference) and max(abs(self.difference), abs(self.slope)) > 2 * self.floor

    @property
    def apart(self) -> float:
        scale = max(abs(self.difference), abs(self.slope))
        return max(0.0, abs(self.difference - self.slope) - self.floor) / scale


def gradient(case: Case, key: jax.Array) -> Finding:
    """Whether gᵀv is what f does along v: along g, along random multiples of its entries, and along a random v.

    A direction counts as wrong where no distance shows agreement and two distances agree on another slope.
    """
    f, grad = case.evaluated
    directions, agreed, beyond = _directions(key, grad), 0, False
    for direction in directions:
        every = _estimates(case, f, grad, direction)
        beyond |= bool(every) and not math.isfinite(every[-1].difference)
        estimates = [e for e in every if e.told]
        if any(e.apart <= _ALLOWED for e in estimates):
            agreed += 1
        elif len(estimates) > 1:
            before, last = estimates[-2:]
            if abs(before.difference - last.difference) <= _SETTLED * abs(last.difference) + last.floor:
                return Finding(
                    "gradient",
                    Status.FAILED,
                    f"gᵀv and central differences disagree by {last.apart:.1%}",
                    "Look for custom_jvp and custom_vjp rules, stop_gradient, and rounding in the forward pass.",
                )
    if beyond:
        detail = "f is not finite at the least distances from the parameters, whatever it is there"
        return Finding("gradient", Status.FAILED, detail, "Look for log, sqrt or a division at the edge of its domain.")
    if not agreed:
        return Finding("gradient", Status.OK, "too small beside the rounding of f to be told from 0")
    detail = f"agrees with central differences in {agreed} of {len(directions)} directions"
    return Finding("gradient", Status.OK, detail + ("" if agreed == len(directions) else ", the others cannot be told"))


def _estimates(case: Case, f: jax.Array, grad: Any, direction: Any) -> list[_Estimate]:
    """At h ∝ ε^⅓, where truncation ∝ h² and rounding ∝ 1/h are balanced, and below, where f bends more than that."""
    length = float(norm(direction))
    if length == 0:
        return []
    longest = eps(f) ** (1 / 3) * max(1.0, float(norm(case.params)))
    return [_estimate(case, f, grad, direction, longest / 10**i, length) for i in range(3)]


def _estimate(case: Case, f: jax.Array, grad: Any, direction: Any, h: float, length: float) -> _Estimate:
    ahead, behind = (_moved(case.params, direction, sign * h / length) for sign in (1, -1))
    difference = float(case.value(ahead, case.value_fn)) - float(case.value(behind, case.value_fn))
    slope = float(_along(ahead, behind, grad))
    return _Estimate(difference / (2 * h), slope / (2 * h), 50 * eps(f) * abs(float(f)) / h)


def _directions(key: jax.Array, grad: Any) -> list[Any]:
    keys = jax.random.split(key, _DIRECTIONS)
    return [grad, *(_scaled(draw(k, grad), grad) for k in keys[1:]), draw(keys[0], grad)]


@jax.jit
def _scaled(noise: Any, grad: Any) -> Any:
    return jax.tree.map(lambda n, g: jnp.abs(n) * g, noise, grad)


@jax.jit
def _moved(params: Any, direction: Any, length: Any) -> Any:
    def move(p: jax.Array, d: jax.Array) -> jax.Array:
        x = p.astype(wide_dtype(p))
        return (x + jnp.asarray(length, x.dtype) * d.astype(x.dtype)).astype(p.dtype)

    return jax.tree.map(move, params, direction)


@jax.jit
def _along(ahead: Any, behind: Any, grad: Any) -> jax.Array:
    """gᵀ(θ₊ − θ₋), for the points that were evaluated, which low-precision parameters round."""
    return vdot(jax.tree.map(lambda a, b: a.astype(wide_dtype(a)) - b.astype(wide_dtype(b)), ahead, behind), grad)
