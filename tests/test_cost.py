"""What a step computes: counted by XLA in the compiled program, against the parts it must consist of."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

import hfopt
from hfopt.curvature.diagonal import probed_diagonal
from tests.loops import train_step

# Layers wide enough and a batch large enough that the matrix products are all that counts.
SIZES, EXAMPLES = (96, 128, 96, 10), 1024

pytestmark = pytest.mark.float32


def predict(params, x):
    for weights in params[:-1]:
        x = jnp.tanh(x @ weights)
    return x @ params[-1]


@pytest.fixture(scope="module")
def problem():
    keys = jax.random.split(jax.random.key(0), len(SIZES))
    params = [jax.random.normal(keys[i], SIZES[i : i + 2]) / SIZES[i] ** 0.5 for i in range(len(SIZES) - 1)]
    batch = jax.random.normal(keys[-1], (EXAMPLES, SIZES[0])), jnp.arange(EXAMPLES) % SIZES[-1]
    return hfopt.Objective(predict, optax.losses.softmax_cross_entropy_with_integer_labels), params, batch


def operations(function, *arguments) -> float:
    """As XLA counts them: the body of a loop once, the dearer branch of a cond."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("options", "opening", "losses"),
    [
        # A product for the residual at the warm start; the trial step, and the last step judged anew. The diagonal is
        # estimated in a branch of the program, which the second step does not take.
        ({}, 1, 2),
        ({"preconditioner": None}, 1, 2),
        ({"preconditioner": None, "warm_start": None}, 0, 2),
        ({"preconditioner": None, "trust_region": None, "damping": hfopt.constant_damping(1.0)}, 1, 1),
        (
            {
                "preconditioner": None,
                "trust_region": None,
                "damping": hfopt.levenberg_marquardt(),
                "warm_start": None,
            },
            0,
            1,
        ),
    ],
    ids=["defaults", "plain", "cold", "unbounded", "cold and unbounded"],
)
def test_a_step_computes_what_the_algorithm_needs_and_no_more(problem, options, opening, losses):
    objective, params, batch = problem
    tx = hfopt.hessian_free(solver=hfopt.cg(5), **options)
    value_fn = objective.bind(batch)
    gradient = operations(jax.value_and_grad(value_fn), params)
    loss = operations(value_fn, params)
    # The first product shares its linearisation with the gradient in a step: what counts is one more. The program holds
    # one product, whatever CG starts from.
    vectors = [params, jax.tree.map(jnp.sin, params)]
    multiply = lambda count, p, v: [hfopt.gauss_newton(value_fn, p) @ u for u in v[:count]]  # noqa: E731
    one, two = (operations(partial(multiply, count), params, vectors) for count in (1, 2))
    setup = 0.0
    if "preconditioner" not in options:
        setup = operations(lambda p: probed_diagonal(value_fn, p, jax.random.key(0), probes=16), params)
    step = operations(partial(train_step, tx, objective), params, tx.init(params), batch)
    assert step == pytest.approx(gradient + (two - one) + losses * loss + setup, rel=0.03)
    # And that is what it reports: on the second step, when there is a last one to start from and to judge.
    run = jax.jit(partial(train_step, tx, objective))
    _, state, _ = run(*run(params, tx.init(params), batch)[:2], batch)
    assert state.info.products == state.info.cg_steps + opening
    assert state.info.evaluations == losses


def test_a_step_counts_its_products_and_losses(problem):
    objective, params, batch = problem
    solver, search = hfopt.cg(7, stop=()), hfopt.armijo()
    tx = hfopt.hessian_free(solver=solver, preconditioner=None, trust_region=None, line_search=search)
    step, state = jax.jit(partial(train_step, tx, objective)), tx.init(params)
    for _ in range(3):
        params, state, _ = step(params, state, batch)
        assert state.info.products == state.info.cg_steps + 1
        halvings = round(-float(jnp.log2(state.info.step_size)))
        assert state.info.evaluations == 1 + halvings


def test_memory_of_a_step_does_not_grow_with_the_iterations_of_cg(problem):
    objective, params, batch = problem

    def temporaries(max_steps):
        tx = hfopt.hessian_free(solver=hfopt.cg(max_steps))
        step = jax.jit(partial(train_step, tx, objective), donate_argnums=(0, 1))
        analysis = step.lower(params, tx.init(params), batch).compile().memory_analysis()
        # What is donated is written over: the new parameters and state take no room of their own.
        assert analysis.alias_size_in_bytes >= 0.99 * (analysis.output_size_in_bytes - 4096)
        return analysis.temp_size_in_bytes

    assert temporaries(250) == pytest.approx(temporaries(10), rel=0.01)
