"""The loop does what NumPy says it should, keeps exact accounts, and repeats itself."""

import math
from itertools import pairwise

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from experiments.training.loop import mean_loss_and_metric, train
from tests.cases import slowly
from tests.experiments.conftest import recorded_run, rows

TIMES = {"seconds"}


def without_times(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def linear_gradient(theta, images, labels, l2):
    """Objective and gradient of softmax regression (weights, biases), in float64."""
    weights, biases = theta
    x, onehot = images.reshape(len(images), -1).astype(np.float64), np.eye(10)[labels]
    logits = x @ weights + biases
    value = -(onehot * log_softmax(logits, axis=1)).sum(1).mean() + l2 / 2 * sum((part**2).sum() for part in theta)
    residual = (softmax(logits, axis=1) - onehot) / len(x)
    return value, (x.T @ residual + l2 * weights, residual.sum(0) + l2 * biases)


def initial(plan):
    layer = plan.problem.init(plan.seed)["Dense_0"]
    return np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)


def test_sgd_with_nesterov_momentum_and_cosine_schedule_follows_its_formula(plan):
    plan = plan("optimizer=sgd", "problem.model.hidden=[]", "optimizers.sgd.steps=6")
    train_set = plan.problem.dataset.train
    theta = initial(plan)
    velocity = tuple(np.zeros_like(part) for part in theta)
    expected = []
    for step in range(6):
        value, gradient = linear_gradient(theta, train_set.inputs, train_set.targets, l2=0.01)
        expected.append(value)
        rate = 0.1 * (1 + math.cos(math.pi * step / 6)) / 2
        velocity = tuple(0.9 * v + g for v, g in zip(velocity, gradient, strict=True))
        theta = tuple(t - rate * (0.9 * v + g) for t, v, g in zip(theta, velocity, gradient, strict=True))
    expected.append(linear_gradient(theta, train_set.inputs, train_set.targets, l2=0.01)[0])
    recorded = rows(plan)
    np.testing.assert_allclose([row["loss"] for row in recorded[1:]], expected[:-1], rtol=1e-5)
    np.testing.assert_allclose([row["train_loss"] for row in recorded], expected, rtol=1e-5)


@pytest.mark.parametrize("growth", ["null", "{factor: 2, every_steps: 2}"])
def test_adam_on_mini_batches_follows_its_formula(plan, growth):
    plan = plan(
        "problem.model.hidden=[]", "optimizers.adam.steps=5", f"optimizers.adam.batches.gradient_growth={growth}"
    )
    train_set = plan.problem.dataset.train
    theta = initial(plan)
    first = second = (0.0, 0.0)
    for step in range(5):
        batch = plan.batches.rows(step).gradient
        batch = np.arange(200) if batch is None else batch
        value, gradient = linear_gradient(theta, train_set.inputs[batch], train_set.targets[batch], l2=0.01)
        first = tuple(0.9 * m + 0.1 * g for m, g in zip(first, gradient, strict=True))
        second = tuple(0.999 * v + 0.001 * g**2 for v, g in zip(second, gradient, strict=True))
        theta = tuple(
            t - 0.01 * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
            for t, m, v in zip(theta, first, second, strict=True)
        )
    last = rows(plan)[-1]
    assert last["loss"] == pytest.approx(value, rel=1e-4)
    whole = linear_gradient(theta, train_set.inputs, train_set.targets, l2=0.01)[0]
    assert last["train_loss"] == pytest.approx(whole, rel=1e-4)


def test_adamw_shrinks_parameters_beside_the_step_of_adam(plan):
    plan = plan(
        "optimizer=adamw",
        "problem.model.hidden=[]",
        "optimizers.adamw={steps: 4, learning_rate: 0.01, schedule: cosine, weight_decay: 5, b2: 0.9}",
    )
    train_set = plan.problem.dataset.train
    theta = initial(plan)
    first = second = (0.0, 0.0)
    for step in range(4):
        _, gradient = linear_gradient(theta, train_set.inputs, train_set.targets, l2=0.01)
        rate = 0.01 * (1 + math.cos(math.pi * step / 4)) / 2
        first = tuple(0.9 * m + 0.1 * g for m, g in zip(first, gradient, strict=True))
        second = tuple(0.9 * v + 0.1 * g**2 for v, g in zip(second, gradient, strict=True))
        theta = tuple(
            t - rate * (m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.9 ** (step + 1))) + 1e-8) + 5 * t)
            for t, m, v in zip(theta, first, second, strict=True)
        )
    *_, last = train(plan)
    for name, expected in zip(("kernel", "bias"), theta, strict=True):
        # Pixels that are always 0 have gradients of l2 alone, which rounding changes in the fourth digit.
        np.testing.assert_allclose(last.state.params["Dense_0"][name], expected, rtol=1e-3, atol=1e-5)


def test_hessian_free_with_an_undamped_exact_solve_takes_the_newton_step(plan):
    plan = plan(
        "optimizer=hessian_free",
        "problem.model.hidden=[]",
        "problem.l2=0.1",
        "optimizers.hessian_free={steps: 1, damping: constant, initial_damping: 1e-6, trust_region: none, "
        "max_cg_steps: 300, cg_tolerance: 1e-5}",
    )
    train_set = plan.problem.dataset.train
    weights, biases = initial(plan)
    value, gradient = linear_gradient((weights, biases), train_set.inputs, train_set.targets, l2=0.1)
    # The Hessian of softmax regression is exact here: (1/N) Σ (x xᵀ) ⊗ (diag p − p pᵀ) + l2 I, with x = (image, 1).
    x = np.c_[train_set.inputs.reshape(len(train_set), -1), np.ones(len(train_set))].astype(np.float64)
    p = softmax(x @ np.vstack([weights, biases]), axis=1)
    middle = np.einsum("nk,kl->nkl", p, np.eye(10)) - p[:, :, None] * p[:, None, :]
    hessian = np.einsum("ni,nkl,nj->ikjl", x, middle, x).reshape(x.shape[1] * 10, -1) / len(x)
    g = np.vstack([gradient[0], gradient[1]]).ravel()
    d = np.linalg.solve(hessian + 0.1 * np.eye(len(hessian)), -g)
    predicted = g @ d / 2
    row = rows(plan)[-1]
    assert row["accepted"]
    # ρ compares the decrease of f with that of the model: the latter is ½ gᵀd at the exact solution.
    assert (row["new_loss"] - value) / row["reduction_ratio"] == pytest.approx(predicted, rel=1e-3)


@pytest.mark.parametrize("optimizer", [slowly("hessian_free"), "adam", "sgd"])
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(plan, optimizer):
    first = rows(plan(f"optimizer={optimizer}"))
    again = [moment.row for moment in train(plan(f"optimizer={optimizer}"))]
    assert without_times(first) == without_times(again)
    other = rows(plan(f"optimizer={optimizer}", "seed=1"))
    assert other[0]["train_loss"] != first[0]["train_loss"]


@pytest.mark.parametrize("optimizer", ["hessian_free", "adam", "sgd"])
def test_training_lowers_the_objective(plan, optimizer):
    recorded = rows(plan(f"optimizer={optimizer}"))
    assert recorded[-1]["train_loss"] < 0.8 * recorded[0]["train_loss"]


def test_the_accounts_count_every_gradient_product_and_example(plan):
    recorded = rows(plan("optimizer=hessian_free"))
    assert [row["step"] for row in recorded] == [0, 1, 2, 3, 4]
    assert [row["gradients"] for row in recorded] == [0, 1, 2, 3, 4]
    assert [row["examples"] for row in recorded] == [0, 100, 200, 300, 400]
    assert [row["epoch"] for row in recorded] == [0, 0.5, 1.0, 1.5, 2.0]
    products = [row["products"] for row in recorded]
    assert all(
        after >= before + row["cg_steps"] for (before, after), row in zip(pairwise(products), recorded[1:], strict=True)
    )
    for row in recorded:  # gradients on 100 and products on 50 of the 200 examples
        assert row["gradient_equivalents"] == row["gradients"] / 2 + row["products"] / 4
    assert all(a["seconds"] < b["seconds"] for a, b in pairwise(recorded))


GROWING = (  # sizes of the gradient: 20 20 40 40 80 80, of the curvature: 10 10 20 20 40 40
    "optimizer=hessian_free",
    "problem.model.hidden=[]",
    "optimizers.hessian_free={steps: 6, preset: stochastic, batches: {gradient: 20, "
    "gradient_growth: {factor: 2, every_steps: 2}, curvature: 0.5, curvature_from: partition, evaluation: 0.25}}",
)


@pytest.mark.slow
def test_the_accounts_follow_batches_that_grow(plan):
    recorded = rows(plan(*GROWING))
    assert [row["examples"] for row in recorded] == [0, 20, 40, 80, 120, 200, 280]
    assert [row["epoch"] for row in recorded] == [0, 0.1, 0.2, 0.4, 0.6, 1.0, 1.4]
    assert ["train_loss" in row for row in recorded] == [True, False, False, False, False, True, True]
    charged = 0
    for size, (before, after) in zip((10, 10, 20, 20, 40, 40), pairwise(recorded), strict=True):
        charged += size * (after["products"] - before["products"])
        assert after["gradient_equivalents"] == (after["examples"] + charged) / 200


def test_a_new_size_compiles_once_more_and_only_then(plan):
    spent = [accounts.compile_seconds for _, accounts in recorded_run(plan(*GROWING))]
    assert [before < after for before, after in pairwise(spent)] == [True, False, True, False, True, False]


@pytest.mark.parametrize("evaluation", ["same", "curvature", "30"])
def test_a_step_is_judged_on_the_evaluation_batch(plan, evaluation):
    batches = f"{{gradient: 100, curvature: 20, evaluation: {evaluation}}}"
    plan = plan(
        "optimizer=hessian_free",
        "problem.model.hidden=[]",
        f"optimizers.hessian_free={{steps: 1, batches: {batches}}}",
    )
    gradient, curvature, drawn = plan.batches.rows(0)
    judged = {"same": gradient, "curvature": gradient[curvature], "30": drawn}[evaluation]
    *_, last = train(plan)
    train_set = plan.problem.dataset.train

    def loss(params, rows):
        theta = [np.asarray(params["Dense_0"][name], np.float64) for name in ("kernel", "bias")]
        value, _ = linear_gradient(theta, train_set.inputs[rows], train_set.targets[rows], l2=0.01)
        return pytest.approx(value, rel=1e-5)

    before = plan.initial_state().params
    assert last.row["accepted"]
    assert last.row["loss"] == loss(before, gradient)
    assert last.row.get("evaluation_loss", last.row["loss"]) == loss(before, judged)
    assert last.row["new_loss"] == loss(last.state.params, judged)


def test_first_order_methods_spend_no_products(plan):
    last = rows(plan("optimizer=adam"))[-1]
    assert last["products"] == 0
    assert last["gradient_equivalents"] == last["epoch"] == 7 * 64 / 200


def test_evaluation_happens_at_the_start_every_so_many_epochs_and_at_the_end(plan):
    def evaluated(*overrides: str) -> list[int]:
        return [step for step in range(8) if plan(*overrides).is_evaluated(step)]

    assert [row["step"] for row in rows(plan("optimizer=adam")) if "train_loss" in row] == [0, 4, 7]
    assert evaluated() == [0, 4, 7]  # epochs of 200 end within the 4th and 7th batch of 64
    assert evaluated("recording.evaluate_every_epochs=10") == [0, 7]
    assert evaluated("recording.evaluate_every_epochs=0.01") == list(range(8))


def test_evaluating_changes_no_step(plan):
    seldom = rows(plan("optimizer=adam", "recording.evaluate_every_epochs=10"))
    assert [row.get("loss") for row in seldom] == [row.get("loss") for row in rows(plan("optimizer=adam"))]


@pytest.mark.parametrize("chunk_size", [1000, 360, 100, 7])
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error"])
def test_losses_and_accuracy_agree_with_numpy_whatever_the_chunks(plan, loss, chunk_size):
    problem = plan(f"problem.loss={loss}").problem
    test_set = problem.dataset.test
    params = problem.init(3)
    z = np.asarray(problem.predict(params, test_set.inputs), np.float64)
    labels = test_set.targets if loss == "softmax_cross_entropy" else test_set.targets.argmax(1)
    onehot = np.eye(10)[labels]
    expected = {
        "softmax_cross_entropy": -(onehot * log_softmax(z, axis=1)).sum(1),
        "sigmoid_cross_entropy": (np.logaddexp(0, z) - onehot * z).mean(1),
        "squared_error": ((z - onehot) ** 2).mean(1),
    }[loss]
    data = jax.device_put((test_set.inputs, test_set.targets))
    value, accuracy = mean_loss_and_metric(problem, params, data, chunk_size)
    assert value == pytest.approx(expected.mean(), rel=1e-5)
    assert accuracy == (z.argmax(1) == labels).mean()


@pytest.mark.parametrize("loss", ["sigmoid_cross_entropy", "squared_error"])
def test_hessian_free_trains_with_every_loss(plan, loss):
    recorded = rows(plan("optimizer=hessian_free", f"problem.loss={loss}"))
    assert recorded[-1]["train_loss"] < recorded[0]["train_loss"]


@pytest.mark.parametrize("preset", ["simplenn", "martens2010", "kiros2013", "stochastic"])
def test_every_preset_trains(plan, preset):
    batches = "{gradient: 100, curvature: 0.25, evaluation: curvature}"
    settings = f"optimizers.hessian_free={{steps: 6, preset: {preset}, batches: {batches}}}"
    recorded = rows(plan("optimizer=hessian_free", settings))
    assert recorded[-1]["train_loss"] < recorded[0]["train_loss"]


@pytest.mark.slow
def test_chunks_change_no_result(plan):
    # Well damped: where CG is far from converged, float32 rounding alone moves its iterate in the fourth digit.
    damped = (
        "optimizer=hessian_free",
        "optimizers.hessian_free.damping=constant",
        "optimizers.hessian_free.initial_damping=1",
    )
    chunked = rows(plan(*damped))
    whole = rows(plan(*damped, "optimizers.hessian_free.batches.chunk_size=null"))
    np.testing.assert_allclose([row["loss"] for row in whole[1:]], [row["loss"] for row in chunked[1:]], rtol=1e-4)


def test_a_run_ends_at_the_first_loss_that_is_not_finite_and_evaluates_there(plan):
    recorded = rows(plan("optimizers.adam={steps: 50, learning_rate: 1e38}", "problem.loss=squared_error"))
    assert len(recorded) < 51
    assert not math.isfinite(recorded[-1]["loss"])
    assert not math.isfinite(recorded[-1]["train_loss"])


def test_a_validation_set_is_evaluated_too(plan):
    last = rows(plan("problem.data.validation_fraction=0.2"))[-1]
    assert 0 <= last["validation_accuracy"] <= 1
    assert last["validation_loss"] != last["test_loss"]


def test_cg_reports_why_it_stopped_in_a_word(plan):
    recorded = rows(plan("optimizer=hessian_free", "optimizers.hessian_free.max_cg_steps=2"))
    assert recorded[-1]["cg_stop"] == "cap"
    assert recorded[-1]["cg_steps"] == 2
