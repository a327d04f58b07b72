"""`python -m experiments approximations`: under what conditions the approximations of the curvature agree.

With J_i = ∂z_i/∂θ, r_i = ∂ξ_i/∂z_i, B_i = ∂²ξ_i/∂z_i² and means over N examples, the Gauss-Newton matrix is
G = mean JᵀBJ, and the others differ from it by

    H − G = S = mean Σ_k r_k ∇²z_k        EF − G = mean Jᵀ(r rᵀ − B)J        Fisher − G = 0

the last for losses in natural parameters. So the Hessian H approaches G with N where E[r|x] = 0, and the empirical
Fisher EF where E[r rᵀ|x] = B: in a model that is right, at its optimum, with noise in the unit of its loss. Small
residuals take H to G but EF to 0. Here a network is its own teacher, its targets are drawn in ways that keep or break
these conditions, and hfopt's operators are compared as dense matrices, in float64, at the teacher's parameters.

For labels without noise, y = argmax z, and weights that grow, only examples near a boundary between two classes count.
Let u ≥ 0 be the difference of their logits. Within the few units of u that count, the density of examples and J come
to be constant, on both sides, so that EF / G → ∫ σ(−u)² du / ∫ σ(u)σ(−u) du = (ln 2 − ½) / ½ = 2 ln 2 − 1.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from experiments.laboratory.approximation_figures import draw_limits, draw_sizes, print_claims, print_tables
from experiments.laboratory.matrices import (
    SIZES,
    Measures,
    against_size,
    along_training,
    growing_weights,
    identities,
    settings,
    slope,
)

LIMIT = 2 * math.log(2) - 1
SCALES = (0.5, 2, 8, 32, 128, 512)
LARGE = 32  # where the limit is read off: at larger scales too few of the examples are near a boundary
_REPEATS, _STEPS = 5, 20


class Claim(NamedTuple):
    """What the numbers are to show, what they are, and whether they show it."""

    text: str
    found: str
    holds: bool


def claims(
    errors: Mapping[str, float],
    sweeps: Mapping[str, Measures],
    trained: Mapping[str, tuple[Measures, list[float]]],
    limit: float,
) -> list[Claim]:
    """What the numbers are to show."""
    found = []

    def claim(text: str, values: Sequence[float], holds: Callable[[float], bool]) -> None:
        found.append(Claim(text, ", ".join(f"{x:.3g}" for x in values), all(map(holds, values))))

    def falls(text: str, *distances: Sequence[float]) -> None:
        claim(f"{text} ∝ N^(−0.5 ± 0.1)", [slope(SIZES, x) for x in distances], lambda a: abs(a + 0.5) <= 0.1)

    def stays(text: str, least: float, distances: Sequence[float]) -> None:
        claim(f"{text} at the largest N > {least}", distances[-1:], lambda x: x > least)
        claim("  and over the last three ∝ N^a, a > −0.15", [slope(SIZES[-3:], distances[-3:])], lambda a: a > -0.15)

    def near(text: str, target: float, tolerance: float, *values: float) -> None:
        claim(f"{text} = {target:.3g} ± {tolerance:.0%}", values, lambda x: abs(x / target - 1) <= tolerance)

    matched, labels = sweeps["matched noise"], sweeps["labels from the model"]
    quadruple, uneven = sweeps["noise of variance 4"], sweeps["noise of variance x₁²"]
    claim("exact identities: errors ≤ 1e-10", list(errors.values()), lambda x: x <= 1e-10)
    falls("all six: |F − G|", *(measures.fisher for measures in sweeps.values()))
    falls("matched noise: |H − G|, |EF − G|", matched.hessian, matched.empirical)
    falls("labels from the model: |H − G|, |EF − G|", labels.hessian, labels.empirical)
    falls("noise of variance 4: |H − G|, |EF/4 − G|", quadruple.hessian, quadruple.in_unit)
    near("noise of variance 4: tr EF / tr G", 4, 0.05, quadruple.trace_ratio[-1])
    claim("  and the cosine of EF and G > 0.99", quadruple.cosine[-1:], lambda x: x > 0.99)
    falls("noise of variance x₁²: |H − G|", uneven.hessian)
    stays("noise of variance x₁²: |EF − G|", 0.1, uneven.empirical)
    for name in ("a wrong model", "an overconfident model"):
        stays(f"{name}: |H − G|", 0.03, sweeps[name].hessian)
        stays(f"{name}: |EF − G|", 0.1, sweeps[name].empirical)
    noisy, exact = trained["matched noise"][0], trained["no noise"][0]
    near("trained, matched noise: tr EF / tr G", 1, 0.1, noisy.trace_ratio[-1])
    small = [exact.hessian[-1], exact.trace_ratio[-1]]
    claim("trained, no noise: |H − G|, tr EF / tr G < 0.01", small, lambda x: x < 0.01)
    near(f"labels without noise, weights × {LARGE}: tr EF / tr G", LIMIT, 0.02, limit)
    return found


def main(folder: Path, seed: int, console: Console) -> bool:
    """Print the tables, draw the figures into ``folder``; whether all claims hold."""
    began = time.perf_counter()
    with jax.enable_x64(True):
        for_settings, for_errors, for_sizes, for_training, for_weights = jax.random.split(jax.random.key(seed), 5)
        of = settings(for_settings)
        all_errors = [identities(setting, for_errors) for setting in of.values()]
        errors = {name: max(of_one[name] for of_one in all_errors) for name in all_errors[0]}
        # With no noise r = 0 at the teacher's parameters, and labels without noise have no optimum.
        noisy = [setting for name, setting in of.items() if name not in ("no noise", "labels without noise")]
        sweeps = {setting.name: against_size(setting, for_sizes, SIZES, _REPEATS) for setting in noisy}
        names = ("matched noise", "no noise", "labels from the model", "labels without noise")
        trained = {name: along_training(of[name], for_training, SIZES[2], _STEPS) for name in names}
        grow = lambda name, size: growing_weights(of[name], for_weights, SCALES, size, _REPEATS)  # noqa: E731
        ratios = {f"N = {size:,}": grow("labels without noise", size) for size in SIZES[::2]}
        limit = ratios[f"N = {SIZES[-1]:,}"][SCALES.index(LARGE)]
        ratios[f"drawn, N = {SIZES[2]:,}"] = grow("labels from the model", SIZES[2])
    found = claims(errors, sweeps, trained, limit)
    print_tables(console, errors, sweeps, SIZES, trained, ratios, SCALES)
    print_claims(console, found)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = draw_sizes(sweeps, SIZES, folder / "approximations.png")
    limits = draw_limits(trained, ratios, SCALES, LIMIT, folder / "approximations_limits.png")
    seconds = time.perf_counter() - began
    console.print(f"Figures: {sizes} and {limits}, after {seconds:.0f} s.", highlight=False, soft_wrap=True)
    return all(claim.holds for claim in found)
