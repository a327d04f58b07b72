"""Outputs that are no plain array of reals with labels of its own: complex ones, classes, scalars, broadcast labels.

Each problem is written twice: as its user writes it, and as the same mathematics in plain real outputs, of which the
dense matrices are made.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hfopt
from hfopt.curvature.diagonal import probed_diagonal
from tests.cases import (
    Case,
    check_against_dense,
    dense_empirical_fisher,
    dense_gauss_newton,
    dense_hessian,
    dense_outer_product,
    relative_error,
    slowly,
)

N = 7
_integer = optax.softmax_cross_entropy_with_integer_labels
_binary = optax.sigmoid_binary_cross_entropy


class Twice(NamedTuple):
    given: Case
    plain: Case
    by_row: bool = True  # the loss of an example depends on its own outputs alone
    of_rows: bool = True  # every output belongs to one example


def _x() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (N, 3))


def _params() -> dict[str, jax.Array]:
    return {"w": jax.random.normal(jax.random.key(1), (3, 4)), "s": jnp.asarray(0.7)}


def _logits(p, x):
    return jnp.tanh(x @ p["w"]) * p["s"]


def _votes(*shape: int) -> jax.Array:
    return (jax.random.uniform(jax.random.key(2), shape) > 0.5).astype(float)


def _twice(predict, loss, plain_predict, plain_loss, targets, *weights, **rest) -> Twice:
    batch, l2 = (_x(), targets, *weights), 0.1
    return Twice(
        Case(predict, loss, _params(), batch, l2), Case(plain_predict, plain_loss, _params(), batch, l2), **rest
    )


def _wave() -> Twice:
    """Complex outputs, |z − t|² and a loss that turns them."""
    turn = lambda angle, size: jax.lax.complex(size * jnp.cos(angle), size * jnp.sin(angle))  # noqa: E731
    wave = lambda p, x: turn(_logits(p, x), 1 + x[:, :1] * p["s"])  # noqa: E731
    t = turn(_x(), jnp.ones((N, 3)))[:, :1]
    reals = lambda p, x: jnp.stack([wave(p, x).real, wave(p, x).imag], -1)  # noqa: E731
    loss = lambda z, t: jnp.abs(z - t) ** 2 + jnp.cos(jnp.real(z * jnp.conj(t)))  # noqa: E731

    def plain(z, t):
        (a, b), (c, d) = (z[..., 0], z[..., 1]), (t.real, t.imag)
        return (a - c) ** 2 + (b - d) ** 2 + jnp.cos(a * c + b * d)

    return _twice(wave, loss, reals, plain, t, jnp.arange(1.0, N + 1))


def _spectrum() -> Twice:
    """A complex leaf beside a real one and the class that wins."""

    def predict(p, x):
        z = _logits(p, x)
        return {"spectrum": jnp.fft.rfft(z), "logits": z, "class": z.argmax(-1)}

    def plain_predict(p, x):
        z = _logits(p, x)
        k = np.arange(3)[:, None] * np.arange(4)
        return {"re": z @ np.cos(np.pi / 2 * k).T, "im": z @ -np.sin(np.pi / 2 * k).T, "logits": z}

    def loss(o, t):
        return (jnp.abs(o["spectrum"]) ** 2).sum(-1) + _integer(o["logits"], t)

    def plain(o, t):
        return (o["re"] ** 2 + o["im"] ** 2).sum(-1) + _integer(o["logits"], t)

    return _twice(predict, loss, plain_predict, plain, jnp.arange(N) % 4)


def _with_class() -> Twice:
    predict = lambda p, x: (_logits(p, x), _logits(p, x).argmax(-1))  # noqa: E731
    return _twice(predict, lambda o, t: _integer(o[0], t), _logits, _integer, jnp.arange(N) % 4)


def _with_mask() -> Twice:
    """A boolean leaf that the loss uses."""
    huber = lambda z, small: jnp.where(small, z**2, 2 * jnp.abs(z) - 1)  # noqa: E731
    predict = lambda p, x: {"z": 2 * _logits(p, x), "small": jnp.abs(2 * _logits(p, x)) < 1, "none": None}  # noqa: E731
    plain = lambda z, t: huber(z - 0 * t, jnp.abs(z) < 1)  # noqa: E731
    return _twice(
        predict, lambda o, t: huber(o["z"], o["small"]), lambda p, x: 2 * _logits(p, x), plain, jnp.zeros((N, 4))
    )


def _with_scalar() -> Twice:
    """An auxiliary loss that all examples share."""
    predict = lambda p, x: (_logits(p, x), jnp.square(p["w"]).sum() * p["s"])  # noqa: E731
    plain_predict = lambda p, x: (_logits(p, x), jnp.broadcast_to(jnp.square(p["w"]).sum() * p["s"], x.shape[:1]))  # noqa: E731
    loss = lambda o, t: _integer(o[0], t) + 0.1 * o[1] ** 2  # noqa: E731
    return _twice(predict, loss, plain_predict, loss, jnp.arange(N) % 4, jnp.arange(1.0, N + 1), of_rows=False)


def _annotators() -> Twice:
    """One logit with four labels."""
    predict = lambda p, x: _logits(p, x)[:, :1]  # noqa: E731
    return _twice(predict, _binary, predict, lambda z, t: _binary(z, t), _votes(N, 4), jnp.arange(1.0, N + 1))


def _column_and_row() -> Twice:
    """The classic slip: outputs (N, 1) and labels (N,) make N × N losses."""
    predict = lambda p, x: _logits(p, x)[:, :1]  # noqa: E731
    return _twice(predict, _binary, predict, lambda z, t: _binary(z, t), _votes(N), by_row=False)


def _raters() -> Twice:
    """One distribution over classes with five labels."""
    predict = lambda p, x: _logits(p, x)[:, None]  # noqa: E731
    labels = jax.random.randint(jax.random.key(3), (N, 5), 0, 4)
    return _twice(predict, _integer, predict, lambda z, t: _integer(z, t), labels)


def _one_label_for_all_classes() -> Twice:
    """Soft labels (N, 1) against logits (N, 4): they sum to four times what is given."""
    return _twice(
        _logits, optax.softmax_cross_entropy, _logits, lambda z, t: optax.softmax_cross_entropy(z, t), _votes(N, 1)
    )


@pytest.fixture(autouse=True)
def _labels_broadcast():
    with jax.numpy_rank_promotion("allow"):
        yield


PROBLEMS = {
    f.__name__[1:]: f
    for f in (_wave, _spectrum, _with_class, _with_mask, _with_scalar, _annotators, _column_and_row, _raters)
}
PROBLEMS["one_label_for_all_classes"] = _one_label_for_all_classes
BROADCAST = ["annotators", "column_and_row", "raters", "one_label_for_all_classes"]


def _dense_of(given: Case, operator) -> jax.Array:
    return jax.jit(lambda p: operator(given.objective.bind(given.batch), p).to_dense())(given.params)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gauss_newton_matrix_is_that_of_the_loss_that_is_evaluated(name):
    problem = PROBLEMS[name]()
    dense = dense_gauss_newton(problem.plain)
    if problem.by_row:
        check_against_dense(hfopt.gauss_newton, problem.given, dense)
    else:
        assert relative_error(_dense_of(problem.given, hfopt.gauss_newton), dense) < 1e-10


@pytest.mark.parametrize("name", ["wave", slowly("spectrum")])
def test_other_operators_and_what_they_tell_are_those_of_pairs_of_reals(name):
    given, plain, *_ = PROBLEMS[name]()
    G = hfopt.gauss_newton(given.objective.bind(given.batch), given.params)
    dense = dense_gauss_newton(plain)
    np.testing.assert_allclose(G.trace(), jnp.trace(dense), rtol=1e-10)
    np.testing.assert_allclose(G.flat.ravel(G.diagonal()), jnp.diag(dense), rtol=1e-10)
    assert relative_error(_dense_of(given, hfopt.hessian), dense_hessian(plain)) < 1e-10
    assert relative_error(_dense_of(given, hfopt.residual_hessian), dense_hessian(plain) - dense) < 1e-10
    assert relative_error(_dense_of(given, hfopt.outer_product), dense_outer_product(plain)) < 1e-10
    assert relative_error(_dense_of(given, hfopt.empirical_fisher), dense_empirical_fisher(plain)) < 1e-10


def test_the_jacobian_of_complex_outputs_is_one_of_pairs():
    given, plain, *_ = _wave()
    J = hfopt.jacobian(given.objective.bind(given.batch, chunk_size=3), given.params)
    expected = jax.jacfwd(lambda p: plain.predict(p, plain.batch[0]))(plain.params)
    expected = jnp.concatenate([expected["s"][..., None], expected["w"].reshape(N, 4, 2, -1)], -1)
    product = J @ given.params
    flat = jnp.concatenate([given.params["s"][None], given.params["w"].ravel()])
    np.testing.assert_allclose(jnp.stack([product.real, product.imag], -1), expected @ flat, rtol=1e-12)
    back = J.T @ product
    np.testing.assert_allclose(
        jnp.concatenate([back["s"][None], back["w"].ravel()]), jnp.einsum("nkcp,nkcq,q->p", expected, expected, flat)
    )


@pytest.mark.parametrize("name", BROADCAST)
def test_the_fisher_matrix_counts_every_broadcast_label(name):
    """In natural parameters it is the Gauss-Newton matrix."""
    problem = PROBLEMS[name]()
    operator = lambda f, p: hfopt.fisher(f, p, samples="exact")  # noqa: E731
    assert relative_error(_dense_of(problem.given, operator), dense_gauss_newton(problem.plain)) < 1e-10
    if problem.by_row:
        sampled = lambda f, p: hfopt.fisher(f, p, jax.random.key(0), samples=4000)  # noqa: E731
        assert relative_error(_dense_of(problem.given, sampled), dense_gauss_newton(problem.plain)) < 0.1


@pytest.mark.parametrize("name", ["annotators", "with_scalar", *map(slowly, ("raters", "wave", "with_class"))])
def test_the_probed_diagonal_is_unbiased(name):
    given, plain, *_ = PROBLEMS[name]()
    f = given.objective.bind(given.batch)
    keys = jax.random.split(jax.random.key(0), 4000)
    probes = jax.jit(jax.vmap(lambda k: probed_diagonal(f, given.params, k, 2)))(keys)
    dense = jnp.diag(dense_gauss_newton(plain._replace(l2=0.0)))
    mean = jax.tree.map(lambda d: d.mean(0), probes)
    got = jnp.concatenate([mean["s"][None], mean["w"].ravel()])
    if name in ("annotators", "raters"):  # B is diagonal or small: no entry is cut at zero
        np.testing.assert_allclose(got, dense, rtol=0.25, atol=0.02 * dense.max())
    else:  # entries of single probes that are cut at zero push the mean up
        assert (got > 0.7 * dense - 0.02 * dense.max()).all()


@pytest.mark.float32
@pytest.mark.parametrize("name", ["wave", "with_class", *map(slowly, sorted(set(PROBLEMS) - {"wave", "with_class"}))])
def test_the_default_step_trains_on_them(name):
    given = PROBLEMS[name]().given
    value_fn, tx = given.objective.bind(given.batch), hfopt.hessian_free()

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    params, state = given.params, tx.init(given.params)
    start = value_fn(params)
    for _ in range(5):
        params, state = step(params, state)
        assert state.info.accepted
    assert value_fn(params) < start


@pytest.mark.parametrize("operator", [hfopt.outer_product, hfopt.empirical_fisher])
def test_sums_over_outputs_of_examples_refuse_an_output_that_all_share(operator):
    given = _with_scalar().given
    with pytest.raises(ValueError, match=r"outputs\[1\] is a scalar, which all examples share.*hfopt\.gauss_newton"):
        operator(given.objective.bind(given.batch), given.params)
