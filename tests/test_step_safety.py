"""What a step does when something is wrong: bad numbers, bad arguments, the end of the arithmetic."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from hfopt import Stop
from tests.cases import (
    CASES,
    Case,
)
from tests.loops import CLASSICAL, STYLES, least_squares, run, train_step


@pytest.mark.float32
def test_float32_models_keep_float32_state_when_x64_is_on():
    with jax.enable_x64(True):
        case = least_squares()
        case = case._replace(params={"w": jnp.zeros(5, jnp.float32)})
        case = case._replace(batch=tuple(x.astype(jnp.float32) for x in case.batch))
        params, state, _ = run(hfopt.hessian_free(), case, 2)
        assert {x.dtype for x in jax.tree.leaves((params, state))} == {
            jnp.dtype(t) for t in ("float32", "int32", "bool")
        }


def _poisoned(case: Case, value: float) -> Case:
    inputs, *rest = case.batch
    return case._replace(batch=(inputs.at[0, 0].set(value), *rest))


@STYLES
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_moves_nothing_and_poisons_nothing(bad, make):
    case = CASES["mlp-softmax-integer"]()
    tx = make()
    step = jax.jit(partial(train_step, tx, case.objective))
    params, state, _ = step(case.params, tx.init(case.params), case.batch)
    after, broken, _ = step(params, state, _poisoned(case, bad).batch)
    jax.tree.map(np.testing.assert_array_equal, after, params)
    assert not broken.info.accepted
    assert broken.info.step_size == 0
    assert broken.info.cg_stop == Stop.NONFINITE
    assert broken.info.reduction_ratio == -np.inf
    assert broken.rejected == 1
    assert all(not leaf.any() for leaf in jax.tree.leaves(broken.solution))
    _, recovered, value = step(after, broken, case.batch)
    assert recovered.info.accepted
    assert recovered.info.new_loss < value
    _, undisturbed, _ = step(params, state, case.batch)
    assert recovered.info.damping > undisturbed.info.damping


def test_a_loss_that_is_nan_at_every_trial_rejects_the_step_and_restores_the_parameters():
    walled = lambda z, y: jnp.where(z < 0.999999, jnp.nan, z**2)  # noqa: E731
    case = Case(lambda p, x: p["z"] * x, walled, {"z": jnp.asarray(1.0)}, (jnp.ones(2), jnp.ones(2)))
    params, state, _ = run(hfopt.hessian_free(trust_region=None, line_search=hfopt.armijo(max_trials=5)), case, 1)
    assert params["z"] == 1.0
    assert not state.info.accepted
    assert state.info.evaluations == 5
    assert state.info.new_loss == state.info.loss == 1.0


def test_a_stationary_point_is_kept_and_reported_as_exact():
    case = least_squares()
    x, _ = case.batch
    case = case._replace(batch=(x, jnp.zeros(20)))
    params, state, _ = run(hfopt.hessian_free(), case, 3)
    np.testing.assert_array_equal(params["w"], 0)
    assert state.info.accepted
    assert state.info.reduction_ratio == 1.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_zero_curvature_and_dead_parameters_end_in_a_finite_state():
    linear = lambda z, y: z  # noqa: E731  B = 0
    case = Case(lambda p, x: x * p["w"], linear, {"w": jnp.ones(()), "dead": jnp.ones(3)}, (jnp.ones(2), jnp.ones(2)))
    params, state, _ = run(hfopt.hessian_free(), case, 5)
    assert params["w"] < 1
    np.testing.assert_array_equal(params["dead"], 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_direction_that_cg_could_not_begin_is_a_rejection():
    """A concave loss: the Gauss-Newton matrix is negative, and CG ends before it begins until λ exceeds it."""
    concave = lambda z, y: -(z**2)  # noqa: E731
    case = Case(lambda p, x: p["z"] * x, concave, {"z": jnp.asarray(0.5)}, (jnp.ones(2), jnp.ones(2)))
    _, _, history = run(CLASSICAL(damping=hfopt.levenberg_marquardt(0.5)), case, 5)
    infos = [info for _, info in history]
    assert (infos[0].cg_steps, infos[0].cg_stop, infos[0].accepted) == (0, Stop.NEGATIVE_CURVATURE, False)
    assert infos[0].reduction_ratio == -np.inf
    assert infos[1].damping == pytest.approx(0.75)
    assert infos[4].accepted  # λ = 0.5 · 1.5⁴ > 2


def test_below_the_resolution_of_the_loss_nothing_is_learned():
    case = least_squares()
    for tx in (hfopt.hessian_free(), CLASSICAL(), hfopt.presets.simplenn()):
        _, state, _ = run(tx, case, 150)
        assert state.info.damping <= 1.0
        assert state.next_damping <= 1.0


@pytest.mark.float32
@STYLES
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float16", "float16"), ("bfloat16", "float32")])
def test_low_precision_parameters_are_trained_with_float32_vectors(dtypes, make):
    x = jax.random.normal(jax.random.key(0), (32, 5))
    params = {"w": jnp.zeros((5, 2), dtypes[0]), "b": jnp.zeros(2, dtypes[1])}
    predict = lambda p, x: x.astype(dtypes[0]) @ p["w"] + p["b"].astype(dtypes[0])  # noqa: E731
    loss = optax.softmax_cross_entropy_with_integer_labels
    case = Case(predict, loss, params, (x, (x[:, 0] > 0).astype(jnp.int32)))
    params, state, history = run(make(), case, 12)
    assert history[-1][0] < 0.3 * history[0][0]
    assert {k: v.dtype for k, v in params.items()} == {"w": jnp.dtype(dtypes[0]), "b": jnp.dtype(dtypes[1])}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.solution)} == {jnp.dtype("float32")}


@pytest.mark.float32
@STYLES
def test_models_that_compute_in_bfloat16_keep_everything_else_in_float32(make):
    model = nn.Sequential([nn.Dense(16, dtype=jnp.bfloat16), nn.tanh, nn.Dense(2, dtype=jnp.bfloat16)])
    x = jax.random.normal(jax.random.key(0), (64, 5))
    loss = lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z.astype(jnp.float32), y)  # noqa: E731
    case = Case(model.apply, loss, model.init(jax.random.key(1), x), (x, (x[:, 0] > 0).astype(jnp.int32)))
    params, state, history = run(make(), case, 12)
    assert history[-1][0] < 0.3 * history[0][0]
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state)) if leaf.dtype != jnp.int32} == {
        jnp.dtype("float32"),
        jnp.dtype("bool"),
    }


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solver": hfopt.cg}, TypeError, r"`solver` must be an object such as hfopt\.cg\(\)"),
        ({"damping": 0.1}, TypeError, r"`damping` must be an object such as .*, got 0\.1"),
        ({"line_search": None}, TypeError, "`line_search` must be an object"),
        ({"metric": hfopt.second_moment}, TypeError, r"`metric` must be an object such as hfopt\.kronecker\(\)"),
        (
            {"preconditioner": 1.0},
            TypeError,
            r"`preconditioner` must be an object such as hfopt\.nystrom\(\), got 1\.0",
        ),
        ({"curvature": "gn"}, TypeError, r"`curvature` must be a function such as hfopt\.gauss_newton, got 'gn'"),
        ({"warm_start": "a"}, TypeError, "`warm_start` must be a number, a schedule or None, got 'a'"),
        ({"warm_start": 5.0}, ValueError, r"`warm_start` must lie in \[0, 1\] or be None, got 5\.0"),
    ],
)
def test_choices_of_the_wrong_kind_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        hfopt.hessian_free(**options)


def test_missing_arguments_are_named_with_the_call_that_works():
    case = least_squares()
    tx = hfopt.hessian_free()
    state, value_fn = tx.init(case.params), case.objective.bind(case.batch)
    with pytest.raises(ValueError, match=r"`params` is missing; call tx\.update\(grad, state, params, value=value"):
        tx.update(case.params, state, value_fn=value_fn)
    with pytest.raises(ValueError, match=r"`value_fn` is missing.*hfopt\.Objective\(predict, loss\)\.bind\(batch\)"):
        tx.update(case.params, state, case.params)
    with pytest.raises(TypeError, match=r"Curvature needs the model and the loss apart"):
        tx.update(case.params, state, case.params, value_fn=lambda p: 0.0)
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int"):
        tx.init({"n": jnp.arange(3)})


def test_no_full_batch_rejects_the_same_step_for_ever():
    """f = 10⁹ huber(θ) with a kink at 10⁻⁵: beyond it G = 0 and the gradient is 10⁴, so that every step of a trust
    region that is not tiny lands far on the other side."""
    loss = lambda z, y: 1e9 * optax.losses.huber_loss(z, y, delta=1e-5)  # noqa: E731
    objective, batch = hfopt.Objective(lambda p, x: p * x, loss), (jnp.ones(1), jnp.zeros(1))
    value_fn, tx = objective.bind(batch), hfopt.hessian_free()
    step = jax.jit(partial(train_step, tx, objective))
    params = jnp.array(1e-4)
    state, start = tx.init(params), value_fn(params)
    for _ in range(60):
        params, state, _ = step(params, state, batch)
    assert value_fn(params) < 1e-4 * start


@pytest.mark.float32
def test_after_many_faulty_batches_training_goes_on():
    """Each takes trust away, down to steps whose decrease is lost in the rounding of f."""
    key = jax.random.key(0)
    inputs, weights = jax.random.normal(key, (64, 5)), jax.random.normal(jax.random.key(1), (5, 1))
    targets = jnp.tanh(inputs @ weights) + 2.5
    objective = hfopt.Objective(lambda p, x: jnp.tanh(x @ p["w"]) + p["b"], optax.losses.squared_error)
    tx = hfopt.hessian_free()
    step = jax.jit(partial(train_step, tx, objective))
    params = {"w": jnp.zeros((5, 1)), "b": jnp.zeros(())}
    state = tx.init(params)
    for _ in range(9):
        params, state, _ = step(params, state, (inputs * jnp.nan, targets))
    start = objective.bind((inputs, targets))(params)
    for _ in range(60):
        params, state, _ = step(params, state, (inputs, targets))
    assert objective.bind((inputs, targets))(params) < 0.01 * start
