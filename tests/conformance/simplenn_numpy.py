"""The Newton method of simpleNN, transcribed to float64 NumPy with dense Jacobians.

Sources: Wang, Tan and Lin, "Newton methods for convolutional neural networks", ACM TIST 11 (2020), and the code of the
authors, cjlin1/simpleNN: MATLAB/opt/newton.m, MATLAB/opt/CG.m, MATLAB/cnn_train.m (constants), MATLAB/cnn/
fungrad_minibatch.m (objective) and Python/newton_cg.py, Python/train.py. Facts are taken from them, no code.

One iteration, in this order:

1. solve (G_S + λI) s = −g by CG from 0, where S is the curvature subset; ‖r‖ ≤ 0.1‖g‖ or 250 steps;
2. line search on the objective over all examples, α = 1, ½, ¼, … until f(theta + αs) − f(theta) ≤ 1e-4 α gᵀs;
3. ρ = (f(theta + αs) − f(theta)) / (α gᵀs + α² ½ sᵀG_S s): the step really taken, l2 in G_S, λ not;
4. λ × 3/2 if ρ < ¼, λ × 2/3 if ρ ≥ ¾;
5. the new gradient.

Objective: f = (1/(2·C·N))‖theta‖² + (1/N) Σ xi_i, the user's C multiplied by the number N of training examples; weights
and biases alike are regularised. The subset keeps that same 1/(C·N) and averages its losses over itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .models_numpy import Array, Forward, Jacobian, Loss, gauss_newton, gradient, value

TOLERANCE = 0.1  # xi
MAX_CG_STEPS = 250  # CGmax
INITIAL_DAMPING = 1.0  # lambda
DROP, BOOST = 2 / 3, 3 / 2
LOWER, UPPER = 0.25, 0.75
DECREASE = 1e-4  # eta
SHRINK = 0.5
# The source halves for ever when nothing decreases f (NaN, or rounding near a minimum); the reference gives up loudly.
MAX_HALVINGS = 100


class Solution(NamedTuple):
    """What CG hands back: the direction, and what the model of ρ needs of it."""

    direction: Array  # s, (n,)
    steps: int
    slope: float  # gᵀs
    quadratic: float  # ½ sᵀG s, without λ
    residual_norms: list[float]  # ‖r‖ after 0, 1, 2, … steps


class Record(NamedTuple):
    """One iteration. Fields without `new` or `after` belong to the point the iteration started from."""

    f: float
    gradient_norm: float
    damping: float  # the λ in the solve
    cg_steps: int
    residual_norms: list[float]
    direction: Array  # s, before the line search
    slope: float  # gᵀs
    quadratic: float  # ½ sᵀG s
    step_size: float  # α
    ratio: float  # ρ
    damping_after: float
    new_f: float
    theta: Array  # after the step


def regularization(C: float, examples: int) -> float:
    """The coefficient of ½‖theta‖², 1/(C·N); 0 for C = inf (the default of the Python version; MATLAB has 0.01)."""
    return 1.0 / (C * examples)


def conjugate_gradient(
    G: Array, g: Array, damping: float, tolerance: float = TOLERANCE, max_steps: int = MAX_CG_STEPS
) -> Solution:
    """CG for (G + λI) s = −g from s = 0, stopped by ‖r‖ ≤ tolerance·‖g‖, tested after every step on the recursive r.

    ½ sᵀG s is read off the residual, since G s = −g − r − λs. Some revisions of CG.m leave out the ½; the Python
    version and the other revisions have it. Without it an exact solution at λ = 0 would predict no decrease at all.
    """
    s, r = np.zeros_like(g), -g
    v, norms = r, [float(np.linalg.norm(g))]
    for _ in range(max_steps):
        Gv = G @ v + damping * v
        alpha = (r @ r) / (v @ Gv)
        s, r_new = s + alpha * v, r - alpha * Gv
        beta, r = (r_new @ r_new) / (r @ r), r_new
        norms.append(float(np.linalg.norm(r)))
        if norms[-1] <= tolerance * norms[0]:
            break
        v = r + beta * v
    return Solution(s, len(norms) - 1, float(s @ g), float(0.5 * s @ (-g - r - damping * s)), norms)


def line_search(f, theta: Array, s: Array, f_old: float, slope: float) -> tuple[float, float]:
    """The first α of 1, ½, ¼, … with f(theta + αs) − f(theta) ≤ 1e-4·α·gᵀs, and f there."""
    for halvings in range(MAX_HALVINGS):
        alpha = SHRINK**halvings
        f_new = f(theta + alpha * s)
        if f_new - f_old <= DECREASE * alpha * slope:
            return alpha, f_new
    raise FloatingPointError("no step length decreases the objective; the source would halve for ever")


def reduction_ratio(f_old: float, f_new: float, alpha: float, slope: float, quadratic: float) -> float:
    """ρ = (f_new − f_old) / (α gᵀs + α² ½sᵀGs); both are negative for a good step."""
    return (f_new - f_old) / (alpha * slope + alpha**2 * quadratic)


def update_damping(damping: float, ratio: float) -> float:
    """λ × 3/2 below ¼ and λ × 2/3 from ¾ on (¾ itself included), else λ; no floor and no ceiling."""
    if ratio < LOWER:
        return damping * BOOST
    return damping * DROP if ratio >= UPPER else damping


def partition(examples: int, size: int, rng: np.random.Generator) -> list[Array]:
    """Curvature subsets of one pass in the MATLAB version: a permutation cut up, the last one filled from its start.

    The Python version draws a fresh random subset for every iteration instead.
    """
    order = rng.permutation(examples)
    order = np.concatenate([order, order[:size]])
    return [order[i * size : (i + 1) * size] for i in range(-(-examples // size))]


def run(
    forward: Forward,
    jacobian: Jacobian,
    theta0: Array,
    inputs: Array,
    targets: Array,
    loss: Loss,
    C: float,
    iterations: int,
    curvature_indices: Sequence[Array] | None = None,
    damping: float = INITIAL_DAMPING,
) -> list[Record]:
    """The records of the given number of iterations; `curvature_indices[i]` are the examples in G of iteration i.

    Without `curvature_indices` the curvature is taken over all examples. Objective and gradient always are.
    """
    l2, theta, records = regularization(C, len(inputs)), np.asarray(theta0, np.float64), []
    subsets = curvature_indices or [np.arange(len(inputs))] * iterations
    for subset in subsets[:iterations]:
        record = _iterate(forward, jacobian, theta, inputs, targets, loss, l2, subset, damping)
        records.append(record)
        theta, damping = record.theta, record.damping_after
    return records


def _iterate(
    forward: Forward,
    jacobian: Jacobian,
    theta: Array,
    x: Array,
    y: Array,
    loss: Loss,
    l2: float,
    subset: Array,
    damping: float,
) -> Record:
    def f(t: Array) -> float:
        return value(forward, loss, l2, t, x, y)

    g = gradient(forward, jacobian, loss, l2, theta, x, y)
    G = gauss_newton(forward, jacobian, loss, l2, theta, x[subset], y[subset])
    s, steps, slope, quadratic, norms = conjugate_gradient(G, g, damping)
    f_old = f(theta)
    alpha, f_new = line_search(f, theta, s, f_old, slope)
    ratio = reduction_ratio(f_old, f_new, alpha, slope, quadratic)
    return Record(
        f=f_old,
        gradient_norm=float(np.linalg.norm(g)),
        damping=damping,
        cg_steps=steps,
        residual_norms=norms,
        direction=s,
        slope=slope,
        quadratic=quadratic,
        step_size=alpha,
        ratio=ratio,
        damping_after=update_damping(damping, ratio),
        new_f=f_new,
        theta=theta + alpha * s,
    )


def margin(record: Record) -> float:
    """How far the nearest decision of an iteration was from falling the other way, relative to what it compared.

    Decisions: when CG stopped, that the line search accepted, what ρ did to λ. Another implementation can be asked for
    the same ones only where this is well above its rounding errors.
    """
    norms, slope = record.residual_norms, record.step_size * record.slope
    stops = [abs(norm / (TOLERANCE * norms[0]) - 1) for norm in norms[-2:]]
    search = abs(record.new_f - record.f - DECREASE * slope) / abs(record.f)
    return min([*stops, search, abs(record.ratio - LOWER), abs(record.ratio - UPPER)])
