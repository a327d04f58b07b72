"""Preconditioners against dense formulas, loops over examples, and Martens' reference in NumPy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.solve.nystrom import Nystrom
from hfopt.solve.preconditioners import Jacobi, Preconditioner, SquaredGradients
from tests.cases import CASES, Case, dense_gauss_newton, relative_error, slowly
from tests.conformance import martens_numpy
from tests.conformance.models_numpy import LOSSES, autoencoder, example_gradients
from tests.curvature.test_diagonal import penalties, squares_by_a_loop

CHOICES: dict[str, Preconditioner] = {
    "squared-gradients": SquaredGradients(),
    "squared-gradients-1": SquaredGradients(power=1.0, every=3),
    "jacobi": Jacobi(),
    "jacobi-averaged": Jacobi(probes=2, power=0.5, decay=0.9, every=2),
    "nystrom": Nystrom(rank=4),
    "nystrom-full": Nystrom(rank=10_000, every=1),
}
DAMPING = 0.05


class Built(NamedTuple):
    case: Case
    operator: hfopt.Operator
    value_fn: hfopt.ValueFn
    state: Any
    inverse: Any


def _build(choice: Preconditioner, case: Case, damping: float = DAMPING, **bind: Any) -> Built:
    value_fn = case.objective.bind(case.batch, **bind)
    operator = hfopt.gauss_newton(value_fn, case.params)
    state = jax.jit(lambda p, f: choice.update(choice.init(p), hfopt.gauss_newton(f, p), f, p))(case.params, value_fn)
    return Built(case, operator, value_fn, state, choice.inverse(state, jnp.asarray(damping)))


def _dense(inverse: Any, params: Any) -> np.ndarray:
    flat, unravel = ravel_pytree(params)
    columns = jax.jit(jax.vmap(lambda v: ravel_pytree(inverse(unravel(v)))[0]))(jnp.eye(flat.size, dtype=flat.dtype))
    return np.asarray(columns).T


@pytest.mark.parametrize("name", ["mlp-huber", "two-heads"])
@pytest.mark.parametrize("power", [0.75, slowly(1.0)])
def test_the_inverse_of_squared_gradients_is_the_formula(name, power):
    case = CASES[name]()
    inverse = _dense(_build(SquaredGradients(power), case).inverse, case.params)
    expected = (squares_by_a_loop(case) + DAMPING + penalties(case)) ** -power
    np.testing.assert_allclose(inverse, np.diag(expected), rtol=1e-12, atol=0)


def test_squared_gradients_are_over_the_gradient_batch():
    case = CASES["mlp-squared"]()
    other = jax.tree.map(lambda x: x[:2] + 1, case.batch)
    built = _build(SquaredGradients(), case, curvature_batch=other)
    np.testing.assert_array_equal(
        *(ravel_pytree(b.state.diagonal)[0] for b in (built, _build(SquaredGradients(), case)))
    )


def test_squared_gradients_are_those_of_martens():
    rng = np.random.default_rng(0)
    model, loss = autoencoder((4, 5, 3)), LOSSES["sigmoid"]
    theta, x, y = rng.normal(size=model_size(model)), rng.normal(size=(9, 4)), rng.uniform(size=(9, 3))
    expected = martens_numpy.preconditioner(
        example_gradients(model.forward, model.jacobian, loss, theta, x, y), DAMPING, 0.01
    )
    sizes = [int(np.prod(shape)) for shape in model.shapes]
    pieces = np.split(theta, np.cumsum(sizes)[:-1])
    params = [jnp.asarray(piece.reshape(shape)) for piece, shape in zip(pieces, model.shapes, strict=True)]

    def predict(params, x):
        kernels, biases = params[::2], params[1::2]
        for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
            x = jax.nn.sigmoid(x @ kernel + bias[None, :])
        return x @ kernels[-1] + biases[-1][None, :]

    np.testing.assert_allclose(predict(params, x), model.forward(theta, x), rtol=1e-12)  # the same model
    total = lambda z, y: optax.sigmoid_binary_cross_entropy(z, y).sum(axis=-1)  # noqa: E731
    case = Case(predict, total, params, (jnp.asarray(x), jnp.asarray(y)), l2=0.01)
    inverse = _build(SquaredGradients(), case).inverse(optax.tree.ones_like(params))
    np.testing.assert_allclose(1 / ravel_pytree(inverse)[0], expected, rtol=1e-12)


def model_size(model):
    return sum(int(np.prod(shape)) for shape in model.shapes)


def test_jacobi_averages_over_refreshes():
    case = CASES["mlp-squared"]()
    choice, fresh = Jacobi(decay=0.75), Jacobi()
    value_fn = case.objective.bind(case.batch)
    average, single = (jax.jit(lambda s, c=c: c.update(s, None, value_fn, case.params)) for c in (choice, fresh))
    states, singles = [choice.init(case.params)], []
    for age in range(3):
        singles.append(single(states[0]._replace(age=jnp.int32(age))).diagonal)
        states.append(average(states[-1]))
    first, second, third = (ravel_pytree(diagonal)[0] for diagonal in singles)
    expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    np.testing.assert_allclose(ravel_pytree(states[-1].diagonal)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["mlp-squared", "two-heads"])
def test_nystrom_is_the_dense_formula(name):
    case = CASES[name]()
    built = _build(Nystrom(rank=6), case)
    u, s = np.asarray(built.state.vectors), np.asarray(built.state.values)
    np.testing.assert_allclose(u.T @ u, np.eye(6), atol=1e-12)
    eye = np.eye(len(u))
    expected = (s[-1] + DAMPING) * u @ np.diag(1 / (s + DAMPING)) @ u.T + eye - u @ u.T
    np.testing.assert_allclose(_dense(built.inverse, case.params), expected, atol=1e-12)
    # A Nyström approximation lies below A, and its eigenvalues below A's.
    dense = np.asarray(dense_gauss_newton(case))
    assert np.linalg.eigvalsh(dense - u @ np.diag(s) @ u.T).min() > -1e-10
    assert np.all(s <= np.sort(np.linalg.eigvalsh(dense))[::-1][:6] + 1e-10)


def test_nystrom_of_full_rank_is_the_matrix():
    case = CASES["mlp-squared"]()
    built = _build(Nystrom(rank=10_000), case)
    u, s = built.state.vectors, built.state.values
    np.testing.assert_allclose((u * s[None, :]) @ u.T, dense_gauss_newton(case), atol=1e-10)
    rhs = optax.tree.ones_like(case.params)
    result = hfopt.cg(10, hfopt.relative_residual(1e-8)).solve(
        built.operator, rhs, damping=DAMPING, preconditioner=built.inverse
    )
    assert result.steps <= 2


@pytest.mark.parametrize("choice", CHOICES)
def test_inverses_are_symmetric_positive_definite(choice):
    case = CASES["two-heads"]()
    inverse = _dense(_build(CHOICES[choice], case).inverse, case.params)
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-12 * np.abs(inverse).max())
    assert np.linalg.eigvalsh(0.5 * (inverse + inverse.T)).min() > 0


@pytest.mark.parametrize("choice", CHOICES)
def test_cg_with_each_reaches_the_dense_solution(choice):
    case = CASES["mlp-huber"]()
    built = _build(CHOICES[choice], case)
    flat, unravel = ravel_pytree(case.params)
    rhs = jax.random.normal(jax.random.key(3), flat.shape)
    solution = (
        hfopt.cg(300, hfopt.relative_residual(1e-12))
        .solve(built.operator, unravel(rhs), damping=DAMPING, preconditioner=built.inverse)
        .solution
    )
    expected = jnp.linalg.solve(dense_gauss_newton(case) + DAMPING * jnp.eye(flat.size), rhs)
    assert relative_error(solution, expected) < 1e-8


@pytest.mark.parametrize("choice", ["squared-gradients", "jacobi", "nystrom"])
def test_ill_conditioned_regression_needs_at_most_half_the_iterations(choice):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 20)) * np.geomspace(1e-2, 1e2, 20)
    value_fn = hfopt.Objective(lambda p, x: x @ p, optax.l2_loss).bind((inputs, inputs @ rng.normal(size=20)))
    params = jnp.zeros(20)
    operator, rhs = hfopt.gauss_newton(value_fn, params), -jax.grad(value_fn)(params)
    chosen = {"squared-gradients": SquaredGradients(1.0), "jacobi": Jacobi(), "nystrom": Nystrom(rank=16)}[choice]
    inverse = chosen.inverse(chosen.update(chosen.init(params), operator, value_fn, params), 1e-4)
    solver = hfopt.cg(2000, hfopt.relative_residual(1e-8))
    steps = [solver.solve(operator, rhs, damping=1e-4, preconditioner=m).steps for m in (None, inverse)]
    assert steps[0] >= 2 * steps[1]


def test_what_an_update_spends_is_counted_and_refreshes_are_every_k_steps():
    case = CASES["mlp-squared"]()
    value_fn = case.objective.bind(case.batch)
    for choice, price in ((Nystrom(4, every=3), 4), (SquaredGradients(every=3), 1), (Jacobi(every=3), 1)):

        def step(state, _, choice=choice):
            state = choice.update(state, hfopt.gauss_newton(value_fn, case.params), value_fn, case.params)
            return state, state.setup_products

        _, spent = jax.jit(lambda s, step=step: jax.lax.scan(step, s, length=7))(choice.init(case.params))
        np.testing.assert_array_equal(spent, [price, 0, 0, price, 0, 0, price])


def test_nystrom_spends_its_rank_in_products():
    calls = []

    def product(v):
        jax.debug.callback(lambda: calls.append(None))
        return 2.0 * v

    example = jnp.zeros(12)
    choice = Nystrom(rank=5)
    operator = hfopt.Operator(product, lambda v: v @ product(v), jax.ShapeDtypeStruct((12,), example.dtype))
    state = jax.block_until_ready(choice.update(choice.init(example), operator, None, example))
    jax.effects_barrier()
    assert len(calls) == state.setup_products == 5


@pytest.mark.parametrize("choice", CHOICES)
def test_steps_in_a_scan_are_jitted_steps_and_states_may_be_donated(choice):
    chosen, case = CHOICES[choice], CASES["mlp-squared"]()
    value_fn = case.objective.bind(case.batch)

    def step(state, _=None):
        return chosen.update(state, hfopt.gauss_newton(value_fn, case.params), value_fn, case.params), None

    scanned = jax.jit(lambda s: jax.lax.scan(step, s, length=4)[0])(chosen.init(case.params))
    state, jitted = chosen.init(case.params), jax.jit(lambda s: step(s)[0], donate_argnums=0)
    for _ in range(4):
        state = jitted(state)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, rtol=1e-12, atol=1e-12), state, scanned))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_dead_parameters_and_zero_curvature_leave_the_inverse_finite_without_damping(choice, scale):
    params = {"used": jnp.ones((4, 3)), "dead": jnp.ones(2)}
    predict = lambda p, x: scale * (x @ p["used"]) + 0 * p["dead"].sum()  # noqa: E731
    case = Case(predict, optax.squared_error, params, (jnp.linspace(-1, 1, 28).reshape(7, 4), jnp.zeros((7, 3))))
    inverse = _dense(_build(CHOICES[choice], case, damping=0.0).inverse, params)
    assert np.isfinite(inverse).all()
    assert np.linalg.eigvalsh(0.5 * (inverse + inverse.T)).min() > 0


@pytest.mark.parametrize("choice", CHOICES)
def test_the_initial_state_is_a_multiple_of_the_identity(choice):
    params = CASES["mlp-squared"]().params
    inverse = _dense(CHOICES[choice].inverse(CHOICES[choice].init(params), 0.3), params)
    np.testing.assert_allclose(inverse, inverse[0, 0] * np.eye(len(inverse)), atol=1e-14)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_batch_with_nan_leaves_no_trace(choice):
    chosen, case = CHOICES[choice], CASES["mlp-squared"]()

    @jax.jit
    def step(state, batch):
        value_fn = case.objective.bind(batch)
        return chosen.update(state, hfopt.gauss_newton(value_fn, case.params), value_fn, case.params)

    bad = jax.tree.map(lambda x: x.at[0].set(jnp.nan), case.batch)
    start = chosen.init(case.params)
    once, after = step(start, case.batch), step(step(start, bad), case.batch)
    jax.tree.map(np.testing.assert_array_equal, after, once)


@pytest.mark.float32
@pytest.mark.parametrize("choice", CHOICES)
def test_low_precision_parameters_keep_their_dtypes(choice):
    params = {"a": jnp.ones((4, 3), jnp.bfloat16), "b": jnp.ones(3)}
    predict = lambda p, x: (x @ p["a"]).astype(jnp.float32) + p["b"]  # noqa: E731
    batch = (jax.random.normal(jax.random.key(0), (8, 4), jnp.bfloat16), jnp.zeros((8, 3)))
    built = _build(CHOICES[choice], Case(predict, optax.squared_error, params, batch))
    result = built.inverse(params)
    assert jax.tree.map(lambda x: x.dtype, result) == jax.tree.map(lambda x: x.dtype, params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


@pytest.mark.slow
@pytest.mark.float32
def test_nystrom_survives_float32():
    """Rank-deficient and with a condition number beyond float32: a Cholesky factor of the core would break down."""
    spectrum = jnp.geomspace(1e6, 1e-6, 40) * (jnp.arange(40) < 25)
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (40, 40)))[0]
    product = lambda v: basis @ (spectrum * (basis.T @ v))  # noqa: E731
    operator = hfopt.Operator(product, lambda v: v @ product(v), jax.ShapeDtypeStruct((40,), jnp.float32))
    choice, rhs = Nystrom(rank=32), jnp.ones(40)
    inverse = choice.inverse(choice.update(choice.init(rhs), operator, None, rhs), 1.0)
    solver = hfopt.cg(500, hfopt.relative_residual(1e-4))
    plain, preconditioned = (solver.solve(operator, rhs, damping=1.0, preconditioner=m) for m in (None, inverse))
    assert preconditioned.stop == hfopt.Stop.RESIDUAL
    assert 2 * preconditioned.steps <= plain.steps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SquaredGradients(power=1.5), r"squared_gradients: `power` must be in \[0, 1\], got 1.5"),
        (lambda: SquaredGradients(every=0), "squared_gradients: `every` must be a positive integer, got 0"),
        (lambda: Jacobi(probes=-1), "jacobi: `probes` must be a positive integer, got -1"),
        (lambda: Jacobi(decay=1.0), r"jacobi: `decay` must be in \[0, 1\), got 1.0"),
        (lambda: Jacobi(power=float("nan")), "jacobi: `power` must be"),
        (lambda: Jacobi(every=2.0), "jacobi: `every` must be a positive integer, got 2.0"),
        (lambda: Nystrom(rank=0), "nystrom: `rank` must be a positive integer, got 0"),
        (lambda: Nystrom(every=True), "nystrom: `every` must be a positive integer, got True"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
