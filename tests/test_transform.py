"""The step as a whole, inside the loop its users write."""

import inspect
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from tests.cases import (
    CASES,
    Case,
    dense_empirical_fisher,
    dense_gauss_newton,
    dense_hessian,
    dense_value,
    relative_error,
    slowly,
)
from tests.loops import CLASSICAL, NEWTON, STYLES, least_squares, run, train_step


def test_a_quadratic_is_solved_in_one_step():
    case = least_squares()
    params, state, _ = run(NEWTON(), case, 1)
    x, y = case.batch
    expected = np.linalg.solve(2 * x.T @ x / 20 + 0.3 * np.eye(5), 2 * x.T @ y / 20)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-10)
    assert state.info.reduction_ratio == pytest.approx(1.0, abs=1e-10)
    assert state.info.step_size == 1.0


def test_one_step_is_the_damped_gauss_newton_step():
    case = CASES["cnn-softmax-integer"]()
    damping = 0.7
    tx = NEWTON(damping=hfopt.constant_damping(damping))
    params, state, _ = run(tx, case, 1)
    theta = ravel_pytree(case.params)[0]
    gradient = ravel_pytree(jax.grad(partial(dense_value, case))(case.params))[0]
    dense = dense_gauss_newton(case)
    step = -np.linalg.solve(dense + damping * np.eye(theta.size), gradient)
    assert state.info.step_size == 1.0
    assert relative_error(ravel_pytree(params)[0] - theta, step) < 1e-8
    # ρ: the actual decrease over the decrease of the model without damping
    actual = dense_value(case, params) - dense_value(case)
    assert state.info.reduction_ratio == pytest.approx(
        float(actual / (gradient @ step + 0.5 * step @ dense @ step)), rel=1e-7
    )
    assert state.info.new_loss == pytest.approx(float(dense_value(case, params)), rel=1e-12)
    assert state.info.loss == pytest.approx(float(dense_value(case)), rel=1e-12)


def test_the_ratio_is_measured_on_the_step_really_taken_when_the_line_search_shortens_it():
    """f = log cosh z at z = 3, whose Newton step overshoots."""
    log_cosh = lambda z, y: jnp.log(jnp.cosh(z))  # noqa: E731
    case = Case(lambda p, x: p["z"] * x, log_cosh, {"z": jnp.asarray(3.0)}, (jnp.ones(1), jnp.ones(1)))
    params, state, _ = run(NEWTON(damping=hfopt.constant_damping(1e-3)), case, 1)
    gradient, curvature = np.tanh(3.0), np.cosh(3.0) ** -2
    direction = -gradient / (curvature + 1e-3)
    f = lambda z: np.log(np.cosh(z))  # noqa: E731
    alpha = next(0.5**i for i in range(20) if f(3 + 0.5**i * direction) <= f(3) + 1e-4 * 0.5**i * gradient * direction)
    assert alpha < 1
    step = alpha * direction
    assert params["z"] == pytest.approx(3 + step, rel=1e-10)
    assert state.info.step_size == alpha
    expected = (f(3 + step) - f(3)) / (gradient * step + 0.5 * curvature * step**2)
    assert state.info.reduction_ratio == pytest.approx(expected, rel=1e-7)


def test_warm_starts_begin_at_the_last_solution_and_the_ratio_does_not():
    """From a start that is the solution CG stops after one iteration; ρ must still be that of the whole step."""
    case = least_squares()
    tx = NEWTON(warm_start=1.0, damping=hfopt.constant_damping(1.0), line_search=hfopt.fixed_step(1e-30))
    _, _, history = run(tx, case, 2)
    first, second = (info for _, info in history)
    assert (first.cg_steps, second.cg_steps) == (5, 1)
    assert (first.products, second.products) == (6, 2)  # one more for the residual at the start
    tx = NEWTON(warm_start=1.0, damping=hfopt.constant_damping(1.0), line_search=hfopt.fixed_step(1e-3))
    _, _, history = run(tx, case, 2)
    assert history[1][1].reduction_ratio == pytest.approx(1.0, abs=1e-6)


def test_without_a_warm_start_no_solution_is_kept_and_no_product_spent_on_it():
    case = least_squares()
    _, state, _ = run(hfopt.hessian_free(warm_start=None), case, 3)
    assert state.solution == ()
    assert state.info.products == state.info.cg_steps


@pytest.mark.float32
@pytest.mark.parametrize("optimizer", [slowly(optax.lbfgs), hfopt.hessian_free])
def test_lbfgs_is_swapped_for_hessian_free_in_one_line(optimizer):
    with jax.enable_x64(True):
        case = CASES["mlp-softmax-integer"]()
    case = case._replace(params=jax.tree.map(lambda p: p.astype(jnp.float32), case.params))
    case = case._replace(batch=(case.batch[0].astype(jnp.float32), case.batch[1].astype(jnp.int32)))
    _, _, history = run(optimizer(), case, 15)
    assert history[-1][0] < 0.1 * history[0][0]


@STYLES
def test_twenty_steps_with_new_data_compile_once(make):
    case = CASES["mlp-huber"]()
    tx = make()
    step = jax.jit(partial(train_step, tx, case.objective))
    params, state = case.params, tx.init(case.params)
    step_sizes, dampings = set(), set()
    for i in range(20):
        inputs, targets = case.batch
        params, state, _ = step(params, state, (jnp.cos(i) * inputs, targets + 0.1 * jnp.sin(i)))
        step_sizes.add(float(state.info.step_size))
        dampings.add(float(state.info.damping))
    assert step._cache_size() == 1
    assert len(dampings) > 3
    assert len(step_sizes) > 1 or make is CLASSICAL


def test_a_scan_over_steps_equals_a_loop():
    case = CASES["mlp-softmax-soft"]()
    tx = hfopt.hessian_free()
    params, state, _ = run(tx, case, 6)

    def body(carry, _):
        params, state, value = train_step(tx, case.objective, *carry, case.batch)
        return (params, state), value

    scanned = jax.jit(lambda carry: jax.lax.scan(body, carry, None, length=6)[0])((case.params, tx.init(case.params)))
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves((params, state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)


def test_the_state_is_arrays_and_donatable_and_its_init_is_abstract():
    case = CASES["mlp-squared"]()
    tx = hfopt.hessian_free()
    state = tx.init(case.params)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), jax.eval_shape(tx.init, case.params)) == shapes
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    copy = jax.tree.map(jnp.copy, case.params)
    step = jax.jit(partial(train_step, tx, case.objective), donate_argnums=(0, 1))
    _, after, _ = step(copy, state, case.batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == shapes


def test_rosenbrock_asleast_squares():
    residuals = lambda p, x: jnp.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])[None]  # noqa: E731
    half_square = lambda r, y: 0.5 * jnp.square(r).sum(axis=-1)  # noqa: E731
    case = Case(residuals, half_square, jnp.array([-1.2, 1.0]), (jnp.ones(1), jnp.ones(1)))
    params, _, history = run(hfopt.hessian_free(), case, 100)
    np.testing.assert_allclose(params, 1.0, atol=1e-6)
    assert history[-1][0] < 1e-12


def test_the_update_uses_the_gradient_it_is_given():
    """A gradient of something else (natural gradient, clipping before it): the step solves with that one."""
    case = least_squares()
    tx = NEWTON(line_search=hfopt.fixed_step())
    other = {"w": jnp.arange(5.0)}
    updates, _ = tx.update(other, tx.init(case.params), case.params, value_fn=case.objective.bind(case.batch))
    np.testing.assert_allclose(updates["w"], -np.linalg.solve(dense_gauss_newton(case), other["w"]), rtol=1e-9)


@pytest.mark.parametrize(
    ("curvature", "dense"),
    [
        (hfopt.hessian, dense_hessian),
        (hfopt.empirical_fisher, dense_empirical_fisher),
        (partial(hfopt.fisher, samples="exact"), dense_gauss_newton),
    ],
    ids=["hessian", "empirical_fisher", "fisher"],
)
def test_every_curvature_can_make_the_step(curvature, dense):
    case = CASES["mlp-softmax-integer"]()
    tx = NEWTON(curvature=curvature, damping=hfopt.constant_damping(2.0), line_search=hfopt.fixed_step())
    value_fn = case.objective.bind(case.batch)
    grad = jax.grad(value_fn)(case.params)
    step, _ = jax.jit(partial(tx.update, value_fn=value_fn))(grad, tx.init(case.params), case.params)
    g = ravel_pytree(grad)[0]
    assert relative_error(ravel_pytree(step)[0], -jnp.linalg.solve(dense(case) + 2 * jnp.eye(g.size), g)) < 1e-9


@pytest.mark.parametrize("name", ["squared_gradients", "jacobi", "nystrom"])
def test_preconditioners_change_the_path_and_not_the_solution(name):
    case = CASES["mlp-squared"]()
    plain, _, _ = run(NEWTON(damping=hfopt.constant_damping(0.1)), case, 1)
    options = {"rank": 8} if name == "nystrom" else {}
    preconditioner = getattr(hfopt, name)(**options)
    tx = NEWTON(damping=hfopt.constant_damping(0.1), preconditioner=preconditioner)
    params, state, _ = run(tx, case, 1)
    assert relative_error(params, plain) < 1e-9
    assert state.info.products > state.info.cg_steps + 1  # its own products are counted


def test_the_ratio_compares_the_true_decrease_with_that_of_the_true_gradient():
    """A quadratic model is exact, whatever stands before the step in a chain."""
    case = least_squares()
    tx = optax.chain(optax.clip_by_global_norm(0.1), NEWTON())
    value_fn = case.objective.bind(case.batch)
    value, grad = jax.value_and_grad(value_fn)(case.params)
    _, state = tx.update(grad, tx.init(case.params), case.params, value=value, grad=grad, value_fn=value_fn)
    assert state[1].info.reduction_ratio == pytest.approx(1.0, rel=1e-9)


def test_hyperparameters_can_be_injected_and_the_state_read_by_name():
    case = least_squares()
    tx = optax.inject_hyperparams(hfopt.hessian_free, static_args=("curvature",))(warm_start=0.5)
    _, state, history = run(tx, case, 3)
    assert state.hyperparams["warm_start"] == 0.5
    assert history[-1][0] < history[0][0]
    assert optax.tree.get(state, "damping") == state.inner_state.info.damping
    assert optax.tree.get(state, "step") == 3


def test_the_signature_is_the_one_the_contract_fixes():
    assert list(inspect.signature(hfopt.Objective).parameters)[:3] == ["predict", "loss", "l2"]
    assert list(inspect.signature(hfopt.Objective.bind).parameters) == [
        "self",
        "batch",
        "curvature_batch",
        "chunk_size",
        "evaluation_batch",
        "memory",
    ]
    fields = "loss new_loss reduction_ratio damping cg_steps cg_stop step_size products accepted"
    assert set(fields.split()) <= set(hfopt.StepInfo._fields)
    assert not {"value", "grad", "learning_rate"} & set(hfopt.HessianFreeState._fields)


@pytest.mark.float32
def test_a_flax_cnn_learns_inside_a_jitted_loop():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.Conv(4, (3, 3))(x)).reshape(x.shape[0], -1))

    x = jax.random.normal(jax.random.key(0), (32, 6, 6, 1))
    y = (x[:, :3].sum((1, 2, 3)) > 0).astype(jnp.int32)
    case = Case(Net().apply, optax.softmax_cross_entropy_with_integer_labels, Net().init(jax.random.key(1), x), (x, y))
    _, _, history = run(hfopt.hessian_free(), case, 12)
    assert history[-1][0] < 0.02 * history[0][0]
