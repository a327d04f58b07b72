"""Choices of a step that reach beyond one object: batches of their own, keys, schedules, presets, checkpoints."""

from functools import partial, wraps
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from tests.cases import CASES, Case, dense_gauss_newton, dense_value
from tests.loops import CLASSICAL, STYLES, run, train_step


def _rows(case, rows):
    return jax.tree.map(lambda x: x[rows], case.batch)


@pytest.mark.slow
@pytest.mark.slow
def test_a_step_is_judged_on_the_evaluation_batch():
    case = CASES["mlp-softmax-integer"]()
    part = _rows(case, slice(0, 3))
    value_fn = case.objective.bind(case.batch, evaluation_batch=part)
    value, grad = jax.value_and_grad(value_fn)(case.params)
    tx = CLASSICAL()
    updates, state = tx.update(grad, tx.init(case.params), case.params, value=value, grad=grad, value_fn=value_fn)
    judged = partial(dense_value, case._replace(batch=part))
    after = optax.apply_updates(case.params, updates)
    assert state.info.loss == pytest.approx(float(judged(case.params)), rel=1e-12)
    assert state.info.new_loss == pytest.approx(float(judged(after)), rel=1e-12)
    assert value == pytest.approx(float(dense_value(case)), rel=1e-12)


def test_a_step_that_the_evaluation_batch_dislikes_is_rejected():
    """Targets of opposite sign: what lowers the loss on the batch raises it on the evaluation batch."""
    x, y = jnp.ones((4, 1)), jnp.ones(4)
    case = Case(lambda p, x: x @ p["w"], optax.squared_error, {"w": jnp.zeros(1)}, (x, y))
    value_fn = case.objective.bind((x, y), evaluation_batch=(x, -y))
    for tx in (hfopt.hessian_free(), CLASSICAL()):
        updates, state = tx.update(
            jax.grad(value_fn)(case.params), tx.init(case.params), case.params, value_fn=value_fn
        )
        assert not state.info.accepted
        np.testing.assert_array_equal(updates["w"], 0)


def test_a_bad_evaluation_batch_is_named():
    case = CASES["mlp-softmax-integer"]()
    with pytest.raises(ValueError, match="the parts of `evaluation_batch` disagree"):
        case.objective.bind(case.batch, evaluation_batch=(case.batch[0][:2], case.batch[1][:3]))


def test_curvature_that_takes_a_key_is_given_a_new_one_every_step():
    keys = []

    def recorded(value_fn, params, key=None):
        jax.debug.callback(lambda data: keys.append(tuple(np.ravel(data).tolist())), jax.random.key_data(key))
        return hfopt.fisher(value_fn, params, key)

    case = CASES["mlp-softmax-integer"]()
    _, _, history = run(hfopt.hessian_free(curvature=recorded, seed=5), case, 4)
    jax.effects_barrier()
    assert len(set(keys)) == 4
    assert history[-1][0] < history[0][0]
    # A key of one's own is kept.
    run(hfopt.hessian_free(curvature=partial(recorded, key=jax.random.key(1))), case, 2)
    jax.effects_barrier()
    assert len(set(keys)) == 5


def test_a_wrapped_curvature_is_asked_for_its_own_parameters():
    @wraps(hfopt.fisher)
    def exact(value_fn, params):
        return hfopt.fisher(value_fn, params, samples="exact")

    case = CASES["mlp-softmax-integer"]()
    _, state, _ = run(hfopt.hessian_free(curvature=exact), case, 1)
    assert state.info.accepted


@pytest.mark.parametrize(
    "tx",
    [
        hfopt.hessian_free(damping=hfopt.scheduled_damping(optax.exponential_decay(0.5, 1, 0.9))),
        hfopt.hessian_free(damping=hfopt.calibrated_damping(), metric=hfopt.second_moment()),
        hfopt.presets.stochastic(5),
        hfopt.presets.kiros2013(5),
    ],
    ids=["scheduled", "calibrated", "stochastic", "kiros"],
)
def test_init_is_abstract_and_steps_keep_the_types_of_the_state(tx):
    case = CASES["mlp-softmax-integer"]()
    abstract = jax.eval_shape(tx.init, case.params)
    after = jax.eval_shape(partial(train_step, tx, case.objective), case.params, abstract, case.batch)[1]
    assert abstract == after


@pytest.mark.slow
def test_the_warm_start_may_follow_a_schedule():
    case = CASES["mlp-softmax-integer"]()
    constant = run(hfopt.hessian_free(warm_start=0.5), case, 4)[0]
    scheduled = run(hfopt.hessian_free(warm_start=lambda step: jnp.where(step < 4, 0.5, 0.9)), case, 4)[0]
    later = run(hfopt.hessian_free(warm_start=lambda step: jnp.where(step < 2, 0.5, 0.9)), case, 4)[0]
    jax.tree.map(np.testing.assert_array_equal, constant, scheduled)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(constant), jax.tree.leaves(later), strict=True))


def test_the_constants_of_kiros():
    tx = hfopt.presets.kiros2013(steps_per_epoch=2)
    _, _, history = run(tx, CASES["mlp-softmax-integer"](), 6)
    infos = [info for _, info in history]
    assert infos[0].damping == 1.0
    assert max(int(info.cg_steps) for info in infos) <= 5
    assert all(info.step_size == 1.0 for info in infos)
    factors = [float(b.damping / a.damping) for a, b in pairwise(infos)]
    expected = [0.99 if a.reduction_ratio > 0.75 else 1 / 0.99 if a.reduction_ratio < 0.25 else 1.0 for a in infos]
    assert factors == pytest.approx(expected[:-1])


def test_the_warm_start_of_kiros_fades_ever_less():
    case = CASES["mlp-softmax-integer"]()
    decays = [0.5, 0.5, 0.505, 0.505, 0.51005, 0.51005]  # 0.5 · 1.01ᵉ, two steps an epoch
    by_hand = hfopt.hessian_free(
        solver=hfopt.cg(5),
        preconditioner=None,
        damping=hfopt.levenberg_marquardt(1.0, increase=1 / 0.99, decrease=0.99),
        trust_region=None,
        line_search=hfopt.fixed_step(),
        warm_start=lambda step: jnp.asarray(decays)[step],
    )
    expected, _, _ = run(by_hand, case, 6)
    params, _, _ = run(hfopt.presets.kiros2013(steps_per_epoch=2), case, 6)
    # The preset keeps its schedule in float32.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), params, expected)


@pytest.mark.slow
def test_the_stochastic_preset_anneals_its_bound_and_spends_a_fixed_number_of_iterations():
    case = CASES["mlp-softmax-integer"]()
    tx, steps = hfopt.presets.stochastic(10, radius=0.02, cg_steps=2), []
    params, state = case.params, tx.init(case.params)
    step = jax.jit(partial(train_step, tx, case.objective))
    for _ in range(12):
        curvature = np.asarray(dense_gauss_newton(case._replace(params=params)))
        new, state, _ = step(params, state, case.batch)
        moved = np.asarray(ravel_pytree(new)[0] - ravel_pytree(params)[0])
        root = np.sqrt(ravel_pytree(state.metric.moment)[0])
        metric = np.diag(np.maximum(root / root.mean(), 1e-3))
        steps.append(0.5 * moved @ (curvature + 0.1 * metric) @ moved)
        params = new
        assert state.info.cg_steps == 2
    bounds = [0.02 * max(0, 1 - t / 10) ** 2 for t in range(12)]
    assert all(size <= bound * (1 + 1e-6) for size, bound in zip(steps, bounds, strict=True))
    np.testing.assert_allclose(steps[:3], bounds[:3], rtol=1e-6)  # here the bound is what ends the step
    assert min(steps[:9]) > 0
    assert steps[10:] == [0, 0]  # after the last step of the schedule nothing moves


@pytest.mark.parametrize("call", [lambda: hfopt.presets.stochastic(0), lambda: hfopt.presets.kiros2013(0)])
def test_presets_refuse_empty_schedules(call):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        call()


@STYLES
def test_scan_over_twenty_steps_equals_twenty_jitted_steps(make):
    case, tx = CASES["mlp-softmax-integer"](), make()
    expected, _, _ = run(tx, case, 20)

    @jax.jit
    def scanned(params, state):
        body = lambda carry, _: (train_step(tx, case.objective, *carry, case.batch)[:2], None)  # noqa: E731
        return jax.lax.scan(body, (params, state), length=20)[0]

    params, state = scanned(case.params, tx.init(case.params))
    assert state.step == 20
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), params, expected)


@STYLES
def test_a_run_restored_from_a_checkpoint_is_bit_equal(make, tmp_path):
    case, tx = CASES["mlp-softmax-integer"](), make()
    step = jax.jit(partial(train_step, tx, case.objective))

    def continued(params, state, steps):
        for _ in range(steps):
            params, state, _ = step(params, state, case.batch)
        return params, state

    expected = continued(case.params, tx.init(case.params), 20)
    halfway = continued(case.params, tx.init(case.params), 7)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "seven", halfway)
        checkpointer.wait_until_finished()
        blank = jax.tree.map(jnp.zeros_like, (case.params, tx.init(case.params)))
        restored = checkpointer.restore(tmp_path / "seven", blank)
    jax.tree.map(np.testing.assert_array_equal, continued(*restored, 13), expected)


def test_a_checkpoint_of_another_version_of_the_state_is_refused_by_the_names_of_its_fields(tmp_path):
    class Earlier(NamedTuple):
        level: jax.Array
        predicted: jax.Array

    state = hfopt.hessian_free().init({"w": jnp.ones(3)})
    earlier = state._replace(trust=Earlier(state.trust.level, state.trust.predicted))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "earlier", earlier)
        checkpointer.wait_until_finished()
        with pytest.raises(ValueError, match=r"do not match(.|\n)*trust\.landing"):
            checkpointer.restore(tmp_path / "earlier", state)
