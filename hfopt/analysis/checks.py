"""A doctor for one's own problem: does this objective, on this batch, keep what second-order steps rely on?

Each check takes a `ValueFn` and parameters and returns a `Finding`; `check` runs all of them. Together they evaluate
the objective and its products some forty times on the batch they are given, as a few Hessian-free steps do.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hfopt.analysis.case import Case, eps, normal, wide
from hfopt.analysis.gradient import gradient
from hfopt.analysis.report import Finding, Report, Status
from hfopt.batch import Batch, Examples, examples, size
from hfopt.choices import checked_call
from hfopt.curvature.average import check_value_fn
from hfopt.curvature.gauss_newton import gauss_newton
from hfopt.curvature.linearize import linearize
from hfopt.losses import Loss, output_hessian
from hfopt.objective import ValueFn
from hfopt.outputs import coordinates, in_coordinates, of_coordinates
from hfopt.placement import whole
from hfopt.solve.cg import ConjugateGradient
from hfopt.vectors import norm, vdot

_EXACT_OUTPUTS = 64  # numbers an example, up to which B is looked at whole
_PROBES, _ITERATIONS = 16, 4


def check(value_fn: ValueFn, params: Any, *, seed: int = 0) -> Report:
    """Examine an objective on a batch, at ``params``.

    evaluation: value and gradient exist and are finite; dtypes: outputs and losses are float32 or wider;
    determinism: see `determinism`; gradient: gᵀv against central differences; mean: the loss is a mean over examples,
    not a sum; chunks: examples do not look at one another; symmetry: uᵀGv = vᵀGu; convexity: B ⪰ 0, at the outputs and
    around them; parameters: none is without effect; cost: memory, and seconds a step.

    Args:
      value_fn: from `hfopt.Objective.bind`, with the batch and ``chunk_size`` it is to be trained with.
      params: a pytree of floating arrays.
      seed: of the random directions.

    Returns:
      A `Report`: ``print(report)`` is for people, ``report.ok`` and ``report["gradient"]`` for programs.

    Raises:
      TypeError: ``value_fn`` was not made by `hfopt.Objective.bind`, or a parameter is not floating.
      ValueError: there are no parameters, or the objective cannot take them.

    Example:
      >>> import jax, jax.numpy as jnp, optax, hfopt
      >>> objective = hfopt.Objective(lambda p, x: jnp.tanh(x @ p["w"]), optax.losses.squared_error)
      >>> inputs = jax.random.normal(jax.random.key(0), (8, 3))
      >>> report = hfopt.check(objective.bind((inputs, jnp.ones(8))), {"w": jnp.ones(3)})
      >>> report.ok, str(report["symmetry"].status)
      (True, 'ok')
    """
    check_value_fn(value_fn)
    checked_call("check", params, value_fn)
    case = Case(value_fn, params, jax.jit(lambda p, f: f(p)), jax.jit(lambda p, f: jax.value_and_grad(f)(p)))
    first = _evaluation(case)
    rest: list[Callable[..., Finding]] = [
        _dtypes,
        determinism,
        gradient,
        _mean,
        _chunks,
        _symmetry,
        _convexity,
        _parameters,
        _cost,
    ]
    if first.status is Status.FAILED:
        return Report((first, *(Finding(_name(c), Status.SKIPPED, "the objective cannot be evaluated") for c in rest)))
    keys = jax.random.split(jax.random.key(seed), len(rest))
    return Report((first, *(_examined(c, case, key) for c, key in zip(rest, keys, strict=True))))


def _evaluation(case: Case) -> Finding:
    try:
        value, grad = case.value_and_grad(case.params, case.value_fn)
    except Exception as error:
        return Finding("evaluation", Status.FAILED, f"{type(error).__name__}: {error}")
    if not jnp.isfinite(value):
        return Finding("evaluation", Status.FAILED, f"the value is {value}", "Look for overflow, log 0 and bad data.")
    paths = [_path(path) for path, leaf in jax.tree.leaves_with_path(grad) if not jnp.isfinite(leaf).all()]
    if paths:
        advice = "Look for a square root, a norm or a division at 0, and for jnp.where around them."
        return Finding("evaluation", Status.FAILED, f"the gradient is not finite in {', '.join(paths)}", advice)
    return Finding("evaluation", Status.OK, f"f = {value:.6g}, ‖g‖ = {norm(grad):.3g}")


def determinism(value_fn: ValueFn, params: Any) -> Finding:
    """Whether the same parameters and batch give the same value, however often the objective is traced and run.

    Gradient, products and trial losses of a step are of one function only if they do. What breaks it is dropout with a
    key that is drawn inside the model, and state that the model changes as it is called. Equal means: to 100 units in
    the last place, since two programs may sum in different orders.
    """
    value = lambda p, f: f(p)  # noqa: E731
    once = jax.jit(lambda p, f: value(p, f))
    values = [once(params, value_fn), once(params, value_fn)]
    values.append(jax.jit(lambda p, f: value(p, f))(params, value_fn))
    values.append(jax.jit(lambda p, f: jax.value_and_grad(f)(p)[0])(params, value_fn))
    if not all(map(jnp.isfinite, values)):
        return Finding("determinism", Status.FAILED, f"the value is {values[0]}", "See what hfopt.check says of it.")
    low, high = min(map(float, values)), max(map(float, values))
    if high - low <= 100 * eps(values[0]) * abs(high):
        return Finding("determinism", Status.OK, f"{len(values)} evaluations by 3 programs agree")
    return Finding(
        "determinism",
        Status.FAILED,
        f"evaluations at the same parameters lie between {low:.6g} and {high:.6g}",
        "Draw the key once a step, outside the model, and let `predict` close over it; hfopt.flax does so.",
    )


def _dtypes(case: Case, key: jax.Array) -> Finding:
    objective, rows, params = case.value_fn.objective, examples(case.value_fn.batch), case.params
    returned = jax.eval_shape(lambda p, x: objective.predict(p, x), params, rows.inputs)
    losses = jax.eval_shape(objective.loss, returned, rows.targets)
    outputs = jax.eval_shape(coordinates, returned)
    names = lambda tree: ", ".join(sorted({str(x.dtype) for x in jax.tree.leaves(tree)}))  # noqa: E731
    detail = f"parameters {names(params)}; outputs {names(outputs)}; losses {names(losses)}"
    if any(jnp.finfo(x.dtype).bits < 32 for x in jax.tree.leaves((outputs, losses))):
        advice = "Cast the outputs to float32 before the loss: its derivatives lose what CG needs."
        return Finding("dtypes", Status.WARNING, detail, advice)
    return Finding("dtypes", Status.OK, detail)


def _mean(case: Case, key: jax.Array) -> Finding:
    count = max(1, size(case.value_fn.batch) // 2)
    inputs, targets, _ = case.value_fn.batch
    once = Batch(*jax.tree.map(lambda x: whole(x)[:count], (inputs, targets)))
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), once)
    penalty = float(case.value_fn.objective.penalty(case.params))
    single, double = (float(case.value(case.params, _on(batch, case))) - penalty for batch in (once, twice))
    change = abs(double - single)
    if change <= 1e-3 * abs(single) + 10 * float(jnp.finfo(jnp.float32).eps) * abs(penalty):
        return Finding("mean", Status.OK, "every example twice: the same value")
    detail = f"every example twice: the mean loss goes from {single:.6g} to {double:.6g}"
    if abs(double - 2 * single) < 0.25 * abs(single):
        advice = "The losses grow with the batch: return each example's own loss, not their sum."
        return Finding("mean", Status.FAILED, detail, advice)
    return Finding("mean", Status.WARNING, detail, "The examples see one another, or a dropout mask of another shape.")


def _chunks(case: Case, key: jax.Array) -> Finding:
    value_fn = case.value_fn
    whole = min(size(value_fn.batch), value_fn.chunk_size or size(value_fn.batch))
    if whole < 2:
        return Finding("chunks", Status.SKIPPED, "there is one example only")
    halves = replace(value_fn, chunk_size=-(-whole // 2))
    given, halved = (float(case.value(case.params, f)) for f in (value_fn, halves))
    if abs(given - halved) <= 1e-4 * abs(given):
        return Finding("chunks", Status.OK, "chunks half as large: the same value")
    return Finding(
        "chunks",
        Status.WARNING,
        f"chunks half as large: f goes from {given:.6g} to {halved:.6g}",
        "The examples see one another (BatchNorm on the statistics of the batch) or one dropout mask is used for every "
        "chunk: value, gradient and products agree only at one and the same chunk_size.",
    )


def _symmetry(case: Case, key: jax.Array) -> Finding:
    u, v = (normal(k, case.params) for k in jax.random.split(key))

    @jax.jit
    def forms(params: Any, f: ValueFn) -> Any:
        operator = gauss_newton(f, params)
        gu, gv = operator @ u, operator @ v
        return vdot(u, gv), vdot(v, gu), vdot(u, gu), vdot(v, gv), operator.quadratic_form(u)

    ugv, vgu, ugu, vgv, quadratic = map(float, forms(case.params, case.value_fn))
    scale = max(abs(ugu * vgv) ** 0.5, abs(ugv), abs(vgu), 1e-30)
    apart = max(abs(ugv - vgu), abs(quadratic - ugu)) / scale
    if apart > max(1e-3, 4 * _coarsest(case)):
        return Finding(
            "symmetry",
            Status.FAILED,
            f"uᵀGv and vᵀGu, or vᵀGv by one jvp, differ by {apart:.1e} of their size",
            "A rule of custom_jvp or linear_call is not the derivative, or not the transpose, of what it stands for.",
        )
    return Finding("symmetry", Status.OK, f"uᵀGv = vᵀGu to {apart:.0e}")


def _convexity(case: Case, key: jax.Array) -> Finding:
    objective, rows = case.value_fn.objective.for_curvature, _first_chunk(case.value_fn.averaged, case)
    with objective.matmul_precision():
        outputs, others = jax.jit(in_coordinates(objective.predict))(case.params, rows.inputs)
    extremes = jax.jit(_extremes(of_coordinates(objective.loss, outputs, others)))
    lowest, highest, where = 0.0, 0.0, "at the outputs"
    for spread, name in ((0.0, "at the outputs"), (1.0, "one standard deviation away"), (3.0, "three away")):
        noise = normal(key, outputs)
        moved = jax.tree.map(lambda z, n, s=spread: z + (s * (jnp.std(z) + 1e-3) * n).astype(z.dtype), outputs, noise)
        low, high = map(float, extremes(moved, rows, key))
        if low < lowest:
            lowest, where = low, name
        highest = max(highest, high)
    if lowest < -max(1e-4, 4 * _coarsest(case)) * max(highest, -lowest):
        return Finding(
            "convexity",
            Status.FAILED,
            f"the loss is not convex in the outputs: uᵀBu = {lowest:.2e} {where}, against {highest:.2e} at most",
            "G is then indefinite. Take a convex loss, hfopt.fisher for a log-likelihood, or hfopt.hessian, with which "
            "hessian_free follows negative curvature.",
        )
    return Finding("convexity", Status.OK, "B ⪰ 0 at the outputs and around them")


def _extremes(loss: Loss) -> Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]:
    """The least and the largest uᵀB_i u over examples: eigenvalues where the outputs are few, otherwise probes."""

    def extremes(outputs: Any, rows: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        product, count = output_hessian(loss, outputs, rows), size(rows)
        width = sum(z.size for z in jax.tree.leaves(outputs)) // count
        if width <= _EXACT_OUTPUTS and len(jax.tree.leaves(outputs)) == 1:
            (leaf,), tree = jax.tree.flatten(outputs)
            basis = jnp.broadcast_to(jnp.eye(width, dtype=leaf.dtype)[:, None], (width, count, width))
            columns = jax.lax.map(lambda e: product(jax.tree.unflatten(tree, [e.reshape(leaf.shape)])), basis)
            matrices = jnp.moveaxis(jax.tree.leaves(columns)[0].reshape(width, count, width), 0, -1)
            forms = jnp.linalg.eigvalsh((matrices + jnp.moveaxis(matrices, -1, -2)).astype(wide(leaf)) / 2)
        else:

            def form(key: jax.Array) -> jax.Array:
                u = normal(key, outputs)
                terms = jax.tree.map(lambda a, b: (a * b).astype(wide(a)).reshape(count, -1).sum(1), u, product(u))
                return jnp.stack(jax.tree.leaves(terms)).sum(0)

            forms = jax.lax.map(form, jax.random.split(key, _PROBES))
        return forms.min(), forms.max()

    return extremes


def _parameters(case: Case, key: jax.Array) -> Finding:
    objective, params = case.value_fn.objective, case.params
    inputs = _first_chunk(case.value_fn.batch, case).inputs

    @jax.jit
    def pulled(params: Any, inputs: Any) -> Any:
        linear = linearize(lambda p: objective.predict(p, inputs), params)
        return jax.tree.map(lambda x: jnp.any(x != 0), linear.vjp(normal(key, linear.outputs)))

    dead = [_path(path) for path, used in jax.tree.leaves_with_path(pulled(params, inputs)) if not used]
    if dead:
        return Finding(
            "parameters",
            Status.WARNING,
            f"no effect on the outputs: {', '.join(dead)}",
            "Unused, cut off by stop_gradient, or behind units that are all dead. With l2 they only decay; "
            "hfopt.masked leaves them out.",
        )
    return Finding("parameters", Status.OK, f"all {len(jax.tree.leaves(params))} arrays act on the outputs")


def _cost(case: Case, key: jax.Array) -> Finding:
    def solve(params: Any, f: ValueFn) -> Any:
        value, grad = jax.value_and_grad(f)(params)
        solver = ConjugateGradient(_ITERATIONS, stop=())
        return value, solver.solve(gauss_newton(f, params), grad, damping=1.0).solution

    program = jax.jit(solve).lower(case.params, case.value_fn).compile()
    seconds = [_seconds(run, case.params, case.value_fn) for run in (case.value_and_grad, program)]
    product = max(seconds[1] - seconds[0], 0.0) / _ITERATIONS
    memory = program.memory_analysis()
    used = "unknown" if memory is None else f"{memory.temp_size_in_bytes / 2**20:.1f} MiB"
    detail = (
        f"value_and_grad {_readable(seconds[0])}, a product {_readable(product)}: about "
        f"{_readable(2 * seconds[0] + 11 * product)} and {used} for a step of 10 CG iterations, besides data and state"
    )
    return Finding("cost", Status.OK, detail)


def _examined(examine: Callable[..., Finding], case: Case, key: jax.Array) -> Finding:
    try:
        return determinism(case.value_fn, case.params) if examine is determinism else examine(case, key)
    except Exception as error:
        return Finding(_name(examine), Status.FAILED, f"{type(error).__name__}: {error}")


def _name(examine: Callable[..., Finding]) -> str:
    return examine.__name__.removeprefix("_")


def _path(path: Any) -> str:
    return f"params{jax.tree_util.keystr(path)}"


def _first_chunk(batch: Batch, case: Case) -> Examples:
    return jax.tree.map(lambda x: whole(x)[: case.value_fn.chunk_size], examples(batch))


def _coarsest(case: Case) -> float:
    """ε of the narrowest dtype among parameters and outputs."""
    inputs = case.value_fn.batch.inputs
    outputs = jax.eval_shape(lambda p, x: coordinates(case.value_fn.objective.predict(p, x)), case.params, inputs)
    return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves((case.params, outputs)))


def _on(batch: Batch, case: Case) -> ValueFn:
    return replace(case.value_fn, batch=batch, evaluation_batch=None, curvature_batch=None)


def _seconds(program: Callable[..., Any], *arguments: Any) -> float:
    """The least of two, after a first call."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        taken.append(time.perf_counter() - began)
    return float(np.min(taken[1:]))


def _readable(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
