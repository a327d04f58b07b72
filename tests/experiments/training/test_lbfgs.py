"""L-BFGS finds the minimum, takes the steps of Optax, and is charged for every gradient of its line search."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

import hfopt
from experiments.settings.optimizers import LBFGS
from experiments.training.loop import train
from experiments.training.optimizers import build_optimizer
from tests.experiments.conftest import rows
from tests.experiments.training.test_loop import initial, linear_gradient

LINEAR = ("optimizer=lbfgs", "problem.model.hidden=[]")


def test_on_a_convex_problem_it_comes_to_the_minimum(plan):
    plan = plan(*LINEAR, "optimizers.lbfgs={steps: 60}")
    train_set, theta = plan.problem.dataset.train, initial(plan)
    split = theta[0].size

    def objective(flat):
        parts = flat[:split].reshape(theta[0].shape), flat[split:]
        value, gradient = linear_gradient(parts, train_set.inputs, train_set.targets, l2=0.01)
        return value, np.concatenate([part.ravel() for part in gradient])

    start = np.concatenate([part.ravel() for part in theta])
    least = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-7}).fun
    assert rows(plan)[-1]["train_loss"] == pytest.approx(least, rel=1e-5)


def plain_loop(plan, steps: int, memory_size: int) -> list[float]:
    """The losses before each step of the loop in Optax's manual, with nothing taken from the state."""
    problem = plan.problem
    objective = hfopt.Objective(problem.predict, problem.loss, l2=problem.l2)
    solver = optax.lbfgs(memory_size=memory_size)

    @jax.jit
    def step(params, state, batch):
        value_fn = objective.bind(batch)
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state, value

    params, data = problem.init(plan.seed), problem.dataset.train
    state, values = solver.init(params), []
    for number in range(steps):
        chosen = plan.batches.rows(number).gradient
        batch = data if chosen is None else data.take(chosen)
        params, state, value = step(params, state, (batch.inputs, batch.targets))
        values.append(float(value))
    return values


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["full", "100"])
def test_its_steps_are_those_of_a_loop_that_reuses_nothing(plan, batch):
    """So a step on another batch does not take value and gradient from the one before."""
    plan = plan(*LINEAR, f"optimizers.lbfgs={{steps: 6, memory_size: 3, batches: {{gradient: {batch}}}}}")
    expected = plain_loop(plan, 6, memory_size=3)
    np.testing.assert_allclose([row["loss"] for row in rows(plan)[1:]], expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["full", "100"])
@pytest.mark.parametrize("tries", [3, 20])
def test_the_accounts_have_every_gradient_that_was_computed(plan, batch, tries):
    settings = f"optimizers.lbfgs={{steps: 12, line_search_steps: {tries}, batches: {{gradient: {batch}}}}}"
    # Data sets are evaluated in parts of 60, so that what is predicted of a whole batch serves a gradient.
    loss = ("problem.loss=squared_error", "problem.l2=0")  # with which the first step has to search
    plan = plan(*LINEAR, settings, *loss, "recording.evaluation_chunk_size=60")
    size = 200 if batch == "full" else 100
    computed = []

    def predict(params, images):
        if len(images) == size:
            jax.debug.callback(lambda _: computed.append(1), params["Dense_0"]["bias"][0])
        return plan.problem.predict(params, images)

    counts = []
    one_by_one = replace(plan.optimizer, queued_steps=1)  # so that there is something to count after each
    for moment in train(replace(plan, problem=replace(plan.problem, predict=predict), optimizer=one_by_one)):
        jax.effects_barrier()
        assert moment.accounts.gradients == len(computed)
        assert moment.accounts.gradient_examples == size * len(computed)
        counts.append(len(computed))
    assert np.diff(counts).max() > 2


def test_a_line_search_that_finds_nothing_better_leaves_the_parameters_and_clears_the_memory():
    """Here every other point is worse; in training it is rounding that hides what is better."""
    transformation = build_optimizer(LBFGS(steps=1), 1, 1).transformation
    value_fn = lambda x: jnp.where(jnp.all(x == 1), 0.0, 1 + 0.5 * jnp.sum(x**2))  # noqa: E731
    params, slope = jnp.ones(3), jnp.ones(3)
    state = transformation.init(params)
    extra = {"value": value_fn(params), "grad": slope, "value_fn": value_fn}
    updates, after = transformation.update(slope, state, params, **extra)
    np.testing.assert_array_equal(updates, 0.0)
    jax.tree.map(np.testing.assert_array_equal, after.inner, state.inner)
    assert after.line_search_gradients > 1

    plain = optax.lbfgs()
    taken, _ = plain.update(slope, plain.init(params), params, **extra)
    assert value_fn(params + taken) > value_fn(params)  # what Optax would do
