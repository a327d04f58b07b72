"""Comparisons end to end: tuned, run, and written as one page, also when they are killed again and again."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from experiments.__main__ import main
from experiments.runs.recording import read_metrics
from experiments.settings.errors import DataError
from experiments.settings.file import plain, to_yaml
from experiments.suite import execution
from experiments.suite.file import Baseline, load_baselines, load_comparison, taking_part
from experiments.suite.rows import tuned_for
from tests.experiments.conftest import ROOT

COMPARISON = """
name: {name}
title: Tiny {name}
about: A trial.
reference: None.
problem:
  family: classification
  data: {{name: digits, train_examples: 100}}
  model: {{kind: mlp, hidden: [4], activation: tanh}}
budgets:
  hessian_free: {{steps: {steps}}}
  first_order: {{steps: {steps}, batches: {{gradient: 50}}}}
seeds: [0, 1]
"""
BASELINES = """
baselines:
  - {label: Adam, optimizer: adam, set: {schedule: cosine}, tune: {learning_rate: [0.01]}}
  - {label: SGD, optimizer: sgd, tune: {learning_rate: [0.1]}}
"""
TIMES = ("seconds", "compiling (s)", "to target (s)", "time ratio", "winner", "best baseline", "")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with two comparisons, tuned, as the current one."""
    for name in ("one", "two"):
        path = tmp_path / "configs/compare" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(COMPARISON.format(name=name, steps=20 if name == "one" else 40), encoding="utf-8")
    (tmp_path / "configs/baselines.yaml").write_text(BASELINES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tuned_as_asked(tmp_path)
    return tmp_path


def tuned_as_asked(folder: Path) -> None:
    """Stores the only candidate of every baseline as what was chosen."""
    (folder / "configs/tuned").mkdir(exist_ok=True)
    for path in (folder / "configs/compare").glob("*.yaml"):
        comparison = load_comparison(path)
        entries = [
            {
                "label": baseline.label,
                "tuned_for": plain(TypeAdapter(Baseline), baseline),
                "chosen": baseline.candidates()[0],
            }
            for baseline in taking_part(comparison, load_baselines())
        ]
        stored = {"tuned_for": tuned_for(comparison), "baselines": entries}
        (folder / "configs/tuned" / path.name).write_text(to_yaml(stored), encoding="utf-8")


def compare(folder: str, *options: str) -> list[str]:
    files = ["configs/compare/one.yaml", "configs/compare/two.yaml"]
    return ["compare", *files, "--runs-dir", folder, "--out", f"{folder}/page", "--jobs", "1", *options]


def without_times(page: str) -> list[list[str]]:
    """The cells of all tables, but those that hold times or depend on them."""
    kept: list[list[str]] = []
    header: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            header = []
        elif not header:
            header = cells
        elif not cells[0].startswith("---"):
            kept.append([cell for name, cell in zip(header, cells, strict=True) if name not in TIMES])
    return kept


def recorded(folder: Path) -> dict[str, list[dict]]:
    """The metrics of all runs without their times, by the path of the run."""
    runs = sorted(folder.glob("compare/*/*/*/summary.json"))
    return {
        str(path.parent.relative_to(folder)): [
            {name: value for name, value in row.items() if name != "seconds"} for row in read_metrics(path.parent)
        ]
        for path in runs
    }


@pytest.mark.slow
def test_a_comparison_killed_five_times_ends_with_the_page_of_one_that_was_left_alone(project):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments", *compare("killed")]
    pause = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(pause.uniform(4, 14))
        process.send_signal(pause.choice([signal.SIGKILL, signal.SIGINT]))
        process.wait(timeout=60)
    subprocess.run(command, env=environment, check=True, timeout=600, stdout=subprocess.DEVNULL)
    assert main(compare("alone")) == 0
    assert recorded(project / "killed") == recorded(project / "alone")
    assert len(recorded(project / "alone")) == 2 * 3 * 2
    killed, alone = ((project / name / "page/index.md").read_text() for name in ("killed", "alone"))
    assert without_times(killed) == without_times(alone)
    assert len(without_times(alone)) == 2 + 2 * 3


@pytest.mark.slow
def test_the_page_says_who_won_with_what_and_where(project, capsys):
    assert main(compare("runs")) == 0
    printed = capsys.readouterr().out
    page = (project / "runs/page/index.md").read_text()
    for name in ("one", "two"):
        assert f"## Tiny {name}" in page
        assert (project / f"runs/page/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"^> ", page, re.MULTILINE)) == 2
    for part in (
        "Adam: learning_rate 0.01",
        "Seeds 0, 1.",
        "Reference: None.",
        "jax",
        "Made by `python -m experiments",
    ):
        assert part in page
    html = (project / "runs/page/index.html").read_text()
    assert html.count("data:image/png;base64,") == 3
    assert "<img" in html
    assert "Tiny one:" in printed
    assert main(compare("runs")) == 0  # everything is there: nothing runs again
    assert (project / "runs/page/index.md").read_text() == page


@pytest.mark.slow
def test_the_quick_edition_has_one_seed_and_a_tenth_of_the_steps_and_says_so(project):
    assert main(compare("runs", "--quick")) == 0
    assert "quick edition" in (project / "runs/page/index.md").read_text()
    runs = sorted((project / "runs/quick").glob("*/*/*"))
    assert len(runs) == 2 * 3
    assert {read_metrics(run)[-1]["step"] for run in runs} == {2, 4}


def test_a_problem_without_its_data_is_named_on_the_page_and_in_the_exit_code(project, capsys, monkeypatch):
    def absent(*_):
        raise DataError("MNIST was not found. Put it there.")

    monkeypatch.setattr(execution, "build_problem", absent)
    command = ["compare", "configs/compare/one.yaml", "--runs-dir", "runs", "--out", "page", "--jobs", "1"]
    assert main(command) == 1
    page = (project / "page/index.md").read_text()
    assert "## Tiny one" in page
    assert "Not run: MNIST was not found" in page
    assert "Tiny one: not run: MNIST was not found" in capsys.readouterr().out


def test_what_was_tuned_for_other_settings_is_not_used(project, capsys):
    path = project / "configs/compare/one.yaml"
    path.write_text(path.read_text().replace("hidden: [4]", "hidden: [5]"), encoding="utf-8")
    assert main(["compare", "configs/compare/one.yaml", "--runs-dir", "runs", "--out", "page", "--jobs", "1"]) == 1
    assert "was tuned for another problem, budget or measure; run: python" in capsys.readouterr().out.replace("\n", " ")
    (project / "configs/tuned/one.yaml").unlink()
    assert main(["compare", "configs/compare/one.yaml", "--runs-dir", "runs", "--out", "page", "--jobs", "1"]) == 1
    assert "are not tuned yet" in (project / "page/index.md").read_text()


def test_a_measure_that_is_not_recorded_is_refused_before_anything_runs(project, capsys):
    path = project / "configs/compare/one.yaml"
    path.write_text(path.read_text() + "measure: train_acuracy\n", encoding="utf-8")
    tuned_as_asked(project)
    assert main(["compare", "configs/compare/one.yaml", "--runs-dir", "runs", "--out", "page", "--jobs", "1"]) == 2
    assert "there are train_loss, train_accuracy, test_loss, test_accuracy" in capsys.readouterr().err
    assert not (project / "runs").exists()


def test_options_that_mean_nothing_for_comparisons_are_refused(project, capsys):
    assert main(compare("runs", "--seed", "3")) == 2
    assert "--seed has no use with comparisons" in capsys.readouterr().err
    (project / "plain.yaml").write_text("name: x\n", encoding="utf-8")
    assert main(["compare", "configs/compare/one.yaml", "plain.yaml"]) == 2
    assert "plain.yaml is an experiment" in capsys.readouterr().err
