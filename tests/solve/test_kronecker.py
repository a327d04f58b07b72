"""The metric of the gradients and its preconditioner, against dense matrices in the order of `ravel_pytree`."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from tests.cases import Case, dense_gauss_newton, relative_error
from tests.conformance import soap_numpy
from tests.loops import train_step

LAMBDA = 0.3
EXACT = hfopt.cg(400, hfopt.relative_residual(1e-13))


def _flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def _solving(metric, momentum=None, damping=LAMBDA, solver=EXACT, **options):
    return hfopt.hessian_free(
        solver=solver,
        preconditioner=None,
        damping=hfopt.constant_damping(damping),
        metric=metric,
        trust_region=None,
        line_search=hfopt.fixed_step(),
        momentum=momentum,
        warm_start=None,
        **options,
    )


def _dense_metric(params, gradients, decay):
    """M of the last of these gradients, array by array: matrices in SOAP's bases, vectors as in Adam."""
    diagonals = []
    for leaf, *history in zip(jax.tree.leaves(params), *map(jax.tree.leaves, gradients), strict=True):
        history = [np.asarray(g) for g in history]
        if leaf.ndim < 2:
            weights = decay ** np.arange(len(history))[::-1]
            diagonals.append(np.diag(np.sqrt(np.average(np.square(history), axis=0, weights=weights)).ravel()))
            continue
        state = soap_numpy.start(*leaf.shape)
        for g in history:
            before = state
            _, state = soap_numpy.step(state, g, 0.0, decay, 100)
        basis = np.kron(before.Q_L, before.Q_R)
        root = np.sqrt(state.V / (1 - decay ** len(history))).ravel()
        diagonals.append(basis @ np.diag(root) @ basis.T)
    size = sum(len(d) for d in diagonals)
    dense, at = np.zeros((size, size)), 0
    for d in diagonals:
        dense[at : at + len(d), at : at + len(d)] = d
        at += len(d)
    return dense


def _small() -> Case:
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=(4, 3)), "shift": rng.normal(size=4)}
    predict = lambda p, x: jnp.tanh(x @ p["a"] + p["shift"][None]) @ p["b"]  # noqa: E731
    batch = jnp.asarray(rng.normal(size=(20, 3))), jnp.asarray(rng.normal(size=(20, 3)))
    return Case(predict, optax.squared_error, jax.tree.map(jnp.asarray, params), batch, l2=0.01)


@pytest.mark.parametrize("momentum", [None, 0.6])
def test_with_cg_to_the_end_a_step_solves_the_system_in_the_metric(momentum):
    case = _small()
    tx = _solving(hfopt.kronecker(decay=0.8, every=100), momentum)
    params, state = case.params, tx.init(case.params)
    step, gradients = jax.jit(partial(train_step, tx, case.objective)), []
    for _ in range(3):
        before = params
        gradients.append(jax.grad(case.objective.bind(case.batch))(params))
        params, state, _ = step(params, state, case.batch)
    weights = (momentum or 0.0) ** np.arange(3.0)[::-1]
    mean = np.average([_flat(g) for g in gradients], axis=0, weights=weights)
    metric = _dense_metric(params, gradients, 0.8)
    expected = -np.linalg.solve(dense_gauss_newton(case._replace(params=before)) + LAMBDA * metric, mean)
    assert relative_error(_flat(params) - _flat(before), expected) < 1e-6
    assert state.info.cg_steps > 0


def test_few_iterations_solve_a_linear_layer_with_squared_loss():
    """G = A ⊗ I there, and so are the gradients' factors: the preconditioner is exact up to the noise of both."""
    rng = np.random.default_rng(0)
    n, k, count = 12, 30, 200
    x = rng.normal(size=(count, n)) @ np.diag(np.logspace(0, -1.5, n)) @ np.linalg.qr(rng.normal(size=(n, n)))[0]
    objective = hfopt.Objective(lambda p, x: x @ p, optax.squared_error)
    tx = _solving(
        hfopt.kronecker(decay=0.95, every=20, probes=count),
        damping=1e-6,
        solver=hfopt.cg(50, hfopt.relative_residual(1e-2)),
    )
    params = jnp.zeros((n, k))
    state, steps = tx.init(params), []
    update = jax.jit(lambda params, state, batch: train_step(tx, objective, params, state, batch)[1])
    for _ in range(79):  # targets anew every time, so that the gradients' own moments are those of the inputs
        state = update(params, state, (jnp.asarray(x), jnp.asarray(rng.normal(size=(count, k)))))
        steps.append(int(state.info.cg_steps))
    assert 1 <= min(steps[-5:]) <= max(steps[-5:]) <= 3


class _Embedded(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, param_dtype=float)(nn.tanh(nn.Embed(6, 4, param_dtype=float)(x)).mean(axis=1))


class _Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, param_dtype=float)(x, x).mean(axis=1)


class _Gated(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.GRUCell(3, param_dtype=float))(x)[:, -1]


class _Convolution(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(3, (2, 2), param_dtype=float)(x))
        return nn.Dense(3, param_dtype=float)(x.mean(axis=(1, 2)))


def _model(module, inputs, scale=3.0):
    params = module.init(jax.random.key(0), inputs)
    params = jax.tree.map(lambda p: scale * p, params)
    labels = jax.random.randint(jax.random.key(1), inputs.shape[:1], 0, 3)
    return Case(module.apply, optax.losses.softmax_cross_entropy_with_integer_labels, params, (inputs, labels))


MODELS = {
    "convolution": lambda: _model(_Convolution(), jax.random.normal(jax.random.key(2), (6, 3, 3, 2))),
    "embedding": lambda: _model(_Embedded(), jax.random.randint(jax.random.key(2), (6, 4), 0, 6)),
    "attention": lambda: _model(_Attention(), jax.random.normal(jax.random.key(2), (6, 3, 4))),
    "GRU": lambda: _model(_Gated(), jax.random.normal(jax.random.key(2), (6, 3, 2))),
}


@pytest.mark.parametrize("name", MODELS)
def test_probes_estimate_the_diagonal_of_the_curvature_in_the_basis(name):
    case = MODELS[name]()
    metric, value_fn = hfopt.kronecker(decay=0.0, every=1, probes=1), case.objective.bind(case.batch)
    state = metric.init(case.params, momentum=False, curved=True)
    gradient = jax.grad(value_fn)(case.params)
    for _ in range(2):  # after the second, the bases are no longer those of the arrays
        geometry = metric.geometry(state, gradient, None, value_fn, case.params)
        state = geometry.state

    def estimate(seed):
        seeded = replace(geometry, state=geometry.state._replace(seen=seed))
        return seeded.curved(hfopt.gauss_newton(value_fn, case.params), value_fn, case.params).state.curvature

    draws = jax.jit(lambda seeds: jax.lax.map(estimate, seeds))(jnp.arange(2, 402, dtype=jnp.int32))
    blocks, G, size = geometry.blocks, dense_gauss_newton(case), len(_flat(case.params))
    _, unravel = ravel_pytree(case.params)
    # Every parameter's unit vector in the coordinates of the bases, stack by stack: the rows of Qᵀ.
    rotated = jax.vmap(lambda v: _in_bases(geometry.state.bases, blocks.split(unravel(v))))(jnp.eye(size))
    for stack, samples in zip(rotated, draws, strict=True):
        Q = np.asarray(stack).reshape(size, -1)
        exact = np.einsum("ij,ik,kj->j", Q, G, Q)
        samples = np.asarray(samples).reshape(len(samples), -1)
        error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
        off = np.abs(samples.mean(axis=0) - exact) / np.maximum(error, 1e-12 * exact.max())
        off = off[exact > 1e-9 * exact.max()]  # attention's key bias has no curvature, and no error but rounding
        assert np.mean(off < 2.5) > 0.85
        assert np.max(off, initial=0) < 6


def _in_bases(bases, stacks):
    """Qᵀ x, written out."""
    found = []
    for basis, x in zip(bases, stacks, strict=True):
        left = jnp.eye(x.shape[1])[None] if isinstance(basis.left, tuple) else basis.left
        right = jnp.eye(x.shape[2])[None] if isinstance(basis.right, tuple) else basis.right
        found.append(jnp.einsum("bij,bik,bkl->bjl", left, x, right))
    return found


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dead_parameters_and_gradients_that_are_not_finite_leave_a_sound_step(dtype):
    x = jax.random.normal(jax.random.key(0), (20, 4), dtype)
    objective = hfopt.Objective(lambda p, x: x @ p["w"] + 0 * p["dead"].sum(), optax.squared_error)
    params = {"w": jnp.ones((4, 3), dtype), "dead": jnp.ones((5, 6), dtype)}
    for k in (0, 2):
        tx = _solving(hfopt.kronecker(), 0.5, damping=10.0, solver=hfopt.cg(k, stop=()))
        now, state = params, tx.init(params)
        update = jax.jit(partial(train_step, tx, objective))
        for i in range(4):
            targets = jnp.full((20, 3), jnp.nan if i == 2 else 0.0, dtype)
            before = now
            now, state, _ = update(now, state, (x, targets))
            assert bool((now["w"] == before["w"]).all()) == (i == 2)  # the bad step is rejected, the others are taken
        assert jax.tree.all(jax.tree.map(lambda p: bool(jnp.isfinite(p).all()), (now, state.metric)))
        np.testing.assert_array_equal(now["dead"].astype(float), 1)
        assert float(jnp.abs(now["w"]).astype(float).max()) < 1.1


def test_a_direction_that_is_not_finite_is_zero_and_says_so():
    tx = hfopt.scale_by_gauss_newton(solver=hfopt.cg(max_steps=0), metric=hfopt.kronecker(), momentum=0.5)
    params = jnp.ones((2, 3))
    value_fn = hfopt.Objective(lambda p, x: x @ p, optax.squared_error).bind((jnp.eye(2), jnp.zeros((2, 3))))
    update = jax.jit(lambda g, state: tx.update(g, state, params, value_fn=value_fn))
    direction, state = update(params, tx.init(params))
    assert (hfopt.Stop(int(state.info.cg_stop)), bool(jnp.isfinite(direction).all())) == (hfopt.Stop.NONE, True)
    after, state = update(params.at[0, 0].set(jnp.nan), state)
    np.testing.assert_allclose(after, direction)  # of the sound gradients alone
    first, state = update(params.at[0, 0].set(jnp.nan), tx.init(params))
    assert hfopt.Stop(int(state.info.cg_stop)) == hfopt.Stop.NONFINITE
    np.testing.assert_array_equal(first, 0)


def test_one_gradient_whose_square_overflows_moves_nothing_later():
    geometry, state = _geometries([1.0, 1e30, 1.0, 1.0])
    assert float(jnp.abs(geometry.scaled(jnp.float32(100.0)).solution).max()) < 0.1
    assert int(state.seen) == 3


@pytest.mark.parametrize("unit", [1e-14, 1e17])
def test_the_unit_of_the_objective_cancels(unit):
    plain, scaled = (_geometries([u, 2 * u, -u])[0].scaled(jnp.float32(100.0)).solution for u in (1.0, unit))
    np.testing.assert_allclose(scaled, plain, rtol=1e-4)


def _geometries(sizes):
    """After float32 gradients of these sizes."""
    metric, params = hfopt.kronecker(), jnp.ones((3, 2), jnp.float32)
    state = metric.init(params, momentum=True, curved=False)
    for i, size in enumerate(sizes):
        gradient = jnp.float32(size) * jax.random.normal(jax.random.key(i), (3, 2), jnp.float32)
        geometry = metric.geometry(state, gradient, 0.5, None, params)
        state = geometry.state
    return geometry, state


def test_sides_that_are_too_long_are_not_rotated_and_keep_nothing():
    params = {"vocabulary": jnp.zeros((600, 8)), "wide": jnp.zeros((700, 700)), "bias": jnp.zeros(9)}
    state = hfopt.kronecker().init(params, momentum=False, curved=False)
    kept = sum(leaf.size for leaf in jax.tree.leaves((state.factors, state.bases)))
    assert kept == 2 * 8 * 8
    assert sum(leaf.size for leaf in jax.tree.leaves(state.moment)) == 600 * 8 + 700 * 700 + 9
    assert state.curvature == state.average == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hfopt.kronecker(decay=1.0), r"`decay` must lie in \[0, 1\), got 1\.0"),
        (lambda: hfopt.kronecker(longest=0), "`longest` must be a positive integer, got 0"),
        (lambda: hfopt.kronecker(every=1.5), "`every` must be a positive integer, got 1.5"),
        (lambda: hfopt.hessian_free(momentum=1.0), r"`momentum` must lie in \[0, 1\) or be None, got 1\.0"),
        (
            lambda: hfopt.hessian_free(solver=hfopt.cg(max_steps=0), damping=hfopt.calibrated_damping()),
            "calibrated_damping looks for the λ of a linear system",
        ),
        (
            lambda: hfopt.hessian_free(solver=hfopt.cg(max_steps=0), metric=hfopt.structural(lambda z: z)),
            "Structural has no cheap inverse; take hfopt.kronecker",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
