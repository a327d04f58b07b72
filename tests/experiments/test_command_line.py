"""`python -m experiments`: what can be asked, and one message with exit code 2 for what cannot."""

import sys
from types import ModuleType

import pytest

from experiments.__main__ import main
from experiments.runs.recording import read_config, read_metrics, read_summary
from experiments.settings.config_file import load_config


def test_run_trains_and_leaves_a_complete_folder(small_file, tmp_path, capsys):
    code = main(["run", str(small_file), "--runs-dir", str(tmp_path), "--optimizer", "sgd", "--seed", "3"])
    folder = tmp_path / "small" / "sgd-seed3"
    assert code == 0
    assert {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "summary.json", "loss.png"} == {
        path.name for path in folder.iterdir()
    }
    assert read_config(folder) == load_config(small_file, ["optimizer=sgd", "seed=3"]).only("sgd")
    summary = read_summary(folder)
    assert summary["train_loss"] == read_metrics(folder)[-1]["train_loss"]
    assert f"test accuracy {summary['test_accuracy']:.2%} after 5 steps" in capsys.readouterr().out


def test_the_recorded_configuration_runs_again_to_the_same_metrics(small_file, tmp_path):
    assert main(["run", str(small_file), "--runs-dir", str(tmp_path), "--set", "optimizers.adam.b1=0.8"]) == 0
    folder = tmp_path / "small" / "adam-seed0"
    assert main(["run", str(folder / "config.yaml"), "--runs-dir", str(tmp_path)]) == 0
    first, second = (
        [row.get("loss") for row in read_metrics(tmp_path / "small" / name)] for name in ("adam-seed0", "adam-seed0-2")
    )
    assert first == second


def test_compare_takes_a_choice_of_optimizers(small_file, tmp_path, capsys):
    assert main(["compare", str(small_file), "--runs-dir", str(tmp_path), "--optimizers", "sgd", "adam"]) == 0
    printed = capsys.readouterr().out
    assert "comparison-seed0.png" in printed
    assert not (tmp_path / "small" / "hessian_free-seed0").exists()


def test_show_prints_the_whole_configuration_with_overrides(small_file, tmp_path, capsys):
    assert main(["show", str(small_file), "--set", "problem.l2=0.5", "--seed", "7"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(printed) == load_config(small_file, ["problem.l2=0.5", "seed=7"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "problm.l2=1"], "with the command line: problm: unknown key; did you mean 'problem'?"),
        (["--optimizer", "adm"], "optimizer: should be 'hessian_free', 'adam', 'adamw',"),
        (["--seed", "x"], "seed: should be a valid integer, got 'x'"),
        (["--set", "optimizers.adam.batches.gradient=500"], "gradient is 500, but there are 200 training examples"),
        (["--data-dir", "nowhere", "--set", "problem.data={name: mnist}"], "--data-dir is nowhere, which is not a"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_exit_code_2(small_file, tmp_path, capsys, arguments, message):
    assert main(["run", str(small_file), "--runs-dir", str(tmp_path / "runs"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_an_unknown_option_is_refused(small_file, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(small_file), "--lr", "3"])
    assert "unrecognized arguments: --lr 3" in capsys.readouterr().err


def test_a_diverged_run_has_exit_code_1(small_file, tmp_path):
    overrides = ["optimizers.adam={steps: 50, learning_rate: 1e38}", "problem.loss=squared_error"]
    assert main(["run", str(small_file), "--runs-dir", str(tmp_path), "--set", *overrides]) == 1


def test_bench_hands_its_arguments_on(monkeypatch):
    seen = []
    stand_in = ModuleType("experiments.benchmarks.command")
    stand_in.main = lambda argv: seen.append(argv)
    monkeypatch.setitem(sys.modules, "experiments.benchmarks.command", stand_in)
    assert main(["bench", "products", "--help", "--seed", "3"]) == 0
    assert seen == [["products", "--help", "--seed", "3"]]
