"""What an optimizer is given: data on hand, a function to predict with, a loss, a metric, and initial parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from experiments.problems.dataset import Dataset

Params = Any  # a pytree of float arrays

LOSSES: dict[str, Callable[..., jax.Array]] = {
    "softmax_cross_entropy": optax.losses.softmax_cross_entropy_with_integer_labels,
    "sigmoid_cross_entropy": optax.losses.sigmoid_binary_cross_entropy,
    "squared_error": optax.losses.squared_error,
}


@dataclass(frozen=True)
class Metric:
    """What is reported of a set of examples besides the loss: finish(mean over examples of measure).

    name: it is recorded as train_<name>, test_<name>.
    measure: (parameters, inputs, targets) -> (n,), one number an example.
    format: how a person reads it. finish: from the mean to what is reported, such as a square root.
    """

    name: str
    measure: Callable[[Params, Any, Any], jax.Array]
    format: str = "{:.3g}"
    higher_is_better: bool = False
    finish: Callable[[float], float] = float


@dataclass(frozen=True)
class Problem:
    """f(θ) = l2/2 ‖θ‖² + mean over examples of loss(predict(θ, inputs), targets).

    init: seed -> initial parameters, a function of the seed alone.
    predict: (parameters, inputs) -> outputs, an array or a pytree with a leading axis of examples.
    loss: (outputs, targets) -> losses (n, …), averaged over all axes.
    """

    dataset: Dataset
    init: Callable[[int], Params]
    predict: Callable[[Params, Any], Any]
    loss: Callable[[Any, Any], jax.Array]
    metric: Metric
    l2: float = 0.0
    precision: str = "highest"
