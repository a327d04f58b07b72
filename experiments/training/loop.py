"""The loop: queues of steps, evaluation on whole data sets, and the accounts of both.

Only steps count as training time. Compilation and evaluation are timed apart, and everything but the times is a
function of the configuration and the seed.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import hfopt
from experiments.problems.dataset import Examples
from experiments.problems.problem import Params, Problem
from experiments.settings import config
from experiments.training.batches import Batching, Rows, Sizes
from experiments.training.optimizers import Optimizer
from experiments.training.placement import split
from experiments.training.steps import TrainState, has_diverged, make_queue, queue_rows
from hfopt import sharding
from hfopt.objective import Memory

Row = dict[str, Any]  # one line of metrics.jsonl: names -> numbers, strings or booleans


@dataclass(frozen=True)
class Accounts:
    """What training has cost so far.

    steps, gradients (one a step, and one for each point that a line search takes one at) and products
    (curvature-vector products) are counts. examples sums the batch sizes of the steps, gradient_examples those of all
    gradients, product_examples those of the products. All times are in seconds.
    """

    steps: int = 0
    gradients: int = 0
    products: int = 0
    examples: int = 0
    gradient_examples: int = 0
    product_examples: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def gradient_equivalents(self, training_examples: int) -> float:
        """Gradients and products in units of one gradient over the whole training set.

        A product on m examples is charged as a gradient on m examples. Evaluations of the objective alone, which a
        line search adds, are not charged.
        """
        return (self.gradient_examples + self.product_examples) / training_examples


class Moment(NamedTuple):
    """The loop between two steps: what to record, and all that is needed to go on from here.

    state: None between the steps of a queue. Its buffers are donated to the next step: use or copy them before asking
    for the next moment.
    """

    row: Row
    state: TrainState | None
    accounts: Accounts


@dataclass(frozen=True)
class Plan:
    """Everything that determines the numbers of a run."""

    problem: Problem
    optimizer: Optimizer
    batches: Batching
    chunk_size: int | None
    steps: int
    seed: int
    recording: config.Recording
    memory: Memory = "auto"
    mesh: Mesh | None = None  # of the devices that share every batch; None: one device

    def rows(self, step: int) -> Rows:
        """The batches of a step, as numbers of rows, where they are to be computed with."""
        rows = self.batches.rows(step)
        return rows if self.mesh is None else split(rows, self.batches.examples, self.mesh)

    def queue_rows(self, step: int, count: int) -> Rows:
        """Those of so many steps from this one on, as a queue takes them."""
        return queue_rows([self.rows(step + i) for i in range(count)], self.longest_queue)

    def everywhere(self, tree: Any) -> Any:
        """``tree``, whole on every device."""
        return tree if self.mesh is None else sharding.replicate(tree, self.mesh)

    def initial_state(self) -> TrainState:
        params = self.problem.init(self.seed)
        # Weakly typed leaves (from Python scalars) would give the first step another signature than the later ones, and
        # an array that is there twice could not be donated.
        state = TrainState(params, self.optimizer.transformation.init(params))
        return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype, copy=True), state)

    def is_evaluated(self, step: int) -> bool:
        """Whether the data sets are evaluated after so many steps: at the start, every so many epochs, at the end."""
        if step in (0, self.steps):
            return True
        if self.recording.evaluations is not None:
            return step in _geometric(self.steps, self.recording.evaluations)
        period = self.recording.evaluate_every_epochs
        return math.floor(self.batches.epochs_after(step) / period) > math.floor(
            self.batches.epochs_after(step - 1) / period
        )

    @property
    def longest_queue(self) -> int:
        """How many steps one compiled program can make: just one where devices share every batch."""
        return self.optimizer.queued_steps if self.mesh is None else 1

    def queue(self, step: int) -> int:
        """How many steps to make from this one on before looking at what they did.

        A queue ends early at an evaluation, and where the compiled program changes.
        """
        count, sizes = 1, self.batches.sizes(step)
        while (
            count < self.longest_queue
            and not self.is_evaluated(step + count)
            and self.batches.sizes(step + count) == sizes
        ):
            count += 1
        return count


@lru_cache(maxsize=1)
def _geometric(steps: int, count: int) -> frozenset[int]:
    """So many steps from 1 to the last, spaced geometrically; fewer where several round to one."""
    return frozenset(np.geomspace(1, steps, count).round().astype(int).tolist())


def train(plan: Plan, start: tuple[TrainState, Accounts] | None = None) -> Iterator[Moment]:
    """Runs the plan, from its initial state or from where `start` left off.

    Yields:
      A moment before the first step (not when resuming) and one after every step. Ends after the last step, or after
      the first that diverged.
    """
    problem = plan.problem
    data = plan.everywhere(_on_device(problem.dataset.train))
    evaluation: Row
    evaluate = _evaluator(plan, data)
    if start is None:
        state, accounts = plan.everywhere(plan.initial_state()), Accounts()
        evaluation, accounts = _timed_evaluation(evaluate, state.params, accounts)
        yield Moment(_row(plan, accounts) | evaluation, state, accounts)
    else:
        state, accounts = plan.everywhere(start[0]), start[1]

    queue = make_queue(problem, plan.optimizer, plan.chunk_size, plan.memory, plan.longest_queue)
    compiled, compiled_for = None, None  # for the present sizes alone: earlier ones never come back
    while accounts.steps < plan.steps:
        first, count = accounts.steps, plan.queue(accounts.steps)
        sizes = plan.batches.sizes(first)
        if compiled is None or sizes != compiled_for:
            began = time.perf_counter()
            compiled, compiled_for = queue.lower(state, data, plan.queue_rows(first, count), count).compile(), sizes
            accounts = replace(accounts, compile_seconds=accounts.compile_seconds + time.perf_counter() - began)
        began = time.perf_counter()
        state, reports, taken = compiled(state, data, plan.queue_rows(first, count), count)
        reports, taken = jax.device_get(reports), int(taken)
        seconds = (time.perf_counter() - began) / taken
        for i in range(taken):
            report = {name: values[i].item() for name, values in reports.items()}
            accounts = _charged(accounts, report, sizes, seconds)
            is_last = i == taken - 1
            evaluation = {}
            if is_last and (has_diverged(report) or plan.is_evaluated(accounts.steps)):
                evaluation, accounts = _timed_evaluation(evaluate, state.params, accounts)
            row = _row(plan, accounts) | plan.optimizer.readable(report) | evaluation
            yield Moment(row, state if is_last else None, accounts)
        if has_diverged(report):
            return


def _charged(accounts: Accounts, report: Row, sizes: Sizes, seconds: float) -> Accounts:
    """The accounts after one more step; counts that serve them alone are taken out of its report."""
    products, gradients = report.pop("products", 0), 1 + report.pop("line_search_gradients", 0)
    return replace(
        accounts,
        steps=accounts.steps + 1,
        gradients=accounts.gradients + gradients,
        products=accounts.products + products,
        examples=accounts.examples + sizes.gradient,
        gradient_examples=accounts.gradient_examples + gradients * sizes.gradient,
        product_examples=accounts.product_examples + products * sizes.curvature,
        seconds=accounts.seconds + seconds,
    )


def _on_device(part: Examples) -> tuple[Any, Any]:
    return jax.device_put((part.inputs, part.targets))


def _row(plan: Plan, accounts: Accounts) -> Row:
    return {
        "step": accounts.steps,
        "epoch": plan.batches.epochs_after(accounts.steps),
        "examples": accounts.examples,
        "gradients": accounts.gradients,
        "products": accounts.products,
        "gradient_equivalents": accounts.gradient_equivalents(plan.batches.examples),
        "seconds": accounts.seconds,
    }


def _timed_evaluation(evaluate: Callable[[Params], Row], params: Params, accounts: Accounts) -> tuple[Row, Accounts]:
    began = time.perf_counter()
    evaluation = evaluate(params)
    elapsed = time.perf_counter() - began
    return evaluation, replace(accounts, evaluation_seconds=accounts.evaluation_seconds + elapsed)


def _evaluator(plan: Plan, train_data: tuple[Any, Any]) -> Callable[[Params], Row]:
    """params -> train_loss (the objective over the training set, penalty included), loss without penalty on every
    held-out set, the metric on all of them; and, if that is to be recorded, the sharpness: λmax of the Hessian."""
    problem, chunk_size = plan.problem, plan.recording.evaluation_chunk_size
    dataset, metric = problem.dataset, problem.metric.name
    held_out = {"test": dataset.test} | ({} if dataset.validation is None else {"validation": dataset.validation})
    sets = {"train": train_data} | {name: _on_device(part) for name, part in held_out.items()}
    objective = hfopt.Objective(problem.predict, problem.loss, l2=problem.l2, precision=problem.precision)

    @jax.jit
    def sharpness(params: Params, data: Any) -> jax.Array:
        operator = hfopt.hessian(objective.bind(data, chunk_size=chunk_size), params)
        return hfopt.spectra.sharpness(operator, jax.random.key(0))[0]

    def evaluate(params: Params) -> Row:
        row: Row = {}
        for name, data in sets.items():
            row[f"{name}_loss"], row[f"{name}_{metric}"] = mean_loss_and_metric(problem, params, data, chunk_size)
        row["train_loss"] += 0.5 * problem.l2 * float(optax.tree.norm(params, squared=True))
        if plan.recording.sharpness:
            row["sharpness"] = sharpness(params, train_data).item()
        return row

    return evaluate


def mean_loss_and_metric(
    problem: Problem, params: Params, data: tuple[Any, Any], chunk_size: int
) -> tuple[float, float]:
    """Mean loss without penalty, and the problem's metric, over a set of examples.

    Args:
      data: inputs and targets, as the loss takes them.
      chunk_size: examples to predict at a time. The sums over chunks are added in float64.
    """
    examples = len(jax.tree.leaves(data)[0])
    loss = metric = 0.0
    for start in range(0, examples, chunk_size):
        size = min(chunk_size, examples - start)
        sums = _sums_over_chunk(problem.predict, problem.loss, problem.metric.measure, params, data, start, size)
        chunk_loss, chunk_metric = jax.device_get(sums)
        loss, metric = loss + float(chunk_loss), metric + float(chunk_metric)
    return loss / examples, problem.metric.finish(metric / examples)


@partial(jax.jit, static_argnums=(0, 1, 2, 6))
def _sums_over_chunk(
    predict: Callable[..., Any],
    loss: Callable[..., jax.Array],
    measure: Callable[..., jax.Array],
    params: Params,
    data: tuple[Any, Any],
    start: int,
    size: int,
) -> tuple[jax.Array, jax.Array]:
    inputs, targets = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), data)
    with jax.default_matmul_precision("highest"):
        losses = loss(predict(params, inputs), targets)
        measured = measure(params, inputs, targets)  # of the same outputs, which XLA computes once
    return losses.reshape(size, -1).mean(axis=1).sum(), measured.sum()
