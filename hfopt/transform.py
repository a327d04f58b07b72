"""The Hessian-free step as an Optax gradient transformation.

A step at θ, with the objective f, its gradient g and the curvature G on the batch:

1. where trust is learned, judge the last step on this batch, which it had not seen;
2. linearise the model once, and solve (G + λI) d = −g by conjugate gradients, from `warm_start` · the last solution;
3. where the solver kept iterates, walk back over them while f falls;
4. shorten d until ½ dᵀ(G + λI)d ≤ κ, and search along it for a step s that lowers f enough; if there is none, or
   anything is not finite, reject: s = 0;
5. let λ and the trust region follow ρ = (f(θ + s) − f(θ)) / (gᵀs + ½ sᵀGs).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hfopt.control.backtracking import last_iterate, walk_back
from hfopt.control.damping import ByTrust, Damping
from hfopt.control.line_search import FullStep, LineSearch
from hfopt.control.trust_region import Earned, Outcome, TrustRegion, Unbounded
from hfopt.convolutions import canonical
from hfopt.curvature.average import check_params, check_value_fn
from hfopt.curvature.gauss_newton import gauss_newton
from hfopt.curvature.operator import Operator
from hfopt.objective import ValueFn
from hfopt.solve.cg import ConjugateGradient, widened
from hfopt.solve.preconditioners import Preconditioner

Curvature = Callable[[ValueFn, Any], Operator]


class StepInfo(NamedTuple):
    """What the last step did; scalars. Before the first step the losses are NaN."""

    loss: jax.Array  # f(θ) before the step
    new_loss: jax.Array  # f(θ + s) after it, on the same batch; equal to `loss` when the step was rejected
    reduction_ratio: jax.Array  # ρ = actual / predicted decrease; −∞ if rejected, 1 if both are below rounding
    damping: jax.Array  # λ the step was solved with
    cg_steps: jax.Array  # int32: CG iterations
    cg_stop: jax.Array  # int32: why CG stopped, a `hfopt.Stop`
    step_size: jax.Array  # s = step_size · d, with d the solution of CG; 0 when the step was rejected
    products: jax.Array  # int32: curvature-vector products spent, those that set up a preconditioner included
    evaluations: jax.Array  # int32: losses computed at trial points, by backtracking and line search
    accepted: jax.Array  # bool: whether the step was taken


class HessianFreeState(NamedTuple):
    """State of `hessian_free`; a pytree of arrays."""

    step: jax.Array  # int32: steps taken, rejected ones included
    rejected: jax.Array  # int32: steps rejected so far
    next_damping: jax.Array  # λ carried to the next step; damping tied to trust makes its own from the level of trust
    solution: Any  # the last CG solution, shaped like the parameters; zero after a rejection. () without warm start
    trust: Any  # the state of the trust region; () without one
    preconditioner: Any  # the state of the preconditioner; () without one
    info: StepInfo


def hessian_free(
    *,
    curvature: Curvature = gauss_newton,
    solver: ConjugateGradient = ConjugateGradient(max_steps=250),  # noqa: B008 - immutable
    preconditioner: Preconditioner | None = None,
    damping: Damping = ByTrust(),  # noqa: B008
    trust_region: TrustRegion | None = Earned(),  # noqa: B008
    line_search: LineSearch = FullStep(),  # noqa: B008
    warm_start: float | None = 0.8,
) -> optax.GradientTransformationExtraArgs:
    """Hessian-free Newton: truncated CG on the damped Gauss-Newton system, with step control.

    The update is complete: it has its sign and its length, and no learning rate belongs behind it.

    Args:
      curvature: ``curvature(value_fn, params) -> Operator``: `hfopt.gauss_newton`, `hfopt.hessian`,
        `hfopt.empirical_fisher`, or ``functools.partial(hfopt.fisher, samples="exact")``.
      solver: of the linear system; `hfopt.cg`.
      preconditioner: of CG; `hfopt.squared_gradients`, `hfopt.jacobi`, `hfopt.nystrom`, or ``None``.
      damping: the rule for λ; `hfopt.trust_damping`, `hfopt.levenberg_marquardt`, `hfopt.constant_damping`.
      trust_region: the rule for κ; `hfopt.earned_trust`, `hfopt.trust_region`, or ``None``: no bound.
      line_search: the rule for the length; `hfopt.full_step`, `hfopt.armijo`, `hfopt.fixed_step`.
      warm_start: CG starts from this multiple of the last solution; ``None``: from zero, which also saves one product
        a step and the memory of the solution.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. ``update(grad, state, params, value=…, grad=…, value_fn=…)`` takes
      what the update of ``optax.lbfgs`` takes; ``value_fn`` comes from `hfopt.Objective.bind`. ``state.info`` is a
      `StepInfo`. ``value`` must be that of ``value_fn`` on the same batch: acceptance compares the two. Without
      ``value`` it is computed; without ``grad``, ``grad`` is the gradient that was passed first. Call it under
      ``jax.jit``: eagerly it traces its loops anew at every step. ``optax.inject_hyperparams`` takes callables for
      schedules, so it needs ``static_args=("curvature",)``.

    Raises:
      ValueError: at an update, ``params`` or ``value_fn`` is missing; `warm_start` is outside [0, 1].
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

    _check_choices(solver, damping, line_search, trust_region, warm_start)
    region = Unbounded() if trust_region is None else trust_region

    def init(params: Any) -> HessianFreeState:
        check_params(params)
        dtype = _scalar_dtype(params)
        # Separate arrays: a donated state must not hold one buffer twice.
        zero = lambda: jnp.zeros((), dtype)  # noqa: E731
        none = lambda: jnp.zeros((), jnp.int32)  # noqa: E731
        nan = lambda: jnp.full((), jnp.nan, dtype)  # noqa: E731
        info = StepInfo(nan(), nan(), nan(), nan(), none(), none(), zero(), none(), none(), jnp.zeros((), bool))
        solution = () if warm_start is None else widened(optax.tree.zeros_like(params))
        return HessianFreeState(
            step=none(),
            rejected=none(),
            next_damping=jnp.full((), damping.initial, dtype),
            solution=solution,
            trust=region.init(params, dtype),
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
        dtype = state.next_damping.dtype
        loss = jnp.asarray(value_fn(params) if value is None else value, dtype)
        updates = widened(updates)
        grad = updates if grad is None else widened(grad)

        evaluate = canonical(value_fn)  # it runs inside loops
        loss_after = lambda step: evaluate(optax.apply_updates(params, step)).astype(dtype)  # noqa: E731

        trust = region.observe(state.trust, loss, lambda step: loss_after(optax.tree.scale(-1, step)))
        used_damping = damping.current(state.next_damping, region.level(trust))
        operator = curvature(value_fn, params)
        preconditioning, inverse, setup_products = (), None, 0
        if preconditioner is not None:
            preconditioning = preconditioner.update(state.preconditioner, operator, value_fn, params)
            inverse = preconditioner.inverse(preconditioning, used_damping)
            setup_products = preconditioning.setup_products
        result = solver.solve(
            operator,
            optax.tree.scale(-1, updates),
            None if warm_start is None else optax.tree.scale(warm_start, state.solution),
            damping=used_damping,
            preconditioner=inverse,
            step_limit=region.cg_steps(trust),
        )
        if result.kept is None:
            choice = last_iterate(result)
        else:
            choice = walk_back(result, result.kept, lambda d: loss_after(_step(params, jnp.ones((), dtype), d)))
        direction = choice.direction

        # CG ends with φ(d) = gᵀd + ½ dᵀ(G + λI)d, so both quadratic forms follow without another product.
        model_slope = optax.tree.vdot(updates, direction).astype(dtype)
        damped_form = 2 * (choice.model_value - model_slope)
        form = damped_form - used_damping * optax.tree.vdot(direction, direction)
        radius = jnp.sqrt(region.bound(trust) / jnp.maximum(0.5 * jnp.abs(damped_form), jnp.finfo(dtype).tiny))
        length = jnp.minimum(radius, 1).astype(dtype)

        true_slope = optax.tree.vdot(grad, direction).astype(dtype)
        slope = length * true_slope
        trial_loss = lambda alpha: loss_after(_step(params, alpha * length, direction))  # noqa: E731
        known = None if trust_region is not None else choice.loss
        search = line_search.search(trial_loss, loss, slope, known)

        # A direction that is zero though the gradient is not is a failure of CG, not a stationary point.
        moves = (slope != 0) | (optax.tree.norm(grad) == 0)
        accepted = search.accepted & moves & jnp.isfinite(loss) & jnp.isfinite(search.new_loss)
        alpha = jnp.where(accepted, search.step_size * length, 0)
        step = _where_accepted(accepted, _step(params, alpha, direction))
        # With the true gradient, also where `updates` is something else (clipped before, a natural gradient).
        model = lambda a: a * true_slope + 0.5 * a**2 * form  # noqa: E731
        predicted, actual = jnp.where(accepted, model(alpha), 0), search.new_loss - loss
        # Below the resolution of the loss, acceptance and ρ are noise, and nothing is learned from them.
        rounding = 10 * jnp.finfo(dtype).eps * jnp.abs(loss)
        noise = moves & (jnp.abs(model(length)) <= rounding) & (jnp.abs(actual) <= rounding)
        ratio = jnp.where(accepted, jnp.where(noise, 1, actual / predicted), -jnp.inf).astype(dtype)

        info = StepInfo(
            loss=loss,
            new_loss=jnp.where(accepted, search.new_loss, loss),
            reduction_ratio=ratio,
            damping=used_damping,
            cg_steps=result.steps,
            cg_stop=result.stop,
            step_size=alpha,
            products=result.products + setup_products,
            evaluations=search.evaluations + choice.evaluations,
            accepted=accepted,
        )
        new_state = HessianFreeState(
            step=optax.safe_increment(state.step),
            rejected=state.rejected + jnp.where(accepted, 0, 1),
            next_damping=jnp.where(noise, used_damping, damping.update(used_damping, ratio, accepted)),
            solution=() if warm_start is None else _where_accepted(accepted, result.solution),
            trust=optax.tree.where(noise, trust, region.update(trust, Outcome(step, predicted, ratio, accepted))),
            preconditioner=preconditioning,
            info=info,
        )
        return step, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _step(params: Any, alpha: jax.Array, direction: Any) -> Any:
    return jax.tree.map(lambda p, d: (alpha * d).astype(p.dtype), params, direction)


def _where_accepted(accepted: jax.Array, tree: Any) -> Any:
    return optax.tree.where(accepted, tree, optax.tree.zeros_like(tree))


def _check_choices(solver: Any, damping: Any, line_search: Any, trust_region: Any, warm_start: Any) -> None:
    choices = {
        "solver": (solver, "solve", "hfopt.cg()"),
        "damping": (damping, "update", "hfopt.levenberg_marquardt()"),
        "line_search": (line_search, "search", "hfopt.armijo()"),
        "trust_region": (Unbounded() if trust_region is None else trust_region, "bound", "hfopt.earned_trust()"),
    }
    for name, (choice, method, example) in choices.items():
        if isinstance(choice, type) or not hasattr(choice, method):
            raise TypeError(f"hessian_free: `{name}` must be an object such as {example}, got {choice!r}.")
    if isinstance(warm_start, int | float) and not 0 <= warm_start <= 1:
        raise ValueError(f"hessian_free: `warm_start` must lie in [0, 1] or be None, got {warm_start}.")


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
