"""The Hessian-free step as an Optax gradient transformation.

A step at θ, with the objective f, its gradient g and the curvature G on the batch:

1. where trust is learned, judge the last step on this batch, which it had not seen;
2. linearise the model once, and solve (G + λM) d = −g by conjugate gradients, from `warm_start` · the last solution;
   M is the identity or another metric;
3. where the solver kept iterates, walk back over them while f falls; where it met negative curvature, try that;
4. shorten d until ½ dᵀ(G + λM)d ≤ κ, and search along it for a step s that lowers f enough; if there is none, or
   anything is not finite, reject: s = 0;
5. let λ and the trust region follow ρ = (f(θ + s) − f(θ)) / (gᵀs + ½ sᵀGs).

f is taken on the evaluation batch where `Objective.bind` was given one, g and G on the batches of their own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hfopt.choices import Curvature, check_choices, takes_key
from hfopt.control.backtracking import last_iterate, walk_back
from hfopt.control.calibration import Calibrated
from hfopt.control.damping import ByTrust, Damping
from hfopt.control.line_search import FullStep, LineSearch
from hfopt.control.negative_curvature import Course, follow, probe
from hfopt.control.outcome import Outcome
from hfopt.control.trust_region import Earned, TrustRegion, Unbounded
from hfopt.convolutions import canonical
from hfopt.curvature.average import check_params, check_value_fn
from hfopt.curvature.gauss_newton import gauss_newton
from hfopt.objective import ValueFn
from hfopt.solve.cg import CGResult, ConjugateGradient, widened
from hfopt.solve.metrics import Metric
from hfopt.solve.preconditioners import Preconditioner
from hfopt.state import HessianFreeState, StepInfo


class _Attempt(NamedTuple):
    """A step that one λ leads to."""

    outcome: Outcome
    solution: Any  # of CG, from where the next solve may start
    info: StepInfo


def hessian_free(
    *,
    curvature: Curvature = gauss_newton,
    solver: ConjugateGradient = ConjugateGradient(max_steps=250),  # noqa: B008 - immutable
    preconditioner: Preconditioner | None = None,
    damping: Damping = ByTrust(),  # noqa: B008
    metric: Metric | None = None,
    trust_region: TrustRegion | None = Earned(),  # noqa: B008
    line_search: LineSearch = FullStep(),  # noqa: B008
    warm_start: float | Callable[[jax.Array], Any] | None = 0.8,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Hessian-free Newton: truncated CG on the damped Gauss-Newton system, with step control.

    The update is complete: it has its sign and its length, and no learning rate belongs behind it.

    Args:
      curvature: ``curvature(value_fn, params) -> Operator``: `hfopt.gauss_newton`, `hfopt.hessian`, `hfopt.fisher`,
        `hfopt.empirical_fisher`. One that takes a ``key`` that is ``None`` by default is given a new one every step.
        With `hfopt.hessian`, directions of negative curvature are followed where that lowers f.
      solver: of the linear system; `hfopt.cg`.
      preconditioner: of CG; `hfopt.squared_gradients`, `hfopt.jacobi`, `hfopt.nystrom`, or ``None``: the inverse of the
        metric where that is cheap, else none.
      damping: the rule for λ; `hfopt.trust_damping`, `hfopt.levenberg_marquardt`, `hfopt.constant_damping`,
        `hfopt.scheduled_damping`, or `hfopt.calibrated_damping`.
      metric: M, what damping measures a step in; `hfopt.second_moment`, `hfopt.structural`, or ``None``: the identity.
      trust_region: the rule for κ; `hfopt.earned_trust`, `hfopt.scheduled_trust`, or ``None``: no bound.
      line_search: the rule for the length; `hfopt.full_step`, `hfopt.armijo`, `hfopt.fixed_step`.
      warm_start: CG starts from this multiple of the last solution, a number in [0, 1] or a schedule of it over steps;
        ``None``: from zero, which also saves one product a step and the memory of the solution.
      seed: of the keys given to ``curvature``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. ``update(grad, state, params, value=…, grad=…, value_fn=…)`` takes
      what the update of ``optax.lbfgs`` takes; ``value_fn`` comes from `hfopt.Objective.bind`. ``state.info`` is a
      `StepInfo`. ``value`` must be that of ``value_fn`` on the same batch: acceptance compares the two. Without
      ``value`` it is computed, and so is, in a forward pass of its own, the value on an evaluation batch. Without
      ``grad``, ``grad`` is the gradient that was passed first. Call it under ``jax.jit``: eagerly it traces its loops
      anew at every step. ``optax.inject_hyperparams`` takes callables for schedules, so it needs
      ``static_args=("curvature",)``.

    Raises:
      ValueError: `warm_start` is outside [0, 1]; at an update, ``params`` or ``value_fn`` is missing.
      TypeError: a choice is not an object of its kind; a parameter is not floating; at an update, ``value_fn`` was not
        made by `Objective.bind`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, hfopt
      >>> predict = lambda params, x: x @ params["w"]
      >>> objective = hfopt.Objective(predict, optax.losses.squared_error)
      >>> batch = (jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([1.0, 2.0]))
      >>> tx = hfopt.hessian_free()
      >>> @jax.jit
      ... def train_step(params, state, batch):
      ...     value_fn = objective.bind(batch)
      ...     value, grad = jax.value_and_grad(value_fn)(params)
      ...     updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
      ...     return optax.apply_updates(params, updates), state, value
      >>> params = {"w": jnp.zeros(2)}
      >>> state = tx.init(params)
      >>> for _ in range(20):
      ...     params, state, value = train_step(params, state, batch)
      >>> bool(jnp.allclose(params["w"], 1.0, atol=1e-4))
      True

    References:
      Martens, "Deep learning via Hessian-free optimization", ICML 2010; Wang, Tan & Lin, "Newton methods for
      convolutional neural networks", ACM TIST 2020.
    """

    check_choices(
        curvature,
        warm_start,
        solver=solver,
        preconditioner=preconditioner,
        damping=damping,
        metric=metric,
        trust_region=trust_region,
        line_search=line_search,
    )
    region = Unbounded() if trust_region is None else trust_region
    keyed = takes_key(curvature)

    def init(params: Any) -> HessianFreeState:
        check_params(params)
        dtype = _scalar_dtype(params)
        # Separate arrays: a donated state must not hold one buffer twice.
        zero = lambda: jnp.zeros((), dtype)  # noqa: E731
        none = lambda: jnp.zeros((), jnp.int32)  # noqa: E731
        nan = lambda: jnp.full((), jnp.nan, dtype)  # noqa: E731
        info = StepInfo(nan(), nan(), nan(), nan(), none(), none(), zero(), none(), none(), jnp.zeros((), bool))
        return HessianFreeState(
            step=none(),
            rejected=none(),
            next_damping=jnp.asarray(damping.initial, dtype) + zero(),  # an array of its own
            solution=() if warm_start is None else widened(optax.tree.zeros_like(params)),
            trust=region.init(params, dtype),
            metric=() if metric is None else metric.init(params),
            preconditioner=() if preconditioner is None else preconditioner.init(params),
            info=info,
        )

    def update(
        updates: Any,
        state: HessianFreeState,
        params: Any = None,
        *,
        value: Any = None,
        grad: Any = None,
        value_fn: ValueFn | None = None,
        **extra_args: Any,
    ) -> tuple[Any, HessianFreeState]:
        del extra_args
        value_fn = _checked_value_fn(params, value_fn)
        judge, dtype = value_fn.judge, state.next_damping.dtype
        loss = jnp.asarray(value if value is not None and judge is value_fn else judge(params), dtype)
        updates = widened(updates)
        grad = updates if grad is None else widened(grad)
        stationary = optax.tree.norm(grad) == 0

        evaluate = canonical(judge)  # it runs inside loops
        loss_after = lambda step: evaluate(optax.apply_updates(params, step)).astype(dtype)  # noqa: E731

        trust = region.observe(state.trust, loss, lambda step: loss_after(optax.tree.scale(-1, step)))
        bound = jnp.asarray(region.bound(trust), dtype)
        key = {"key": jax.random.fold_in(jax.random.key(seed), state.step)} if keyed else {}
        operator = curvature(value_fn, params, **key)
        measuring: Any = ()
        measure, unmeasure = lambda v: v, None  # v ↦ M v, and its inverse
        if metric is not None:
            measuring = metric.update(state.metric, updates)
            measure, unmeasure = metric.product(measuring, value_fn, params), metric.inverse(measuring)
        preconditioning, spent, tested = (), jnp.int32(0), jnp.int32(0)
        if preconditioner is not None:
            preconditioning = preconditioner.update(state.preconditioner, operator, value_fn, params)
            spent = preconditioning.setup_products

        rhs = optax.tree.scale(-1, updates)
        start = None
        if warm_start is not None:
            decay = warm_start(state.step) if callable(warm_start) else warm_start
            start = jax.tree.map(lambda x: jnp.asarray(decay, x.dtype) * x, state.solution)
        if operator.indefinite:
            rhs = probe(rhs, stationary, state.step)

        def longest(damped_form: jax.Array, bound: Any) -> jax.Array:
            """The length α ≤ 1 with which ½ (αd)ᵀ(G + λM)(αd) ≤ κ."""
            radius = jnp.sqrt(bound / jnp.maximum(0.5 * jnp.abs(damped_form), jnp.finfo(dtype).tiny))
            return jnp.minimum(radius, 1).astype(dtype)

        def attempt(used_damping: jax.Array, bound: Any) -> _Attempt:
            inverse = unmeasure if preconditioner is None else preconditioner.inverse(preconditioning, used_damping)
            result = solver.solve(
                operator,
                rhs,
                start,
                damping=used_damping,
                metric=None if metric is None else measure,
                preconditioner=inverse,
                step_limit=region.cg_steps(trust),
            )
            if result.kept is None:
                choice = last_iterate(result)
            else:
                choice = walk_back(result, result.kept, lambda d: loss_after(_step(params, jnp.ones((), dtype), d)))
            # CG ends with φ(d) = −bᵀd + ½ dᵀ(G + λM)d, so the quadratic forms follow without another product.
            damped_form = 2 * (choice.model_value + optax.tree.vdot(rhs, choice.direction))
            course = Course(choice.direction, damped_form.astype(dtype), result.products, choice.evaluations)
            if operator.indefinite:
                course = _course(course, result, used_damping, bound)
            direction = course.direction
            form = course.damped_form - used_damping * optax.tree.vdot(direction, measure(direction))

            length = longest(course.damped_form, bound)
            true_slope = optax.tree.vdot(grad, direction).astype(dtype)
            trial_loss = lambda alpha: loss_after(_step(params, alpha * length, direction))  # noqa: E731
            known = None if trust_region is not None or operator.indefinite else choice.loss
            search = line_search.search(trial_loss, loss, length * true_slope, known)

            # A direction that is zero though the gradient is not is a failure of CG, not a stationary point.
            moves = (true_slope != 0) | stationary
            accepted = search.accepted & moves & jnp.isfinite(loss) & jnp.isfinite(search.new_loss)
            alpha = jnp.where(accepted, search.step_size * length, 0)
            # With the true gradient, also where `updates` is something else (clipped before, a natural gradient).
            model = lambda a, form: a * true_slope + 0.5 * a**2 * form  # noqa: E731
            predicted = jnp.where(accepted, model(alpha, form), 0).astype(dtype)
            actual = search.new_loss - loss
            # Below the resolution of the loss, acceptance and ρ are noise, and nothing is learned from them.
            rounding = 10 * jnp.finfo(dtype).eps * jnp.abs(loss)
            noise = moves & (jnp.abs(model(length, form)) <= rounding) & (jnp.abs(actual) <= rounding)
            ratio = lambda m: jnp.where(accepted, jnp.where(noise, 1, actual / m), -jnp.inf).astype(dtype)  # noqa: E731
            outcome = Outcome(
                step=_where_accepted(accepted, _step(params, alpha, direction)),
                predicted=predicted,
                reduction_ratio=ratio(predicted),
                damped_ratio=ratio(model(alpha, course.damped_form)),
                accepted=accepted,
                informative=~noise,
            )
            info = StepInfo(
                loss=loss,
                new_loss=jnp.where(accepted, search.new_loss, loss),
                reduction_ratio=outcome.reduction_ratio,
                damping=used_damping,
                cg_steps=result.steps,
                cg_stop=result.stop,
                step_size=alpha,
                products=course.products,
                evaluations=search.evaluations + course.evaluations,
                accepted=accepted,
            )
            return _Attempt(outcome, result.solution, info)

        def _course(course: Course, result: CGResult, used_damping: jax.Array, bound: Any) -> Course:
            quadratic = lambda v: operator.quadratic(optax.tree.cast_like(v, operator.example))  # noqa: E731
            damped = lambda v: quadratic(v) + used_damping * optax.tree.vdot(v, measure(v))  # noqa: E731
            limited = lambda d, form: loss_after(_step(params, longest(form, bound), d))  # noqa: E731
            return follow(course, result, operator, damped, grad, loss, limited)

        used_damping = damping.current(state.next_damping, region.level(trust), state.step)
        if isinstance(damping, Calibrated):

            def trial(damping: jax.Array) -> tuple[Outcome, jax.Array, jax.Array]:
                made = attempt(damping, jnp.inf)
                return made.outcome, made.info.products, made.info.evaluations

            sound = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates)) & ~stationary
            used_damping, products, tried = jax.lax.cond(
                sound & (state.step == state.rejected),
                partial(damping.calibrate, trial=trial),
                lambda d: (d, jnp.int32(0), jnp.int32(0)),
                used_damping,
            )
            spent, tested = spent + products, tested + tried
        last = attempt(used_damping, bound)
        outcome, accepted = last.outcome, last.outcome.accepted

        new_state = HessianFreeState(
            step=optax.safe_increment(state.step),
            rejected=state.rejected + jnp.where(accepted, 0, 1),
            next_damping=damping.update(used_damping, outcome),
            solution=() if warm_start is None else _where_accepted(accepted & ~stationary, last.solution),
            trust=region.update(trust, outcome),
            metric=measuring,
            preconditioner=preconditioning,
            info=last.info._replace(products=last.info.products + spent, evaluations=last.info.evaluations + tested),
        )
        return outcome.step, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _step(params: Any, alpha: jax.Array, direction: Any) -> Any:
    return jax.tree.map(lambda p, d: (alpha * d).astype(p.dtype), params, direction)


def _where_accepted(accepted: jax.Array, tree: Any) -> Any:
    return optax.tree.where(accepted, tree, optax.tree.zeros_like(tree))


def _scalar_dtype(params: Any) -> Any:
    """The dtype of losses, λ and ρ: the widest among the parameters, at least float32."""
    bits = max(jnp.finfo(jnp.result_type(leaf)).bits for leaf in jax.tree.leaves(params))
    return jnp.float64 if bits == 64 else jnp.float32


def _checked_value_fn(params: Any, value_fn: ValueFn | None) -> ValueFn:
    usage = "tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)"
    if params is None:
        raise ValueError(f"hessian_free: `params` is missing; call {usage}.")
    if value_fn is None:
        raise ValueError(
            "hessian_free: `value_fn` is missing. A second-order step evaluates the objective and its curvature: "
            f"make value_fn = hfopt.Objective(predict, loss).bind(batch) and call {usage}."
        )
    check_value_fn(value_fn)
    check_params(params)
    return value_fn
