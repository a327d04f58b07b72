"""The processes that runs share a machine with, and what is said of the time they take."""

import io
import os
import sys
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console

from experiments.runs.runner import Result
from experiments.suite import pool as module
from experiments.suite.pool import Task, Timed, pool


@contextmanager
def at_once(jobs, compiled):
    """Processes that have done what they are asked to before it is asked."""

    class Executor:
        def submit(self, function, config, folder, data_dir):
            future = Future()
            summary = {"train_loss": 1.0, "metric": "accuracy", "metric_format": "{:.0%}", "test_accuracy": 0.5}
            costs = {"seconds": 20.0, "compile_seconds": 30.0, "evaluation_seconds": 10.0}
            future.set_result(Timed(Result(folder, summary | costs), seconds=config))
            return future

    yield Executor()


def test_time_left_is_what_the_runs_cost_shared_among_the_jobs(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_processes", at_once)
    output = io.StringIO()
    with pool(2, compiled=tmp_path, console=Console(file=output, width=40), name="many") as workers:
        workers.expect(4)
        # A run made earlier, done at once, cost the 60 s it has recorded; one that took longer here cost that.
        first = workers.run([Task("reused", 0.1, tmp_path / "a"), Task("new", 100.0, tmp_path / "b")])
        workers.run([Task("third", 0.1, tmp_path), Task("unexpected", 0.1, tmp_path), Task("last", 0.1, tmp_path)])
    assert [result.folder.name for result in first] == ["a", "b"]
    lines = [line.split("  ") for line in output.getvalue().splitlines()]
    assert [(line[0], line[2]) for line in lines[:4]] == [
        ("1/4", "left 90 s"),
        ("2/4", "left 80 s"),
        ("3/5", "left 73 s"),
        ("4/5", "left 35 s"),
    ]
    assert lines[4][0] == "5/5"
    assert [line[-1] for line in lines] == [
        f"{title}: train loss 1, test accuracy 50%" for title in ("reused", "new", "third", "unexpected", "last")
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are bound to cores on Linux alone")
def test_a_worker_of_an_accelerator_keeps_every_core(monkeypatch):
    bound = []
    monkeypatch.setattr(module.os, "sched_setaffinity", lambda process, cores: bound.append(cores))
    monkeypatch.setattr(module, "clear_backends", lambda: None)
    monkeypatch.setattr(module, "jax", SimpleNamespace(default_backend=lambda: "gpu"))
    module._take_core(0)
    assert bound == []
    monkeypatch.setattr(module, "jax", jax)
    module._take_core(0)
    assert bound == [{0}]


@pytest.mark.slow
def test_a_worker_takes_memory_of_an_accelerator_as_it_needs_it(monkeypatch, tmp_path):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    with module._processes(1, tmp_path) as processes:
        assert processes.submit(os.getenv, "XLA_PYTHON_CLIENT_PREALLOCATE").result() == "false"


def test_ctrl_c_says_what_the_same_command_does(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_processes", at_once)
    output = io.StringIO()
    console = Console(file=output)
    with pytest.raises(KeyboardInterrupt), pool(1, compiled=tmp_path, console=console, name="x", kind="tuning"):
        raise KeyboardInterrupt
    assert "Interrupted; the same command continues the tuning" in output.getvalue()
