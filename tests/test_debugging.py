"""JAX's settings for hunting errors stop at a user's errors and not at ours.

Strict promotion of dtypes and ranks needs no test here: all tests of the package run with it.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

import hfopt
from tests.cases import Case, slowly
from tests.loops import run

SETTINGS = {
    "nans": jax.debug_nans,
    "infs": jax.debug_infs,
    "leaks": jax.check_tracer_leaks,
    "checks": jax.enable_checks,
}
TRANSFORMATIONS = {
    "default": hfopt.hessian_free,
    "direct": lambda: optax.chain(hfopt.scale_by_gauss_newton(), optax.scale_by_learning_rate(0.3)),
    "hessian": lambda: hfopt.hessian_free(curvature=hfopt.hessian),
    "nystrom": lambda: hfopt.hessian_free(preconditioner=hfopt.nystrom(4)),
    "calibrated": lambda: hfopt.hessian_free(
        damping=hfopt.calibrated_damping(), trust_region=None, line_search=hfopt.armijo()
    ),
    "simplenn": hfopt.presets.simplenn,
    "martens2010": lambda: hfopt.presets.martens2010(1.0),
    "kiros2013": lambda: hfopt.presets.kiros2013(3),
    "stochastic": lambda: hfopt.presets.stochastic(10),
}


@pytest.fixture(params=["nans", *map(slowly, ("infs", "leaks", "checks"))])
def setting(request):
    with SETTINGS[request.param](True):
        yield request.param


def _problem() -> Case:
    x = jax.random.normal(jax.random.key(0), (8, 3))
    params = {"w": jax.random.normal(jax.random.key(1), (3, 4)), "b": jnp.zeros((1, 4))}
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    return Case(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), loss, params, (x, jnp.arange(8) % 4), l2=0.1)


@pytest.mark.parametrize("name", ["default", *map(slowly, list(TRANSFORMATIONS)[1:])])
def test_every_step_runs_under_every_setting(setting, name):
    _, _, history = run(TRANSFORMATIONS[name](), _problem(), 3)
    assert history[-1][0] < history[0][0]


@pytest.mark.parametrize("make", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_states_begin_without_a_number_that_is_none(make):
    with jax.debug_nans(True), jax.debug_infs(True):
        state = make().init(_problem().params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_operators_and_analyses_run_under_every_setting(setting):
    case, key = _problem(), jax.random.key(0)
    params = case.params
    f = case.objective.bind(case.batch)
    G = hfopt.gauss_newton(f, params)
    others = (hfopt.hessian, hfopt.residual_hessian, hfopt.empirical_fisher, hfopt.outer_product, hfopt.penalty_hessian)
    found = [operator(f, params) @ params for operator in others]
    found += [hfopt.fisher(f, params, key) @ params, hfopt.fisher(f, params, samples="exact") @ params]
    found += [G.to_dense(), G.diagonal(), G.trace(), G.estimate_trace(key, 10), G.estimate_diagonal(key, 10)]
    found += [hfopt.spectra.eigenpairs(G, key, largest=2).values, hfopt.spectra.density(G, key).nodes]
    found += [hfopt.jacobian(f, params).T @ (hfopt.jacobian(f, params) @ params)]
    found += [jax.jit(lambda: hfopt.cg(9).solve(G, params, damping=100.0))()]
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    hfopt.critical_points.classify(f, params)
    assert hfopt.check(f, params).ok


def test_a_nan_of_the_model_is_still_found():
    case = _problem()
    broken = case._replace(predict=lambda p, x: jnp.log(x - 100) @ p["w"])
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        run(hfopt.hessian_free(), broken, 1)


def test_a_chunked_objective_has_no_derivative_by_its_batch():
    case = _problem()
    value = lambda x: case.objective.bind((x, case.batch[1]), chunk_size=4)(case.params)  # noqa: E731
    with pytest.raises(TypeError, match="no derivative by its batch; bind it without `chunk_size`"):
        jax.grad(value)(case.batch[0])
