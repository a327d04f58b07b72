"""A sweep: its file, its runs in processes of their own, what it tunes, and its table."""

import io
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.runs import runner
from experiments.runs.recording import read_metrics, read_summary
from experiments.settings.config_file import load_config
from experiments.settings.errors import RunError
from experiments.suite import pool
from experiments.suite.sweep import sweep
from experiments.suite.sweep_file import cells, load_sweep
from experiments.suite.sweep_report import markdown, report
from tests.experiments.conftest import ROOT, SMALL

SWEEP = """
name: tiny
seeds: [0, 1]
tuning_seeds: [100]
tune_by: train_loss
problems:
  - {label: MLP, config: small.yaml, set: [problem.l2=0]}
  - {label: wide, config: small.yaml, set: ["problem.model.hidden=[16]"]}
rows:
  - {label: "SGD, full batch", optimizer: sgd, set: ["optimizers.sgd={steps: 3, learning_rate: 0.1}"]}
  - label: Adam
    optimizer: adam
    problems: [MLP]
    tune: {optimizers.adam.learning_rate: [1.0e-5, 1.0e-2, 1.0e+3]}
"""


@pytest.fixture
def sweep_file(small_file) -> Path:
    path = small_file.with_name("tiny.yaml")
    path.write_text(SWEEP, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(settings, lines, runs folder, what was printed) of a sweep in two processes."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    (folder / "tiny.yaml").write_text(SWEEP, encoding="utf-8")
    output = io.StringIO()
    settings, console = load_sweep(folder / "tiny.yaml"), Console(file=output, width=80)
    lines = sweep(settings, runs=folder / "runs", console=console, jobs=2)
    report(settings, lines, runs=folder / "runs", console=console)
    return settings, lines, folder / "runs", output.getvalue()


def times(folder: Path) -> dict[Path, int]:
    """When each run of a sweep ended; folders inside those of runs are left alone, for a live run moves them."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/*/summary.json")}


def test_every_cell_is_run_from_every_seed(swept):
    _, lines, runs, _ = swept
    assert [line.cell.title for line in lines] == [
        "MLP: SGD, full batch",
        "MLP: Adam (learning_rate 0.01)",
        "wide: SGD, full batch",
    ]
    for line in lines:
        assert [result.summary["seed"] for result in line.results] == [0, 1]
    assert (runs / "tiny" / "wide-sgd-full-batch" / "sgd-seed1" / "summary.json").exists()


def test_a_run_is_the_run_of_its_configuration(swept, console, tmp_path):
    settings, lines, _, _ = swept
    config = load_config(settings.problems[0].config, ["problem.l2=0", "optimizers.adam.learning_rate=0.01", "seed=1"])
    alone = runner.run(config, runs=tmp_path, console=console)
    rows = read_metrics(lines[1].results[1].folder)
    expected = read_metrics(alone.folder)
    # One core adds up in another order than several.
    assert [row["loss"] for row in rows[1:]] == pytest.approx([row["loss"] for row in expected[1:]], rel=1e-4)


def test_the_value_of_least_loss_is_chosen_from_the_tuning_seeds(swept):
    _, lines, runs, _ = swept
    scores = {trial.cell.chosen: trial.score for trial in lines[1].trials}
    assert list(scores) == ["learning_rate 1e-05", "learning_rate 0.01", "learning_rate 1000.0"]
    assert min(scores, key=scores.get) == lines[1].cell.chosen == "learning_rate 0.01"
    summary = read_summary(runs / "tiny" / "mlp-adam-learning_rate-0.01" / "adam-seed100")
    assert scores["learning_rate 0.01"] == summary["train_loss"]
    assert lines[0].trials == []


def test_the_table_has_medians_and_ranges_in_markdown_and_in_print(swept):
    settings, lines, runs, output = swept
    text = (runs / "tiny" / "table.md").read_text()
    assert text == markdown(settings, lines)
    losses = [result.summary["train_loss"] for result in lines[1].results]
    accuracy = [result.summary["test_accuracy"] for result in lines[1].results]
    cells = [
        "MLP",
        "Adam (learning_rate 0.01)",
        f"{statistics.median(losses):.3g} ({min(losses):.3g} … {max(losses):.3g})",
        f"{statistics.median(accuracy):.2%} ({min(accuracy):.2%} … {max(accuracy):.2%})",
        "0 of 2",
        "7",
        "0",
    ]
    assert f"| {' | '.join(cells)} |" in text
    for part in ("seeds 0, 1,", "**learning_rate 0.01: ", "Over the seeds 100; the least is chosen.", "jax 0."):
        assert part in text
    assert f"{statistics.median(losses):.3g}" in output
    assert "9/9" in output
    assert "\x1b" not in output
    table = output[output.index("Sweep tiny") : output.index("table: ")]
    assert max(map(len, table.splitlines())) <= 120


def test_a_second_sweep_reuses_every_run_and_one_worker_gives_the_same_table(swept):
    settings, lines, runs, _ = swept
    before = times(runs)
    again = sweep(settings, runs=runs, console=Console(quiet=True), jobs=1)
    assert markdown(settings, again) == markdown(settings, lines)
    assert times(runs) == before


@pytest.mark.parametrize("older", [None, 1])
def test_a_table_of_runs_by_different_code_says_so(stand_in, sweep_file, tmp_path, capsys, older):
    stand_in(lambda config: {"train_loss": 1.0}, source_changes_at=older)
    assert main(["sweep", str(sweep_file), "--runs-dir", str(tmp_path / "runs")]) == 0
    warning = "these runs were made in 2 environments"
    table = (tmp_path / "runs" / "tiny" / "table.md").read_text()
    assert (warning in capsys.readouterr().out) == (warning in table) == (older is not None)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are bound to cores on Linux alone")
def test_a_worker_has_one_core(tmp_path):
    with pool._processes(1, tmp_path) as processes:
        assert len(processes.submit(os.sched_getaffinity, 0).result()) == 1


def test_seeds_and_learning_rates_share_what_is_compiled(swept):
    compiled = list((swept[2] / ".compiled").glob("jit_train_steps-*-cache"))
    assert len(compiled) == 3  # two problems with SGD, one with Adam


@pytest.mark.slow
def test_killed_or_interrupted_a_sweep_leaves_no_worker_behind_and_continues(sweep_file, tmp_path):
    command = [sys.executable, "-m", "experiments", "sweep", str(sweep_file), "--runs-dir", str(tmp_path / "runs")]
    command += ["--jobs", "1"]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    def stopped(stop) -> tuple[int, str]:
        """The exit code and the output of a sweep that is stopped after its next finished run."""
        finished = len(times(tmp_path))
        process = subprocess.Popen(command, start_new_session=True, **options)
        deadline = time.monotonic() + 120
        while len(times(tmp_path)) == finished and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        stop(process)
        output, _ = process.communicate(timeout=120)  # it returns when no worker holds the pipe any more
        return process.returncode, output

    assert stopped(lambda process: process.kill())[0] == -signal.SIGKILL
    code, output = stopped(lambda process: os.killpg(process.pid, signal.SIGINT))  # as Ctrl-C does, to the workers too
    assert code == 130, output
    assert "Interrupted; the same command continues the sweep" in output
    assert "Traceback" not in output

    before = times(tmp_path)
    finished = subprocess.run(command, timeout=300, check=False, **options)
    assert finished.returncode == 0, finished.stdout
    assert before.items() <= times(tmp_path).items()
    assert len(times(tmp_path)) == 9


def test_validation_loss_decides_when_asked_to(stand_in, sweep_file, tmp_path, console):
    text = SWEEP.replace("tune_by: train_loss", "tune_by: validation_loss\nvalidation_fraction: 0.2")
    sweep_file.write_text(text, encoding="utf-8")
    held_out = {}

    def losses(config):
        held_out[config.seed] = config.problem.data.validation_fraction
        rate = config.training.learning_rate
        return {"train_loss": rate / 1e4, "validation_loss": abs(rate - 0.01)}

    stand_in(losses)
    lines = sweep(load_sweep(sweep_file), runs=tmp_path, console=console, jobs=1)
    assert lines[1].cell.chosen == "learning_rate 0.01"
    assert held_out == {100: 0.2, 0: 0.0, 1: 0.0}


def test_a_diverged_run_is_never_the_best_of_a_tuning(stand_in, sweep_file, tmp_path, console):
    nan = {"train_loss": float("nan"), "status": "diverged"}
    stand_in(lambda config: {"train_loss": 0.5} if config.training.learning_rate == 1000 else nan)
    lines = sweep(load_sweep(sweep_file), runs=tmp_path, console=console, jobs=1)
    assert lines[1].cell.chosen == "learning_rate 1000.0"
    assert [trial.score for trial in lines[1].trials] == [float("inf"), float("inf"), 0.5]
    assert [line.diverged for line in lines] == [2, 0, 2]


def test_a_choice_at_the_edge_of_what_was_tried_is_pointed_out(stand_in, sweep_file, tmp_path, capsys):
    stand_in(lambda config: {"train_loss": 1 / config.training.learning_rate / 1e6})
    main(["sweep", str(sweep_file), "--runs-dir", str(tmp_path)])
    warning = "Warning: MLP, Adam: learning_rate 1000.0 is the greatest tried; extend the grid"
    assert warning in (tmp_path / "tiny" / "table.md").read_text()
    assert warning in capsys.readouterr().out


@pytest.mark.parametrize(
    ("last", "code", "count"), [(1.9, 0, "0 of 2"), (2.1, 1, "2 of 2"), (float("nan"), 1, "2 of 2")]
)
def test_a_run_that_ends_above_its_first_loss_has_diverged(stand_in, sweep_file, tmp_path, capsys, last, code, count):
    stand_in(lambda config: {"train_loss": last, "status": "diverged" if last != last else "finished"})
    assert main(["sweep", str(sweep_file), "--runs-dir", str(tmp_path)]) == code
    assert (tmp_path / "tiny" / "table.md").read_text().count(f"| {count} |") == 3
    assert count in capsys.readouterr().out


def test_an_error_names_its_cell(stand_in, sweep_file, tmp_path, console):
    def broken(config):
        raise error

    stand_in(broken)
    error = RunError("the disk is full")
    with pytest.raises(RunError, match=r"MLP: Adam \(learning_rate 1e-05\), seed 100: the disk is full"):
        sweep(load_sweep(sweep_file), runs=tmp_path / "1", console=console, jobs=1)
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        sweep(load_sweep(sweep_file), runs=tmp_path / "2", console=console, jobs=1)
    assert caught.value.__notes__ == ["in the run of MLP: Adam (learning_rate 1e-05), seed 100"]


def test_a_worker_that_dies_names_what_it_ran(sweep_file, tmp_path, console, monkeypatch):
    monkeypatch.setattr(pool, "_submit", lambda processes, function, *arguments: processes.submit(os._exit, 1))
    with pytest.raises(RunError, match=r"a process died.*MLP: Adam \(learning_rate 1e-05\), seed 100"):
        sweep(load_sweep(sweep_file), runs=tmp_path, console=console, jobs=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [0, 1]", "seed: [0, 1]", "seed: unknown key; did you mean 'seeds'? Valid here: name, seeds, tuning"),
        (
            "label: wide",
            "lable: wide",
            "problems.1.lable: unknown key; did you mean 'label'? Valid here: label,",
        ),
        ("tune: {", "tunes: {", "rows.1.tunes: unknown key; did you mean 'tune'?"),
        ("optimizer: adam", "optimizer: adm", "rows.1.optimizer: should be 'hessian_free', 'adam', 'adamw',"),
        ("seeds: [0, 1]", "seeds: [0, 1.5]", "seeds.1: should be a valid integer"),
        ("[100]", "[1, 100]", "tuning_seeds must not be among the seeds, but both have [1]"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds must differ, but 0 comes more than once"),
        ("label: wide", "label: MLP", "the labels of problems and rows must differ"),
        ("[MLP]", "[MPL]", "row 'Adam' is for problem 'MPL', which is not among ['MLP', 'wide']"),
        ("tuning_seeds: [100]\n", "", "a row has `tune`, so tuning_seeds are needed"),
        ("tune_by: train_loss\n", "", "tune_by: validation_loss needs a validation_fraction above 0"),
        ("problem.l2=0", "problem.l3=0", "MLP: Adam (learning_rate 1e-05): sweep: problem.l3: unknown key"),
        ("adam.learning_rate: [", "adam.lerning_rate: [", "lerning_rate: unknown key; did you mean 'learning_rate'?"),
        ("config: small.yaml", "config: smal.yaml", "smal.yaml: no such file"),
    ],
)
def test_what_cannot_be_run_is_one_message_and_exit_code_2(sweep_file, tmp_path, capsys, old, new, message):
    sweep_file.write_text(SWEEP.replace(old, new, 1), encoding="utf-8")
    assert main(["sweep", str(sweep_file), "--runs-dir", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_jobs_is_a_positive_number(sweep_file, capsys, jobs):
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", str(sweep_file), "--jobs", jobs])
    assert f"should be a positive integer, got '{jobs}'" in capsys.readouterr().err


def test_several_tuned_keys_make_a_grid(sweep_file):
    grid = "tune: {optimizers.adam.learning_rate: [0.1, 0.2], optimizers.adam.batches.gradient: [32, 64]}"
    sweep_file.write_text(re.sub(r"tune: \{.*\}", grid, SWEEP), encoding="utf-8")
    tuned = next(cell for cell in cells(load_sweep(sweep_file)) if cell.row.tune)
    values = [[value for _, value in candidate.values] for candidate in tuned.candidates()]
    assert values == [[0.1, 32], [0.1, 64], [0.2, 32], [0.2, 64]]
    training = tuned.candidates()[1].config(seed=3).training
    assert (training.learning_rate, training.batches.gradient) == (0.1, 64)
    assert len({candidate.config(seed=3).name for candidate in tuned.candidates()}) == 4


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_sweeps_are_valid(path):
    settings = load_sweep(path)
    assert settings.name == path.stem
    candidates = [candidate for cell in cells(settings) for candidate in cell.candidates()]
    names = [candidate.config(settings.seeds[0]).name for candidate in candidates]
    assert len(set(names)) == len(names)
