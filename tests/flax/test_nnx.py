"""NNX: one loop for every optimizer, one function a step, modules that move on once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hfopt
from hfopt.flax import nnx as hf
from tests.cases import slowly
from tests.flax.models import CROSS_ENTROPY, L2, NNX, WIDTH, batch

pytestmark = pytest.mark.float32
SMALL = hfopt.hessian_free(solver=hfopt.cg(5))


def everything(model) -> dict:
    """All numbers of a module, copied."""
    state = nnx.to_flat_state(nnx.as_pure(nnx.state(model)))
    numbers = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return {path: np.array(numbers(x)) for path, x in state}


@pytest.mark.parametrize("tx", [optax.adam(1e-2), slowly(optax.lbfgs()), SMALL], ids=["adam", "lbfgs", "hessian_free"])
def test_one_loop_serves_every_optimizer_and_reports_the_value_of_its_function(tx):
    model = NNX(nnx.Rngs(0))
    optimizer, train_step = (
        hf.Optimizer(model, tx, wrt=nnx.Param),
        hf.make_train_step(CROSS_ENTROPY, l2=L2, exact_loss=True),
    )
    value = nnx.jit(lambda model: hf.value_fn(model, CROSS_ENTROPY, batch(), l2=L2)(hf.params(model)))
    losses = []
    for _ in range(15):
        expected = value(model)
        metrics = train_step(model, optimizer, batch())
        assert metrics["loss"] == expected
        losses.append(float(expected))
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    assert optimizer.step[...] == 15
    assert ("products" in metrics) == (tx is SMALL)


def test_curvature_and_judging_may_have_a_share_of_every_batch():
    model = NNX(nnx.Rngs(0))
    model.eval()
    optimizer = hf.Optimizer(model, hfopt.presets.soap(10), wrt=nnx.Param)
    metrics = hf.make_train_step(CROSS_ENTROPY, bind={"curvature_batch": 0.25})(model, optimizer, batch())
    first = jax.tree.map(lambda x: x[: len(x) // 4], batch())
    judged = hf.value_fn(model, CROSS_ENTROPY, first)(hf.params(model))
    assert metrics["new_loss"] == pytest.approx(float(judged), rel=1e-5)


def test_making_and_calling_the_function_changes_nothing_in_the_module():
    model = NNX(nnx.Rngs(0))
    before = everything(model)
    value_fn = hf.value_fn(model, CROSS_ENTROPY, batch())
    values = [float(value_fn(hf.params(model))) for _ in range(2)]
    assert values[0] == values[1]
    for path, x in everything(model).items():
        np.testing.assert_array_equal(x, before[path])


def test_a_step_moves_streams_and_statistics_as_one_call_does():
    model, called = NNX(nnx.Rngs(0)), NNX(nnx.Rngs(0))
    optimizer = hf.Optimizer(model, SMALL, wrt=nnx.Param)
    metrics = hf.make_train_step(CROSS_ENTROPY)(model, optimizer, batch())
    assert metrics["accepted"]
    called(batch()[0])
    trained = {path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    after, expected = everything(model), everything(called)
    for path in after:
        if path in trained:
            assert (after[path] != expected[path]).any()
        else:
            np.testing.assert_allclose(after[path], expected[path], rtol=1e-5, atol=1e-7)


def test_a_rejected_step_moves_the_streams_only():
    model = NNX(nnx.Rngs(0))
    optimizer, before = hf.Optimizer(model, SMALL, wrt=nnx.Param), everything(model)
    inputs, labels = batch()
    metrics = hf.make_train_step(CROSS_ENTROPY)(model, optimizer, (inputs.at[0, 0].set(jnp.nan), labels))
    assert not metrics["accepted"]
    changed = {path for path, x in everything(model).items() if (x != before[path]).any()}
    assert changed == {("dropout", "rngs", "count")}


def test_frozen_modules_stay_and_the_solve_is_that_of_the_others():
    head = nnx.All(nnx.Param, nnx.PathContains("head"))
    model = NNX(nnx.Rngs(0))
    before = everything(model)
    optimizer = hf.Optimizer(model, SMALL, wrt=head)
    value_fn = hf.value_fn(model, CROSS_ENTROPY, batch(), wrt=head)
    assert {x.shape for x in jax.tree.leaves(hf.params(model, head))} == {(WIDTH, 3), (3,)}
    assert hfopt.gauss_newton(value_fn, hf.params(model, head)).to_dense().shape == (WIDTH * 3 + 3,) * 2
    assert hf.make_train_step(CROSS_ENTROPY)(model, optimizer, batch())["accepted"]
    changed = {path[0] for path, x in everything(model).items() if (x != before[path]).any()}
    assert changed == {"head", "dropout", "norm"}


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")  # deprecated, and still used
def test_what_a_module_sows_is_dropped_and_a_wrong_filter_is_named():
    class Sowing(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            self.sow(nnx.Intermediate, "hidden", x)
            return self.layer(x)

    model = Sowing(nnx.Rngs(0))
    optimizer = hf.Optimizer(model, SMALL, wrt=nnx.Param)
    assert hf.make_train_step(CROSS_ENTROPY)(model, optimizer, batch())["accepted"]
    kernel = nnx.All(nnx.Param, nnx.PathContains("kernel"))
    value_fn = hf.value_fn(model, CROSS_ENTROPY, batch(), wrt=kernel)
    with pytest.raises(ValueError, match="give both the same filter"):
        optimizer.update(model, hf.params(model, kernel), value_fn=value_fn)


def test_shared_modules_are_trained_once():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 5, rngs=rngs)
            self.second = self.first
            self.head = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.tanh(self.second(nnx.tanh(self.first(x)))))

    model = Twice(nnx.Rngs(0))
    optimizer = hf.Optimizer(model, SMALL, wrt=nnx.Param)
    assert sum(x.size for x in jax.tree.leaves(hf.params(model))) == 30 + 18
    train_step = hf.make_train_step(CROSS_ENTROPY)
    first, *_, last = (float(train_step(model, optimizer, batch())["loss"]) for _ in range(6))
    assert last < first
    assert model.first is model.second


def test_the_curvature_may_take_the_running_statistics():
    model = NNX(nnx.Rngs(0))
    evaluate = lambda module, x: (module.eval(), module(x))[1]  # noqa: E731
    value_fn = hf.value_fn(model, CROSS_ENTROPY, batch(), l2=L2, curvature_call=evaluate)
    running = hf.value_fn(model, CROSS_ENTROPY, batch(), l2=L2, call=evaluate)
    here = hf.params(model)
    vector = jax.tree.map(jnp.cos, here)
    products = [hfopt.gauss_newton(f, here) @ vector for f in (value_fn, running)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *products)
    assert value_fn(here) == hf.value_fn(model, CROSS_ENTROPY, batch(), l2=L2)(here)
    assert not model.norm.use_running_average


def test_the_plain_optimizer_of_nnx_serves_models_without_state():
    model = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, SMALL, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, batch):
        graph, params = nnx.split(model)
        value_fn = hfopt.Objective(lambda p, x: nnx.merge(graph, p)(x), CROSS_ENTROPY).bind(batch)
        value, grad = jax.value_and_grad(value_fn)(nnx.as_pure(params))
        with_gradient = lambda variable, g: variable.replace(g)  # noqa: E731
        grads = jax.tree.map(with_gradient, params, grad, is_leaf=lambda node: isinstance(node, nnx.Variable))
        optimizer.update(model, grads, value=value, grad=grad, value_fn=value_fn)
        return value

    values = [float(train_step(model, optimizer, batch())) for _ in range(5)]
    assert values[-1] < values[0]
