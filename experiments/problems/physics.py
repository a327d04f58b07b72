"""Differential equations solved by a network: least squares on the residuals, with the exact solution known.

    L u = f in Ω = (0, 1)ᵈ,   u = u* on Γ ⊂ ∂Ω,   L u = Σᵢ aᵢ ∂²u/∂xᵢ² + bᵢ ∂u/∂xᵢ + …,   u = u_θ a tanh network

    f(θ) = 1/N_Ω Σ (L u_θ(x_j) − f(x_j))² + weight/N_Γ Σ (u_θ(y_k) − u*(y_k))²

An example is a point, in Ω or on Γ, with the factor that its residual has in this sum; its output is that factor times
L u_θ or u_θ there, its target the factor times the right-hand side. Outputs minus targets are the residuals, so that
the Gauss-Newton matrix is that of the discretised equation.

| equation | Ω | u* | Γ |
|---|---|---|---|
| poisson2d: −Δu = f | (0, 1)² | sin(πx₁) sin(πx₂) | ∂Ω |
| poisson5d: −Δu = f | (0, 1)⁵ | Σᵢ sin(πxᵢ) | ∂Ω |
| heat: u_t − ¼ u_xx = 0 | (0, 1)², x₁ = t | exp(−π²t/4) sin(πx₂) | t = 0, x₂ = 0 and x₂ = 1 |

Source: equations, solutions and boundary residuals as in Müller & Zeinhofer, "Achieving high accuracy with PINNs via
energy natural gradient descent", ICML 2023. The points are those of a scrambled Sobol sequence here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import qmc

from experiments.problems.dataset import Dataset, Examples
from experiments.problems.problem import Metric, Params, Problem
from experiments.settings.problem import Physics

_TRAIN_SEED, _TEST_SEED, _FACE_SEED, _TEST_POINTS = 0, 1, 2, 1024
Inputs = dict[str, Any]  # points (n, d), interior (n,) bool, factors (n,)


@dataclass(frozen=True)
class Equation:
    """One line of the table above.

    second, first: the coefficients a and b of L, (d,) each.
    solution, source: points (n, d) -> u* and f there, (n,).
    mean_square: of u* over Ω.
    faces: of Γ, as (axis, value): the points of the closed cube with that value on that axis.
    """

    second: tuple[float, ...]
    first: tuple[float, ...]
    solution: Callable[[jax.Array], jax.Array]
    source: Callable[[jax.Array], jax.Array]
    mean_square: float
    faces: tuple[tuple[int, float], ...]


def _all_faces(dimensions: int) -> tuple[tuple[int, float], ...]:
    return tuple((axis, value) for axis in range(dimensions) for value in (0.0, 1.0))


_PI = math.pi
EQUATIONS = {
    "poisson2d": Equation(
        second=(-1.0,) * 2,
        first=(0.0,) * 2,
        solution=lambda x: jnp.sin(_PI * x).prod(axis=1),
        source=lambda x: 2 * _PI**2 * jnp.sin(_PI * x).prod(axis=1),
        mean_square=1 / 4,
        faces=_all_faces(2),
    ),
    "poisson5d": Equation(
        second=(-1.0,) * 5,
        first=(0.0,) * 5,
        solution=lambda x: jnp.sin(_PI * x).sum(axis=1),
        source=lambda x: _PI**2 * jnp.sin(_PI * x).sum(axis=1),
        mean_square=5 / 2 + 5 * 4 * (2 / _PI) ** 2,
        faces=_all_faces(5),
    ),
    "heat": Equation(
        second=(0.0, -1 / 4),
        first=(1.0, 0.0),
        solution=lambda x: jnp.exp(-(_PI**2) / 4 * x[:, 0]) * jnp.sin(_PI * x[:, 1]),
        source=lambda x: jnp.zeros_like(x[:, 0]),
        mean_square=(1 - math.exp(-(_PI**2) / 2)) / _PI**2,
        faces=((0, 0.0), (1, 0.0), (1, 1.0)),
    ),
}


def build_physics(settings: Physics) -> Problem:
    """The equation with its points, the network, and as metric the relative L² error of u_θ.

    relative_error = √(mean (u_θ − u*)² / mean u*²), where the first mean is over the examples (1,024 points of Ω in the
    test set) and the second is the integral over Ω, in closed form.
    """
    equation = EQUATIONS[settings.equation]
    widths = (len(equation.first), *settings.hidden, 1)

    def predict(params: Params, inputs: Inputs) -> jax.Array:
        value, applied = network(params, inputs["points"], equation.second, equation.first)
        return inputs["factors"] * jnp.where(inputs["interior"], applied, value)

    def relative_square(params: Params, inputs: Inputs, targets: Any) -> jax.Array:
        del targets
        value, _ = network(params, inputs["points"], equation.second, equation.first)
        return (value - equation.solution(inputs["points"])) ** 2 / equation.mean_square

    return Problem(
        dataset=Dataset(_training_points(equation, settings), _test_points(equation)),
        init=lambda seed: initial_network(widths, seed),
        predict=predict,
        loss=optax.losses.squared_error,
        metric=Metric("relative_error", relative_square, format="{:.2e}", finish=math.sqrt),
        l2=settings.l2,
        precision=settings.precision,
    )


def initial_network(widths: tuple[int, ...], seed: int) -> Params:
    """Kernels (inputs, outputs) with the variance 2 / (inputs + outputs) of Glorot & Bengio 2010, and biases of 0.

    In JAX's default floating type; a dictionary of layers, in the order of their names.
    """
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    glorot = jax.nn.initializers.glorot_normal()
    return {
        f"dense_{layer}": {"kernel": glorot(key, (before, after), jnp.zeros(()).dtype), "bias": jnp.zeros(after)}
        for layer, (key, before, after) in enumerate(zip(keys, widths[:-1], widths[1:], strict=True))
    }


def network(
    params: Params, points: jax.Array, second: tuple[float, ...], first: tuple[float, ...]
) -> tuple[jax.Array, jax.Array]:
    """u_θ and L u_θ at every point, (n,) each, in one pass through the layers.

    Carried along, for every unit z: its value, its d first derivatives, and A z = Σᵢ aᵢ ∂²z/∂xᵢ². Linear layers act on
    all alike, and A tanh(z) = tanh'(z) A z + tanh''(z) Σᵢ aᵢ (∂z/∂xᵢ)². That is d + 2 passes of the network, where
    differentiating twice in d directions takes 3d.

    Source: Li et al., "A computational framework for neural network-based variational Monte Carlo with forward
    Laplacian", Nature Machine Intelligence 2024.
    """
    a, b = (jnp.asarray(coefficients, points.dtype)[:, None, None] for coefficients in (second, first))
    value, slopes = points, jnp.eye(points.shape[1], dtype=points.dtype)[:, None]  # (n, units), (d, n or 1, units)
    applied = jnp.zeros_like(points[:1])  # A z, (n or 1, units): the same at all points until the first tanh
    for layer in range(len(params)):
        dense = params[f"dense_{layer}"]
        value, slopes, applied = (
            value @ dense["kernel"] + dense["bias"],
            slopes @ dense["kernel"],
            applied @ dense["kernel"],
        )
        if layer < len(params) - 1:
            value = jnp.tanh(value)
            gain = 1 - value**2
            applied = gain * (applied - 2 * value * (a * slopes**2).sum(axis=0))
            slopes = gain * slopes
    return value[:, 0], (applied + (b * slopes).sum(axis=0))[:, 0]


def _training_points(equation: Equation, settings: Physics) -> Examples:
    inside = _sobol(len(equation.first), settings.points, _TRAIN_SEED)
    boundary = _on_faces(equation, settings.boundary_points)
    total = len(inside) + len(boundary)
    factors = np.repeat(
        np.sqrt([total / len(inside), settings.boundary_weight * total / len(boundary)]), [len(inside), len(boundary)]
    )
    return _examples(equation, np.concatenate([inside, boundary]), np.arange(total) < len(inside), factors)


def _test_points(equation: Equation) -> Examples:
    inside = _sobol(len(equation.first), _TEST_POINTS, _TEST_SEED)
    return _examples(equation, inside, np.ones(_TEST_POINTS, bool), np.ones(_TEST_POINTS))


def _on_faces(equation: Equation, count: int) -> np.ndarray:
    """``count`` points of Γ in all, (count, d), as many on every face as on any other."""
    parts = []
    shares = np.array_split(np.arange(count), len(equation.faces))
    for number, ((axis, value), share) in enumerate(zip(equation.faces, shares, strict=True)):
        points = _sobol(len(equation.first), len(share), _FACE_SEED + number)
        points[:, axis] = value
        parts.append(points)
    return np.concatenate(parts)


def _sobol(dimensions: int, count: int, seed: int) -> np.ndarray:
    """The first points of a scrambled Sobol sequence, (count, dimensions) float64 in (0, 1)."""
    sequence = qmc.Sobol(dimensions, rng=np.random.default_rng(seed))
    return sequence.random_base2(math.ceil(math.log2(count)))[:count]  # drawn as a power of 2, as SciPy asks for


def _examples(equation: Equation, points: np.ndarray, interior: np.ndarray, factors: np.ndarray) -> Examples:
    with jax.enable_x64(True):  # NumPy's float64, whatever JAX computes in at the moment
        source, solution = (
            np.asarray(function(jnp.asarray(points))) for function in (equation.source, equation.solution)
        )
    inputs = {"points": points, "interior": interior, "factors": factors}
    return Examples(inputs, factors * np.where(interior, source, solution))
