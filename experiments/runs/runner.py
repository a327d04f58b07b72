"""One run from configuration to summary: the data and the plan, the loop, and everything it leaves on disk."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from experiments.problems.build import build_problem, numerics
from experiments.problems.problem import Problem
from experiments.runs.display import display
from experiments.runs.figures import draw_run
from experiments.runs.recording import (
    create_run,
    find_run,
    find_same_run,
    opened,
    read_metrics,
    read_summary,
    write_summary,
)
from experiments.settings.config import Config
from experiments.settings.errors import ExperimentError
from experiments.training.batches import Batching, total_steps
from experiments.training.loop import Accounts, Plan, Row, train
from experiments.training.optimizers import build_optimizer
from experiments.training.placement import mesh_of
from experiments.training.steps import has_diverged


@dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: Path
    summary: dict[str, Any]

    @property
    def diverged(self) -> bool:
        return self.summary["status"] == "diverged"


def run(
    config: Config,
    *,
    runs: Path,
    console: Console,
    data_dir: str | None = None,
    resume: bool = False,
    reuse: bool = False,
    devices: int | None = None,
) -> Result:
    """Trains with the configured optimizer and records it in a run folder.

    Args:
      config: the experiment; settings of optimizers other than the one that runs are ignored.
      runs: the folder that holds all run folders.
      console: where progress is shown.
      data_dir: the root of the data sets; see `problems/storage.py`.
      resume: continue the latest run of this configuration from its last checkpoint. A finished one is returned as it
        is; if there is none, a new one begins.
      reuse: the same, but of the latest run with just these settings and data; those with others are left alone.
      devices: how many share every batch; None: one.

    Raises:
      ExperimentError: the configuration, the data or the run folder does not allow it; the message says what to do.
    """
    with numerics(config.problem):
        return _run(config.only(config.optimizer), runs, console, data_dir, resume, reuse, devices)


def _run(
    config: Config,
    runs: Path,
    console: Console,
    data_dir: str | None,
    resume: bool,
    reuse: bool,
    devices: int | None,
) -> Result:
    mesh = None if devices is None else mesh_of(devices)  # before anything asks JAX for its devices
    problem = build_problem(config.problem, data_dir)
    plan = build_plan(config, problem, mesh)

    folder = find_run(runs, config, problem.dataset) if resume else None
    if reuse:
        folder = find_same_run(runs, config, problem.dataset)
    if folder is not None and (summary := read_summary(folder)) is not None:
        console.print(f"{folder} is already finished", highlight=False, soft_wrap=True)
        return Result(folder, summary)
    if folder is None:
        folder = create_run(runs, config, problem.dataset, devices or 1)
    title = f"{config.name} {config.optimizer}"
    console.print(f"{title}: {_data_line(problem)}, run folder {folder}", highlight=False, soft_wrap=True)

    try:
        accounts = _train_and_record(plan, folder, title, console)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted; the same command with --resume continues {folder}", soft_wrap=True)
        raise

    summary = _summary(config, problem, read_metrics(folder), accounts)
    try:
        if config.recording.figure:
            draw_run(folder)
    except ExperimentError as error:  # no Matplotlib: the numbers stand without their picture
        console.print(str(error), soft_wrap=True)
    write_summary(folder, summary)
    result = Result(folder, summary)
    if result.diverged:
        console.print(f"{title}: the loss is not finite after step {summary['steps']}; stopped there", style="bold red")
    return result


def build_plan(config: Config, problem: Problem, mesh: Mesh | None = None) -> Plan:
    """What the configured optimizer will do on this problem.

    Raises:
      ConfigError: a batch is larger than the training set.
    """
    batches = Batching(config.training.batches, len(problem.dataset.train), config.seed)
    steps = total_steps(config.training, batches)
    return Plan(
        problem=problem,
        optimizer=build_optimizer(config.training, steps, batches.steps_for(epochs=1)),
        batches=batches,
        chunk_size=config.training.batches.chunk_size,
        memory=config.training.batches.memory,
        steps=steps,
        seed=config.seed,
        recording=config.recording,
        mesh=mesh,
    )


def _train_and_record(plan: Plan, folder: Path, title: str, console: Console) -> Accounts:
    """Runs the loop from the folder's last checkpoint to the end; returns the final accounts."""
    with opened(folder, like=plan.initial_state()) as (metrics, checkpoints, restored):
        accounts = Accounts() if restored is None else restored[1]
        if restored is not None and _is_over(read_metrics(folder)[-1], plan):
            return accounts  # killed between its last checkpoint and its summary
        last_save = time.monotonic()
        with display(console, title, plan.steps, plan.problem.metric, accounts.steps) as shown:
            if restored is not None:
                console.print(f"{title}: resumed after step {accounts.steps}", highlight=False)
            for moment in train(plan, restored):
                metrics.append(moment.row)
                shown.show(moment.row)
                accounts = moment.accounts
                since_save = time.monotonic() - last_save
                if moment.state is None:
                    continue
                if _is_over(moment.row, plan) or since_save >= plan.recording.checkpoint_every_seconds:
                    metrics.sync()
                    checkpoints.save(moment.state, accounts)
                    last_save = time.monotonic()
    return accounts


def _is_over(row: Row, plan: Plan) -> bool:
    return row["step"] == plan.steps or has_diverged(row)


def _summary(config: Config, problem: Problem, rows: list[Row], accounts: Accounts) -> dict[str, Any]:
    """The last row, with what the run was and what it cost besides."""
    last = rows[-1]
    diverged = has_diverged(last) or not math.isfinite(last["train_loss"])
    judged = [
        row["accepted"] for row in rows if "accepted" in row
    ]  # by the optimizer; first-order methods judge nothing
    evaluated = {name: value for name, value in last.items() if name.startswith(("train_", "test_", "validation_"))}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: problem.init(config.seed))))
    return {
        "name": config.name,
        "optimizer": config.optimizer,
        "seed": config.seed,
        "status": "diverged" if diverged else "finished",
        "parameters": parameters,
        "steps": last["step"],
        **({"rejected": judged.count(False)} if judged else {}),
        "epochs": last["epoch"],
        **evaluated,
        "metric": problem.metric.name,
        "metric_format": problem.metric.format,
        "metric_higher_is_better": problem.metric.higher_is_better,
        "gradients": last["gradients"],
        "products": last["products"],
        "gradient_equivalents": last["gradient_equivalents"],
        "seconds": last["seconds"],
        "compile_seconds": accounts.compile_seconds,
        "evaluation_seconds": accounts.evaluation_seconds,
    }


def _data_line(problem: Problem) -> str:
    dataset = problem.dataset
    validation = "" if dataset.validation is None else f", {len(dataset.validation):,} validation"
    return f"{len(dataset.train):,} training{validation} and {len(dataset.test):,} test examples"
