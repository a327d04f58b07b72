"""Figures show the numbers that were recorded."""

import builtins
import io

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from experiments.runs import figures
from experiments.runs.figures import draw_comparison, draw_run
from experiments.runs.recording import read_metrics
from experiments.runs.runner import run
from experiments.settings.config_file import load_config

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved."""
    saved: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))[1])
    return saved


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
