"""Every example is used once an epoch, and what a step sees depends on the seed and the step alone."""

import math
from itertools import accumulate

import numpy as np
import pytest

from experiments.settings.errors import ConfigError
from experiments.settings.optimizers import Adam, Batches, Growth, HessianFree
from experiments.training.batches import Batching, total_steps

DOUBLING = Growth(factor=2.0, every_steps=3)


def batching(examples: int, seed: int = 0, **settings) -> Batching:
    return Batching(Batches(**settings), examples, seed)


def stream(batches: Batching, steps: int) -> np.ndarray:
    return np.concatenate([batches.rows(step).gradient for step in range(steps)])


@pytest.mark.parametrize("batch_size", [1, 3, 5, 9])
def test_each_epoch_uses_every_example_once_whether_or_not_the_batch_divides_it(batch_size):
    rows = stream(batching(10, gradient=batch_size), 30)
    for epoch in range(len(rows) // 10):
        assert sorted(rows[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_the_order_changes_with_the_epoch_and_with_the_seed():
    first, second = (stream(batching(100, seed, gradient=10), 20) for seed in (0, 1))
    assert not np.array_equal(first[:100], first[100:])
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("curvature_from", ["fresh", "partition", "last_chunk"])
@pytest.mark.parametrize("growth", [None, DOUBLING])
def test_a_step_needs_no_history(curvature_from, growth):
    settings = {"gradient": 7, "gradient_growth": growth, "curvature": 3, "evaluation": 5}
    settings |= {"curvature_from": curvature_from, "curvature_growth": growth}
    forwards = [batching(40, 5, **settings).rows(step) for step in range(12)]
    backwards = batching(40, 5, **settings)
    for step in reversed(range(12)):
        for part, expected in zip(backwards.rows(step), forwards[step], strict=True):
            np.testing.assert_array_equal(part, expected)


def test_rows_are_as_many_as_the_sizes_say_and_none_stands_for_all():
    batches = batching(40, gradient=5, gradient_growth=DOUBLING, curvature=3, curvature_growth=DOUBLING, evaluation=0.3)
    for step in range(14):
        sizes, rows = batches.sizes(step), batches.rows(step)
        assert sizes.gradient == (40 if rows.gradient is None else len(rows.gradient))
        assert sizes.curvature == (sizes.gradient if rows.curvature is None else len(rows.curvature))
        assert sizes.evaluation == len(rows.evaluation) == 12


def test_full_batches_need_no_rows():
    assert batching(60).rows(3) == (None, None, None)
    assert batching(60).sizes(3) == (60, 60, 60)
    assert batching(60, curvature=0.05).rows(3).gradient is None
    assert batching(60, curvature=0.05).sizes(3) == (60, 3, 60)


class TestCurvature:
    def test_a_fresh_sample_differs_every_step_and_has_no_repetition(self):
        batches = batching(100, gradient=50, curvature=0.2)
        samples = [batches.rows(step).curvature for step in range(200)]
        assert all(len(set(sample)) == 10 for sample in samples)
        assert len({tuple(sorted(sample)) for sample in samples}) == 200
        counts = np.bincount(np.concatenate(samples), minlength=50)
        assert counts.min() > 15  # mean 40, deviation below 6: every position has its turn
        assert counts.max() < 70

    @pytest.mark.parametrize(("gradient", "batch"), [("full", 60), (24, 24)])
    def test_the_parts_of_a_round_cover_the_batch_without_overlap_and_every_round_cuts_anew(self, gradient, batch):
        batches = batching(60, gradient=gradient, curvature=6, curvature_from="partition")
        parts = batch // 6
        rounds = [[batches.rows(turns * parts + turn).curvature for turn in range(parts)] for turns in range(5)]
        for one_round in rounds:
            assert sorted(np.concatenate(one_round)) == list(range(batch))
        assert len({tuple(sorted(part)) for one_round in rounds for part in one_round}) == 5 * parts

    def test_what_the_parts_of_one_round_leave_over_differs_from_round_to_round(self):
        batches = batching(20, curvature=6, curvature_from="partition")  # three parts, two examples over
        used = [
            {*np.concatenate([batches.rows(3 * turns + turn).curvature for turn in range(3)])} for turns in range(9)
        ]
        assert all(len(round_) == 18 for round_ in used)
        assert set.union(*used) == set(range(20))

    def test_the_last_chunk_is_the_end_of_the_batch(self):
        batches = batching(100, gradient=10, curvature=4, curvature_from="last_chunk")
        assert [list(batches.rows(step).curvature) for step in (0, 7)] == [[6, 7, 8, 9]] * 2

    def test_a_sample_as_large_as_the_batch_is_the_batch(self):
        for curvature_from in ("fresh", "partition", "last_chunk"):
            batches = batching(30, gradient=10, curvature=10, curvature_from=curvature_from)
            assert batches.rows(1).curvature is None


class TestEvaluation:
    def test_the_same_is_the_gradients_batch(self):
        assert batching(60, gradient=20, curvature=5).rows(0).evaluation is None
        assert batching(60, gradient=20, curvature=5).sizes(0).evaluation == 20

    @pytest.mark.parametrize("gradient", ["full", 20])
    def test_that_of_the_curvature_has_the_curvatures_examples(self, gradient):
        batches = batching(60, gradient=gradient, curvature=5, evaluation="curvature")
        for step in range(9):
            rows = batches.rows(step)
            batch = np.arange(60) if gradient == "full" else rows.gradient
            np.testing.assert_array_equal(rows.evaluation, batch[rows.curvature])

    def test_a_sample_is_drawn_from_the_whole_training_set_anew_each_step(self):
        batches = batching(100, gradient=10, curvature=5, evaluation=0.2)
        samples = [batches.rows(step).evaluation for step in range(200)]
        assert all(len(set(sample)) == 20 for sample in samples)
        assert len({tuple(sorted(sample)) for sample in samples}) == 200
        counts = np.bincount(np.concatenate(samples), minlength=100)
        assert counts.min() > 15  # mean 40, deviation below 6
        assert counts.max() < 70

    def test_it_shares_no_random_numbers_with_the_curvature(self):
        rows = batching(50, curvature=10, evaluation=10).rows(0)
        assert set(rows.curvature) != set(rows.evaluation)


class TestGrowth:
    def test_sizes_grow_by_the_factor_up_to_what_there_is(self):
        batches = batching(50, gradient=8, gradient_growth=DOUBLING, curvature=3, curvature_growth=DOUBLING)
        assert [batches.sizes(step).gradient for step in range(12)] == [8, 8, 8, 16, 16, 16, 32, 32, 32, 50, 50, 50]
        assert [batches.sizes(step).curvature for step in range(12)] == [3, 3, 3, 6, 6, 6, 12, 12, 12, 24, 24, 24]

    def test_sizes_are_rounded_once_not_from_step_to_step(self):
        batches = batching(100, gradient=5, gradient_growth=Growth(factor=1.25, every_steps=1))
        # 5, 6.25, 7.81, 9.77, 12.21, 15.26, 19.07
        assert [batches.sizes(step).gradient for step in range(7)] == [5, 6, 8, 10, 12, 15, 19]

    def test_the_curvature_never_outgrows_the_gradient(self):
        batches = batching(50, gradient=8, curvature=3, curvature_growth=DOUBLING)
        assert [batches.sizes(step).curvature for step in (0, 3, 6, 9)] == [3, 6, 8, 8]

    def test_a_fraction_for_the_curvature_is_of_the_batch_as_it_has_grown(self):
        batches = batching(500, gradient=20, gradient_growth=DOUBLING, curvature=0.25)
        assert [batches.sizes(step).curvature for step in (0, 3, 6)] == [5, 10, 20]

    def test_a_long_run_stays_at_what_there_is(self):
        growth = Growth(factor=1e3, every_steps=1)
        batches = batching(50, gradient=8, gradient_growth=growth, curvature=1, curvature_growth=growth)
        assert batches.sizes(10**6) == (50, 50, 50)
        assert batches.examples_after(10**6) == 8 + 50 * (10**6 - 1)

    def test_batches_follow_each_other_through_the_epochs(self):
        growth = Growth(factor=1.5, every_steps=2)
        batches = batching(30, gradient=4, gradient_growth=growth)
        assert [batches.sizes(step).gradient for step in range(10)] == [4, 4, 6, 6, 9, 9, 14, 14, 20, 20]
        rows = stream(batches, 10)
        for epoch in range(len(rows) // 30):
            assert sorted(rows[30 * epoch : 30 * epoch + 30]) == list(range(30))

    def test_epochs_are_counted_by_the_examples_of_the_steps(self):
        batches = batching(50, gradient=8, gradient_growth=Growth(factor=1.3, every_steps=2))
        sizes = [batches.sizes(step).gradient for step in range(40)]
        assert sizes[0] == 8
        assert sizes[-1] == 50
        used = [0, *accumulate(sizes)]
        assert [batches.examples_after(steps) for steps in range(41)] == used
        assert [batches.epochs_after(steps) for steps in range(41)] == [examples / 50 for examples in used]

    def test_a_budget_of_epochs_ends_with_the_step_that_completes_them(self):
        batches = batching(50, gradient=8, gradient_growth=DOUBLING)
        # after the steps: 8, 16, 24, 40, 56, 72, 104, 136, 168, 218, 268
        budgets = {0.1: 1, 0.16: 1, 0.8: 4, 1.0: 5, 2.0: 7, 3.36: 9, 4.0: 10, 5.36: 11}
        for epochs, steps in budgets.items():
            assert total_steps(Adam(epochs=epochs, learning_rate=1.0), batches) == steps


def test_a_budget_ends_with_its_epochs_or_its_steps_whichever_is_first():
    batches = batching(200, gradient=64)
    assert total_steps(Adam(epochs=2, learning_rate=1.0), batches) == 7  # 400 / 64 = 6.25
    assert total_steps(Adam(epochs=2, steps=3, learning_rate=1.0), batches) == 3
    assert total_steps(Adam(steps=30, learning_rate=1.0), batches) == 30
    assert total_steps(HessianFree(epochs=9), batching(200)) == 9
    for epochs in (0.1, 1 / 3, 0.7, 7.0):
        assert batching(200, gradient=3).steps_for(epochs) == math.ceil(epochs * 200 / 3)


def test_batches_larger_than_the_data_are_refused():
    with pytest.raises(ConfigError, match=r"batches\.gradient is 101, but there are 100 training examples"):
        batching(100, gradient=101)
    with pytest.raises(ConfigError, match=r"batches\.curvature is 101, but it is drawn from 100"):
        batching(100, curvature=101)
    with pytest.raises(ConfigError, match=r"batches\.evaluation is 101, but it is drawn from 100"):
        batching(100, gradient=10, evaluation=101)
