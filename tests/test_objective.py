"""The objective: values, gradients, chunks, weights, and the errors at the boundary."""

from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt
from hfopt.curvature.diagonal import squared_gradients
from tests.cases import CASES, Case, dense_value, relative_error, slowly

VALUE_CASES = ["mlp-huber", slowly("cnn-softmax-integer"), slowly("rnn-softmax-integer"), "two-heads"]


@pytest.fixture(params=VALUE_CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.mark.parametrize("chunk_size", [None, slowly(7), 3, slowly(1)])
def test_value_and_gradient_are_those_of_the_formula(case, chunk_size):
    value_fn = case.objective.bind(case.batch, chunk_size=chunk_size)
    value, gradient = jax.jit(jax.value_and_grad(value_fn))(case.params)
    expected, expected_gradient = jax.value_and_grad(partial(dense_value, case))(case.params)
    assert value == pytest.approx(float(expected), rel=1e-12)
    assert jax.jit(value_fn)(case.params) == pytest.approx(float(value), rel=1e-14)
    assert relative_error(gradient, expected_gradient) < 1e-11


def test_a_chunked_objective_differentiates_forwards_and_twice(case):
    flat, unravel = ravel_pytree(case.params)
    chunked = lambda t: case.objective.bind(case.batch, chunk_size=3)(unravel(t))  # noqa: E731
    whole = lambda t: dense_value(case, unravel(t))  # noqa: E731
    direction = jax.random.normal(jax.random.key(0), flat.shape)
    hessian_product = lambda f: jax.jvp(jax.grad(f), (flat,), (direction,))[1]  # noqa: E731
    assert jax.jvp(chunked, (flat,), (direction,))[1] == pytest.approx(float(jax.grad(whole)(flat) @ direction))
    assert relative_error(hessian_product(chunked), hessian_product(whole)) < 1e-10


def test_weights_of_zero_remove_examples_and_equal_weights_change_nothing():
    case = CASES["mlp-softmax-integer"]()
    value = lambda *batch: float(case.objective.bind(batch)(case.params))  # noqa: E731
    inputs, targets = case.batch
    assert value(inputs, targets, jnp.full(7, 3)) == pytest.approx(value(inputs, targets), rel=1e-14)
    kept = np.array([1, 1, 1, 1, 0, 0, 0], bool)
    assert value(inputs, targets, kept) == pytest.approx(value(inputs[:4], targets[:4]), rel=1e-14)


def test_a_mask_may_be_a_prefix_of_the_parameters():
    params = {"body": {"w": jnp.full(3, 2.0)}, "head": jnp.full(2, 5.0)}
    predict = lambda params, x: jnp.zeros_like(x)  # noqa: E731
    batch = (jnp.ones(4), jnp.zeros(4))
    objective = partial(hfopt.Objective, predict, optax.squared_error, 0.1)
    assert objective().bind(batch)(params) == pytest.approx(0.05 * (12 + 50))
    assert objective(l2_mask={"body": True, "head": False}).bind(batch)(params) == pytest.approx(0.05 * 12)


@pytest.mark.float32
def test_low_precision_losses_are_averaged_in_float32():
    predict = lambda params, x: x.astype(jnp.bfloat16) + params["b"].astype(jnp.bfloat16)  # noqa: E731
    batch = (jnp.ones(4000), jnp.zeros(4000, jnp.bfloat16))
    value = hfopt.Objective(predict, optax.squared_error).bind(batch)({"b": jnp.zeros(())})
    assert value.dtype == jnp.float32
    assert value == pytest.approx(1.0, rel=1e-5)


def test_a_new_batch_of_the_same_shapes_does_not_recompile():
    case = CASES["mlp-softmax-integer"]()
    traces = []

    @jax.jit
    def evaluate(params, value_fn):
        traces.append(None)
        return jax.value_and_grad(value_fn)(params)

    for scale in (1.0, 2.0, 3.0):
        inputs, targets = case.batch
        objective = hfopt.Objective(
            case.predict, case.loss, l2_mask={"params": True}
        )  # made anew: equal, not identical
        evaluate(case.params, objective.bind((scale * inputs, targets), chunk_size=3))
    assert len(traces) == 1
    assert evaluate._cache_size() == 1


@pytest.mark.float32
def test_precision_reaches_the_products():
    case = Case(lambda p, x: x @ p, optax.squared_error, jnp.ones((2, 2)), (jnp.ones((3, 2)), jnp.ones((3, 2))))
    for precision, expected in (("highest", 2), (None, 0)):
        value_fn = hfopt.Objective(case.predict, case.loss, precision=precision).bind(case.batch)
        program = str(jax.make_jaxpr(lambda v, f=value_fn: hfopt.gauss_newton(f, case.params) @ v)(case.params))
        assert program.count("Precision.HIGHEST") >= expected
        assert ("Precision.HIGHEST" in program) == (expected > 0)


X, Y = np.ones((4, 2)), np.zeros((4, 2))


def _rows(part):
    return None if part is None else len(part.inputs)


@pytest.mark.parametrize(
    ("targets", "part", "rows"),
    [
        (np.zeros(100, int), 0.25, 25),
        (np.zeros(30, int), 0.1, 3),
        (np.zeros(7, int), 0.25, 2),
        (np.zeros(3, int), 1.0, None),  # all of it is the batch itself, whose value is known
        (np.zeros(20, int), "auto", None),
        (np.zeros(400, int), "auto", 100),
        (np.zeros(64, int), "auto", 32),  # 16 images judge too noisily
        (np.zeros((32, 48), int), "auto", 8),  # 8 sequences of 48 tokens do not
        (np.zeros((8, 5), int), "auto", 7),
        (np.zeros((50, 3)), "auto", 32),
    ],
)
def test_a_share_of_the_batch_is_its_first_examples_and_judges_the_steps(targets, part, rows):
    inputs = np.arange(len(targets))
    value_fn = _bind((inputs, targets), curvature_batch=part)
    assert _rows(value_fn.curvature_batch) == _rows(value_fn.evaluation_batch) == rows
    np.testing.assert_array_equal(value_fn.averaged.inputs, inputs[:rows])
    assert (value_fn.judge is value_fn) == (rows is None)
    apart = _bind((inputs, targets), curvature_batch=part, evaluation_batch=1.0)
    assert _rows(apart.curvature_batch) == rows
    assert apart.judge is apart


def _bind(*args, predict=lambda p, x: x @ p, loss=optax.squared_error, **options):
    return hfopt.Objective(predict, loss).bind(*args, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _bind((X, Y[:3])), "disagree on the number of examples: inputs has 4, targets has 3"),
        (lambda: _bind(({"a": X, "b": X[:2]}, Y)), r"inputs\['a'\] has 4, inputs\['b'\] has 2"),
        (lambda: _bind((X, Y, np.ones(3))), "disagree on the number of examples: inputs has 4, weights has 3"),
        (lambda: _bind((X, Y, np.ones((4, 1)))), r"weights in `batch` must have shape \(N,\), got \(4, 1\)"),
        (lambda: _bind((X[:0], Y[:0])), r"`batch` is empty \(0 examples\)"),
        (lambda: _bind((X, Y), curvature_batch=(X[:0], Y[:0])), "`curvature_batch` is empty"),
        (lambda: _bind(X), r"must be \(inputs, targets\) or \(inputs, targets, weights\), got ndarray"),
        (lambda: _bind((X,)), "got a tuple of length 1"),
        (lambda: _bind((None, None)), "holds no arrays"),
        (lambda: _bind((X, 3.0)), "`targets` in `batch` is a scalar; every leaf needs a leading batch axis"),
        (lambda: _bind((X, Y), chunk_size=0), "`chunk_size` must be a positive integer or None, got 0"),
        (
            lambda: _bind((X, Y), memory="little"),
            r"`memory` must be one of \('auto', 'keep', 'recompute'\), got 'little'",
        ),
        (lambda: _bind((X, Y), loss=lambda z, y: jnp.mean(z))(jnp.ones((2, 2))), "`loss` returned a scalar; it must"),
        (lambda: _bind((X, Y), loss=lambda z, y: z.sum(0))(jnp.ones((2, 2))), r"returned shape \(2,\) for 4 examples"),
        (lambda: _bind((X, Y), loss=lambda z, y: (z > 0)[:, 0])(jnp.ones((2, 2))), "must return floating values"),
        (lambda: _bind((X, Y), curvature_batch=1.5), r"`curvature_batch` must be examples, a share in \(0, 1\]"),
        (lambda: _bind((X, Y), evaluation_batch="some"), r"`evaluation_batch` must be examples, .* got 'some'"),
        (
            lambda: _bind((X, Y, np.array([0.0, 1, 1, 1])), curvature_batch=0.25),
            r"weights in `curvature_batch \(the first 1 of batch\)` are all 0",
        ),
        (lambda: hfopt.Objective(lambda p, x: x, optax.l2_loss, l2=-1.0), "`l2` must be at least 0, got -1.0"),
    ],
)
def test_bad_input_gets_one_clear_message(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_not_callable_is_refused():
    with pytest.raises(TypeError, match="`loss` must be callable, got str"):
        hfopt.Objective(lambda p, x: x, "mse")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"l2": "0.1"}, TypeError, r"`l2` must be a number, got '0\.1'"),
        ({"l2": True}, TypeError, "`l2` must be a number, got True"),
        ({"l2": jnp.ones(3)}, ValueError, r"`l2` must be one real number, got shape \(3,\).*jax\.vmap"),
        ({"l2": jnp.asarray(-1.0)}, ValueError, "`l2` must be at least 0, got -1.0"),
        ({"l2_mask": {"w": "yes", "b": "no"}}, TypeError, r"True or False, l2_mask\['b'\] is 'no'"),
        ({"l2_mask": {"w": True, "b": 0}}, TypeError, r"True or False, l2_mask\['b'\] is 0"),
        ({"l2_mask": {"W": True}}, ValueError, r"`l2_mask` must be shaped like the parameters.*'b'.*'w'.*got.*'W'"),
        ({"l2_mask": lambda p: {"w": 1.0}}, TypeError, r"l2_mask\['w'\] is 1\.0"),
    ],
)
def test_penalties_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        hfopt.Objective(lambda p, x: x @ p["w"], optax.l2_loss, **({"l2": 1.0} | options)).bind((X, Y[:, 0]))(
            {"w": jnp.ones(2), "b": jnp.zeros(2)}
        )


def _ridge(l2):
    x, y = jax.random.normal(jax.random.key(0), (9, 3)), jax.random.normal(jax.random.key(1), (9,))
    return hfopt.Objective(_product, optax.squared_error, l2=l2).bind((x, y))


def _ridge_minimum(l2: float):
    """(2 XᵀX / N + l2 I)⁻¹ 2 Xᵀy / N."""
    x, y = map(np.asarray, _ridge(l2).batch[:2])
    return np.linalg.solve(2 * x.T @ x / 9 + l2 * np.eye(3), 2 * x.T @ y / 9)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_a_penalty_may_be_an_array(dtype):
    l2, params = jnp.asarray(0.3, dtype), jnp.arange(3.0)
    value_fn, plain = _ridge(l2), _ridge(float(l2))
    assert value_fn(params) == pytest.approx(float(plain(params)), rel=1e-14)
    given, expected = (hfopt.gauss_newton(f, params).to_dense() for f in (value_fn, plain))
    np.testing.assert_allclose(given, expected, rtol=1e-13)


def test_a_sweep_of_the_penalty_compiles_once_and_finds_every_minimum():
    traces = []
    tx = hfopt.hessian_free(trust_region=None, damping=hfopt.constant_damping(1e-12), preconditioner=None)

    @jax.jit
    def fit(value_fn):
        traces.append(None)

        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(value_fn)(params)
            updates, state = tx.update(grad, state, params, value=value, value_fn=value_fn)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (jnp.zeros(3), tx.init(jnp.zeros(3))), length=6)[0][0]

    for l2 in (0.1, 1.0, 10.0):
        np.testing.assert_allclose(fit(_ridge(jnp.asarray(l2))), _ridge_minimum(l2), atol=1e-7)
    assert len(traces) == 1


def test_the_objective_has_a_derivative_by_its_penalty_and_maps_over_it():
    params = jnp.arange(3.0)
    value = lambda l2: _ridge(l2)(params)  # noqa: E731
    assert jax.grad(value)(0.2) == pytest.approx(2.5)  # ½ ‖θ‖²
    np.testing.assert_allclose(np.diff(jax.vmap(value)(jnp.array([1.0, 2.0, 4.0]))), [2.5, 5.0])


def test_what_is_not_finite_in_examples_of_weight_zero_does_not_count():
    """In inputs, targets or both; value, gradient, operators and diagonals are those of the other examples."""
    x, y = jax.random.normal(jax.random.key(0), (5, 3)), jax.random.normal(jax.random.key(1), (5,))
    weights, kept = jnp.array([1.0, 2.0, 0.0, 0.5, 0.0]), np.array([0, 1, 3])
    objective = hfopt.Objective(lambda p, x: jnp.tanh(x @ p) / jnp.linalg.norm(x, axis=-1), optax.squared_error, l2=0.1)
    spoilt = objective.bind((x.at[2, 1].set(jnp.inf), y.at[2:5:2].set(jnp.nan), weights), chunk_size=2)
    clean = objective.bind((x[kept], y[kept], weights[kept]))

    @jax.jit
    def seen(f):
        params = jnp.arange(3.0)
        operators = (hfopt.gauss_newton, hfopt.hessian, hfopt.empirical_fisher, partial(hfopt.fisher, samples="exact"))
        products = [operator(f, params) @ jnp.ones(3) for operator in operators]
        return jax.value_and_grad(f)(params), products, squared_gradients(f, params)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), seen(spoilt), seen(clean))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(4), "weights in `batch` are all 0"),
        (np.zeros(4, bool), "weights in `batch` are all 0"),
        (jnp.array([1.0, -1.0, 1.0, 1.0]), "must be finite and at least 0, got -1 for example 1"),
        (np.array([1.0, 1.0, np.nan, 1.0]), "must be finite and at least 0, got nan for example 2"),
    ],
)
def test_weights_that_make_no_mean_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        _bind((X, Y, weights))


@dataclass
class _Scaled:
    """A loss with settings, which make it unhashable."""

    by: float = 2.0

    def __call__(self, z, y):
        return self.by * optax.squared_error(z, y)


class _Module(eqx.Module):
    scale: jax.Array

    def __call__(self, z, y):
        return self.scale * optax.squared_error(z, y)


@pytest.mark.parametrize("make", [_Scaled, lambda: _Module(jnp.asarray(2.0))], ids=["dataclass", "module"])
def test_losses_with_settings_are_compared_by_identity(make):
    given, traces = make(), []

    @jax.jit
    def evaluate(params, f):
        traces.append(None)
        return jax.value_and_grad(f)(params), hfopt.gauss_newton(f, params).trace()

    params = jnp.ones((2, 2))
    (value, _), trace = evaluate(params, _bind((X, Y), loss=given, predict=_product))
    evaluate(params, _bind((X, Y), loss=given, predict=_product))
    assert len(traces) == 1
    (plain, _), plain_trace = evaluate(params, _bind((X, Y), predict=_product))
    assert (value, trace) == (pytest.approx(2 * float(plain)), pytest.approx(2 * float(plain_trace)))


def _product(p, x):
    return x @ p
