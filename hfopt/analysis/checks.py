"""A doctor for one's own problem: does this objective, on this batch, keep what second-order steps rely on?

Each examination takes a `Case` and returns what it found; `check` runs all of them. Compiling is what takes the time,
so they share five programs: the value, on the batch and on half of it, the value with its gradient, products, the loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hfopt.analysis import examples, loss, model
from hfopt.analysis.case import Case, eps, name_of
from hfopt.analysis.gradient import gradient
from hfopt.analysis.report import Finding, Report, Status
from hfopt.choices import check_problem
from hfopt.curvature.average import check_value_fn
from hfopt.objective import ValueFn
from hfopt.outputs import coordinates
from hfopt.vectors import norm

_LARGE = 1e4  # a value above it is in another unit than the defaults are made for


def check(value_fn: ValueFn, params: Any, *, seed: int = 0) -> Report:
    """Examine an objective on a batch, at ``params``.

    evaluation: value and gradient exist and are finite; dtypes: outputs and losses are float32 or wider;
    scale: the unit of the objective is one that the defaults are made for; determinism: see `determinism`; gradient:
    gᵀv against central differences; shapes: outputs and targets do not broadcast; mean: the loss is a mean over
    examples, not a sum; chunks: examples do not look at one another; symmetry: uᵀGv = vᵀGu; convexity: B ⪰ 0, at the
    outputs and around them; curvature: B ≠ 0; parameters: none is without effect, and none a running statistic; cost:
    memory, and seconds a step. A comparison with a number that is not finite is a failure.

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
    check_problem("check", params, value_fn)
    case = _case(value_fn, params, seed)
    first = _evaluation(case)
    if first.status is Status.FAILED:
        why = "the objective cannot be evaluated"
        return Report((first, *(Finding(name, Status.SKIPPED, why) for names in _EXAMINATIONS for name in names)))
    return Report((first, *(f for names, examine in _EXAMINATIONS.items() for f in _examined(names, examine, case))))


def determinism(value_fn: ValueFn, params: Any) -> Finding:
    """Whether the same parameters and batch give the same value, however often the objective is traced and run.

    Gradient, products and trial losses of a step are of one function only if they do. What breaks it is dropout with a
    key that is drawn inside the model, and state that the model changes as it is called. Equal means: to 100 units in
    the last place, since two programs may sum in different orders.
    """
    check_value_fn(value_fn)
    return _determinism(_case(value_fn, params, 0))[0]


def _case(value_fn: ValueFn, params: Any, seed: int) -> Case:
    # Functions of this very case, since what is compiled for one model may not be what another trace of it gives.
    value, value_and_grad = jax.jit(lambda p, f: f(p)), jax.jit(lambda p, f: jax.value_and_grad(f)(p))
    return Case(value_fn, params, jax.random.key(seed), value, value_and_grad)


def _evaluation(case: Case) -> Finding:
    try:
        value, grad = case.evaluated
    except Exception as error:
        return Finding("evaluation", Status.FAILED, f"{type(error).__name__}: {error}")
    if not jnp.isfinite(value):
        advice = "Look for overflow, log 0 and bad data."
        if case.value_fn.batch.weights is not None:
            advice += " Examples of weight 0 do not count; all others, and what the model makes of finite data, do."
        else:
            advice += " Examples that are to be left out get a weight of 0: (inputs, targets, weights)."
        return Finding("evaluation", Status.FAILED, f"the value is {value}", advice)
    paths = [name_of(path) for path, leaf in jax.tree.leaves_with_path(grad) if not jnp.isfinite(leaf).all()]
    if paths:
        advice = "Look for a square root, a norm or a division at 0, and for jnp.where around them."
        return Finding("evaluation", Status.FAILED, f"the gradient is not finite in {', '.join(paths)}", advice)
    return Finding("evaluation", Status.OK, f"f = {value:.6g}, ‖g‖ = {norm(grad):.3g}")


def _determinism(case: Case) -> tuple[Finding]:
    # Two programs, each traced on its own, and each run twice.
    values = [case.value(case.params, case.value_fn) for _ in range(2)]
    values += [case.value_and_grad(case.params, case.value_fn)[0] for _ in range(2)]
    if not all(map(jnp.isfinite, values)):
        return (Finding("determinism", Status.FAILED, f"the value is {values[0]}", "See what hfopt.check says of it."),)
    low, high = min(map(float, values)), max(map(float, values))
    if high - low <= 100 * eps(values[0]) * abs(high):
        return (Finding("determinism", Status.OK, f"{len(values)} evaluations by 2 programs agree"),)
    return (
        Finding(
            "determinism",
            Status.FAILED,
            f"evaluations at the same parameters lie between {low:.6g} and {high:.6g}",
            "Draw the key once a step, outside the model, and let `predict` close over it; hfopt.flax does so.",
        ),
    )


def _dtypes(case: Case) -> tuple[Finding]:
    objective, rows = case.value_fn.objective, case.value_fn.batch
    returned = jax.eval_shape(lambda p, x: objective.predict(p, x), case.params, rows.inputs)
    losses = jax.eval_shape(objective.loss, returned, rows.targets)
    outputs = jax.eval_shape(coordinates, returned)
    names = lambda tree: ", ".join(sorted({str(x.dtype) for x in jax.tree.leaves(tree)}))  # noqa: E731
    detail = f"parameters {names(case.params)}; outputs {names(returned)}; losses {names(losses)}"
    if any(jnp.finfo(x.dtype).bits < 32 for x in jax.tree.leaves((outputs, losses))):
        advice = "Cast the outputs to float32 before the loss: its derivatives lose what CG needs."
        return (Finding("dtypes", Status.WARNING, detail, advice),)
    return (Finding("dtypes", Status.OK, detail),)


def _scale(case: Case) -> tuple[Finding]:
    value = float(case.evaluated[0])
    if not abs(value) <= _LARGE:
        advice = (
            "Damping and trust begin with numbers for losses of order one, and would take long to grow. Divide the "
            "loss, or for a squared error the targets, by a typical size: its standard deviation, or f at the start."
        )
        return (Finding("scale", Status.WARNING, f"f = {value:.3g}", advice),)
    return (Finding("scale", Status.OK, f"f = {value:.3g}, of order one or less"),)


# Names of the findings -> what finds them.
_EXAMINATIONS: dict[tuple[str, ...], Callable[[Case], tuple[Finding, ...]]] = {
    ("dtypes",): _dtypes,
    ("scale",): _scale,
    ("determinism",): _determinism,
    ("gradient",): lambda case: (gradient(case, case.key),),
    ("shapes",): loss.shapes,
    ("mean", "chunks"): examples.mean_and_chunks,
    ("symmetry",): model.symmetry,
    ("convexity", "curvature"): loss.convexity_and_curvature,
    ("parameters",): model.parameters,
    ("cost",): model.cost,
}


def _examined(
    names: tuple[str, ...], examine: Callable[[Case], tuple[Finding, ...]], case: Case
) -> tuple[Finding, ...]:
    try:
        return examine(case)
    except Exception as error:
        return tuple(Finding(name, Status.FAILED, f"{type(error).__name__}: {error}") for name in names)
