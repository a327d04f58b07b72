"""A problem small enough to train in a second, as the YAML a user would write; and runs that train nothing."""

import io
import json
import signal
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from experiments.problems.build import build_problem
from experiments.runs.runner import Result, build_plan
from experiments.settings.config_file import load_config
from experiments.suite import pool
from experiments.suite.comparison import compare
from experiments.training.loop import Accounts, train

ROOT = Path(__file__).parents[2]
SMALL = """
name: small
problem:
  family: classification
  data: {name: digits, train_examples: 200}
  model: {kind: mlp, hidden: [8], activation: tanh}
  l2: 1.0e-2
optimizer: adam
optimizers:
  hessian_free: {steps: 4, batches: {gradient: 100, curvature: 0.5, chunk_size: 40}}
  adam: {epochs: 2, batches: {gradient: 64}, learning_rate: 1e-2}
  sgd: {steps: 5, learning_rate: 0.1, schedule: cosine, momentum: 0.9, nesterov: true}
"""


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Programs the tests start can be interrupted, also where a shell in the background lets these ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """A configuration file with all three optimizers."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def console() -> Console:
    """A console that is no terminal, and shows nothing."""
    return Console(quiet=True)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The plan of the small problem under overrides; each is built once."""
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")

    @cache
    def build(*overrides: str):
        config = load_config(path, overrides)
        return build_plan(config, build_problem(config.problem))

    return build


@cache  # by the identity of the plan: tests of the same run share it
def recorded_run(plan) -> list[tuple[dict, Accounts]]:
    return [(moment.row, moment.accounts) for moment in train(plan)]


def rows(plan) -> list[dict]:
    return [row for row, _ in recorded_run(plan)]


@pytest.fixture(scope="session")
def comparison(tmp_path_factory):
    """(results, runs folder, what was printed) of a comparison of all three optimizers."""
    folder = tmp_path_factory.mktemp("comparison")
    path = folder / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    output = io.StringIO()
    results = compare(load_config(path), None, runs=folder, console=Console(file=output, width=80))
    return results, folder, output.getvalue()


@contextmanager
def in_this_process(jobs, compiled):
    """Stands in for the workers where it does not matter who runs."""

    class Pool:
        def submit(self, function, *arguments):
            future = Future()
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future

    yield Pool()


def untrained(losses, source_changes_at=None):
    """Stands in for `run` where no training is needed: losses(config) is what the summary holds; one seed may have been
    run by older code."""
    found = {"python": "3", "packages": {}, "device": "none", "system": "none", "architecture": "none", "cpus": 0}

    def run(config, *, runs, **arguments):
        found["source"] = "older" if config.seed == source_changes_at else "newer"
        folder = runs / config.name / f"seed{config.seed}"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"step": 0, "train_loss": 2.0}\n')
        (folder / "environment.json").write_text(json.dumps(found))
        costs = {"status": "finished", "steps": 1, "products": 0, "seconds": 0.0}
        costs |= {"metric": "accuracy", "metric_format": "{:.2%}", "test_accuracy": 0.9}
        return Result(folder, costs | losses(config))

    return run


@pytest.fixture
def stand_in(monkeypatch):
    """Call it with `losses` of `untrained`: sweeps then train nothing, and start no process."""
    monkeypatch.setattr(pool, "_processes", in_this_process)
    return lambda losses, **older: monkeypatch.setattr(pool, "run", untrained(losses, **older))
