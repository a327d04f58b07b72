"""The Hessian-free step as an Optax gradient transformation, and the direction of its linear system alone.

A step of `hessian_free` at θ, with the objective f, its gradient g and the curvature G on the batch:

1. where trust is learned, judge the last step on this batch, which it had not seen;
2. linearise the model once, and solve (G + λM) d = −m by conjugate gradients, from `warm_start` · the last solution;
   M is the identity or another metric, m the average of the gradients where there is momentum, else g. Where no
   iteration is asked for, solve λM d = −m, which takes no linearisation and no product;
3. where the solver kept iterates, walk back over them while f falls; where it met negative curvature, try that;
4. shorten d until ½ dᵀ(G + λM)d ≤ κ, and search along it for a step s that lowers f enough; if there is none, or
   anything is not finite, reject: s = 0;
5. let λ and the trust region follow ρ = (f(θ + s) − f(θ)) / (gᵀs + ½ sᵀGs).

f is taken on the evaluation batch where `Objective.bind` was given one, g and G on the batches of their own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hfopt.attempt import Attempt, Found, Point, attempt, newton, scaled
from hfopt.choices import Curvature, check_choices, check_damping, check_start, check_update, checked_call
from hfopt.control.calibration import Calibrated
from hfopt.control.damping import ByTrust, Damping
from hfopt.control.line_search import FullStep, LineSearch
from hfopt.control.trust_region import Earned, TrustRegion, Unbounded
from hfopt.convolutions import canonical
from hfopt.curvature.gauss_newton import gauss_newton
from hfopt.objective import ValueFn
from hfopt.solve.cg import ConjugateGradient
from hfopt.solve.metrics import Metric, finite
from hfopt.solve.preconditioners import Jacobi, Preconditioner
from hfopt.solve.stopping import Stop
from hfopt.state import Carried, DirectionInfo, GaussNewtonState, HessianFreeState, StepInfo
from hfopt.system import Assembly
from hfopt.vectors import norm, widened, widest_dtype


def hessian_free(
    *,
    curvature: Curvature = gauss_newton,
    solver: ConjugateGradient = ConjugateGradient(max_steps=1000),  # noqa: B008 - immutable
    preconditioner: Preconditioner | None = Jacobi(decay=0.6, every=4),  # noqa: B008
    damping: Damping = ByTrust(),  # noqa: B008
    metric: Metric | None = None,
    trust_region: TrustRegion | None = Earned(),  # noqa: B008
    line_search: LineSearch = FullStep(),  # noqa: B008
    momentum: float | Callable[[jax.Array], Any] | None = None,
    warm_start: float | Callable[[jax.Array], Any] | None = 0.8,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Hessian-free Newton: truncated CG on the damped Gauss-Newton system, with step control.

    The update is complete: it has its sign and its length, and no learning rate belongs behind it.

    Args:
      curvature: ``curvature(value_fn, params) -> Operator``: `hfopt.gauss_newton`, `hfopt.hessian`, `hfopt.fisher`,
        `hfopt.empirical_fisher`. With the first, a loss that is a straight line in an output, such as an absolute
        error, is smoothed there: see `hfopt.curvature.straight`. One that takes a ``key`` that is ``None`` by default
        is given a new one every step. With `hfopt.hessian`, directions of negative curvature are followed where that
        lowers f.
      solver: of the linear system; `hfopt.cg`. With ``hfopt.cg(max_steps=0)`` a step is −(λM)⁻¹m.
      preconditioner: of CG; `hfopt.jacobi`, `hfopt.squared_gradients`, `hfopt.nystrom`, or ``None``: that of the metric
        where it has one, else none. Give it where you give a metric: the default knows of G alone.
      damping: the rule for λ; `hfopt.trust_damping`, `hfopt.levenberg_marquardt`, `hfopt.constant_damping`,
        `hfopt.scheduled_damping`, or `hfopt.calibrated_damping`.
      metric: M, what damping measures a step in; `hfopt.kronecker`, `hfopt.second_moment`, `hfopt.structural`, or
        ``None``: the identity.
      trust_region: the rule for κ; `hfopt.earned_trust`, `hfopt.scheduled_trust`, or ``None``: no bound.
      line_search: the rule for the length; `hfopt.full_step`, `hfopt.armijo`, `hfopt.fixed_step`.
      momentum: β in m ← β m + (1 − β) g, bias-corrected; a number in [0, 1), or a schedule of it over steps; ``None``:
        m = g, and nothing is kept.
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
        "hessian_free",
        curvature,
        warm_start,
        momentum,
        solver=solver,
        preconditioner=preconditioner,
        damping=damping,
        metric=metric,
        trust_region=trust_region,
        line_search=line_search,
    )
    region = Unbounded() if trust_region is None else trust_region
    assembly = Assembly(curvature, solver, preconditioner, metric, momentum, warm_start, seed)

    def init(params: Any) -> HessianFreeState:
        check_start(params)
        dtype = widest_dtype(params)
        # Separate arrays: a donated state must not hold one buffer twice.
        zero = lambda: jnp.zeros((), dtype)  # noqa: E731
        none = lambda: jnp.zeros((), jnp.int32)  # noqa: E731
        info = StepInfo(zero(), zero(), zero(), zero(), none(), none(), zero(), none(), none(), jnp.zeros((), bool))
        return HessianFreeState(
            step=none(),
            rejected=none(),
            next_damping=jnp.asarray(damping.initial, dtype) + zero(),  # an array of its own
            trust=region.init(params, dtype),
            info=info,
            **assembly.init(params)._asdict(),
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
        value_fn = checked_call("hessian_free", params, value_fn)
        check_update("hessian_free", HessianFreeState, state, params, value, updates=updates, grad=grad)
        judge, dtype = value_fn.judge, state.next_damping.dtype
        given = value is not None and judge is value_fn
        loss = jnp.asarray(value if given else judge(params), dtype)
        updates = widened(updates)
        grad = updates if grad is None else widened(grad)

        # What is done once a step, whatever λ will be.
        descent = optax.tree.scale(-1, grad)
        at = Point(params, loss, descent, state.step, canonical(judge))
        geometry = assembly.geometry(state, value_fn, params, updates)
        before = lambda step: at.loss_after(optax.tree.scale(-1, step))  # noqa: E731
        trust, tested = region.observe(state.trust, params, loss, before)
        tested += jnp.int32(0 if given else 1)
        bound = None if trust_region is None else jnp.asarray(region.bound(trust), dtype)
        limit = region.cg_steps(trust)
        used_damping = damping.current(state.next_damping, region.level(trust), state.step)

        def by_newton(damping: jax.Array) -> Found:
            return newton(at, assembly.assemble(state, geometry, value_fn, params), damping, bound, limit)

        def by_metric(damping: jax.Array) -> Found:
            return scaled(at, geometry, Carried(state.solution, state.metric, state.preconditioner), damping)

        calibrating = jnp.int32(0)
        if isinstance(damping, Calibrated):
            system = assembly.assemble(state, geometry, value_fn, params)  # one for all trials

            def trial(damping: jax.Array) -> Attempt:
                return attempt(at, newton(at, system, damping, None, limit), damping, None, line_search)

            sound = jnp.isfinite(loss) & jnp.isfinite(norm(updates)) & ~at.stationary
            used_damping, calibrating, evaluations = jax.lax.cond(
                sound & (state.step == state.rejected),
                partial(damping.calibrate, trial=trial),
                lambda d: (d, jnp.int32(0), jnp.int32(0)),
                used_damping,
            )
            tested += evaluations
            found = newton(at, system, used_damping, bound, limit)
        elif not assembly.solves:
            found = by_metric(used_damping)
        elif getattr(region, "may_skip", False):
            found = jax.lax.cond(jnp.asarray(limit) > 0, by_newton, by_metric, used_damping)
        else:
            found = by_newton(used_damping)
        outcome, info = attempt(at, found, used_damping, bound, line_search)

        carried = found.carried
        keep = outcome.accepted & ~at.stationary
        carried = carried._replace(solution=jax.tree.map(lambda x: jnp.where(keep, x, 0), carried.solution))
        new_state = HessianFreeState(
            step=optax.safe_increment(state.step),
            rejected=state.rejected + jnp.where(outcome.accepted, 0, 1),
            next_damping=damping.update(used_damping, outcome),
            trust=region.update(trust, params, outcome),
            **carried._asdict(),
            info=info._replace(products=info.products + calibrating, evaluations=info.evaluations + tested),
        )
        return outcome.step, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_gauss_newton(
    *,
    curvature: Curvature = gauss_newton,
    solver: ConjugateGradient = ConjugateGradient(max_steps=250),  # noqa: B008 - immutable
    preconditioner: Preconditioner | None = None,
    damping: float | Callable[[jax.Array], Any] = 0.01,
    metric: Metric | None = None,
    momentum: float | Callable[[jax.Array], Any] | None = None,
    warm_start: float | Callable[[jax.Array], Any] | None = 0.8,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """The direction (G + λM)⁻¹ m by truncated CG, with the sign of g: to chain and rescale as you like.

    Where `hessian_free` makes a complete step, this is one link of a chain, as ``optax.scale_by_adam`` is. What stands
    behind it gives it its sign and its length: ``optax.scale_by_learning_rate``, a clipping, a line search of Optax's.
    m is the average of what stands before it, or just that without momentum. Nothing here looks at the objective's
    values, so λ does not adapt.

    Args:
      curvature, solver, preconditioner, metric, momentum, warm_start, seed: as in `hessian_free`; the curvature must be
        positive semi-definite. With ``hfopt.cg(max_steps=0)`` the direction is (λM)⁻¹ m.
      damping: λ > 0, or a schedule of it over steps.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, whose update needs ``params`` and ``value_fn=…`` from
      `hfopt.Objective.bind`. ``state.info`` is a `DirectionInfo`. Where a gradient or a product is not finite,
      ``info.cg_stop`` is ``Stop.NONFINITE``, the direction is the last iterate that CG came to, zero if it came to
      none, and the next solve starts from zero.

    Raises:
      ValueError: ``damping`` is not positive; ``warm_start`` is outside [0, 1]; at an update, ``params`` or
        ``value_fn`` is missing, or the curvature is indefinite.
      TypeError: a choice is not an object of its kind; at an update, ``value_fn`` was not made by `Objective.bind`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, hfopt
      >>> objective = hfopt.Objective(lambda params, x: x @ params["w"], optax.losses.squared_error)
      >>> value_fn = objective.bind((jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([1.0, 2.0])))
      >>> tx = optax.chain(hfopt.scale_by_gauss_newton(damping=1e-6), optax.scale_by_learning_rate(1.0))
      >>> params = {"w": jnp.zeros(2)}
      >>> updates, state = tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)
      >>> bool(jnp.allclose(optax.apply_updates(params, updates)["w"], 1.0, atol=1e-4))
      True
    """
    where = "scale_by_gauss_newton"
    check_choices(where, curvature, warm_start, momentum, solver=solver, preconditioner=preconditioner, metric=metric)
    check_damping(where, damping)
    assembly = Assembly(curvature, solver, preconditioner, metric, momentum, warm_start, seed)

    def init(params: Any) -> GaussNewtonState:
        check_start(params)
        none = lambda: jnp.zeros((), jnp.int32)  # noqa: E731 - separate arrays: the state may be donated
        info = DirectionInfo(jnp.zeros((), widest_dtype(params)), none(), none(), none())
        return GaussNewtonState(step=none(), info=info, **assembly.init(params)._asdict())

    def update(
        updates: Any, state: GaussNewtonState, params: Any = None, *, value_fn: Any = None, **extra_args: Any
    ) -> tuple[Any, GaussNewtonState]:
        del extra_args
        value_fn = checked_call(where, params, value_fn)
        check_update(where, GaussNewtonState, state, params, updates=updates)
        dtype = state.info.damping.dtype
        geometry = assembly.geometry(state, value_fn, params, widened(updates))
        used_damping = jnp.asarray(damping(state.step) if callable(damping) else damping, dtype)
        if not assembly.solves:
            direction = geometry.scaled(used_damping).solution
            sound = finite(direction)
            direction = jax.tree.map(lambda d: jnp.where(sound, d, 0), direction)
            stop = jnp.where(sound, Stop.NONE, Stop.NONFINITE).astype(jnp.int32)
            carried = Carried(state.solution, geometry.state, state.preconditioner)
            info = DirectionInfo(used_damping, jnp.int32(0), stop, jnp.int32(0))
        else:
            system = assembly.assemble(state, geometry, value_fn, params)
            if system.operator.indefinite:
                raise ValueError(
                    f"{where}: the curvature must be positive semi-definite, or its inverse may point uphill; take "
                    "hfopt.gauss_newton or hfopt.fisher, or hfopt.hessian_free, which copes with negative curvature."
                )
            result, _ = system.solve(used_damping)  # of b = −m
            sound = result.stop != Stop.NONFINITE
            zeros = optax.tree.zeros_like(result.solution)
            direction = optax.tree.scale(-1, optax.tree.where(sound | (result.steps > 0), result.solution, zeros))
            carried = system.carried
            if system.start is not None:
                carried = carried._replace(solution=optax.tree.where(sound, result.solution, zeros))
            info = DirectionInfo(used_damping, result.steps, result.stop, result.products + system.products)
        new_state = GaussNewtonState(step=optax.safe_increment(state.step), info=info, **carried._asdict())
        return optax.tree.cast_like(direction, params), new_state

    return optax.GradientTransformationExtraArgs(init, update)
