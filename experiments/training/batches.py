"""Which examples a step sees: a function of the seed and the step number alone, so a resumed run sees the same.

Training examples come as an endless stream of epochs, each a permutation drawn from a generator keyed on
(seed, epoch); a step takes the next batch of it. Every example is used once an epoch, every batch has its full size
(one compilation a size), and none is dropped: a batch at the seam of two epochs takes from both. A batch of the whole
training set needs no order, and completes the epoch whatever came before it.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from experiments.settings import optimizers as config
from experiments.settings.errors import ConfigError

# First word of a generator's key, so that no two kinds of draws share random numbers.
_ORDER, _CURVATURE, _PARTITION, _EVALUATION = range(4)


class Sizes(NamedTuple):
    """How many examples one step averages over in each of their roles."""

    gradient: int
    curvature: int
    evaluation: int


class Rows(NamedTuple):
    """Which examples those are: int32 arrays, as long as `Sizes` says.

    gradient: rows of the training set, or None for all of it.
    curvature: positions in the gradient batch, or None for all of it.
    evaluation: rows of the training set, or None for those of the gradient.
    """

    gradient: np.ndarray | None
    curvature: np.ndarray | None
    evaluation: np.ndarray | None


@dataclass(frozen=True)
class Batching:
    """The rows of every step, counted from 0.

    settings: what a configuration asks for. examples: N, in the training set.

    Raises:
      ConfigError: a size exceeds the number of examples it is drawn from.
    """

    settings: config.Batches
    examples: int
    seed: int

    def __post_init__(self) -> None:
        gradient, curvature, evaluation = self.settings.gradient, self.settings.curvature, self.settings.evaluation
        if gradient != "full" and gradient > self.examples:
            raise ConfigError(
                f"batches.gradient is {gradient}, but there are {self.examples} training examples; use 'full'"
            )
        batch = self._gradient_size(0)
        if isinstance(curvature, int) and curvature > batch:
            raise ConfigError(f"batches.curvature is {curvature}, but it is drawn from {batch} examples")
        if isinstance(evaluation, int) and evaluation > self.examples:
            raise ConfigError(f"batches.evaluation is {evaluation}, but it is drawn from {self.examples} examples")

    def sizes(self, step: int) -> Sizes:
        """What a step is compiled for. None of them ever falls."""
        gradient, curvature = self._gradient_size(step), self._curvature_size(step)
        evaluation: int
        match self.settings.evaluation:
            case "same":
                evaluation = gradient
            case "curvature":
                evaluation = curvature
            case size:
                evaluation = _grown(_share(size, self.examples), None, step, self.examples)
        return Sizes(gradient, curvature, evaluation)

    def rows(self, step: int) -> Rows:
        """What a step sees; within a role no example is there twice, except where the gradient crosses two epochs."""
        sizes = self.sizes(step)
        gradient = None if sizes.gradient == self.examples else self._stream(step, sizes.gradient)
        curvature = None if sizes.curvature == sizes.gradient else self._sample_of_batch(step, sizes)
        evaluation = None
        if self.settings.evaluation == "curvature":
            evaluation = curvature if gradient is None or curvature is None else gradient[curvature]
        elif self.settings.evaluation != "same":
            evaluation = _sample(_EVALUATION, self.seed, step, self.examples, sizes.evaluation)
        return Rows(gradient, curvature, evaluation)

    def examples_after(self, steps: int) -> int:
        """The sum of the gradient's batch sizes over so many steps."""
        growth, size = self.settings.gradient_growth, self._gradient_size(0)
        if growth is None:
            return steps * size
        periods, rest = divmod(steps, growth.every_steps)
        growing = min(periods, _periods_to_grow(size, growth, self.examples))
        whole = sum(self._gradient_size(period * growth.every_steps) for period in range(growing))
        whole += (periods - growing) * self.examples
        return growth.every_steps * whole + rest * self._gradient_size(steps)

    def epochs_after(self, steps: int) -> float:
        """How often every example has been used after so many steps."""
        return self.examples_after(steps) / self.examples

    def steps_for(self, epochs: float) -> int:
        """The fewest steps that complete so many epochs."""
        needed = epochs * self.examples
        most = math.ceil(needed / self._gradient_size(0))  # were the batches not to grow
        return bisect_left(range(most), needed, key=self.examples_after)

    def _gradient_size(self, step: int) -> int:
        size = self.examples if self.settings.gradient == "full" else self.settings.gradient
        return _grown(size, self.settings.gradient_growth, step, self.examples)

    def _curvature_size(self, step: int) -> int:
        batch = self._gradient_size(step)
        if self.settings.curvature == "same":
            return batch
        return _grown(_share(self.settings.curvature, batch), self.settings.curvature_growth, step, batch)

    def _stream(self, step: int, size: int) -> np.ndarray:
        first = self.examples_after(step)
        epochs = range(first // self.examples, (first + size - 1) // self.examples + 1)
        stream = np.concatenate([_permutation(_ORDER, self.seed, epoch, self.examples) for epoch in epochs])
        offset = first - epochs[0] * self.examples
        return stream[offset : offset + size]

    def _sample_of_batch(self, step: int, sizes: Sizes) -> np.ndarray:
        batch, size, _ = sizes
        match self.settings.curvature_from:
            case "fresh":
                return _sample(_CURVATURE, self.seed, step, batch, size)
            case "partition":
                turns, turn = divmod(step, batch // size)
                return _permutation(_PARTITION, self.seed, turns, batch)[turn * size : (turn + 1) * size]
            case "first":
                return np.arange(size, dtype=np.int32)
            case "last_chunk":
                return np.arange(batch - size, batch, dtype=np.int32)


def total_steps(settings: config.Training, batches: Batching) -> int:
    """Steps in the budget: enough to complete `epochs`, at most `steps`."""
    budgets = [] if settings.steps is None else [settings.steps]
    if settings.epochs is not None:
        budgets.append(batches.steps_for(settings.epochs))
    return min(budgets)


def _share(size: int | float, whole: int) -> float:
    """A size given as a number of examples, or as a fraction of the whole."""
    return size * whole if isinstance(size, float) else size


def _grown(size: float, growth: config.Growth | None, step: int, limit: int) -> int:
    """size · factor^⌊step / every_steps⌋, rounded, from 1 to `limit`."""
    if growth is not None:
        # The exponent stops where the limit is reached: the power would overflow in a long run.
        size *= growth.factor ** min(step // growth.every_steps, _periods_to_grow(size, growth, limit))
    return round(min(max(1, size), limit))


def _periods_to_grow(size: float, growth: config.Growth, limit: int) -> int:
    return math.ceil(math.log(limit / size) / math.log(growth.factor))


def _sample(kind: int, seed: int, step: int, examples: int, size: int) -> np.ndarray:
    generator = np.random.default_rng([kind, seed, step])
    return generator.choice(examples, size, replace=False, shuffle=False).astype(np.int32)


@lru_cache(maxsize=3)  # two epochs of the order, one round of the partition
def _permutation(kind: int, seed: int, turn: int, examples: int) -> np.ndarray:
    return np.random.default_rng([kind, seed, turn]).permutation(examples).astype(np.int32)
