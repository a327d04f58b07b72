"""A recurrent network of tanh units on the tasks of `sequences.py`.

    h_t = tanh(W h_{t−1} + U x_t + b),   h_0 = 0,       z_t = V h_t + c   at the steps where an answer is due

The loss of a sequence is the sum over its answers: the squared error (z − y)² where the answer is a number, the
cross-entropy of the sigmoid (xor) or of the softmax (symbols) in nats, so the negative log-likelihood of its answers.

A sequence counts as solved if all its answers are right: the most probable class, or the number to within 0.04 of the
range that answers have, which is 2 for a sum and 1 for a product. Source: Hochreiter & Schmidhuber 1997, whose answers
have a range of 1 (the published code of Martens & Sutskever 2011 asks for a plain 0.04 of both). A problem counts as
solved when 99 % of the test sequences are: the former stop below 1 % of errors, the latter below 0.1 %.

Initial parameters: W has 15 incoming connections a unit, normal, and is scaled to a spectral radius of 1.1; U and V are
dense and normal, with small deviations; b = 0; c is the mean answer where that is a number, else 0. Source: Sutskever,
Martens, Dahl & Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013, table 4:
deviations of 0.1 for V, and for U of 0.1 (memorisation) or 0.001 (addition and multiplication).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.problems import sequences
from experiments.problems.dataset import Dataset, Examples
from experiments.problems.problem import Metric, Params, Problem
from experiments.problems.sequences import Sequences, Task
from experiments.settings import problem as config

TOLERANCES = {"addition": 0.08, "multiplication": 0.04}  # of a right number
_CONNECTIONS = 15
# One seed each for the training and the test set: runs of different seeds differ by their initial parameters alone.
_TRAIN_SEED, _TEST_SEED = 0, 1


def build_recurrent(settings: config.Recurrent) -> Problem:
    """The network and the data that the settings describe.

    Raises:
      DataError: the length is too short for the task.
    """
    train, test = (
        sequences.generate(settings.task, settings.length, count, seed)
        for count, seed in ((settings.train_examples, _TRAIN_SEED), (settings.test_examples, _TEST_SEED))
    )
    return Problem(
        dataset=Dataset(train=as_examples(train), test=as_examples(test)),
        init=partial(
            initial_parameters,
            channels=train.steps.shape[-1],
            hidden=settings.hidden,
            center=mean_answer(train),
            spectral_radius=settings.spectral_radius,
            input_scale=settings.input_scale,
            output_scale=settings.output_scale,
        ),
        predict=predict,
        loss=sequence_loss(settings.task),
        metric=Metric(name="solved", measure=partial(solved, settings.task), format="{:.2%}", higher_is_better=True),
        l2=settings.l2,
        precision=settings.precision,
    )


def as_examples(data: Sequences) -> Examples:
    """Inputs {"steps": (n, S, channels), "asked": (n, k)} and targets (n, k)."""
    return Examples({"steps": data.steps, "asked": data.asked}, data.answers)


def mean_answer(data: Sequences) -> np.ndarray:
    """(outputs,) float32, what the outputs start at: the mean of answers that are numbers, else 0."""
    if data.classes or np.isin(data.answers, (0, 1)).all():
        return np.zeros(data.classes or 1, np.float32)
    return data.answers.mean(axis=0, dtype=np.float32)


def initial_parameters(
    seed: int,
    *,
    channels: int,
    hidden: int,
    center: np.ndarray,
    spectral_radius: float,
    input_scale: float,
    output_scale: float,
) -> Params:
    """Parameters in float32, as the module says: a function of the arguments alone.

    Returns:
      {"recurrent": (hidden, hidden), "input": (channels, hidden), "bias": (hidden,), "output": (hidden, outputs),
      "center": (outputs,)}, which multiply from the right.
    """
    random = np.random.default_rng(seed)
    recurrent = random.standard_normal((hidden, hidden))
    for unit in range(hidden):
        recurrent[random.permutation(hidden)[_CONNECTIONS:], unit] = 0
    recurrent *= spectral_radius / np.abs(np.linalg.eigvals(recurrent)).max()
    params = {
        "recurrent": recurrent,
        "input": input_scale * random.standard_normal((channels, hidden)),
        "bias": np.zeros(hidden),
        "output": output_scale * random.standard_normal((hidden, len(center))),
        "center": center,
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def predict(params: Params, inputs: dict[str, jax.Array]) -> jax.Array:
    """Outputs (n, k, outputs) at the steps asked for."""
    steps, asked = inputs["steps"], inputs["asked"]
    driven = jnp.moveaxis(steps @ params["input"] + params["bias"], 1, 0)

    def advance(state: jax.Array, drive: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jnp.tanh(state @ params["recurrent"] + drive)
        return state, state

    states = jax.lax.scan(advance, jnp.zeros_like(driven[0]), driven)[1]
    return states[asked, jnp.arange(len(steps))[:, None]] @ params["output"] + params["center"]


def sequence_loss(task: Task) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(outputs (n, k, outputs), answers (n, k)) -> (n,), the sum over the answers of a sequence."""

    def loss(outputs: jax.Array, answers: jax.Array) -> jax.Array:
        match task:
            case "addition" | "multiplication":
                losses = optax.losses.squared_error(outputs[..., 0], answers)
            case "xor":
                losses = optax.losses.sigmoid_binary_cross_entropy(outputs[..., 0], answers)
            case _:
                losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, answers)
        return losses.sum(axis=-1)

    return loss


def solved(task: Task, params: Params, inputs: dict[str, jax.Array], answers: jax.Array) -> jax.Array:
    """(n,): 1 where every answer of a sequence is right, else 0."""
    outputs = predict(params, inputs)
    match task:
        case "addition" | "multiplication":
            right = jnp.abs(outputs[..., 0] - answers) <= TOLERANCES[task]
        case "xor":
            right = (outputs[..., 0] > 0) == (answers > 0.5)
        case _:
            right = outputs.argmax(axis=-1) == answers
    return right.all(axis=-1).astype(outputs.dtype)
