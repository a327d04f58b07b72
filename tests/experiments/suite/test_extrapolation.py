"""A run that falls like a power of its cost is continued as one, and nothing else is promised."""

import json
import math

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.settings.errors import RunError
from experiments.suite.extrapolation import fit

COSTS = np.geomspace(1, 100, 30)


@pytest.mark.parametrize("tail", [2.0, 4.0])
def test_a_power_law_is_found_and_continued(tail):
    law = fit(COSTS, 8 * COSTS**-0.5, tail)
    assert (law.scale, law.exponent) == pytest.approx((8, 0.5))
    assert law.cost_of(0.08) == pytest.approx(10_000)


def test_only_the_end_of_the_run_counts():
    values = np.where(COSTS < 40, 100.0, 8 * COSTS**-0.5)
    assert fit(COSTS, values, 2.0).exponent == pytest.approx(0.5)
    assert fit(COSTS, values, 4.0).exponent > 1


@pytest.mark.parametrize("power", [0.1, -1e-5])
def test_what_does_not_fall_or_hardly_never_gets_there(power):
    assert fit(COSTS, COSTS**power, 2.0).cost_of(0.5) == math.inf


@pytest.mark.parametrize(
    ("costs", "values", "message"),
    [([1.0, 90.0, 100.0], [3.0, 2.0, 1.0], "2 evaluations"), (COSTS, np.zeros(30), "not positive")],
)
def test_too_little_to_go_by_is_said(costs, values, message):
    with pytest.raises(RunError, match=message):
        fit(costs, values, 2.0)


@pytest.fixture
def recorded(small_file, tmp_path, capsys):
    """The folder of a run whose losses are made to be 10 / seconds, and its accuracies to grow."""
    constant = ["--optimizer", "sgd", "--set", "optimizers.sgd.schedule=constant"]
    assert main(["run", str(small_file), *constant, "--runs-dir", str(tmp_path / "runs")]) == 0
    (folder,) = (tmp_path / "runs/small").iterdir()
    record(folder, [10 / max(i, 1) for i in range(41)])
    capsys.readouterr()
    return folder


def record(folder, losses):
    lines = [
        {"step": i, "seconds": float(i), "examples": i, "train_loss": loss, "test_accuracy": 0.1 + 0.02 * i}
        for i, loss in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_the_command_marks_what_it_has_not_measured(recorded, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "figure.png"
    assert main(["extrapolate", str(recorded), "--target", "0.05", "--figure", str(figure)]) == 0
    measured, two, four, drawn = capsys.readouterr().out.splitlines()
    assert measured == "measured: train loss 0.25 after 40 s"
    for line in (two, four):
        assert line.startswith("extrapolated, not measured: 0.05 after 3 min, 5 times as far")
    assert drawn == f"figure: {figure}"
    assert figure.stat().st_size > 10_000


def test_a_target_that_was_reached_is_no_extrapolation(recorded, capsys):
    assert main(["extrapolate", str(recorded), "--target", "0.5", "--axis", "examples"]) == 0
    assert capsys.readouterr().out == "train loss 0.5 was reached after 20 examples: measured\n"


def test_a_prediction_in_the_past_is_none(recorded, capsys):
    record(recorded, [3.0] * 20 + [1.0, 0.6, *[0.5] * 19])
    assert main(["extrapolate", str(recorded), "--target", "0.49"]) == 0
    assert "extrapolated, not measured: no telling, for its fit lies below what was measured" in capsys.readouterr().out


def test_a_schedule_that_is_over_cannot_go_on(small_file, tmp_path, capsys):
    assert main(["run", str(small_file), "--optimizer", "sgd", "--runs-dir", str(tmp_path / "runs")]) == 0
    (folder,) = (tmp_path / "runs/small").iterdir()
    assert main(["extrapolate", str(folder), "--target", "0.1"]) == 2
    assert "its learning rate falls to zero over its budget" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure", "test_bleu"], "'test_bleu' is not recorded; there are test_accuracy, train_loss"),
        (["--measure", "test_accuracy", "--target", "0.99"], "test_accuracy was 0.1 at first, which is not above"),
        ([], "is not a run folder"),
    ],
)
def test_what_cannot_be_extrapolated_is_said(recorded, capsys, arguments, message):
    folder = recorded if arguments else recorded.parent
    assert main(["extrapolate", str(folder), "--target", "0.1", *arguments]) == 2
    assert message in capsys.readouterr().err
