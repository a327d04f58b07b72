"""The Hessian-free method of Martens 2010, transcribed to float64 NumPy with dense Jacobians.

Sources: J. Martens, "Deep learning via Hessian-free optimization", ICML 2010, and his published MATLAB demo
(nnet_train_2.m, conjgrad_1.m). Facts are taken from them, no code. The demo maximises a log-likelihood; here everything
is the minimisation of its negative f = (l2/2)‖theta‖² + (1/N) Σ xi_i, with l2 the weight decay on weights and biases.

One iteration, in this order:

1. g over all examples; G over the chunk of this iteration (chunks rotate: 1, 2, …, 1, 2, …); weight decay in both;
2. preconditioner M = (mean_i g_i² + λ + l2)^¾ per coordinate, the mean over all examples, g_i without weight decay.
   The paper has the sum over examples, and λ on that scale; the demo normalised both and added the decay;
3. CG for (G + λI) d = −g from 0.95 × the last CG solution (the paper starts from it undecayed; the first start is 0);
4. the last CG iterate, un-backtracked, is the next warm start, whatever becomes of the step;
5. backtracking over the kept iterates on the objective over all examples gives d;
6. ρ = (f_S(theta + d) − f_S(theta)) / (gᵀd + ½ dᵀG d): before the line search, f_S and G over the chunk, g over all
   examples, weight decay in all of them and λ in none; ρ = −∞ if f_S rose;
7. line search along d over all examples: rates 0.8⁰ … 0.8⁵⁹, else the step is rejected (rate 0);
8. λ × 3/2 if ρ < ¼ or NaN, λ × 2/3 if ρ > ¾. A rejected step has no rule of its own.
"""

from collections.abc import Callable, Sequence
from math import ceil, inf, isnan
from typing import NamedTuple

import numpy as np

from .models_numpy import Array, Forward, Jacobian, Loss, example_gradients, gauss_newton, sigmoid_cross_entropy, value

EPSILON = 5e-4
GAP_FRACTION, MIN_GAP = 0.1, 10
MAX_CG_STEPS = 250  # of the paper; later revisions of the demo have 125 or 50
FIRST_KEPT, KEPT_FACTOR = 5, 1.3
WARM_START = 0.95
POWER = 0.75
SHRINK, DECREASE, MAX_RATES = 0.8, 1e-2, 60
DROP, BOOST = 2 / 3, 3 / 2
LOWER, UPPER = 0.25, 0.75
INITIAL_DAMPING = 45.0
WEIGHT_DECAY = 2e-5


class Trace(NamedTuple):
    """A CG run: `phi[i]` is the quadratic model after i steps (`phi[0]` at the start), iterates kept by step index."""

    phi: list[float]
    steps: int
    reason: str  # "progress", "limit" or "curvature"
    kept_indices: list[int]
    kept: list[Array]


class Deviations(NamedTuple):
    """Three points where an implementation may reasonably part from the source; the defaults are the source."""

    ratio_of_step_taken: bool = False  # ρ of rate·d after the line search (−∞ if rejected), instead of d before it
    ratio_over_all: bool = False  # f over all examples in ρ, instead of over the chunk
    reset_on_rejection: bool = False  # next warm start 0 after a rejected step, instead of kept


SOURCE = Deviations()


class Record(NamedTuple):
    """One iteration. Fields without `new` or `after` belong to the point the iteration started from."""

    f: float
    gradient_norm: float
    damping: float  # the λ in the solve
    preconditioner: Array  # M, (n,)
    start: Array  # 0.95 × the last CG solution, (n,)
    phi: list[float]
    cg_steps: int
    stop_reason: str
    kept_indices: list[int]
    kept_values: list[float]  # f(theta + iterate) of each kept iterate, those beyond the end of the walk included
    chosen_index: int  # the CG step whose iterate backtracking chose
    direction: Array  # d, that iterate
    last: Array  # the last CG iterate: the next start is 0.95 × this
    ratio: float
    step_size: float  # the rate; 0 if rejected
    damping_after: float
    new_f: float
    theta: Array  # after the step


# --- conjugate gradients -------------------------------------------------------------------------------------------


def gap(i: int) -> int:
    """k = max(10, ⌈0.1·i⌉), how far back the stop rule looks at step i."""
    return max(MIN_GAP, ceil(GAP_FRACTION * i))


def stalled(phi: Sequence[float], i: int) -> bool:
    """i > k, φ_i < 0 and (φ_i − φ_{i−k})/φ_i < k·ε.

    The demo asks for φ_{i−k} < 0 instead of the paper's φ_i < 0. Nothing depends on it: φ falls, and where
    φ_i < 0 ≤ φ_{i−k} the quotient is at least 1 while k·ε ≤ 0.0125. φ_0 is never looked at, since i > k.
    """
    k = gap(i)
    return i > k and phi[i] < 0 and (phi[i] - phi[i - k]) / phi[i] < k * EPSILON


def kept_series(limit: int) -> list[int]:
    """⌈5·1.3ʲ⌉ for j = 0, 1, … up to the limit: the unrounded number is multiplied on, so 5, 7, 9 and not 5, 7, 10."""
    series, following = [], float(FIRST_KEPT)
    while ceil(following) <= limit:
        series.append(ceil(following))
        following *= KEPT_FACTOR
    return series


def conjugate_gradient(
    product: Callable[[Array], Array], b: Array, start: Array, M: Array, max_steps: int = MAX_CG_STEPS
) -> Trace:
    """Preconditioned CG on φ(x) = ½ xᵀA x − bᵀx, A given by its product, M the diagonal of the preconditioner.

    φ comes from the recursive residual r = A x − b as ½ (r − b)ᵀx, so a step costs one product. The last iterate is
    always among the kept ones, once. The demo lists it twice when it is in the series anyway (which changes no choice)
    and, on pᵀA p ≤ 0 at step i, labels the iterate of step i − 1 with i.
    """
    x, r, series = start, product(start) - b, set(kept_series(max_steps))
    y = r / M
    p, phi, kept, reason = -y, [_model(x, r, b)], {}, "limit"
    for i in range(1, max_steps + 1):
        Ap = product(p)
        if p @ Ap <= 0:
            reason = "curvature"
            break
        alpha = (r @ y) / (p @ Ap)
        x, r_new = x + alpha * p, r + alpha * Ap
        y_new = r_new / M
        p = -y_new + (r_new @ y_new) / (r @ y) * p
        r, y = r_new, y_new
        phi.append(_model(x, r, b))
        if i in series:
            kept[i] = x
        if stalled(phi, i):
            reason = "progress"
            break
    kept[len(phi) - 1] = x
    return Trace(phi, len(phi) - 1, reason, list(kept), list(kept.values()))


def _model(x: Array, r: Array, b: Array) -> float:
    return float(0.5 * (r - b) @ x)


# --- what is done with a solution ----------------------------------------------------------------------------------


def walk_back(f: Callable[[Array], float], candidates: Sequence[Array]) -> tuple[int, float]:
    """From the last candidate towards the first while f does not rise: the position where it stops, and f there.

    Equal values walk on, so of two equal candidates the earlier is taken; the walk never looks past the first rise.
    """
    position, best = len(candidates) - 1, f(candidates[-1])
    while position > 0:
        earlier = f(candidates[position - 1])
        if best < earlier:
            break
        position, best = position - 1, earlier
    return position, best


def line_search(f: Callable[[float], float], f_old: float, f_first: float, slope: float) -> tuple[float, float]:
    """The first rate of 0.8⁰ … 0.8⁵⁹ with f(rate) ≤ f_old + 1e-2·rate·gᵀd, and f there; (0, f_old) if there is none.

    `f_first` is f(1), known from the backtracking. The demo evaluates f at 0.8⁶⁰ too, but rejects without a look at it.
    """
    rate, f_new = 1.0, f_first
    for _ in range(MAX_RATES):
        if f_new <= f_old + DECREASE * rate * slope:
            return rate, f_new
        rate *= SHRINK
        f_new = f(rate)
    return 0.0, f_old


def reduction_ratio(f_old: float, f_new: float, predicted: float) -> float:
    """ρ = (f_new − f_old) / predicted, or −∞ if f rose; predicted = gᵀd + ½ dᵀG d without λ, negative."""
    return -inf if f_new > f_old else (f_new - f_old) / predicted


def update_damping(damping: float, ratio: float) -> float:
    """λ × 3/2 if ρ < ¼ or ρ is NaN, λ × 2/3 if ρ > ¾ (¾ itself excluded), else λ; no floor and no ceiling."""
    if ratio < LOWER or isnan(ratio):
        return damping * BOOST
    return damping * DROP if ratio > UPPER else damping


def preconditioner(gradients: Array, damping: float, l2: float) -> Array:
    """M = (mean_i g_i² + λ + l2)^¾ per coordinate, from the gradients (N, n) of the single losses."""
    return ((gradients**2).mean(axis=0) + damping + l2) ** POWER


# --- the method ----------------------------------------------------------------------------------------------------


def rotating_chunks(examples: int, chunks: int, iterations: int) -> list[Array]:
    """The examples in G of each iteration: contiguous chunks of equal size in turn."""
    parts = np.split(np.arange(examples), chunks)
    return [parts[i % chunks] for i in range(iterations)]


def run(
    forward: Forward,
    jacobian: Jacobian,
    theta0: Array,
    inputs: Array,
    targets: Array,
    iterations: int,
    curvature_indices: Sequence[Array] | None = None,
    loss: Loss = sigmoid_cross_entropy,
    l2: float = WEIGHT_DECAY,
    damping: float = INITIAL_DAMPING,
    max_cg_steps: int = MAX_CG_STEPS,
    deviations: Deviations = SOURCE,
) -> list[Record]:
    """The records of the given number of iterations; `curvature_indices[i]` are the examples in G of iteration i.

    Without `curvature_indices` there is one chunk, all examples.
    """
    theta, records = np.asarray(theta0, np.float64), []
    last = np.zeros_like(theta)
    for subset in (curvature_indices or rotating_chunks(len(inputs), 1, iterations))[:iterations]:
        problem = _Problem(forward, jacobian, loss, l2, inputs, targets, subset)
        record = _iterate(problem, theta, WARM_START * last, damping, max_cg_steps, deviations)
        records.append(record)
        rejected = record.step_size == 0.0
        last = 0.0 * last if deviations.reset_on_rejection and rejected else record.last
        theta, damping = record.theta, record.damping_after
    return records


class _Problem(NamedTuple):
    forward: Forward
    jacobian: Jacobian
    loss: Loss
    l2: float
    x: Array
    y: Array
    subset: Array

    def f(self, theta: Array) -> float:
        return value(self.forward, self.loss, self.l2, theta, self.x, self.y)

    def f_ratio(self, theta: Array, over_all: bool) -> float:
        chosen = slice(None) if over_all else self.subset
        return value(self.forward, self.loss, self.l2, theta, self.x[chosen], self.y[chosen])


def _iterate(
    problem: _Problem, theta: Array, start: Array, damping: float, max_cg_steps: int, deviations: Deviations
) -> Record:
    forward, jacobian, loss, l2, x, y, subset = problem
    gradients = example_gradients(forward, jacobian, loss, theta, x, y)
    g = gradients.mean(axis=0) + l2 * theta
    G = gauss_newton(forward, jacobian, loss, l2, theta, x[subset], y[subset])
    M = preconditioner(gradients, damping, l2)
    trace = conjugate_gradient(lambda v: G @ v + damping * v, -g, start, M, max_cg_steps)

    f_old = problem.f(theta)
    position, f_first = walk_back(lambda d: problem.f(theta + d), trace.kept)
    d = trace.kept[position]
    rate, f_new = line_search(lambda t: problem.f(theta + t * d), f_old, f_first, float(g @ d))

    measured = rate * d if deviations.ratio_of_step_taken else d
    before, after = (problem.f_ratio(t, deviations.ratio_over_all) for t in (theta, theta + measured))
    predicted = float(g @ measured + 0.5 * measured @ G @ measured)
    # An empty step predicts nothing; the source never gets here, since it measures d.
    ratio = reduction_ratio(before, after, predicted) if measured.any() else -inf
    return Record(
        f=f_old,
        gradient_norm=float(np.linalg.norm(g)),
        damping=damping,
        preconditioner=M,
        start=start,
        phi=trace.phi,
        cg_steps=trace.steps,
        stop_reason=trace.reason,
        kept_indices=trace.kept_indices,
        kept_values=[problem.f(theta + x) for x in trace.kept],
        chosen_index=trace.kept_indices[position],
        direction=d,
        last=trace.kept[-1],
        ratio=ratio,
        step_size=rate,
        damping_after=update_damping(damping, ratio),
        new_f=f_new,
        theta=theta + rate * d,
    )


def margin(record: Record) -> float:
    """How far the nearest decision of an iteration was from falling the other way, relative to what it compared.

    Decisions: when CG stopped, how far backtracking walked, what ρ did to λ. Another implementation can be asked for
    the same ones only where this is well above its rounding errors. At λ = 45 on a small problem it is not: CG reaches
    its last digit before the tenth step, and the iterates it keeps after that differ by rounding alone.
    """
    phi, values, end = record.phi, record.kept_values, record.kept_indices.index(record.chosen_index)
    steps = [i for i in (record.cg_steps - 1, record.cg_steps) if i > gap(i)]
    stops = [abs((phi[i] - phi[i - gap(i)]) / phi[i] / (gap(i) * EPSILON) - 1) for i in steps]
    walks = [abs(values[j] - values[j - 1]) / abs(record.f) for j in range(max(end, 1), len(values))]
    return min([*stops, *walks, abs(record.ratio - LOWER), abs(record.ratio - UPPER)])
