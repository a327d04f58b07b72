"""Every example is used once an epoch, and what a step sees depends on the seed and the step alone."""

import numpy as np
import pytest

from experiments.batches import batching, total_steps
from experiments.config import Adam, Batches, HessianFree
from experiments.errors import ConfigError


def rows(batches, steps: int) -> np.ndarray:
    return np.concatenate([batches.gradient_rows(step) for step in range(steps)])


@pytest.mark.parametrize("batch_size", [1, 3, 5, 9])
def test_each_epoch_uses_every_example_once_whether_or_not_the_batch_divides_it(batch_size):
    batches = batching(Batches(gradient=batch_size), examples=10, seed=0)
    stream = rows(batches, 30)
    for epoch in range(len(stream) // 10):
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_the_order_changes_with_the_epoch_and_with_the_seed():
    first, second = (rows(batching(Batches(gradient=10), examples=100, seed=seed), 20) for seed in (0, 1))
    assert not np.array_equal(first[:100], first[100:])
    assert not np.array_equal(first, second)


def test_a_step_needs_no_history():
    settings = Batches(gradient=7, curvature=3)
    forwards = batching(settings, examples=20, seed=5)
    steps = [forwards.gradient_rows(step) for step in range(12)]
    samples = [forwards.curvature_rows(step) for step in range(12)]
    backwards = batching(settings, examples=20, seed=5)
    for step in reversed(range(12)):
        np.testing.assert_array_equal(backwards.gradient_rows(step), steps[step])
        np.testing.assert_array_equal(backwards.curvature_rows(step), samples[step])


def test_the_curvature_sample_is_fresh_each_step_and_without_repetition():
    batches = batching(Batches(gradient=50, curvature=0.2), examples=100, seed=0)
    samples = [batches.curvature_rows(step) for step in range(200)]
    assert all(len(set(sample)) == 10 for sample in samples)
    assert len({tuple(sorted(sample)) for sample in samples}) == 200
    counts = np.bincount(np.concatenate(samples), minlength=50)
    assert counts.min() > 15  # mean 40, deviation below 6: every position has its turn
    assert counts.max() < 70


def test_full_batches_need_no_rows():
    batches = batching(Batches(curvature=0.05), examples=60, seed=0)
    assert batches.is_full
    assert batches.gradient_rows(3) is None
    assert batches.curvature_size == 3
    assert batching(Batches(), examples=60, seed=0).curvature_rows(0) is None


def test_a_budget_ends_with_its_epochs_or_its_steps_whichever_is_first():
    batches = batching(Batches(gradient=64), examples=200, seed=0)
    assert total_steps(Adam(epochs=2, learning_rate=1.0), batches) == 7  # 400 / 64 = 6.25
    assert total_steps(Adam(epochs=2, steps=3, learning_rate=1.0), batches) == 3
    assert total_steps(Adam(steps=30, learning_rate=1.0), batches) == 30
    assert total_steps(HessianFree(epochs=9), batching(Batches(), examples=200, seed=0)) == 9


def test_batches_larger_than_the_data_are_refused():
    with pytest.raises(ConfigError, match=r"batches\.gradient is 101, but there are 100 training examples"):
        batching(Batches(gradient=101), examples=100, seed=0)
    with pytest.raises(ConfigError, match=r"batches\.curvature is 101, but it is drawn from 100"):
        batching(Batches(curvature=101), examples=100, seed=0)
