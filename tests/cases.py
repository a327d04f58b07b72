"""Models, losses and batches that every curvature operator is checked on, and dense matrices to check against.

The dense matrices take another route than the package: Jacobians and Hessians of flattened functions by ``jacrev``
and ``hessian``, weighted means written out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hfopt

N, CLASSES, TIME = 7, 3, 4


class Case(NamedTuple):
    predict: Callable[[Any, Any], Any]
    loss: Callable[[Any, Any], jax.Array]
    params: Any
    batch: tuple[Any, ...]
    l2: float = 0.0
    l2_mask: Any = None

    @property
    def objective(self) -> hfopt.Objective:
        return hfopt.Objective(self.predict, self.loss, self.l2, self.l2_mask)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.tanh(nn.Dense(5, param_dtype=x.dtype)(x))
        return nn.Dense(CLASSES, param_dtype=x.dtype)(x)


class CNN(nn.Module):
    """Strides, dilation and groups: what a convolution's layout must survive."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(2, (3, 3), param_dtype=x.dtype)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.tanh(nn.Conv(4, (3, 2), strides=(2, 1), feature_group_count=2, param_dtype=x.dtype)(x))
        x = nn.relu(nn.ConvTranspose(2, (2, 2), kernel_dilation=(2, 1), param_dtype=x.dtype)(x))
        return nn.Dense(CLASSES, param_dtype=x.dtype)(x.reshape(x.shape[0], -1))


class RNN(nn.Module):
    """Outputs at every time step: (batch, time, classes)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.RNN(nn.SimpleCell(4, param_dtype=x.dtype))(x)
        return nn.Dense(CLASSES, param_dtype=x.dtype)(x)


def _images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (N, 6, 6, 1))


def _vectors() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (N, 4))


def _series() -> jax.Array:
    return jax.random.normal(jax.random.key(3), (N, TIME, 2))


def _labels(*shape: int) -> jax.Array:
    return jax.random.randint(jax.random.key(4), shape, 0, CLASSES)


def _soft_labels(*shape: int) -> jax.Array:
    return jax.nn.softmax(jax.random.normal(jax.random.key(5), (*shape, CLASSES)))


def _reals(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(6), (*shape, CLASSES))


def _weights() -> jax.Array:
    return jnp.arange(1.0, N + 1)


def _flax(model: nn.Module, loss: Callable[..., Any], inputs: jax.Array, *rest: Any, **objective: Any) -> Case:
    return Case(model.apply, loss, jax.jit(model.init)(jax.random.key(0), inputs), (inputs, *rest), **objective)


def summed_squares(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """‖z − y‖², the squared loss of simpleNN: B = 2I; not one of the closed forms."""
    return jnp.square(outputs - targets).sum(axis=-1)


def _two_heads() -> Case:
    """Outputs and targets as dicts of different kinds, inputs as a dict too."""
    keys = jax.random.split(jax.random.key(7), 2)
    params = {"class": jax.random.normal(keys[0], (4, CLASSES)), "scale": jax.random.normal(keys[1], (4,))}

    def predict(params: Any, inputs: Any) -> Any:
        x = jnp.tanh(inputs["x"])
        return {"logits": x @ params["class"], "size": jnp.square(x @ params["scale"])}

    def loss(outputs: Any, targets: Any) -> jax.Array:
        classification = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], targets["label"])
        return classification + optax.huber_loss(outputs["size"], targets["size"], delta=0.5)

    targets = {"label": _labels(N), "size": jnp.linspace(0.0, 3.0, N)}
    return Case(predict, loss, params, ({"x": _vectors()}, targets, _weights()), l2=0.2)


def _biases_unpenalised(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


_integer = optax.softmax_cross_entropy_with_integer_labels
_soft = optax.softmax_cross_entropy
_sigmoid = optax.sigmoid_binary_cross_entropy
_square = optax.squared_error
_huber = optax.huber_loss

CASES: dict[str, Callable[[], Case]] = {
    "mlp-softmax-integer": lambda: _flax(MLP(), _integer, _vectors(), _labels(N)),
    "mlp-softmax-soft": lambda: _flax(MLP(), _soft, _vectors(), _soft_labels(N)),
    "mlp-softmax-unnormalised": lambda: _flax(MLP(), _soft, _vectors(), 3 * _soft_labels(N), _weights()),
    "mlp-sigmoid": lambda: _flax(MLP(), _sigmoid, _vectors(), _soft_labels(N)),
    "mlp-squared": lambda: _flax(MLP(), _square, _vectors(), _reals(N), _weights(), l2=0.1),
    "mlp-half-squared": lambda: _flax(MLP(), optax.l2_loss, _vectors(), _reals(N)),
    "mlp-summed-squares": lambda: _flax(MLP(), summed_squares, _vectors(), _reals(N), l2=0.01),
    "mlp-huber": lambda: _flax(MLP(), _huber, _vectors(), _reals(N), l2=0.1, l2_mask=_biases_unpenalised),
    "cnn-softmax-integer": lambda: _flax(CNN(), _integer, _images(), _labels(N), _weights(), l2=0.3),
    "cnn-softmax-soft": lambda: _flax(CNN(), _soft, _images(), _soft_labels(N)),
    "cnn-sigmoid": lambda: _flax(CNN(), _sigmoid, _images(), _soft_labels(N), _weights()),
    "cnn-squared": lambda: _flax(CNN(), _square, _images(), _reals(N)),
    "cnn-huber": lambda: _flax(CNN(), _huber, _images(), _reals(N), _weights()),
    "rnn-softmax-integer": lambda: _flax(RNN(), _integer, _series(), _labels(N, TIME), _weights()),
    "rnn-softmax-soft": lambda: _flax(RNN(), _soft, _series(), _soft_labels(N, TIME)),
    "rnn-squared": lambda: _flax(RNN(), _square, _series(), _reals(N, TIME), _weights(), l2=0.1),
    "two-heads": _two_heads,
}

# One of each model: what a test runs through that is about more than the formula of an operator.
MODELS = ["mlp-softmax-integer", "cnn-softmax-integer", "rnn-softmax-integer", "two-heads"]


def slowly(*values: Any) -> Any:
    """A parameter of a test that runs with the slow ones: compiling is what takes the time."""
    return pytest.param(*values, marks=pytest.mark.slow)


# All of them, those of the CNN and RNN in the slow tests.
EACH = [name if name.startswith(("mlp", "two")) else slowly(name) for name in CASES]


def dense_value(case: Case, params: Any = None) -> jax.Array:
    """f(θ), written out."""
    flat, unravel = ravel_pytree(case.params if params is None else params)
    return _dense_loss(case, case.predict(unravel(flat), case.batch[0])) + 0.5 * flat @ (_penalties(case) * flat)


def dense_gauss_newton(case: Case) -> jax.Array:
    """The Hessian of the objective of the *linearised* model: by definition the Gauss-Newton matrix."""
    flat, unravel = ravel_pytree(case.params)
    predict = lambda t: case.predict(unravel(t), case.batch[0])  # noqa: E731
    outputs, jacobian = jax.jit(lambda t: (predict(t), jax.jacrev(predict)(t)))(flat)

    def linearised(t: jax.Array) -> jax.Array:
        z = jax.tree.map(lambda z, j: z + jnp.tensordot(j, t - flat, axes=1), outputs, jacobian)
        return _dense_loss(case, z) + 0.5 * t @ (_penalties(case) * t)

    return jax.jit(jax.hessian(linearised))(flat)


def dense_hessian(case: Case) -> jax.Array:
    """∇²f of the flattened objective."""
    flat, unravel = ravel_pytree(case.params)
    return jax.jit(jax.hessian(lambda t: dense_value(case, unravel(t))))(flat)


def dense_outer_product(case: Case) -> jax.Array:
    """Σ c_i J_iᵀ J_i + I/C, from the Jacobian of each example by itself."""
    flat, unravel = ravel_pytree(case.params)
    outputs = lambda t, x: ravel_pytree(case.predict(unravel(t), x))[0]  # noqa: E731
    jacobians = jax.jit(jax.vmap(jax.jacrev(outputs), in_axes=(None, 0)))(flat, _singly(case.batch[0]))
    return jnp.einsum("i,iko,ikp->op", _coefficients(case), jacobians, jacobians) + jnp.diag(_penalties(case))


def dense_empirical_fisher(case: Case) -> jax.Array:
    """Σ c_i g_i g_iᵀ + I/C, with g_i = J_iᵀ r_i the gradient of the loss of example i, taken by itself."""
    flat, unravel = ravel_pytree(case.params)
    loss = lambda t, x, y: case.loss(case.predict(unravel(t), x), y).mean()  # noqa: E731
    gradients = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(flat, *_singly(case.batch[:2]))
    return jnp.einsum("i,io,ip->op", _coefficients(case), gradients, gradients) + jnp.diag(_penalties(case))


def check_against_dense(operator: Callable[[Any, Any], hfopt.Operator], case: Case, expected: jax.Array) -> None:
    """Assert that the operator equals ``expected`` to 1e-10: as a matrix, and chunk by chunk on a vector."""
    flat, unravel = ravel_pytree(case.params)
    flat = jax.random.normal(jax.random.key(9), flat.shape)

    @jax.jit  # one compilation for everything
    def evaluate(v: Any) -> Any:
        bind = partial(case.objective.bind, case.batch, memory="recompute")
        whole, chunked = (operator(bind(chunk_size=size), case.params) for size in (None, 3))
        return whole.to_dense(), chunked @ v, whole.quadratic_form(v), chunked.quadratic_form(v)

    dense, product, *forms = evaluate(unravel(flat))
    assert relative_error(dense, expected) < 1e-10
    assert relative_error(product, expected @ flat) < 1e-10
    scale = jnp.abs(flat) @ jnp.abs(expected) @ jnp.abs(flat)  # vᵀHv of an indefinite H may cancel
    for form in forms:
        assert abs(form - flat @ expected @ flat) < 1e-10 * scale


def _singly(tree: Any) -> Any:
    """Every example as a batch of one."""
    return jax.tree.map(lambda x: jnp.expand_dims(x, 1), tree)


def _coefficients(case: Case) -> jax.Array:
    weights = case.batch[2] if len(case.batch) == 3 else jnp.ones(N)
    return weights / weights.sum()


def _dense_loss(case: Case, outputs: Any) -> jax.Array:
    _, targets, *weights = case.batch
    losses = case.loss(outputs, targets)
    losses = losses.mean(axis=tuple(range(1, losses.ndim)))
    return jnp.average(losses, weights=weights[0] if weights else None)


def _penalties(case: Case) -> jax.Array:
    mask = jax.tree.map(lambda p: True, case.params) if case.l2_mask is None else case.l2_mask(case.params)
    kept = jax.tree.map(lambda keep, p: jnp.full(p.shape, case.l2 * keep), mask, case.params)
    return ravel_pytree(kept)[0]


def relative_error(actual: Any, expected: Any) -> float:
    """‖actual − expected‖ / ‖expected‖ over whole pytrees."""
    actual, expected = ravel_pytree(actual)[0], ravel_pytree(expected)[0]
    return float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected))
