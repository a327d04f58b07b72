"""Synthetic sequences with long dependencies: what is asked at the end was said at the beginning, T steps before.

`generate` returns `Sequences`: what the network is shown at each step, where it must answer, and the answers. T is the
length that a problem is named by; all but those of memorisation have T′ ∈ [T, 1.1 T] steps, drawn anew for each, so
that counting steps does not help.

- addition, multiplication, xor: two channels, a value and a mark. Two values u, v are marked with 1, the first in
  [1, T/10), the second in [T/10, T/2); the first and the last step are marked with −1, all others with 0. The answer
  after the last step is u + v, u · v (values uniform in [0, 1)) or u ⊕ v (values 0 or 1, each half the time).
- temporal_order, temporal_order_3bit: symbols of an alphabet of 8, one-hot: start, trigger, four distractors, X and Y.
  Two (three) of the symbols are X or Y, at random steps within [T/10, T/5] and [T/2, 3T/5] (within [T/10, T/5],
  [T/3, 13T/30] and [2T/3, 23T/30]). The answer after the last step is which of the 4 (8) orders it was.
- memorization: 5 bits, T blank steps, a trigger, and 4 blanks more: T + 10 steps in all, with 4 channels (0, 1, blank,
  trigger), one-hot. The answer after every step is one of 3 symbols: blank before the trigger, the bits from it on.
  There are 2⁵ = 32 sequences, and a data set is all of them: nothing is left to generalise to.

Sources: Hochreiter & Schmidhuber, "Long short-term memory", 1997, experiments 4 to 6, for the tasks and their symbols;
Martens & Sutskever, "Learning recurrent neural networks with Hessian-free optimization", ICML 2011, and its published
code, for values in [0, 1], the sum, positions in proportion to T, xor and memorisation; Pascanu, Mikolov & Bengio,
"On the difficulty of training recurrent neural networks", ICML 2013, whose published code fixes the symbols of
memorisation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

from experiments.settings.errors import DataError

Task = Literal["addition", "multiplication", "xor", "temporal_order", "temporal_order_3bit", "memorization"]
TASKS: tuple[Task, ...] = get_args(Task)

BITS = 5  # that memorisation asks for
SHORTEST = 20  # T below which the ranges of positions have no steps in them
_ALPHABET, _START, _TRIGGER, _DISTRACTORS, _X = 8, 0, 1, (2, 6), 6  # symbols of temporal order; Y is X + 1


@dataclass(frozen=True, eq=False)
class Sequences:
    """n sequences of S steps, padded with zeros at the end, with k answers each.

    steps: (n, S, channels) float32.
    asked: (n, k) int32, the steps after which the answers are due.
    answers: (n, k), float32 numbers (addition, multiplication, xor) or int32 classes.
    classes: how many, or 0: the answers are numbers.
    """

    steps: np.ndarray
    asked: np.ndarray
    answers: np.ndarray
    classes: int = 0


def generate(task: Task, length: int, examples: int, seed: int) -> Sequences:
    """Sequences of a task, a function of the arguments alone.

    Args:
      length: T, at least 20.
      examples: n; memorisation has 32 sequences, and returns them all whatever n and the seed.

    Raises:
      DataError: the length is too short for the positions.
    """
    if length < SHORTEST:
        raise DataError(f"the tasks are defined for a length of at least {SHORTEST}, got {length}")
    random = np.random.default_rng((TASKS.index(task), length, seed))
    match task:
        case "addition":
            return _marked(np.add, length, examples, random)
        case "multiplication":
            return _marked(np.multiply, length, examples, random)
        case "xor":
            return _marked(np.not_equal, length, examples, random, binary=True)
        case "temporal_order":
            return _ordered(((1 / 10, 1 / 5), (1 / 2, 3 / 5)), length, examples, random)
        case "temporal_order_3bit":
            return _ordered(((1 / 10, 1 / 5), (1 / 3, 13 / 30), (2 / 3, 23 / 30)), length, examples, random)
        case "memorization":
            return memorization(length)


def memorization(length: int) -> Sequences:
    """All 2⁵ sequences of the noiseless memorisation of 5 bits over T = ``length`` blank steps."""
    bits = np.array(list(product((0, 1), repeat=BITS)), np.int32)
    count, size = len(bits), length + 2 * BITS
    shown = np.full((count, size), 2)
    shown[:, :BITS] = bits
    shown[:, size - BITS] = 3
    answers = np.full((count, size), 2, np.int32)
    answers[:, size - BITS :] = bits
    asked = np.tile(np.arange(size, dtype=np.int32), (count, 1))
    return Sequences(np.eye(4, dtype=np.float32)[shown], asked, answers, classes=3)


def _marked(
    operation: Callable[[np.ndarray, np.ndarray], np.ndarray],
    length: int,
    examples: int,
    random: np.random.Generator,
    binary: bool = False,
) -> Sequences:
    rows, last = np.arange(examples), _last_steps(length, examples, random)
    size = last.max() + 1
    values = random.integers(0, 2, (examples, size)) if binary else random.random((examples, size))
    first = random.integers(1, length // 10, examples)
    second = random.integers(length // 10, length // 2, examples)
    marks = np.zeros((examples, size))
    marks[rows, first] = marks[rows, second] = 1
    marks[:, 0] = marks[rows, last] = -1
    steps = np.stack([values, marks], axis=-1) * (np.arange(size) <= last[:, None])[..., None]
    answers = operation(values[rows, first], values[rows, second])[:, None]
    return Sequences(steps.astype(np.float32), last[:, None], answers.astype(np.float32))


def _ordered(
    ranges: Sequence[tuple[float, float]], length: int, examples: int, random: np.random.Generator
) -> Sequences:
    rows, last = np.arange(examples), _last_steps(length, examples, random)
    size = last.max() + 1
    symbols = random.integers(*_DISTRACTORS, size=(examples, size))
    symbols[:, 0], symbols[rows, last] = _START, _TRIGGER
    answers = np.zeros(examples, np.int32)
    for low, high in ranges:
        marked = random.integers(0, 2, examples)
        symbols[rows, random.integers(int(low * length), int(high * length) + 1, examples)] = _X + marked
        answers = 2 * answers + marked
    steps = np.eye(_ALPHABET)[symbols] * (np.arange(size) <= last[:, None])[..., None]
    return Sequences(steps.astype(np.float32), last[:, None], answers[:, None].astype(np.int32), 2 ** len(ranges))


def _last_steps(length: int, examples: int, random: np.random.Generator) -> np.ndarray:
    """The last step of each sequence, (n,) int32: T′ − 1 for T′ uniform in T … 1.1 T."""
    return random.integers(length - 1, length + length // 10, examples, dtype=np.int32)
