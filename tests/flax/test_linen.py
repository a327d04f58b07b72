"""linen: one loop for every optimizer, one function a step, statistics that move once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from hfopt.flax import linen
from tests.cases import slowly
from tests.flax.models import CROSS_ENTROPY, L2, RATE, WIDTH, Linen, batch

pytestmark = pytest.mark.float32
TRAINING = {"l2": L2, "arguments": {"train": True}}
SMALL = hfopt.hessian_free(solver=hfopt.cg(5))


def new_state(tx=SMALL) -> linen.TrainState:
    model = Linen()
    variables = model.init(jax.random.key(0), batch()[0])
    return linen.TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=tx,
        variables={"batch_stats": variables["batch_stats"]},
        key=jax.random.key(3),
    )


@pytest.mark.parametrize("tx", [optax.adam(1e-2), slowly(optax.lbfgs()), SMALL], ids=["adam", "lbfgs", "hessian_free"])
def test_one_loop_serves_every_optimizer_and_reports_the_value_of_its_function(tx):
    state, train_step = new_state(tx), linen.make_train_step(CROSS_ENTROPY, exact_loss=True, **TRAINING)
    value = jax.jit(lambda state: state.value_fn(CROSS_ENTROPY, batch(), **TRAINING)(state.params))
    losses = []
    for _ in range(15):
        expected = value(state)
        state, metrics = train_step(state, batch())
        assert metrics["loss"] == expected
        losses.append(float(expected))
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    assert state.step == 15
    assert ("products" in metrics) == (tx is SMALL)


CHEAP = hfopt.presets.soap(10)


def test_curvature_and_judging_may_have_a_share_of_every_batch():
    state, options = new_state(CHEAP), {"l2": L2, "arguments": {"train": False}}
    train_step = linen.make_train_step(CROSS_ENTROPY, donate=False, bind={"curvature_batch": 0.25}, **options)
    after, metrics = train_step(state, batch())
    first = jax.tree.map(lambda x: x[: len(x) // 4], batch())
    judged = state.value_fn(CROSS_ENTROPY, first, **options)(after.params)
    assert metrics["new_loss"] == pytest.approx(float(judged), rel=1e-5)


@pytest.mark.slow
def test_all_of_a_step_sees_one_mask_and_the_next_step_another():
    state, train_step = new_state(), linen.make_train_step(CROSS_ENTROPY, donate=False, **TRAINING)
    after, metrics = train_step(state, batch())
    assert metrics["accepted"]
    # The loss that the step was accepted for is that of the old masks and statistics at the new parameters …
    same_masks = state.value_fn(CROSS_ENTROPY, batch(), **TRAINING)(after.params)
    assert metrics["new_loss"] == pytest.approx(float(same_masks), rel=1e-5)
    # … and the next step draws anew.
    assert float(after.value_fn(CROSS_ENTROPY, batch(), **TRAINING)(after.params)) != pytest.approx(
        float(same_masks), rel=1e-3
    )


def test_the_products_are_those_of_the_masked_network():
    state = new_state()
    value_fn = state.value_fn(CROSS_ENTROPY, batch(), **TRAINING)
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 0)
    variables = {"params": state.params, **state.variables}
    by_hand = hfopt.Objective(
        lambda p, x: Linen().apply(
            variables | {"params": p}, x, train=True, rngs={"dropout": key}, mutable="batch_stats"
        )[0],
        CROSS_ENTROPY,
        l2=L2,
    ).bind(batch())
    vector = jax.tree.map(jnp.cos, state.params)
    products = [hfopt.gauss_newton(f, state.params) @ vector for f in (value_fn, by_hand)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *products)


def moved_by_hand(state, inputs):
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 0)
    variables = {"params": state.params, **state.variables}
    return Linen().apply(variables, inputs, train=True, rngs={"dropout": key}, mutable="batch_stats")[1]


def test_statistics_move_once_by_the_training_pass():
    state, train_step = new_state(), linen.make_train_step(CROSS_ENTROPY, donate=False, **TRAINING)
    after, _ = train_step(state, batch())
    expected = moved_by_hand(state, batch()[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.variables, expected)


@pytest.mark.slow
@pytest.mark.slow
def test_chunks_move_them_once_too_by_the_mean_of_their_statistics():
    train_step = linen.make_train_step(CROSS_ENTROPY, donate=False, bind={"chunk_size": 8}, **TRAINING)
    state = new_state()
    after, _ = train_step(state, batch())
    chunks = [moved_by_hand(state, batch()[0][j::3]) for j in range(3)]
    expected = jax.tree.map(lambda *means: sum(means) / 3, *chunks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.variables, expected)


def test_a_rejected_step_leaves_them_alone():
    inputs, labels = batch()
    state, train_step = new_state(), linen.make_train_step(CROSS_ENTROPY, donate=False, **TRAINING)
    after, metrics = train_step(state, (inputs.at[0, 0].set(jnp.nan), labels))
    assert not metrics["accepted"]
    for part in ("params", "variables"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(state, part))


@pytest.mark.slow
@pytest.mark.slow
def test_the_curvature_may_take_the_running_statistics():
    state = new_state()
    options = TRAINING | {"curvature_arguments": {"train": False}}
    value_fn = state.value_fn(CROSS_ENTROPY, batch(), **options)
    running = hfopt.Objective(
        lambda p, x: Linen().apply({"params": p, **state.variables}, x), CROSS_ENTROPY, l2=L2
    ).bind(batch())
    training = state.value_fn(CROSS_ENTROPY, batch(), **TRAINING)
    vector = jax.tree.map(jnp.cos, state.params)
    assert value_fn(state.params) == training(state.params)
    for curvature in (hfopt.gauss_newton, hfopt.hessian):
        products = [curvature(f, state.params) @ vector for f in (value_fn, running)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *products)
    train_step = linen.make_train_step(CROSS_ENTROPY, **options)
    assert train_step(state, batch())[1]["accepted"]


def test_masks_drop_the_share_they_should():
    """A network whose output is the masked layer itself."""
    state = new_state()
    ones = lambda variables, x, rngs, mutable: (  # noqa: E731
        jax.random.bernoulli(rngs["dropout"], 1 - RATE, (len(x), WIDTH)).astype(x.dtype),
        {},
    )
    outputs = state.replace(apply_fn=ones).objective(optax.squared_error).predict(state.params, batch(2000)[0])
    assert float(outputs.mean()) == pytest.approx(1 - RATE, abs=0.01)


@pytest.mark.slow
def test_chains_multi_steps_and_the_arguments_of_lbfgs_are_served():
    """A line search of Optax's has an ``info`` of its own; MultiSteps does not say that it takes extra arguments."""
    searched = optax.chain(
        hfopt.scale_by_gauss_newton(solver=hfopt.cg(3)), optax.scale(-1.0), optax.scale_by_backtracking_linesearch(5)
    )
    _, metrics = linen.make_train_step(CROSS_ENTROPY, **TRAINING)(new_state(searched), batch())
    assert set(metrics) == {*hfopt.DirectionInfo._fields, "loss"}
    train_step = linen.make_train_step(CROSS_ENTROPY, **TRAINING)
    before = new_state(optax.MultiSteps(SMALL, 2))
    between, _ = train_step(before, batch())
    after, _ = train_step(between, batch())
    jax.tree.map(np.testing.assert_array_equal, between.params, before.params)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (after.params, before.params)), strict=True))
    value_fn = before.value_fn(CROSS_ENTROPY, batch(), **TRAINING)
    value, grad = jax.value_and_grad(value_fn)(before.params)
    new_state().apply_gradients(grads=grad, value=value, grad=grad, value_fn=value_fn)
    new_state(optax.lbfgs()).apply_gradients(grads=grad, value=value, value_fn=lambda params: value_fn(params))


def test_statistics_of_a_bad_batch_are_not_kept_whatever_the_optimizer():
    inputs, labels = batch()
    state = new_state(optax.apply_if_finite(optax.adam(1e-2), 3))
    after, _ = linen.make_train_step(CROSS_ENTROPY, **TRAINING)(state, (inputs.at[0, 0].set(jnp.nan), labels))
    jax.tree.map(np.testing.assert_array_equal, after.variables, state.variables)


def test_other_keywords_replace_fields_as_in_flax():
    state = new_state(optax.sgd(0.1))
    grads = jax.tree.map(jnp.ones_like, state.params)
    after = state.apply_gradients(grads=grads, key=jax.random.key(9), variables={"batch_stats": {}})
    assert after.variables == {"batch_stats": {}}
    assert (jax.random.key_data(after.key) == jax.random.key_data(jax.random.key(9))).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b - 0.1, rtol=1e-6), after.params, state.params)
    assert after.tx is state.tx


def test_without_what_it_needs_hessian_free_says_so():
    state = new_state()
    with pytest.raises(ValueError, match="`value_fn` is missing"):
        state.apply_gradients(grads=state.params)
