"""Figures, tables and progress show the numbers that were recorded."""

import builtins
import io
import re

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from experiments.problems.classification import accuracy
from experiments.runs import figures
from experiments.runs.display import describe, display
from experiments.runs.figures import draw_comparison, draw_run
from experiments.runs.recording import read_metrics
from experiments.runs.runner import Result, run
from experiments.settings.config_file import load_config
from experiments.settings.errors import ConfigError
from experiments.suite.comparison import compare, markdown_table
from tests.experiments.conftest import SMALL

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """(results, runs folder, what was printed) of a comparison of all three optimizers."""
    folder = tmp_path_factory.mktemp("comparison")
    path = folder / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    output = io.StringIO()
    results = compare(load_config(path), None, runs=folder, console=Console(file=output, width=80))
    return results, folder, output.getvalue()


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved."""
    saved: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])
    return saved


def test_a_comparison_runs_every_optimizer_the_file_configures(comparison):
    results, folder, _ = comparison
    assert [result.summary["optimizer"] for result in results] == ["hessian_free", "adam", "sgd"]
    assert [result.folder.name for result in results] == ["hessian_free-seed0", "adam-seed0", "sgd-seed0"]
    assert (folder / "small" / "comparison-seed0.png").read_bytes().startswith(PNG)


def test_the_table_has_one_row_a_run_with_the_numbers_of_its_summary(comparison):
    results, folder, output = comparison
    markdown = (folder / "small" / "comparison-seed0.md").read_text()
    assert markdown == markdown_table(results)
    header, rule, *rows = markdown.splitlines()
    assert header == "| optimizer | train loss | test accuracy | steps | products | seconds |"
    assert rule.count("|") == header.count("|") == 7
    for row, result in zip(rows, results, strict=True):
        summary = result.summary
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == summary["optimizer"]
        assert float(cells[1]) == pytest.approx(summary["train_loss"], rel=5e-3)
        assert cells[3:5] == [str(summary["steps"]), str(summary["products"])]
        assert re.search(r"\s+".join(map(re.escape, cells)), output)


def test_what_is_printed_off_a_terminal_has_no_control_codes_and_fits_80_columns(comparison):
    output = comparison[2]
    assert "\x1b" not in output
    assert "\r" not in output
    table = output[output.index("parameters") : output.index("table: ")]
    assert max(len(line) for line in table.splitlines()) <= 80


def test_a_diverged_run_is_marked(comparison):
    result = comparison[0][0]
    marked = Result(result.folder, result.summary | {"status": "diverged", "train_loss": float("nan")})
    assert "| hessian_free (diverged) | nan |" in markdown_table([marked])


def test_an_optimizer_without_settings_cannot_be_compared(comparison, console, small_file, tmp_path):
    with pytest.raises(ConfigError, match=r"optimizers\.adm is missing .*hessian_free, adam, sgd"):
        compare(load_config(small_file), ["adm"], runs=tmp_path, console=console)


def test_a_run_is_drawn_against_steps_gradient_equivalents_and_seconds(comparison, drawn):
    result = comparison[0][1]
    assert draw_run(result.folder).read_bytes().startswith(PNG)
    rows = [row for row in read_metrics(result.folder) if "train_loss" in row]
    (figure,) = drawn
    for panel, quantity in zip(figure.axes, ("step", "gradient_equivalents", "seconds"), strict=True):
        line = next(line for line in panel.get_lines() if line.get_label() == "on the training set")
        assert list(line.get_xdata()) == [row[quantity] for row in rows]
        assert list(line.get_ydata()) == [row["train_loss"] for row in rows]
        assert panel.get_yscale() == "log"
        assert panel.get_xlabel()


def test_a_comparison_gives_every_run_its_own_colour_dash_and_label(comparison, drawn, tmp_path):
    results = comparison[0]
    draw_comparison([results[0].folder, results[1].folder, results[2].folder], tmp_path / "figure.png")
    lines = drawn[0].axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["Hessian-free", "Adam", "SGD"]
    assert len({line.get_color() for line in lines}) == len({line.get_linestyle() for line in lines}) == 3
    draw_comparison([results[0].folder, results[0].folder], tmp_path / "figure.png")
    assert drawn[1].axes[0].get_lines()[0].get_label() == "Hessian-free (hessian_free-seed0)"


def test_without_matplotlib_a_run_still_ends_and_says_what_is_missing(small_file, tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    output = io.StringIO()
    config = load_config(small_file, ["optimizers.adam.steps=1"])
    result = run(config, runs=tmp_path, console=Console(file=output))
    assert result.summary["status"] == "finished"
    assert "Matplotlib is missing" in output.getvalue()
    assert not (result.folder / "loss.png").exists()


def test_a_loss_that_cannot_stand_on_a_log_axis_leaves_a_gap(drawn, tmp_path, comparison):
    _, panels = figures._panels()
    rows = [{"step": i, "train_loss": value} for i, value in enumerate([1.0, float("inf"), 0.0, float("nan"), 2.0])]
    figures._draw(panels[0], rows, "step", "train_loss")
    assert [y == y for y in panels[0].get_lines()[0].get_ydata()] == [True, False, False, False, True]


def test_a_diverging_run_stops_is_recorded_and_reported(small_file, tmp_path):
    output = io.StringIO()
    overrides = ["optimizers.adam={steps: 50, learning_rate: 1e38}", "problem.loss=squared_error"]
    result = run(load_config(small_file, overrides), runs=tmp_path, console=Console(file=output, width=200))
    assert result.diverged
    assert result.summary["steps"] < 50
    assert "the loss is not finite" in output.getvalue()
    again = run(load_config(small_file, overrides), runs=tmp_path, console=Console(quiet=True), resume=True)
    assert again.folder == result.folder


ACCURACY = accuracy(lambda params, inputs: inputs)
ROW = {
    "step": 3,
    "epoch": 3.0,
    "loss": 0.5,
    "train_loss": 0.25,
    "test_accuracy": 0.975,
    "reduction_ratio": 0.9,
    "damping": 0.01,
    "cg_steps": 12,
    "step_size": 0.5,
    "seconds": 1.25,
    "accepted": False,
}


class TestDisplay:
    def test_a_row_is_described_with_everything_it_has(self):
        text = describe(ROW, ACCURACY)
        for part in ("epoch 3", "loss 0.5", "train 0.25", "test 97.50%", "ρ 0.90", "λ 0.01", "CG 12", "α 0.5", "1.2 s"):
            assert part in text
        assert text.endswith("rejected")
        assert describe({"step": 1, "loss": 2.0}, ACCURACY) == "loss 2"

    def test_a_terminal_gets_one_live_line_with_progress_and_time_left(self):
        output = io.StringIO()
        console = Console(file=output, force_terminal=True, width=160)
        with display(console, "title", steps=10, metric=ACCURACY) as shown:
            shown.show(ROW)
        for part in ("title", "30%", "test 97.50%", "left"):
            assert part in output.getvalue()

    def test_elsewhere_the_first_and_last_rows_are_lines_of_their_own(self):
        output = io.StringIO()
        with display(Console(file=output, width=80), "title", steps=1000, metric=ACCURACY) as shown:
            for step in range(1001):
                shown.show({"step": step, "loss": 1 / (step + 1)})
        printed = output.getvalue().splitlines()
        assert printed[0].startswith("title  step 0/1000")
        assert printed[-1].startswith("title  step 1000/1000")
        assert len(printed) < 20
