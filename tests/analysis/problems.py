"""Problems for the doctor: twelve with one fault each, and eight healthy ones of different families."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import hfopt

CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
SQUARED = optax.losses.squared_error


class Problem(NamedTuple):
    value_fn: hfopt.objective.ValueFn
    params: Any


class Broken(NamedTuple):
    make: Callable[[], Problem]
    finding: str  # the check that must see it
    words: str  # a regular expression for what it says


def _x(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape or (16, 5))


def _labels(classes: int = 3) -> jax.Array:
    return jnp.arange(16) % classes


def _params() -> dict[str, jax.Array]:
    one, two = jax.random.split(jax.random.key(1))
    return {"in": jax.random.normal(one, (5, 6)) / 2, "out": jax.random.normal(two, (6, 3)) / 2}


def mlp(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["in"]) @ p["out"]


def _one(p: Any, x: jax.Array) -> jax.Array:
    return mlp(p, x)[:, 0]


def _problem(predict: Any, loss: Any, targets: Any, params: Any = None, **options: Any) -> Problem:
    value_fn = hfopt.Objective(predict, loss, **options).bind((_x(), targets))
    return Problem(value_fn, _params() if params is None else params)


def _statistics() -> Problem:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x)))

    return _problem(Net().apply, CROSS_ENTROPY, _labels(), Net().init(jax.random.key(0), _x()))


def _drawing() -> Problem:
    draws = itertools.count()
    dropped = lambda p, x: mlp(p, x * jax.random.bernoulli(jax.random.key(next(draws)), 0.5, x.shape))  # noqa: E731
    return _problem(dropped, CROSS_ENTROPY, _labels())


def _wrong_rule() -> Problem:
    @jax.custom_jvp
    def activation(x: jax.Array) -> jax.Array:
        return jnp.tanh(x)

    activation.defjvp(lambda primals, tangents: (jnp.tanh(*primals), 1.5 * tangents[0]))
    return _problem(lambda p, x: activation(x @ p["in"]) @ p["out"], CROSS_ENTROPY, _labels())


def _wrong_backward_pass_of_a_backward_pass() -> Problem:
    """The gradient is right; J, which is the derivative of it, is not."""

    @jax.custom_vjp
    def held(g: jax.Array) -> jax.Array:
        return g

    @jax.custom_vjp
    def sine(z: jax.Array) -> jax.Array:
        return jnp.sin(z)

    held.defvjp(lambda g: (g, None), lambda _, u: (jnp.clip(u, -0.1, 0.1),))
    sine.defvjp(lambda z: (jnp.sin(z), z), lambda z, g: (held(g) * jnp.cos(z),))
    return _problem(lambda p, x: sine(x @ p["in"]) @ p["out"], CROSS_ENTROPY, _labels())


def _focal(z: jax.Array, y: jax.Array) -> jax.Array:
    return (1 - jnp.exp(-CROSS_ENTROPY(z, y))) ** 2 * CROSS_ENTROPY(z, y)


def _masked_class(p: Any, x: jax.Array) -> jax.Array:
    return mlp(p, x).at[:, 2].set(-jnp.inf)


def _kinked() -> Problem:
    fitted = lambda z, y: jnp.abs(z - y) ** 1.5  # noqa: E731
    return _problem(_one, fitted, jnp.zeros(16).at[0].set(1.0), jax.tree.map(jnp.zeros_like, _params()))


def _two_heads(p: Any, x: jax.Array) -> dict[str, jax.Array]:
    z = mlp(p, x)
    return {"class": z[:, :2], "size": z[:, 2]}


def _with_absolute_error(o: Any, y: Any) -> jax.Array:
    return CROSS_ENTROPY(o["class"], y % 2) + jnp.abs(o["size"] - y)


BROKEN = {
    "statistics among the parameters": Broken(_statistics, "parameters", r"running statistics.*batch_stats"),
    "(N, 1) against (N,)": Broken(
        lambda: _problem(lambda p, x: _one(p, x)[:, None], lambda z, y: (z - y) ** 2, _x(16)),
        "shapes",
        r"outputs \(16, 1\), targets \(16,\), losses \(16, 16\).*one shape",
    ),
    "a sum for the losses": Broken(
        lambda: _problem(mlp, lambda z, y: jnp.broadcast_to(CROSS_ENTROPY(z, y).sum(), y.shape), _labels()),
        "mean",
        "not their sum",
    ),
    "a key drawn in the model": Broken(_drawing, "determinism", "Draw the key once a step"),
    "a wrong custom_jvp": Broken(_wrong_rule, "gradient", "central differences"),
    "a wrong backward pass of a backward pass": Broken(
        _wrong_backward_pass_of_a_backward_pass, "symmetry", "not of one function"
    ),
    "an absolute error": Broken(
        lambda: _problem(_one, lambda z, y: jnp.abs(z - y), _x(16)), "curvature", r"B = 0.*huber.*empirical_fisher"
    ),
    "a hinge loss": Broken(
        lambda: _problem(_one, optax.losses.hinge_loss, 2.0 * (_labels(2)) - 1), "curvature", "straight line in outputs"
    ),
    "one of two heads without curvature": Broken(
        lambda: _problem(_two_heads, _with_absolute_error, _labels()), "curvature", r"outputs\['size'\]: B = 0"
    ),
    "infinite curvature": Broken(_kinked, "convexity", "not finite at the outputs"),
    "a focal loss with a masked class": Broken(
        lambda: _problem(_masked_class, _focal, _labels(2)), "convexity", "not convex in the outputs"
    ),
    "NaN among the data": Broken(
        lambda: _problem(_one, SQUARED, _x(16).at[3].set(jnp.nan)), "evaluation", r"value is nan.*weight of 0"
    ),
}


def _graph() -> Problem:
    """Nodes that see one another, and cannot be taken apart."""
    edges = jnp.asarray(np.random.default_rng(0).random((16, 16)) < 0.2, jnp.float32) + jnp.eye(16)
    edges = edges / edges.sum(1, keepdims=True)
    known = (jnp.arange(16) < 6).astype(jnp.float32)  # a few labels
    objective = hfopt.Objective(lambda p, x: edges @ jnp.tanh(edges @ x @ p["in"]) @ p["out"], CROSS_ENTROPY, l2=1e-3)
    return Problem(objective.bind((_x(), _labels(), known)), _params())


def _recurrent() -> Problem:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(3)(nn.RNN(nn.GRUCell(4))(x))

    x = _x(16, 6, 2)
    return Problem(
        hfopt.Objective(Net().apply, CROSS_ENTROPY).bind((x, (x.sum(-1) > 0).astype(jnp.int32))),
        Net().init(jax.random.key(0), x),
    )


def _physics() -> Problem:
    """u″ = −π² sin πx with u(0) = u(1) = 0: residuals for outputs, derivatives by x inside the model."""

    def u(p: Any, x: jax.Array) -> jax.Array:
        return x * (1 - x) * (jnp.tanh(x * p["a"] + p["b"]) @ p["c"])

    def residual(p: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(jax.grad(jax.grad(u, 1), 1), (None, 0))(p, x) + jnp.pi**2 * jnp.sin(jnp.pi * x)

    keys = jax.random.split(jax.random.key(2), 3)
    params = {name: jax.random.normal(key, (8,)) for name, key in zip("abc", keys, strict=True)}
    x = jnp.linspace(0.05, 0.95, 16)
    return Problem(hfopt.Objective(residual, SQUARED).bind((x, jnp.zeros(16))), params)


def _tied() -> Problem:
    """An autoencoder whose decoder is the transpose of its encoder."""
    predict = lambda p, x: jnp.tanh(x @ p["in"] + p["b"]) @ p["in"].T  # noqa: E731
    return _problem(predict, SQUARED, _x(), {"in": _params()["in"], "b": jnp.zeros((1, 6))}, l2=1e-4)


def _normalised() -> Problem:
    """BatchNorm in training mode, its statistics beside the parameters."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(8, use_bias=False)(x))))

    variables = Net().init(jax.random.key(0), _x())
    statistics = {"batch_stats": variables["batch_stats"]}
    predict = lambda p, x: Net().apply({"params": p, **statistics}, x, mutable="batch_stats")[0]  # noqa: E731
    return _problem(predict, CROSS_ENTROPY, _labels(), variables["params"])


def _low_precision() -> Problem:
    """Parameters and products in bfloat16, outputs in float32."""
    predict = lambda p, x: mlp(p, x.astype(jnp.bfloat16)).astype(jnp.float32)  # noqa: E731
    return _problem(predict, CROSS_ENTROPY, _labels(), jax.tree.map(lambda p: p.astype(jnp.bfloat16), _params()))


def _double_precision() -> Problem:
    params = jax.tree.map(lambda p: p.astype(jnp.float64), _params())
    inputs = _x().astype(jnp.float64)
    return Problem(hfopt.Objective(_one, SQUARED).bind((inputs, jnp.sin(inputs[:, 0]))), params)


HEALTHY = {
    "a graph": _graph,
    "a masked classifier": lambda: _problem(_masked_class, CROSS_ENTROPY, _labels(2), l2=1e-3),
    "a recurrent net": _recurrent,
    "a differential equation": _physics,
    "tied weights": _tied,
    "BatchNorm": _normalised,
    "bfloat16": _low_precision,
    "float64": _double_precision,
}
