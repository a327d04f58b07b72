"""Regression problems whose optimum is known: how far an optimizer really gets, and how fast.

| task | model | loss | what is hard |
|---|---|---|---|
| ill_conditioned | z = xᵀw | squared error | λmax/λmin of the Hessian is `condition_number`, in a random basis |
| logistic | z = (x, 1)ᵀw | sigmoid cross-entropy + l2/2 ‖w‖² | nearly collinear features of real data |
| function | a tanh network of one variable | squared error | ten digits of u*(x) = sin(3πx) exp(x/2) |

The first two are convex, and their metric is how much of f(0) − f* is left,

    suboptimality = D(θ) / D(0),   D(θ) = mean over examples of B(z, z*) + l2/2 ‖θ − θ*‖²

with * at the optimum of the training set and B the Bregman divergence of the loss as a function of the outputs:
(z − z*)² for the squared error, KL(p* ‖ p) for the cross-entropy. On the training set D(θ) = f(θ) − f*, because
∇f(θ*) = 0, and computing it this way cancels no digits; on the test set D is the distance of the outputs from those of
the optimum. Training starts from θ = 0 whatever the seed, where the suboptimality on the training set is 1.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from experiments.problems.dataset import Dataset, Examples
from experiments.problems.physics import initial_network
from experiments.problems.problem import Metric, Params, Problem
from experiments.settings.problem import Regression

_DATA_SEED = 0
_NOISE = 0.1  # standard deviation, where that of the noiseless targets is 1


def build_regression(settings: Regression) -> Problem:
    """The problem that ``settings.task`` names, with data in float64."""
    match settings.task:
        case "ill_conditioned":
            return _ill_conditioned(settings)
        case "logistic":
            return _logistic(settings)
        case "function":
            return _function(settings)


def _ill_conditioned(settings: Regression) -> Problem:
    """X = √n U S Vᵀ with random orthogonal factors and S² evenly spaced on a log scale from 1 to 1/condition_number.

    The Hessian is 2 V S² Vᵀ. The true weights are V S⁻¹ g with g normal, so that every eigenvector has the same
    expected share in f(0) − f*: no precision is had without the flattest directions.
    """
    rng = np.random.default_rng(_DATA_SEED)
    examples, features = settings.examples, settings.features
    scale = np.sqrt(np.logspace(0, -math.log10(settings.condition_number), features))
    left = np.linalg.qr(rng.normal(size=(examples, features)))[0]
    right = np.linalg.qr(rng.normal(size=(features, features)))[0]
    weights = right @ (rng.normal(size=features) / (scale * math.sqrt(features)))
    train = math.sqrt(examples) * (left * scale) @ right.T
    test = (rng.normal(size=(examples, features)) * scale) @ right.T
    train_targets, test_targets = (x @ weights + _NOISE * rng.normal(size=examples) for x in (train, test))
    # θ* by the factors at hand: 2 (S² + l2/2) Vᵀw = 2 S Uᵀy / √n.
    rotated = scale * (left.T @ train_targets) / math.sqrt(examples) / (scale**2 + settings.l2 / 2)
    return _convex(
        settings,
        Dataset(Examples(train, train_targets), Examples(test, test_targets)),
        loss=optax.losses.squared_error,
        divergence=lambda outputs, optimal: (outputs - optimal) ** 2,
        optimum=right @ rotated,
    )


def _logistic(settings: Regression) -> Problem:
    """Wisconsin breast cancer, malignant or benign: 455 tumours to learn from, 114 held out, 30 measurements of each.

    Every measurement has mean 0 and deviation 1 on the training set, and a 1 takes the place of the bias, so that l2
    is on all parameters. Radius, perimeter and area are nearly collinear.
    """
    data = load_breast_cancer()
    split = train_test_split(data.data, data.target, test_size=0.2, stratify=data.target, random_state=_DATA_SEED)
    train, test, train_targets, test_targets = split
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    train, test = (np.column_stack([(x - mean) / deviation, np.ones(len(x))]) for x in (train, test))
    parts = ((train, train_targets), (test, test_targets))
    return _convex(
        settings,
        Dataset(*(Examples(inputs, targets.astype(np.float64)) for inputs, targets in parts)),
        loss=optax.losses.sigmoid_binary_cross_entropy,
        divergence=_relative_entropy,
        optimum=_logistic_optimum(train, train_targets, settings.l2),
    )


def _relative_entropy(logits: jax.Array, optimal: jax.Array) -> jax.Array:
    """KL(p* ‖ p) of Bernoulli distributions given by their logits, (n,) each."""
    yes = jax.nn.log_sigmoid(optimal) - jax.nn.log_sigmoid(logits)
    no = jax.nn.log_sigmoid(-optimal) - jax.nn.log_sigmoid(-logits)
    return jax.nn.sigmoid(optimal) * yes + jax.nn.sigmoid(-optimal) * no


def _logistic_optimum(inputs: np.ndarray, targets: np.ndarray, l2: float) -> np.ndarray:
    """w* (features,), by scikit-learn's Newton-Cholesky solver, run until its gradient is at rounding."""
    model = LogisticRegression(
        C=1 / (l2 * len(targets)), fit_intercept=False, solver="newton-cholesky", tol=1e-13, max_iter=1000
    )
    return np.asarray(model.fit(inputs, targets).coef_[0])


def _convex(
    settings: Regression,
    dataset: Dataset,
    loss: Callable[..., jax.Array],
    divergence: Callable[[jax.Array, jax.Array], jax.Array],
    optimum: np.ndarray,
) -> Problem:
    """The linear model with suboptimality as its metric; `divergence` is B, from outputs and those at the optimum."""

    def distance(params: Params, inputs: Any) -> jax.Array:
        away = params["weights"] - optimum
        return divergence(_linear(params, inputs), inputs @ optimum) + settings.l2 / 2 * jnp.vdot(away, away)

    with jax.enable_x64(True):
        at_start = float(distance({"weights": jnp.zeros(len(optimum))}, dataset.train.inputs).mean())
    return Problem(
        dataset=dataset,
        init=lambda seed: {"weights": jnp.zeros(len(optimum))},
        predict=_linear,
        loss=loss,
        metric=Metric("suboptimality", lambda params, inputs, targets: distance(params, inputs) / at_start, "{:.2e}"),
        l2=settings.l2,
        precision=settings.precision,
    )


def _linear(params: Params, inputs: jax.Array) -> jax.Array:
    """xᵀw, (n,)."""
    return inputs @ params["weights"]


def _function(settings: Regression) -> Problem:
    """u* at the Chebyshev points of [−1, 1] for training and at random points for testing.

    The metric is the relative error √(mean (u − u*)² / mean u*²), with the mean square of u* over the training points.
    """
    angles = math.pi * (np.arange(settings.examples) + 0.5) / settings.examples
    train = -np.cos(angles)[:, None]
    test = np.random.default_rng(_DATA_SEED).uniform(-1, 1, size=(settings.examples, 1))
    dataset = Dataset(*(Examples(x, smooth_function(x)) for x in (train, test)))
    mean_square = float((dataset.train.targets**2).mean())
    widths = (1, *settings.hidden, 1)
    return Problem(
        dataset=dataset,
        init=lambda seed: initial_network(widths, seed),
        predict=tanh_network,
        loss=optax.losses.squared_error,
        metric=Metric(
            "relative_error",
            lambda params, inputs, targets: (tanh_network(params, inputs) - targets)[:, 0] ** 2 / mean_square,
            format="{:.2e}",
            finish=math.sqrt,
        ),
        l2=settings.l2,
        precision=settings.precision,
    )


def smooth_function(x: np.ndarray) -> np.ndarray:
    """u*(x) = sin(3πx) exp(x/2): three waves that grow."""
    return np.asarray(np.sin(3 * math.pi * x) * np.exp(x / 2))


def tanh_network(params: Params, inputs: jax.Array) -> jax.Array:
    """Outputs (n, 1) of the layers of `initial_network`, tanh between them, for inputs (n, d)."""
    values = inputs
    for layer in range(len(params)):
        dense = params[f"dense_{layer}"]
        values = values @ dense["kernel"] + dense["bias"]
        if layer < len(params) - 1:
            values = jnp.tanh(values)
    return values
