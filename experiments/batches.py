"""Which examples a step sees: a function of the seed and the step number alone, so a resumed run sees the same.

Training examples come as an endless stream of epochs, each a permutation drawn from a generator keyed on
(seed, epoch); step k takes the next `batch_size` of it. Every example is used once an epoch, every batch has the same
size (one compilation), and none is dropped: a batch at the seam of two epochs takes from both.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from experiments import config
from experiments.errors import ConfigError

# First word of a generator's key, so that the order and the curvature sample never share random numbers.
_ORDER, _CURVATURE = 0, 1


@dataclass(frozen=True)
class Batching:
    """The rows of every step.

    examples: N, in the training set. batch_size: rows of the gradient, at most N. curvature_size: rows of the
    curvature sample, or None where the curvature sees what the gradient sees.
    """

    seed: int
    examples: int
    batch_size: int
    curvature_size: int | None

    @property
    def is_full(self) -> bool:
        return self.batch_size == self.examples

    def gradient_rows(self, step: int) -> np.ndarray | None:
        """Rows of the training set for step 0, 1, …: (batch_size,) int32, or None for all of it."""
        if self.is_full:
            return None
        first = step * self.batch_size
        epochs = range(first // self.examples, (first + self.batch_size - 1) // self.examples + 1)
        stream = np.concatenate([_permutation(self.seed, epoch, self.examples) for epoch in epochs])
        offset = first - epochs[0] * self.examples
        return stream[offset : offset + self.batch_size]

    def curvature_rows(self, step: int) -> np.ndarray | None:
        """Positions in the gradient batch, drawn without replacement: (curvature_size,) int32, or None for all."""
        if self.curvature_size is None:
            return None
        generator = np.random.default_rng([_CURVATURE, self.seed, step])
        return generator.choice(self.batch_size, self.curvature_size, replace=False, shuffle=False).astype(np.int32)

    def epochs_after(self, steps: int) -> float:
        """How often every example has been used after so many steps."""
        return steps * self.batch_size / self.examples


def batching(settings: config.Batches, examples: int, seed: int) -> Batching:
    """Turns the sizes of a configuration into numbers of rows.

    Raises:
      ConfigError: a size exceeds the number of examples it is drawn from.
    """
    batch_size = examples if settings.gradient == "full" else settings.gradient
    if batch_size > examples:
        raise ConfigError(f"batches.gradient is {batch_size}, but there are {examples} training examples; use 'full'")
    match settings.curvature:
        case "same":
            curvature_size = None
        case float():
            curvature_size = max(1, round(settings.curvature * batch_size))
        case _:
            curvature_size = settings.curvature
    if curvature_size is not None and curvature_size > batch_size:
        raise ConfigError(f"batches.curvature is {curvature_size}, but it is drawn from {batch_size} examples")
    return Batching(seed, examples, batch_size, curvature_size)


def total_steps(settings: config.Training, batches: Batching) -> int:
    """Steps in the budget: enough to complete `epochs`, at most `steps`."""
    budgets = [] if settings.steps is None else [settings.steps]
    if settings.epochs is not None:
        budgets.append(math.ceil(settings.epochs * batches.examples / batches.batch_size))
    return min(budgets)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(examples).astype(np.int32)
