"""`list`, `show` and `clean`: what is said of the runs there are, and what may be removed of them."""

import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.runs.catalogue import entries, run_folders
from experiments.runs.page import show_run
from experiments.runs.readable import age, duration
from tests.experiments.recorded_runs import leave_run, touch

SWEEP_CELL = "tiny/mlp-adam"


@pytest.fixture
def runs(small_file, tmp_path) -> Path:
    """Finished, diverged and unfinished runs of one name and of a sweep's cell, and files that are no runs."""
    runs = tmp_path / "runs"
    for seed in (2, 10):
        leave_run(runs, small_file, seed=seed)
    leave_run(runs, small_file, status="diverged")
    leave_run(runs, small_file)
    leave_run(runs / "tiny", small_file, name="mlp-adam", status=None)
    leave_run(runs, small_file, name="fresh", rows=[], status=None, age=0)
    (runs / "tiny" / "table.md").write_text("not a run")
    (runs / "small" / "notes").mkdir()
    (runs / "small" / ".new-1").mkdir()
    return runs


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def command(capsys, *arguments: str, code: int = 0) -> str:
    assert main([*arguments]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_run_folders_are_found_in_both_layouts_in_the_order_of_their_numbers(runs):
    assert [folder.relative_to(runs).as_posix() for folder in run_folders(runs)] == [
        "fresh/adam-seed0",
        "small/adam-seed0",
        "small/adam-seed0-2",
        "small/adam-seed2",
        "small/adam-seed10",
        "tiny/mlp-adam/adam-seed0",
    ]
    assert run_folders(runs / "small" / "adam-seed2") == [runs / "small" / "adam-seed2"]


def test_links_are_not_followed(runs):
    (runs / "again").symlink_to(runs / "small", target_is_directory=True)
    (runs / "tiny" / "adam-seed7").symlink_to(runs / "small" / "adam-seed2", target_is_directory=True)
    assert len(run_folders(runs)) == 6


def test_list_says_of_each_run_what_is_recorded(runs, capsys):
    listed = [json.loads(line) for line in command(capsys, "list", "--runs-dir", str(runs), "--json").splitlines()]
    by_folder = {Path(run.pop("folder")).relative_to(runs).as_posix(): run for run in listed}
    now = time.time()
    touched = by_folder["small/adam-seed0-2"].pop("touched")
    assert abs(now - 86400 - time.mktime(time.strptime(touched, "%Y-%m-%dT%H:%M:%S+00:00")) + time.timezone) < 60
    assert by_folder["small/adam-seed0-2"] == {
        "name": "small",
        "optimizer": "adam",
        "seed": 0,
        "status": "finished",
        "step": 3,
        "train_loss": 0.5,
        "metric": "accuracy",
        "test": 0.75,
        "seconds": 4.5,
    }
    assert by_folder["small/adam-seed0"]["status"] == "diverged"
    # The last row of all says how far it is, the last evaluated one what came out.
    unfinished = by_folder[f"{SWEEP_CELL}/adam-seed0"]
    assert (unfinished["name"], unfinished["status"], unfinished["step"]) == (SWEEP_CELL, "unfinished", 3)
    assert (unfinished["train_loss"], unfinished["metric"], unfinished["test"]) == (0.5, "accuracy", 0.75)
    fresh = by_folder["fresh/adam-seed0"]
    assert (fresh["status"], fresh["step"], fresh["train_loss"], fresh["metric"]) == ("unfinished", None, None, "")


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_is_grouped_and_fits_the_window(runs, capsys, monkeypatch, width):
    monkeypatch.setattr("experiments.runs.catalogue._WIDTH", width)
    lines = command(capsys, "list", "--runs-dir", str(runs)).splitlines()
    table = [line for line in lines if not line.startswith(str(runs))]
    assert max(map(len, table)) <= width
    assert lines[0].split() == ["run", "status", "step", "train", "loss", "metric", "seconds", "touched"]
    start = lines.index(f"{runs / 'small'}  test accuracy")
    assert [line.split() for line in lines[start + 1 : start + 3]] == [
        ["adam-seed0", "diverged", "3", "0.5", "0.75", "4.5", "1", "d"],
        ["adam-seed0-2", "finished", "3", "0.5", "0.75", "4.5", "1", "d"],
    ]
    assert lines[1:3] == [str(runs / "fresh"), lines[2]]
    assert lines[2].split() == ["adam-seed0", "unfinished", "–", "–", "–", "–", "now"]
    assert lines[-1] == "6 runs: 2 unfinished, 1 diverged, 3 finished"


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["seed0"], 4),
        (["tiny"], 1),
        (["tiny/*"], 1),
        (["seed?"], 0),  # a pattern is for the whole name
        (["small/*-seed?"], 2),
        (["*-seed10", "fresh"], 2),
        (["Small"], 0),
    ],
)
def test_a_filter_is_a_part_of_the_name_or_a_pattern_of_all_of_it(runs, filters, count):
    assert len(entries(runs, filters)) == count


def test_a_damaged_run_is_listed_and_never_removed(runs, capsys):
    for name in ("seed2/summary.json", "seed10/summary.json"):
        (runs / "small" / f"adam-{name}").write_text("{")
    damaged = runs / "tiny" / "mlp-adam" / "adam-seed0"
    (damaged / "metrics.jsonl").write_text("{\n{}\n")
    assert [entry.status for entry in entries(runs, ["seed2", "seed10", "tiny"])] == ["unreadable"] * 3
    before = files(runs)
    command(capsys, "clean", "seed2", "seed10", "tiny", "--runs-dir", str(runs), *CLEAN_ALL)
    assert files(runs) == before
    assert "not valid JSON" in command(capsys, "show", str(damaged), code=2)
    assert "damaged" in command(capsys, "show", str(runs / "small" / "adam-seed2"), code=2)


def test_show_prints_what_is_recorded_of_a_finished_run(runs, capsys):
    printed = command(capsys, "show", str(runs / "small" / "adam-seed2"))
    assert printed.splitlines()[0] == f"{runs / 'small' / 'adam-seed2'}: finished"
    words = " ".join(printed.split())
    for part in ("train loss 0.5", "test accuracy 0.75", "parameters 610", "compile seconds 6", "products 1,234"):
        assert part in words
    for part in ("step 2, the last evaluated", "training examples 2", "backend cpu", "jax 0.", "metric accuracy"):
        assert part in words
    assert f"show {runs / 'small' / 'adam-seed2' / 'config.yaml'}" in words


@pytest.mark.parametrize("width", [80, 160])
def test_show_fits_the_window_for_an_unfinished_run(runs, capsys, width):
    folder = runs / "tiny" / "mlp-adam" / "adam-seed0"
    show_run(folder, Console(width=width, force_terminal=True, no_color=True, color_system=None))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: unfinished, after step 3"
    assert max(map(len, lines[1:-1])) <= width
    assert any("gradient" not in line and "products" in line and "1,234" in line for line in lines)


def test_show_says_what_a_folder_is_that_is_no_run(runs, capsys):
    assert "small is not a run folder; there are 4 below it" in command(capsys, "show", str(runs / "small"), code=2)
    error = command(capsys, "show", str(runs / "small" / "adam-seed2"), "--seed", "3", code=2)
    assert "--set and --seed are for the configuration in a YAML file" in error
    assert "is not a folder" in command(capsys, "list", "--runs-dir", str(runs / "none"), code=2)


CLEAN_ALL = ("--unfinished", "--checkpoints", "--yes")


def test_clean_removes_nothing_without_yes(runs, capsys):
    before = files(runs)
    printed = command(capsys, "clean", "--runs-dir", str(runs))
    assert files(runs) == before
    # Four finished runs have checkpoints of 1,000 bytes; the unfinished one goes as a whole.
    size = 4000 + sum(path.stat().st_size for path in (runs / "tiny" / "mlp-adam").rglob("*") if path.is_file())
    assert f"5 runs, {size / 1000:.1f} kB, would be removed" in printed
    assert printed.count("checkpoints  ") == 4
    assert "left alone: 1 run touched within the last 10 minutes" in printed
    assert "Say --unfinished, --checkpoints or both" in command(capsys, "clean", "--yes", code=2)


def test_clean_removes_what_it_is_asked_to_and_nothing_else(runs, capsys):
    before = files(runs)
    assert "4 runs, 4.0 kB, removed" in command(capsys, "clean", "--runs-dir", str(runs), "--checkpoints", "--yes")
    small = {path for path in before if path.startswith("small/") and "/checkpoints/" in path}
    assert len(small) == 4
    assert files(runs) == before - small
    assert not list(runs.rglob(".removed-*"))
    assert len(run_folders(runs)) == 6  # they are finished runs all the same

    command(capsys, "clean", "--runs-dir", str(runs), "--unfinished", "--yes")
    assert files(runs) == {path for path in before - small if not path.startswith("tiny/mlp-adam/")}
    assert (runs / "small" / "notes").is_dir()


def test_clean_takes_the_run_of_the_last_minutes_only_by_force(runs, capsys):
    folder = runs / "fresh" / "adam-seed0"
    for seconds, gone in ((590, False), (610, True)):
        touch(folder, 0.0)
        now = time.time()
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (now - seconds, now - seconds))
        command(capsys, "clean", "fresh", "--runs-dir", str(runs), *CLEAN_ALL)
        assert folder.exists() != gone


def test_force_takes_it_and_a_newer_checkpoint_counts_as_a_touch(runs, capsys):
    folder = runs / "tiny" / "mlp-adam" / "adam-seed0"
    (folder / "checkpoints" / "4").mkdir()
    os.utime(folder, (0, 0))
    command(capsys, "clean", "tiny", "--runs-dir", str(runs), *CLEAN_ALL)
    assert folder.exists()
    command(capsys, "clean", "tiny", "--runs-dir", str(runs), "--force", *CLEAN_ALL)
    assert not folder.exists()


def test_older_than_spares_younger_runs(runs, small_file, capsys):
    leave_run(runs, small_file, name="old", status=None, age=8 * 86400)
    command(capsys, "clean", "--runs-dir", str(runs), "--older-than", "7", *CLEAN_ALL)
    assert not (runs / "old" / "adam-seed0").exists()
    assert (runs / "tiny" / "mlp-adam" / "adam-seed0").exists()
    assert (runs / "small" / "adam-seed2" / "checkpoints").exists()


def test_a_run_that_goes_on_after_it_was_chosen_stays(runs):
    from experiments.runs.cleaning import removals, remove

    (chosen,) = removals(entries(runs, ["tiny"]), unfinished=True, checkpoints=True)
    with (chosen.folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 4}\n')
    assert not remove(chosen)
    assert chosen.folder.exists()


@pytest.mark.parametrize(
    ("seconds", "told", "passed"),
    [
        (0, "0 s", "now"),
        (99.4, "99 s", "1 min"),
        (600, "10 min", "10 min"),
        (3 * 3600 + 300, "3 h 05 min", "3 h"),
        (100000, "27 h 47 min", "1 d"),
    ],
)
def test_times_are_told_in_the_unit_that_suits_them(seconds, told, passed):
    assert (duration(seconds), age(seconds)) == (told, passed)
