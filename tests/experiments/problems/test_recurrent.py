"""The synthetic sequences and the recurrent network: answers read off the steps, and a plain NumPy network."""

import numpy as np
import pytest

from experiments.problems import sequences
from experiments.problems.recurrent import (
    TOLERANCES,
    build_recurrent,
    initial_parameters,
    predict,
    sequence_loss,
    solved,
)
from experiments.settings import problem as config
from experiments.settings.errors import DataError

LENGTH = 40
OPERATIONS = {"addition": lambda u, v: u + v, "multiplication": lambda u, v: u * v, "xor": lambda u, v: u != v}
SYMBOLS = np.array(list("SBabcdXY"))  # start, trigger, distractors, and the two that count


def settings(**changes) -> config.Recurrent:
    small = {"task": "addition", "length": 20, "hidden": 20, "train_examples": 6, "test_examples": 4}
    return config.Recurrent(family="recurrent", **small | changes)


def shown(data: sequences.Sequences):
    """Each sequence up to its last answer, with its answers; and what the padding after it holds."""
    for steps, asked, answers in zip(data.steps, data.asked, data.answers, strict=True):
        yield steps[: asked[-1] + 1], answers
        assert not steps[asked[-1] + 1 :].any()


@pytest.mark.parametrize("task", OPERATIONS)
def test_two_marked_values_give_the_answer(task):
    for steps, answers in shown(sequences.generate(task, LENGTH, 300, 0)):
        values, marks = steps.T
        first, second = np.flatnonzero(marks == 1)
        assert 1 <= first < LENGTH // 10 <= second < LENGTH // 2
        assert list(np.flatnonzero(marks == -1)) == [0, len(steps) - 1]
        assert np.count_nonzero(marks) == 4
        assert answers == pytest.approx(float(OPERATIONS[task](values[first], values[second])), abs=1e-6)


@pytest.mark.parametrize(("task", "count"), [("temporal_order", 2), ("temporal_order_3bit", 3)])
def test_the_class_is_the_order_of_x_and_y(task, count):
    data = sequences.generate(task, LENGTH, 300, 0)
    for steps, answers in shown(data):
        np.testing.assert_array_equal(np.sort(steps, axis=1)[:, -2:], np.tile([0, 1], (len(steps), 1)))
        text = "".join(SYMBOLS[steps.argmax(axis=1)])
        order = text.translate(str.maketrans("XY", "01", "SBabcd"))
        assert len(order) == count
        assert int(order, 2) == answers
        assert text[0] == "S"
        assert text[-1] == "B"
        assert text.count("S") == text.count("B") == 1
    assert set(data.answers.ravel()) == set(range(2**count)) == set(range(data.classes))


@pytest.mark.parametrize("task", [task for task in sequences.TASKS if task != "memorization"])
def test_lengths_spread_from_the_named_one_to_a_tenth_more(task):
    lengths = sequences.generate(task, LENGTH, 1000, 0).asked[:, -1] + 1
    assert set(lengths) == set(range(LENGTH, LENGTH + LENGTH // 10 + 1))


def test_memorization_asks_for_the_bits_shown_at_first():
    data = sequences.generate("memorization", LENGTH, 7, 0)
    texts = ["".join("01-?"[symbol] for symbol in steps.argmax(axis=1)) for steps in data.steps]
    answers = ["".join("01-"[answer] for answer in row) for row in data.answers]
    assert sorted(text[:5] for text in texts) == [f"{number:05b}" for number in range(32)]
    for text, answer in zip(texts, answers, strict=True):
        assert text == text[:5] + "-" * LENGTH + "?----"
        assert answer == "-" * (LENGTH + 5) + text[:5]
    np.testing.assert_array_equal(data.asked, [range(LENGTH + 10)] * 32)


@pytest.mark.parametrize("task", sequences.TASKS)
def test_sequences_are_a_function_of_the_arguments(task):
    one, again, other = (sequences.generate(task, LENGTH, 50, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.steps, again.steps)
    np.testing.assert_array_equal(one.answers, again.answers)
    assert (task == "memorization") == (one.steps.shape == other.steps.shape and (one.steps == other.steps).all())


def test_a_length_without_room_for_the_positions_is_refused():
    with pytest.raises(DataError, match="at least 20, got 19"):
        sequences.generate("addition", 19, 10, 0)


@pytest.mark.parametrize("task", sequences.TASKS)
def test_outputs_are_those_of_a_network_run_step_by_step(task):
    problem = build_recurrent(settings(task=task, input_scale=0.5, output_scale=0.5))
    params, inputs = problem.init(3), problem.dataset.test.inputs
    recurrent, drive, bias, output, center = (
        np.asarray(params[name], np.float64) for name in ("recurrent", "input", "bias", "output", "center")
    )
    bias += 0.1
    outputs = problem.predict(params | {"bias": bias.astype(np.float32)}, inputs)
    for sequence, asked, found in zip(inputs["steps"], inputs["asked"], np.asarray(outputs), strict=True):
        state, answers = np.zeros(20), {}
        for step, symbol in enumerate(sequence):
            state = np.tanh(state @ recurrent + symbol @ drive + bias)
            answers[step] = state @ output + center
        np.testing.assert_allclose(found, [answers[step] for step in asked], atol=2e-4)


def test_the_loss_of_a_sequence_is_the_sum_over_its_answers():
    random = np.random.default_rng(0)
    outputs, answers = random.standard_normal((5, 3, 4), np.float32), random.integers(0, 4, (5, 3), np.int32)
    chances = np.exp(outputs) / np.exp(outputs).sum(axis=-1, keepdims=True)
    surprise = -np.log(np.take_along_axis(chances, answers[..., None], axis=-1)).sum(axis=(1, 2))
    np.testing.assert_allclose(sequence_loss("memorization")(outputs, answers), surprise, rtol=1e-5)

    number, truth = outputs[:, :, :1], random.integers(0, 2, (5, 3)).astype(np.float32)
    squares = (number[..., 0] - truth) ** 2
    np.testing.assert_allclose(sequence_loss("addition")(number, truth), squares.sum(axis=1), rtol=1e-5)
    right = 1 / (1 + np.exp(-np.where(truth == 1, 1, -1) * number[..., 0]))
    np.testing.assert_allclose(sequence_loss("xor")(number, truth), -np.log(right).sum(axis=1), rtol=1e-5)


def test_a_sequence_is_solved_when_every_answer_is_right():
    """By a network whose output is its bias: c."""
    params = initial_parameters(
        0, channels=4, hidden=20, center=np.zeros(3), spectral_radius=1.0, input_scale=0.1, output_scale=0.0
    )
    inputs = {"steps": np.zeros((2, 30, 4), np.float32), "asked": np.array([[10, 20], [5, 29]])}
    says_one = params | {"center": np.array([0.0, 1.0, 0.0], np.float32)}
    np.testing.assert_array_equal(solved("memorization", says_one, inputs, np.array([[1, 1], [1, 2]])), [1, 0])

    number = params | {"output": params["output"][:, :1], "center": np.array([0.5], np.float32)}
    assert TOLERANCES == {"addition": 0.04 * 2, "multiplication": 0.04 * 1}  # of the range of the answers
    tolerance = TOLERANCES["addition"]
    answers = np.array([[0.5, 0.5 + 0.9 * tolerance], [0.5, 0.5 - 1.1 * tolerance]])
    np.testing.assert_array_equal(solved("addition", number, inputs, answers), [1, 0])
    np.testing.assert_array_equal(solved("xor", number, inputs, np.array([[1, 1], [1, 0]])), [1, 0])


@pytest.mark.parametrize("seed", range(3))
def test_initial_parameters_have_the_published_scales(seed):
    given = {"channels": 3, "hidden": 60, "center": np.array([0.7]), "spectral_radius": 1.2}
    params = initial_parameters(seed, **given, input_scale=0.5, output_scale=0.1)
    again = initial_parameters(seed, **given, input_scale=0.5, output_scale=0.1)
    recurrent = np.asarray(params["recurrent"], np.float64)
    np.testing.assert_array_equal(np.count_nonzero(recurrent, axis=0), 15)
    assert np.abs(np.linalg.eigvals(recurrent)).max() == pytest.approx(1.2, rel=1e-5)
    assert np.std(params["input"]) == pytest.approx(0.5, rel=0.2)
    assert np.std(params["output"]) == pytest.approx(0.1, rel=0.3)
    assert not params["bias"].any()
    assert params["center"] == pytest.approx(0.7)
    np.testing.assert_array_equal(recurrent, again["recurrent"])


def test_the_outputs_start_at_the_mean_answer():
    problem = build_recurrent(settings(task="multiplication", train_examples=2000, output_scale=1e-6))
    outputs = predict(problem.init(0), problem.dataset.test.inputs)
    np.testing.assert_allclose(outputs, 0.25, atol=0.02)
    np.testing.assert_allclose(problem.init(0)["center"], problem.dataset.train.targets.mean(), rtol=1e-5)
