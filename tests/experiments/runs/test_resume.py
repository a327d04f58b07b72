"""A killed process costs time and nothing else: resumed, it ends with the metrics of an undisturbed one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from orbax.checkpoint import CheckpointManager
from rich.console import Console

from experiments.problems.build import build_problem
from experiments.runs.recording import read_metrics, read_summary
from experiments.runs.runner import build_plan, run
from experiments.settings.config_file import load_config
from experiments.settings.errors import RunError
from experiments.training.loop import train
from tests.experiments.conftest import SMALL

ROOT = Path(__file__).parents[3]
TIMES = {"seconds", "compile_seconds", "evaluation_seconds"}
# Hessian-free with mini-batches and a curvature sample, so that state, order and samples all have to survive.
OVERRIDES = ("optimizer=hessian_free", "optimizers.hessian_free.steps=25", "recording.checkpoint_every_seconds=0.15")


def without_times(values: dict) -> dict:
    return {name: value for name, value in values.items() if name not in TIMES}


def start(config: Path, runs: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments", "run", str(config), "--runs-dir", str(runs), "--resume"]
    return subprocess.Popen(
        [*command, "--set", *OVERRIDES], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    """Returns as soon as the condition holds; the process must not end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"ended too early: {process.stdout.read()}")
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail("nothing happened")
        time.sleep(0.002)


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(configuration file, rows, summary) of a run in this process that nothing interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    result = run(load_config(path, OVERRIDES), runs=folder / "runs", console=Console(quiet=True))
    return path, read_metrics(result.folder), result.summary, result.folder


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_metrics(undisturbed, tmp_path):
    path, rows, summary, _ = undisturbed
    folder = tmp_path / "small" / "hessian_free-seed0"
    checkpoints = folder / "checkpoints"
    moments = (
        lambda: (folder / "config.yaml").exists(),  # before any step
        lambda: checkpoints.is_dir() and any("tmp" in path.name for path in checkpoints.iterdir()),  # while saving
        lambda: lines(folder) >= 12,
    )
    for moment in moments:
        process = start(path, tmp_path)
        wait_for(moment, process)
        process.kill()
        process.communicate()
        assert read_summary(folder) is None

    process = start(path, tmp_path)
    wait_for(lambda: lines(folder) >= 20, process)
    os.kill(process.pid, signal.SIGINT)  # what Ctrl-C sends
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "the same command with --resume continues" in output
    assert "Traceback" not in output

    process = start(path, tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "resumed after step" in output
    assert [without_times(row) for row in read_metrics(folder)] == [without_times(row) for row in rows]
    assert without_times(read_summary(folder)) == without_times(summary)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_while_the_batches_grow_it_goes_on_with_the_same_sizes_and_samples(small_file):
    settings = "{gradient: 30, gradient_growth: {factor: 2, every_steps: 2}, curvature: 7, evaluation: 0.2}"
    growing = f"optimizers.hessian_free={{steps: 4, preset: stochastic, batches: {settings}}}"
    config = load_config(small_file, ["optimizer=hessian_free", "problem.model.hidden=[]", growing])
    plan = build_plan(config, build_problem(config.problem))
    rows, states = [], []
    for moment in train(plan):
        rows.append(without_times(moment.row))
        states.append((jax.device_get(moment.state), moment.accounts))
    for steps in (2, 3):  # between two sizes, and between two steps of one
        resumed = [without_times(moment.row) for moment in train(plan, states[steps])]
        assert resumed == rows[steps + 1 :]


@pytest.fixture
def copy(undisturbed, tmp_path):
    """A copy of the undisturbed run, its configuration, and the folder of runs it is in."""
    shutil.copytree(undisturbed[3].parents[1], tmp_path / "runs")
    folder = tmp_path / "runs" / undisturbed[3].relative_to(undisturbed[3].parents[1])
    return folder, load_config(undisturbed[0], OVERRIDES), tmp_path / "runs"


def test_killed_between_its_last_checkpoint_and_its_summary_it_only_writes_the_summary(copy, undisturbed, console):
    folder, config, runs = copy
    (folder / "summary.json").unlink()
    (folder / "loss.png").unlink()
    before = (folder / "metrics.jsonl").read_text()
    assert without_times(run(config, runs=runs, console=console, resume=True).summary) == without_times(undisturbed[2])
    assert (folder / "metrics.jsonl").read_text() == before
    assert (folder / "loss.png").exists()


def test_a_finished_run_is_returned_untouched(copy, undisturbed, console):
    folder, config, runs = copy
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run(config, runs=runs, console=console, resume=True).summary == undisturbed[2]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_without_the_flag_a_new_run_begins(copy, console):
    folder, config, runs = copy
    other = run(config, runs=runs, console=console).folder
    assert other.name == folder.name + "-2"


def test_a_lost_checkpoint_is_redone_from_the_start(copy, undisturbed, console):
    folder, config, runs = copy
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    run(config, runs=runs, console=console, resume=True)
    assert [without_times(row) for row in read_metrics(folder)] == [without_times(row) for row in undisturbed[1]]


def test_metrics_shorter_than_the_checkpoint_are_an_error_not_a_gap(copy, console):
    folder, config, runs = copy
    (folder / "summary.json").unlink()
    kept = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:-2]
    (folder / "metrics.jsonl").write_text("".join(kept))
    with pytest.raises(RunError, match="ends at step 23, before its last checkpoint at step 25"):
        run(config, runs=runs, console=console, resume=True)


def test_at_most_two_checkpoints_are_kept(undisturbed):
    manager = CheckpointManager((undisturbed[3] / "checkpoints").resolve())
    steps = list(manager.all_steps())
    manager.close()
    assert len(steps) <= 2
    assert max(steps) == 25
