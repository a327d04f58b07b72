"""Eigenpairs, densities and what is made of them, against SciPy, closed forms and random matrix theory."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt import Operator, spectra
from hfopt.analysis import krylov
from hfopt.curvature import estimators, flat
from tests.cases import CASES, dense_hessian, slowly

KEY = jax.random.key(0)


def symmetric(rng: np.random.Generator, size: int) -> np.ndarray:
    a = rng.normal(size=(size, size))
    return (a + a.T) / 2


def with_eigenvalues(values: np.ndarray) -> np.ndarray:
    q = np.linalg.qr(np.random.default_rng(3).normal(size=(len(values), len(values))))[0]
    return (q * values) @ q.T


KINDS = ["full", "low rank", "clustered", "graded", "positive"]


@pytest.mark.parametrize("kind", ["full", *map(slowly, KINDS[1:])])
def test_extreme_eigenvalues_are_those_of_scipy_on_two_hundred_operators(kind):
    """By ``eigsh``, or ``eigh`` where that may fail: with low rank or eigenvalues that are there several times."""
    rng = np.random.default_rng(KINDS.index(kind))
    for i in range(40):
        size, largest, smallest = ((30, 1, 2), (90, 4, 0), (200, 3, 3))[i % 3]
        a = symmetric(rng, size)
        match kind:
            case "low rank":
                u = rng.normal(size=(size, 6))
                a = u @ np.diag([5, 4, 3, -1, -2, -3]) @ u.T / size
            case "clustered":
                a = with_eigenvalues(np.r_[np.repeat(rng.normal(size=4), size // 5), rng.normal(size=size)][:size])
            case "graded":
                a = with_eigenvalues(rng.choice([-1, 1], size) * 0.8 ** np.arange(size))
            case "positive":
                a = a @ a / size
        pairs = spectra.eigenpairs(Operator.of_matrix(a), jax.random.key(i), largest=largest, smallest=smallest)
        expected = [
            ends if kind in ("low rank", "clustered") else np.sort(scipy.sparse.linalg.eigsh(a, k, which=which)[0])
            for k, which, ends in (
                (smallest, "SA", np.linalg.eigvalsh(a)[:smallest]),
                (largest, "LA", np.linalg.eigvalsh(a)[size - largest :]),
            )
            if k
        ]
        np.testing.assert_allclose(pairs.values, np.concatenate(expected), atol=1e-8 * np.abs(a).max())
        assert pairs.converged.all()
        vectors = np.asarray(pairs.vectors)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-8)
        residuals = np.linalg.norm(vectors @ a - np.asarray(pairs.values)[:, None] * vectors, axis=1)
        np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    ("matrix", "values"),
    [
        (np.zeros((40, 40)), [0, 0, 0, 0, 0]),
        (np.eye(40), [1, 1, 1, 1, 1]),
        (np.full((40, 40), 0.5), [0, 0, 0, 0, 20]),
        (-np.full((40, 40), 0.5), [-20, 0, 0, 0, 0]),
        (np.diag([3.0, *[1] * 39]), [1, 1, 1, 1, 3]),
    ],
    ids=["zero", "identity", "rank one", "negative rank one", "identity and a spike"],
)
def test_degenerate_operators_have_finite_right_answers(matrix, values, dtype):
    operator, eps = Operator.of_matrix(jnp.asarray(matrix, dtype)), float(jnp.finfo(dtype).eps)
    pairs = spectra.eigenpairs(operator, KEY, largest=3, smallest=2)
    np.testing.assert_allclose(pairs.values, values, atol=100 * eps * max(1, np.abs(values).max()))
    assert pairs.converged.all()
    assert jnp.isfinite(ravel_pytree(pairs.vectors)[0]).all()
    krylov = spectra.lanczos(operator, KEY, 10)
    np.testing.assert_allclose(krylov.basis @ krylov.basis.T, np.eye(11), atol=100 * eps)
    density = spectra.density(operator, KEY, probes=3, depth=10)
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=100 * eps)
    trace = (density.weights * density.nodes).sum() / 3 * 40
    if np.ptp(values) == 0:
        np.testing.assert_allclose(trace, np.trace(matrix), atol=1e4 * eps)
    value, residual = spectra.sharpness(operator, KEY, steps=5)
    np.testing.assert_allclose(value, values[-1], atol=1e3 * eps * max(1, np.abs(values).max()))
    assert float(residual) < 1e3 * eps * max(1, np.abs(values).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_from_an_eigenvector_lanczos_goes_on_in_the_rest_of_the_space(dtype):
    values = np.linspace(1, 4, 12)
    start = jnp.eye(12, dtype=dtype)[3]
    krylov = spectra.lanczos(Operator.of_matrix(jnp.asarray(np.diag(values), dtype)), KEY, 12, start)
    eps = float(jnp.finfo(dtype).eps)
    assert krylov.projected[0, 0] == jnp.asarray(values[3], dtype)
    assert krylov.projected[1, 0] == 0
    np.testing.assert_allclose(np.linalg.eigvalsh(krylov.projected[:12]), values, atol=100 * eps)
    np.testing.assert_array_equal(krylov.basis[12], np.zeros(12))  # nothing is left


def test_repeated_eigenvalues_are_found_as_often_as_they_are_there():
    values = np.r_[np.linspace(0, 1, 185), np.repeat([3.0, 4.0, 5.0], 5)]
    pairs = spectra.eigenpairs(Operator.of_matrix(with_eigenvalues(values)), KEY, largest=12)
    np.testing.assert_allclose(pairs.values, values[-12:], atol=1e-9)


def test_softmax_regression_at_zero_has_the_spectrum_of_the_inputs_repeated():
    """B = (I − 11ᵀ/K) / K there: every eigenvalue of XᵀX/N, over K, is there K − 1 times, and zero as often as X has
    columns."""
    inputs, classes = jax.random.normal(KEY, (30, 6)), 4
    objective = hfopt.Objective(lambda w, x: x @ w, optax.losses.softmax_cross_entropy_with_integer_labels)
    value_fn = objective.bind((inputs, jnp.arange(30) % classes), chunk_size=7)
    once = np.linalg.eigvalsh(inputs.T @ inputs / 30) / classes
    expected = np.r_[np.zeros(6), np.repeat(once, classes - 1)]
    for operator in (hfopt.hessian, hfopt.gauss_newton):
        matrix = operator(value_fn, jnp.zeros((6, classes)))
        np.testing.assert_allclose(spectra.decompose(matrix).values, expected, atol=1e-8)
        np.testing.assert_allclose(spectra.eigenpairs(matrix, KEY, largest=7).values, expected[-7:], atol=1e-8)


@pytest.fixture(scope="module")
def wishart() -> list[jax.Array]:
    """X with XᵀX/n of population eigenvalues 5, 4, 3 and then ones, n = 2000 samples of as many variables."""
    rng = np.random.default_rng(0)
    scale = np.sqrt(np.r_[5, 4, 3, np.ones(1997)])
    return [rng.normal(size=(2000, 2000)) * scale for _ in range(8)]


def test_spikes_of_a_wishart_matrix_stand_where_theory_puts_them(wishart):
    """A spike ℓ > 1 + √γ is seen at ℓ + γ ℓ / (ℓ − 1), and the bulk ends at (1 + √γ)²; γ = 1 here (Baik & Silverstein,
    2006). One draw varies by 2 % or so, the mean of eight by less than 1 %."""
    found = []
    for x in wishart:
        x = np.asarray(x, np.float32)
        operator = Operator.of_matrix(x.T @ x / np.float32(2000))
        found.append(spectra.eigenpairs(operator, KEY, largest=4, tolerance=1e-4).values)
    np.testing.assert_allclose(np.mean(found, axis=0), [4, 4.5, 16 / 3, 6.25], rtol=0.02)


def test_density_of_a_wishart_matrix_is_that_of_all_its_eigenvalues(wishart):
    matrix = wishart[0].T @ wishart[0] / 2000
    density = spectra.density(Operator.of_matrix(matrix), KEY, probes=10, depth=20)
    grid, width = np.linspace(-2, 8.5, 2000), float(density.width)
    bells = np.exp(-((grid[:, None] - np.linalg.eigvalsh(matrix)) ** 2) / (2 * width**2))
    exact = bells.mean(axis=1) / (width * np.sqrt(2 * np.pi))
    assert width < 0.16
    np.testing.assert_allclose(np.trapezoid(exact, grid), 1, atol=1e-3)
    assert np.trapezoid(np.abs(density.evaluate(grid) - exact), grid) < 0.06
    np.testing.assert_allclose(density.below(1.0), np.mean(np.linalg.eigvalsh(matrix) <= 1), atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-heads", "mlp-softmax-integer", "cnn-softmax-integer"])
def test_the_whole_decomposition_of_a_network_gives_its_hessian_back(name):
    case = CASES[name]()
    pairs = spectra.decompose(hfopt.hessian(case.objective.bind(case.batch), case.params))
    expected = dense_hessian(case)
    q = jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors).T
    np.testing.assert_allclose(q @ np.diag(pairs.values) @ q.T, expected, atol=1e-12)
    np.testing.assert_allclose(q.T @ q, np.eye(len(q)), atol=1e-12)
    assert pairs.converged.all()
    x = ravel_pytree(case.params)[0]
    contributions = spectra.contributions(pairs, case.params)
    np.testing.assert_allclose(contributions, (q.T @ x) ** 2 * pairs.values, atol=1e-12)
    np.testing.assert_allclose(contributions.sum(), x @ expected @ x, rtol=1e-10)


def test_sharpness_is_jitted_with_the_training_step():
    case = CASES["mlp-softmax-integer"]()
    value_fn = case.objective.bind(case.batch)
    run = jax.jit(lambda params, f: spectra.sharpness(hfopt.hessian(f, params), KEY, 20))
    value, residual = run(case.params, value_fn)
    np.testing.assert_allclose(value, np.linalg.eigvalsh(dense_hessian(case)).max(), rtol=1e-8)
    assert residual < 1e-4


def test_what_stops_early_says_so():
    matrix = np.diag(np.linspace(0, 1, 400))
    pairs = spectra.eigenpairs(Operator.of_matrix(matrix), KEY, largest=3, max_products=20, basis=10)
    assert not pairs.converged.all()
    assert pairs.products <= 20 + 10
    nearest = np.abs(np.asarray(pairs.values)[:, None] - np.diag(matrix)).min(axis=1)
    assert (nearest <= pairs.residuals).all()


def test_what_is_compiled_for_an_operator_keeps_none_of_its_data():
    case = CASES["mlp-softmax-integer"]()
    large = jnp.zeros((7, 1234))
    objective = hfopt.Objective(lambda p, x: case.predict(p, x[0]) + 0 * x[1][:, :3], case.loss)
    alive = lambda: sum(x.shape == large.shape for x in jax.live_arrays())  # noqa: E731
    before = alive()
    value_fn = objective.bind(((case.batch[0], large + 1), case.batch[1]), chunk_size=1, memory="recompute")
    spectra.sharpness(hfopt.hessian(value_fn, case.params), KEY, 3)
    del value_fn
    gc.collect()
    assert alive() == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: spectra.eigenpairs(a, KEY), ValueError, "at least one pair"),
        (lambda a: spectra.eigenpairs(a, KEY, largest=4, basis=5), ValueError, "`basis` must be at least 6"),
        (lambda a: spectra.density(a, KEY, probes=0), ValueError, "at least 1, got 0 and 20"),
        (lambda a: spectra.lanczos(a, KEY, 0), ValueError, "at least 1, got 0"),
        (lambda a: spectra.eigenpairs(np.nan * a, KEY, largest=1), FloatingPointError, "is not finite"),
        (lambda a: spectra.decompose(Operator.of(lambda v: v, jnp.zeros(10_001))), ValueError, "too many"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(Operator.of_matrix(np.eye(50)))


@pytest.mark.float32
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_eigenpairs_do_not_depend_on_the_unit(scale):
    """A rotated spectrum 1, 2, …, 80, in units whose squares float32 does not hold."""
    operator = Operator.of_matrix(np.asarray(scale * with_eigenvalues(np.arange(1, 81)), np.float32))
    pairs = spectra.eigenpairs(operator, jax.random.key(0), largest=2, smallest=1)
    np.testing.assert_allclose(np.asarray(pairs.values, np.float64) / scale, [1, 79, 80], rtol=1e-4)
    residuals = np.asarray(pairs.residuals, np.float64) / scale
    assert pairs.converged.all()
    assert (residuals > 1e-7).all()  # rounding leaves something, and zero would be no measurement
    assert (residuals < 1e-2).all()
    whole = spectra.decompose(operator)
    np.testing.assert_allclose(np.asarray(whole.values, np.float64) / scale, np.arange(1, 81), rtol=1e-3)
    assert float(spectra.sharpness(operator, jax.random.key(1), 40)[0]) / scale == pytest.approx(80, rel=1e-3)


def _at(seed: int, name: str = "mlp-softmax-integer"):
    """A Hessian at random parameters: with every seed another, of one shape."""
    case = CASES[name]()
    keys = iter(jax.random.split(jax.random.key(seed), 9))
    params = jax.tree.map(lambda p: p + jax.random.normal(next(keys), p.shape), case.params)
    return hfopt.hessian(case.objective.bind(case.batch), params)


@pytest.mark.parametrize(
    ("name", "program", "compute"),
    [
        ("eigenpairs", krylov.extend, lambda A: spectra.eigenpairs(A, KEY, largest=1, basis=10).values),
        ("decompose", flat.mapped, lambda A: spectra.decompose(A).values),
        ("trace", flat.diagonal_of_forms, lambda A: A.trace()),
        ("estimates", estimators._xtrace, lambda A: A.estimate_trace(KEY, 10).value),
    ],
)
def test_programs_are_compiled_once_for_a_shape(name, program, compute):
    values = [compute(_at(0))]
    compiled = program._cache_size()
    values += [compute(_at(1)), compute(_at(2))]
    assert program._cache_size() == compiled
    assert not np.allclose(values[0], values[1])
    np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(_at(2).to_dense())).sum(), _at(2).trace(), rtol=1e-9)


def test_programs_of_other_numbers_are_others():
    """Equal but for a number that is written into them, and for one that is a constant of an inner function."""
    scaled = lambda c: Operator.of(lambda v: c * v, jnp.ones(3))  # noqa: E731
    inner = lambda c: Operator.of(lambda v: jax.jit(lambda v: np.array([1.0, 1.0, c]) * v)(v), jnp.ones(3))  # noqa: E731
    for make in (scaled, inner):
        for c in (2.0, np.nextafter(2.0, 3.0), 5.0):
            assert make(c).to_dense()[2, 2] == c
            assert make(c).trace() == pytest.approx(3 * c if make is scaled else 2 + c, rel=1e-15)
    assert scaled(2.0).flat.product == scaled(2.0).flat.product
    assert scaled(2.0).flat.product != scaled(2.5).flat.product
