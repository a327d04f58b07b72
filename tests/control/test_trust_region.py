"""Trust regions: the bound holds, and trust is earned and lost as the rule says."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.control.outcome import Outcome
from tests.cases import CASES, dense_gauss_newton

RULE = hfopt.earned_trust()
LANDED = np.array([5.0, -2.0])  # where the last step led, a step of ones


def _state(level=1.0, agreement=0.0, predicted=0.1):
    """After many steps: the weights of the running average have reached their limit of one."""
    state = RULE.init(jnp.zeros(2), jnp.float64)
    return state._replace(
        last_step=jnp.ones(2),
        squared_norm=jnp.float64(2.0),
        landing=jnp.float64(LANDED.sum()),
        level=jnp.float64(level),
        agreement=jnp.float64(agreement),
        evidence=jnp.float64(1.0),
        predicted=jnp.float64(predicted),
    )


def _outcome(ratio, accepted=True, predicted=-0.3):
    numbers = (jnp.float64(x) for x in (2.0, predicted, ratio, ratio))
    return Outcome(jnp.ones(2), *numbers, jnp.bool_(accepted), jnp.bool_(True))


@pytest.mark.parametrize(
    ("level", "agreement", "seen", "expected"),
    [
        (1.0, 0.7, 1.0, 1.5),  # q = 0.76: earned
        (1.0, 0.7, 0.5, 1.0),  # q = 0.66: between the thresholds
        (4.0, 0.6, 0.0, 2.0),  # q = 0.48: what was earned is taken back …
        (1.5, 0.6, 0.0, 1.0),  # … down to 1 …
        (0.3, 0.6, 0.0, 0.3),  # … and no further
        (4.0, 0.8, 100.0, 6.0),  # one lucky batch counts as agreement 1
        (4.0, 0.8, -100.0, 2.0),  # q = 0.44: and one unlucky one as −1
        (4.0, 0.8, np.nan, 4.0),  # a batch that is not finite says nothing
    ],
)
def test_the_next_batch_judges_the_last_step(level, agreement, seen, expected):
    before = lambda step: 1.0 + seen * 0.1 + 0 * step.sum()  # noqa: E731
    state, evaluations = RULE.observe(_state(level, agreement), LANDED, jnp.float64(1.0), before)
    assert state.level == pytest.approx(expected)
    assert evaluations == 1
    assert np.isfinite(state.agreement)


def test_the_first_judgement_counts_in_full():
    state = _state()._replace(evidence=jnp.float64(0.0))
    after, _ = RULE.observe(state, LANDED, jnp.float64(1.0), lambda step: jnp.float64(1.09))
    assert after.level == pytest.approx(1.5)


def test_nothing_is_judged_before_the_first_step_or_after_a_rejected_one():
    rejected = RULE.update(_state(2.0, 0.9), LANDED, _outcome(-np.inf, False, 0.0))
    for state in (_state(2.0, 0.9, predicted=0.0), rejected):
        after, evaluations = RULE.observe(state, LANDED, jnp.float64(1.0), lambda step: jnp.float64(9.0))
        assert (after.level, after.agreement, evaluations) == (state.level, state.agreement, 0)


@pytest.mark.parametrize(("taken", "judged"), [(0.0, 0), (0.5, 0), (0.9, 1), (1.0, 1), (2.0, 0)])
def test_a_step_that_was_not_taken_is_not_judged(taken, judged):
    params = LANDED - (1 - taken) * jnp.ones(2)
    state, evaluations = RULE.observe(_state(1.0, 0.7), params, jnp.float64(1.0), lambda step: jnp.float64(1.1))
    assert evaluations == judged
    assert state.level == pytest.approx(1.5 if judged else 1.0)


@pytest.mark.parametrize(
    ("level", "ratio", "accepted", "expected"),
    [
        (4.0, 1.0, True, 4.0),  # trust above 1 is earned on new data only
        (4.0, 0.55, True, 4.0),
        (4.0, 0.45, True, 2.0),
        (4.0, np.nan, True, 2.0),
        (0.5, 0.95, True, 0.75),
        (0.8, 0.95, True, 1.0),
        (0.5, 0.8, True, 0.5),
        (4.0, -np.inf, False, 0.5),
        (1e-3, 0.4, True, 1e-3),  # no further by steps that were taken
        (1e-3, -np.inf, False, 1.25e-4),
        (1e-4, 0.4, True, 1e-4),
        (1e-8, -np.inf, False, 1e-8),
    ],
)
def test_the_same_batch_takes_trust_away(level, ratio, accepted, expected):
    state = RULE.update(_state(level), LANDED - 1, _outcome(ratio, accepted))
    assert state.level == pytest.approx(expected)
    np.testing.assert_array_equal(state.last_step, 1.0)
    assert state.predicted == pytest.approx(0.3)
    assert state.landing == pytest.approx(LANDED.sum())


def test_the_level_sets_bound_effort_and_damping():
    state = _state(level=6.0)
    assert RULE.bound(state) == pytest.approx(0.06)
    assert RULE.cg_steps(state) == 16  # ⌈10 · 6^¼⌉
    assert RULE.cg_steps(_state(level=0.1)) == 10
    assert hfopt.trust_damping(0.01).current(jnp.float64(9.0), state.level, 0) == pytest.approx(0.01 / 6)


@pytest.mark.parametrize("radius", [1e-4, 1e-2, 1e3])
def test_the_step_stays_within_the_bound(radius):
    case, damping = CASES["mlp-softmax-integer"](), 0.1
    tx = hfopt.hessian_free(
        solver=hfopt.cg(200, hfopt.relative_residual(1e-12)),
        damping=hfopt.constant_damping(damping),
        trust_region=hfopt.scheduled_trust(radius),
    )
    value_fn = case.objective.bind(case.batch)
    grad = jax.grad(value_fn)(case.params)
    step, state = jax.jit(partial(tx.update, value_fn=value_fn))(grad, tx.init(case.params), case.params)
    step, g = ravel_pytree(step)[0], ravel_pytree(grad)[0]
    damped = dense_gauss_newton(case) + damping * jnp.eye(g.size)
    newton = -jnp.linalg.solve(damped, g)
    assert state.info.accepted
    assert 0.5 * step @ damped @ step == pytest.approx(float(min(radius, 0.5 * newton @ damped @ newton)), rel=1e-6)
    np.testing.assert_allclose(step, state.info.step_size * newton, rtol=1e-6)


def test_a_schedule_is_asked_with_the_step_count():
    rule = hfopt.scheduled_trust(optax.linear_schedule(1.0, 0.0, 4))
    state = rule.init(None, None)
    bounds = []
    for _ in range(3):
        bounds.append(float(rule.bound(state)))
        state = rule.update(state, None, None)
    assert bounds == [1.0, 0.75, 0.5]


def test_small_batches_neither_bounce_nor_stop_where_the_classical_rule_bounces():
    """Two-class data with label noise: the mini-batch optimum is not the optimum of all data."""
    x = jax.random.normal(jax.random.key(0), (512, 10))
    clean = x @ jnp.linspace(-1.0, 1.0, 10) + jnp.square(x[:, 0]) > 0.5
    labels = jnp.where(jax.random.uniform(jax.random.key(1), (512,)) < 0.1, ~clean, clean).astype(jnp.int32)
    params = {"w": 0.3 * jax.random.normal(jax.random.key(2), (10, 32)), "v": jnp.zeros((32, 2))}
    predict = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]  # noqa: E731
    objective = hfopt.Objective(predict, optax.softmax_cross_entropy_with_integer_labels)

    def final_loss(tx):
        def step(carry, batch):
            params, state = carry
            value_fn = objective.bind(batch)
            value, grad = jax.value_and_grad(value_fn)(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
            return (optax.apply_updates(params, updates), state), None

        batches = jax.tree.map(lambda a: jnp.tile(a.reshape(16, 32, *a.shape[1:]), (4, *[1] * a.ndim)), (x, labels))
        (after, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, batches))((params, tx.init(params)))
        return float(objective.bind((x, labels))(after))

    classical = hfopt.hessian_free(
        solver=hfopt.cg(50), damping=hfopt.levenberg_marquardt(), trust_region=None, line_search=hfopt.armijo()
    )
    assert final_loss(hfopt.hessian_free()) < 0.45
    assert final_loss(classical) > 0.6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hfopt.scheduled_trust(0.0), "`radius` must be positive, got 0.0"),
        (lambda: hfopt.earned_trust(radius=-1.0), "`radius` must be positive, got -1.0"),
        (lambda: hfopt.earned_trust(initial_cg_steps=0), "`initial_cg_steps` must be at least 1, got 0"),
        (lambda: hfopt.earned_trust(memory=1.0), r"`memory` must lie in \[0, 1\), got 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
